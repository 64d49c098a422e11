// Inference against the training engine's forward pass, and the rules of generation.
#include "model/inference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/rng.h"
#include "model/engine.h"
#include "model/generation.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// Counts every allocation of the program.
void* operator new(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace tessera {
namespace {

constexpr int64_t kLength = 45;

struct Case {
  const char* name;
  const char* model;
  void (*change)(ModelConfig*);
};

ModelConfig ConfigOf(const Case& test) {
  auto config = NamedModel(test.model);
  EXPECT_TRUE(config.ok());
  config->vocab_size = 131;
  // Large enough that every part matters to the logits; kModern would begin with zeros.
  config->init = InitScheme::kNormal;
  config->init_std = 0.2;
  test.change(&*config);
  EXPECT_TRUE(CheckModelConfig(*config).empty());
  return *config;
}

std::vector<int32_t> Tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> tokens;
  const RngKey key{11, RngPurpose::kShuffle, 0};
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(key.Block(static_cast<uint64_t>(i))[0] %
                                          static_cast<uint32_t>(vocab)));
  }
  return tokens;
}

std::unique_ptr<Engine> MakeEngine(const ModelConfig& config, Precision precision,
                                   ThreadPool& pool) {
  PlanOptions options;
  options.sequence_length = kLength;
  options.precision = precision;
  options.training = false;
  options.num_threads = pool.num_threads();
  auto plan = BuildPlan(config, options);
  EXPECT_TRUE(plan.ok());
  auto engine = Engine::Create(*plan, pool);
  EXPECT_TRUE(engine.ok());
  (*engine)->InitializeWeights(7);
  // Gains start at one and biases at zero: values that would hide a forgotten one.
  for (const Parameter& p : (*engine)->parameters()) {
    if (p.spec.kind != ParameterKind::kGain && p.spec.kind != ParameterKind::kBias) continue;
    const RngKey key{5, RngPurpose::kInit, HashName(p.spec.name)};
    for (int64_t i = 0; i < p.spec.size(); ++i) {
      p.value[i] += 0.1f * key.Normal(static_cast<uint64_t>(i));
    }
  }
  (*engine)->WeightsChanged();
  return std::move(*engine);
}

std::unique_ptr<InferenceModel> MakeModel(const ModelConfig& config, InferenceOptions options,
                                          Engine& engine, ThreadPool& pool) {
  auto model = InferenceModel::Create(config, options, pool);
  EXPECT_TRUE(model.ok()) << model.error().message;
  CopyWeights(engine, model->get());
  return std::move(*model);
}

double RootMeanSquare(const std::vector<float>& values) {
  double sum = 0;
  for (const float v : values) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

class InferenceCases : public testing::TestWithParam<Case> {};

// The engine and inference differ in the order of sums only: products of at most four rows, and
// attention over the cache. A sum of K <= 128 terms differs by at most about 2 sqrt(K) 2^-24 of its
// size when rounding errors are independent: 1.4e-6. Two layers have about ten sums in sequence on
// the way to a logit, and the norms and soft caps between them may double an error each: 1e-4 of the
// logits' root mean square leaves a factor of about seven for the largest of 131 * 45 values.
TEST_P(InferenceCases, MatchTheEngineForAnyCutOfThePrompt) {
  const ModelConfig config = ConfigOf(GetParam());
  ThreadPool pool(2);
  const auto engine = MakeEngine(config, Precision::kFp32, pool);
  const std::vector<int32_t> tokens = Tokens(kLength, config.vocab_size);
  std::vector<float> expected(static_cast<size_t>(kLength * config.vocab_size));
  engine->Logits(tokens.data(), 1, expected.data());
  const double tolerance = 1e-4 * RootMeanSquare(expected);
  ASSERT_GT(tolerance, 0);

  struct Cut {
    int64_t chunk;
    std::vector<int64_t> pieces;  // lengths of the first calls; single tokens after them
  };
  for (const Cut& cut : {Cut{512, {}}, Cut{512, {kLength}}, Cut{16, {kLength}}, Cut{7, {20, 3}},
                         Cut{512, {1, 30, 2}}}) {
    const auto model = MakeModel(
        config, {.max_length = kLength, .prefill_chunk = cut.chunk}, *engine, pool);
    for (const int pass : {0, 1}) {  // the second one after a reset
      model->Reset();
      int64_t position = 0;
      for (size_t call = 0; position < kLength; ++call) {
        const int64_t count = call < cut.pieces.size() ? cut.pieces[call] : 1;
        const auto logits = model->Prefill(
            std::span(tokens).subspan(static_cast<size_t>(position), static_cast<size_t>(count)));
        ASSERT_TRUE(logits.ok()) << logits.error().message;
        position += count;
        ASSERT_EQ(model->position(), position);
        for (int64_t j = 0; j < config.vocab_size; ++j) {
          const size_t at = static_cast<size_t>((position - 1) * config.vocab_size + j);
          ASSERT_NEAR((*logits)[static_cast<size_t>(j)], expected[at], tolerance)
              << "position " << position - 1 << " token " << j << " chunk " << cut.chunk
              << " pass " << pass;
        }
      }
    }
  }
}

// bf16 rounds every activation to 2^-9 relative. About 12 roundings lie on a path through two
// layers (norm, qkv, attention, projection, norm, up, activation, down, and the stream), each
// independent: a difference of two evaluations is about sqrt(2 * 24) 2^-9 = 1.4% of the logits'
// root mean square;
// five times that bounds the largest of 6,000.
TEST_P(InferenceCases, Bf16FollowsTheBf16Engine) {
  const ModelConfig config = ConfigOf(GetParam());
  ThreadPool pool(2);
  const auto engine = MakeEngine(config, Precision::kAmpBf16, pool);
  const std::vector<int32_t> tokens = Tokens(kLength, config.vocab_size);
  std::vector<float> expected(static_cast<size_t>(kLength * config.vocab_size));
  engine->Logits(tokens.data(), 1, expected.data());
  const double tolerance = 0.07 * RootMeanSquare(expected);
  const auto model = MakeModel(config, {.max_length = kLength, .dtype = DType::kBf16}, *engine,
                               pool);
  for (int64_t position = 0; position < kLength; ++position) {
    const auto logits = model->Decode(tokens[static_cast<size_t>(position)]);
    ASSERT_TRUE(logits.ok());
    for (int64_t j = 0; j < config.vocab_size; ++j) {
      const size_t at = static_cast<size_t>(position * config.vocab_size + j);
      ASSERT_NEAR((*logits)[static_cast<size_t>(j)], expected[at], tolerance)
          << "position " << position << " token " << j;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Architectures, InferenceCases,
    testing::Values(Case{"gpt2", "gpt2-tiny", [](ModelConfig*) {}},
                    Case{"mpt", "mpt-tiny", [](ModelConfig*) {}},
                    Case{"mpt_qk_ln_clip", "mpt-tiny",
                         [](ModelConfig* c) {
                           c->qk_norm = kernels::QkNorm::kLayerNormFull;
                           c->clip_qkv = 0.7;
                           c->biases = true;
                           c->logit_scale = 0.5;
                         }},
                    Case{"llama", "llama-tiny", [](ModelConfig*) {}},
                    Case{"llama_window_softcap", "llama-tiny",
                         [](ModelConfig* c) {
                           c->sliding_window = 9;
                           c->attention_softcap = 4;
                           c->rotary_fraction = 0.5;
                           c->rope_interleaved = true;
                           c->softmax_scale = 0.2;
                         }},
                    Case{"modern", "modern-tiny", [](ModelConfig*) {}},
                    Case{"modern_bigram", "modern-tiny",
                         [](ModelConfig* c) {
                           c->bigram_buckets = 64;
                           c->qk_norm_gain = true;
                           c->logit_softcap = 5;
                         }},
                    Case{"no_positions", "gpt2-tiny",
                         [](ModelConfig* c) {
                           c->positions = Positions::kNone;
                           c->bigram_buckets = 32;
                         }}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Inference, BitsDoNotDependOnThreads) {
  const ModelConfig config = ConfigOf({"", "llama-tiny", [](ModelConfig*) {}});
  const std::vector<int32_t> tokens = Tokens(kLength, config.vocab_size);
  std::vector<std::vector<float>> outcomes;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const auto engine = MakeEngine(config, Precision::kFp32, pool);
    const auto model = MakeModel(config, {.max_length = kLength}, *engine, pool);
    ASSERT_TRUE(model->Prefill(std::span(tokens).first(30)).ok());
    const auto logits = model->Decode(tokens[30]);
    ASSERT_TRUE(logits.ok());
    outcomes.emplace_back(logits->begin(), logits->end());
  }
  EXPECT_EQ(outcomes[0], outcomes[1]);
  EXPECT_EQ(outcomes[0], outcomes[2]);
}

TEST(Inference, RefusesWhatDoesNotFitAndStaysUsable) {
  const ModelConfig config = ConfigOf({"", "gpt2-tiny", [](ModelConfig*) {}});
  ThreadPool pool(1);
  const auto too_long = InferenceModel::Create(config, {.max_length = 65}, pool);
  ASSERT_FALSE(too_long.ok());
  EXPECT_NE(too_long.error().message.find("65"), std::string::npos);
  EXPECT_NE(too_long.error().message.find("64"), std::string::npos);

  const auto engine = MakeEngine(config, Precision::kFp32, pool);
  const auto model = MakeModel(config, {.max_length = 4}, *engine, pool);
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
  EXPECT_FALSE(model->Prefill(tokens).ok());
  EXPECT_FALSE(model->Decode(131).ok());
  EXPECT_FALSE(model->Decode(-1).ok());
  EXPECT_EQ(model->position(), 0);
  EXPECT_TRUE(model->Prefill(std::span(tokens).first(4)).ok());
  EXPECT_FALSE(model->Decode(1).ok());
  model->Reset();
  EXPECT_TRUE(model->Decode(1).ok());
}

TEST(Inference, AlibiRunsBeyondTheTrainedLength) {
  const ModelConfig config = ConfigOf({"", "mpt-tiny", [](ModelConfig*) {}});
  ThreadPool pool(1);
  EXPECT_TRUE(InferenceModel::Create(config, {.max_length = 4 * config.max_seq_len}, pool).ok());
}

TEST(Inference, TokensAllocateNothing) {
  const ModelConfig config = ConfigOf({"", "modern-tiny", [](ModelConfig* c) {
                                         c->bigram_buckets = 64;
                                       }});
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto engine = MakeEngine(config, Precision::kFp32, pool);
    const auto model = MakeModel(config, {.max_length = kLength, .dtype = dtype}, *engine, pool);
    Sampler sampler({.top_k = 40, .top_p = 0.9, .min_p = 0.01, .repetition_penalty = 1.1},
                    config.vocab_size, kLength);
    const std::vector<int32_t> prompt = Tokens(9, config.vocab_size);
    const int64_t before = allocations.load();
    bool ok = model->Prefill(prompt).ok();
    int32_t token = 3;
    while (ok && model->position() < kLength) {
      sampler.Accept(token);
      const auto logits = model->Decode(token);
      const auto next = sampler.Sample(*logits, model->position());
      ok = next.ok();
      if (ok) token = *next;
    }
    EXPECT_TRUE(ok);
    EXPECT_EQ(allocations.load() - before, 0);
  }
}

class Generating : public testing::Test {
 protected:
  ThreadPool pool_{2};
  ModelConfig config_ = ConfigOf({"", "llama-tiny", [](ModelConfig*) {}});
  std::unique_ptr<Engine> engine_ = MakeEngine(config_, Precision::kFp32, pool_);
  std::unique_ptr<InferenceModel> model_ =
      MakeModel(config_, {.max_length = kLength, .prefill_chunk = 4}, *engine_, pool_);
  const std::vector<int32_t> prompt_ = Tokens(10, 131);
};

TEST_F(Generating, IsReproducibleAndFollowsTheSeed) {
  GenerationOptions options{.max_new_tokens = 20};
  options.sampler.seed = 1;
  const auto first = GenerateTokens(*model_, prompt_, options);
  const auto again = GenerateTokens(*model_, prompt_, options);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->tokens.size(), 20u);
  EXPECT_EQ(first->reason, FinishReason::kLength);
  EXPECT_EQ(first->tokens, again->tokens);
  options.sampler.seed = 2;
  EXPECT_NE(GenerateTokens(*model_, prompt_, options)->tokens, first->tokens);
}

TEST_F(Generating, GreedyTakesTheEnginesMostProbableToken) {
  GenerationOptions options{.max_new_tokens = 1};
  options.sampler.temperature = 0;
  std::vector<int32_t> padded = prompt_;
  padded.resize(kLength, 0);
  std::vector<float> logits(static_cast<size_t>(kLength * config_.vocab_size));
  engine_->Logits(padded.data(), 1, logits.data());
  const auto row = logits.begin() + 9 * config_.vocab_size;
  const auto best = std::max_element(row, row + config_.vocab_size) - row;
  const auto result = GenerateTokens(*model_, prompt_, options);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->tokens, std::vector<int32_t>{static_cast<int32_t>(best)});
}

// A model that was trained with document_mask: what stands before the last begin of a document must
// not count, as in the engine, whose attention stays inside it. Rotary positions are relative, so
// the logits are those of the document alone up to the order of sums (see the tolerance above).
TEST_F(Generating, DocumentsDoNotSeeEachOther) {
  constexpr int32_t kBegin = 5;
  ModelConfig config = config_;
  config.document_mask = true;
  const auto engine = MakeEngine(config, Precision::kFp32, pool_);
  const auto model = MakeModel(config, {.max_length = kLength}, *engine, pool_);
  std::vector<int32_t> tokens = Tokens(kLength, config.vocab_size);
  std::replace(tokens.begin(), tokens.end(), kBegin, kBegin + 1);
  tokens[9] = tokens[20] = kBegin;
  std::vector<int32_t> targets(tokens.begin() + 1, tokens.end()), starts;
  targets.push_back(-1);
  for (int32_t i = 0; i < kLength; ++i) starts.push_back(i < 9 ? 0 : i < 20 ? 9 : 20);
  std::vector<float> nll(static_cast<size_t>(kLength));
  engine->Evaluate({1, tokens.data(), targets.data(), starts.data()}, nll.data());
  const auto document = LastDocument(tokens, kBegin);
  ASSERT_EQ(document.size(), static_cast<size_t>(kLength - 20));
  EXPECT_EQ(document.front(), kBegin);
  EXPECT_EQ(LastDocument(document.subspan(1), kBegin).size(), document.size() - 1) << "none begins";
  EXPECT_EQ(LastDocument(tokens, std::nullopt).size(), tokens.size());
  for (size_t i = 0; i + 1 < document.size(); ++i) {
    const auto logits = model->Prefill(document.subspan(i, 1));
    ASSERT_TRUE(logits.ok());
    double sum = 0;
    for (const float logit : *logits) sum += std::exp(static_cast<double>(logit));
    const double want = static_cast<double>(nll[20 + i]);
    const double got =
        std::log(sum) - static_cast<double>((*logits)[static_cast<size_t>(document[i + 1])]);
    EXPECT_NEAR(got, want, 1e-4 * (1 + std::abs(want))) << i;
  }

  GenerationOptions options{.max_new_tokens = 8};
  options.sampler.temperature = 0;
  const auto alone = GenerateTokens(*model, document.first(8), options);
  options.document_start = kBegin;
  const auto after_others = GenerateTokens(*model, std::span(tokens).first(28), options);
  ASSERT_TRUE(alone.ok() && after_others.ok());
  EXPECT_EQ(after_others->tokens, alone->tokens);

  // Where the model itself draws the token, what follows is that of a fresh document.
  const int32_t drawn = alone->tokens[0];
  options.document_start = drawn;
  std::vector<int32_t> prompt(document.begin(), document.begin() + 8);
  std::replace(prompt.begin(), prompt.end(), drawn, drawn + 1);
  const auto before = GenerateTokens(*model, prompt, {.sampler = options.sampler, .max_new_tokens = 1});
  options.document_start = before->tokens[0];
  const auto crossed = GenerateTokens(*model, prompt, options);
  options.max_new_tokens = 7;
  const std::vector<int32_t> fresh = {before->tokens[0]};
  const auto restarted = GenerateTokens(*model, fresh, options);
  ASSERT_TRUE(crossed.ok() && restarted.ok());
  EXPECT_EQ(std::vector<int32_t>(crossed->tokens.begin() + 1, crossed->tokens.end()),
            restarted->tokens);
}

TEST_F(Generating, EndsForEachReason) {
  GenerationOptions options{.max_new_tokens = 1000};
  options.sampler.temperature = 0;
  const auto full = GenerateTokens(*model_, prompt_, options);
  ASSERT_TRUE(full.ok());
  EXPECT_EQ(full->reason, FinishReason::kContext);
  // The last drawn token needs no place in the cache.
  EXPECT_EQ(static_cast<int64_t>(full->tokens.size()), kLength - 10 + 1);

  const int32_t stop = full->tokens[3];
  const auto place = std::find(full->tokens.begin(), full->tokens.end(), stop);
  options.stop_token = stop;
  const auto stopped = GenerateTokens(*model_, prompt_, options);
  EXPECT_EQ(stopped->reason, FinishReason::kStopToken);
  EXPECT_EQ(stopped->tokens, std::vector<int32_t>(full->tokens.begin(), place));

  options.stop_token.reset();
  int64_t seen = 0;
  const auto cut = GenerateTokens(*model_, prompt_, options, [&](std::optional<int32_t> token) {
    return !token || ++seen < 5;
  });
  EXPECT_EQ(cut->reason, FinishReason::kStopped);
  EXPECT_EQ(cut->tokens, std::vector<int32_t>(full->tokens.begin(), full->tokens.begin() + 5));

  const auto early = GenerateTokens(*model_, prompt_, options,
                                    [](std::optional<int32_t> token) { return token.has_value(); });
  EXPECT_EQ(early->reason, FinishReason::kStopped);
  EXPECT_TRUE(early->tokens.empty());
}

TEST_F(Generating, NeverDrawsOutsideTheTokenizersVocabulary) {
  GenerationOptions options{.max_new_tokens = 30, .vocab_size = 5};
  options.sampler.temperature = 3;
  const auto result = GenerateTokens(*model_, prompt_, options);
  ASSERT_TRUE(result.ok());
  for (const int32_t token : result->tokens) EXPECT_LT(token, 5);
}

TEST_F(Generating, RefusesBadInput) {
  EXPECT_FALSE(GenerateTokens(*model_, {}, {}).ok());
  GenerationOptions options;
  options.sampler.top_p = 0;
  EXPECT_FALSE(GenerateTokens(*model_, prompt_, options).ok());
  EXPECT_FALSE(GenerateTokens(*model_, Tokens(kLength + 1, 131), {}).ok());
}

}  // namespace
}  // namespace tessera
