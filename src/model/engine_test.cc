// The engine's contracts: same bits for any threads, micro-batch and recompute policy; the fixed
// tree over virtual ranks; no allocation in a step; gradients against finite differences.
#include "model/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "base/rng.h"

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

struct Data {
  std::vector<int32_t> tokens, targets;
};

Data MakeData(int64_t sequences, int64_t length, int64_t vocab, uint64_t seed) {
  Data data;
  const RngKey key{seed, RngPurpose::kShuffle, 0};
  for (int64_t i = 0; i < sequences * length; ++i) {
    data.tokens.push_back(static_cast<int32_t>(
        key.Block(static_cast<uint64_t>(i))[0] % static_cast<uint32_t>(vocab)));
    const bool ignored = i % 13 == 5;
    data.targets.push_back(ignored ? -100
                                   : static_cast<int32_t>(key.Block(static_cast<uint64_t>(i))[1] %
                                                          static_cast<uint32_t>(vocab)));
  }
  return data;
}

ModelConfig Small(std::string_view name) {
  auto config = NamedModel(name);
  EXPECT_TRUE(config.ok());
  config->vocab_size = 131;
  config->residual_dropout = 0.1;
  config->embedding_dropout = 0.1;
  config->attention_dropout = 0.1;
  return *config;
}

constexpr int64_t kSequences = 4, kLength = 21, kSteps = 3;

struct RunOptions {
  int threads = 1;
  int64_t microbatch = 1;
  int64_t virtual_ranks = 1;
  Recompute recompute = Recompute::kNone;
  Precision precision = Precision::kFp32;
  kernels::Compute compute = kernels::Compute::kF32;
  int64_t length = kLength;
  UpdateRule optimizer = UpdateRule::kAdamW;
};

struct Outcome {
  std::vector<float> weights;
  std::vector<double> losses;
  bool operator==(const Outcome&) const = default;
};

Outcome TrainSmall(const ModelConfig& config, const RunOptions& run) {
  ThreadPool pool(run.threads);
  PlanOptions options;
  options.sequence_length = run.length;
  options.global_batch = kSequences;
  options.microbatch = run.microbatch;
  options.virtual_ranks = run.virtual_ranks;
  options.recompute = run.recompute;
  options.precision = run.precision;
  options.compute = run.compute;
  options.optimizer = run.optimizer;
  options.num_threads = run.threads;
  auto plan = BuildPlan(config, options);
  EXPECT_TRUE(plan.ok()) << plan.error().message;
  auto engine = Engine::Create(*plan, pool);
  EXPECT_TRUE(engine.ok());
  (*engine)->InitializeWeights(7);
  Outcome outcome;
  for (int64_t step = 1; step <= kSteps; ++step) {
    const Data data = MakeData(kSequences, run.length, config.vocab_size, static_cast<uint64_t>(step));
    const StepBatch batch{kSequences, data.tokens.data(), data.targets.data(), nullptr};
    const StepResult result = (*engine)->ForwardBackward(batch, {.z_loss = 1e-4}, 3, step);
    EXPECT_TRUE(result.finite);
    outcome.losses.push_back(result.loss);
    outcome.losses.push_back(result.grad_norm);
    UpdateOptions update;
    update.step = step;
    update.lr = 3e-3;
    update.muon_lr = 2e-2;
    update.weight_decay = 0.1;
    update.grad_clip = 1.0;
    (*engine)->Update(update);
  }
  for (const Parameter& p : (*engine)->parameters()) {
    outcome.weights.insert(outcome.weights.end(), p.value, p.value + p.spec.size());
  }
  return outcome;
}

class EngineBits : public testing::TestWithParam<const char*> {};

TEST_P(EngineBits, DoNotDependOnThreadsMicrobatchOrRecompute) {
  const ModelConfig config = Small(GetParam());
  for (const Precision precision : {Precision::kFp32, Precision::kAmpBf16}) {
    const Outcome base = TrainSmall(config, {.precision = precision});
    for (const int threads : {2, 3}) {
      EXPECT_TRUE(base == TrainSmall(config, {.threads = threads, .precision = precision}))
          << threads << " threads";
    }
    for (const int64_t microbatch : {2, 4}) {
      EXPECT_TRUE(base == TrainSmall(config, {.threads = 2, .microbatch = microbatch,
                                              .precision = precision}))
          << "micro-batch " << microbatch;
    }
    for (const Recompute recompute :
         {Recompute::kActivation, Recompute::kNorm, Recompute::kBlock}) {
      EXPECT_TRUE(base == TrainSmall(config, {.threads = 2, .recompute = recompute,
                                              .precision = precision}))
          << RecomputeName(recompute);
    }
  }
}

TEST_P(EngineBits, VirtualRanksKeepTheirCutForAnyMicrobatch) {
  const ModelConfig config = Small(GetParam());
  const Outcome two = TrainSmall(config, {.virtual_ranks = 2});
  EXPECT_TRUE(two == TrainSmall(config, {.threads = 3, .microbatch = 2, .virtual_ranks = 2}));
  const Outcome four = TrainSmall(config, {.virtual_ranks = 4});
  EXPECT_TRUE(four == TrainSmall(config, {.threads = 2, .virtual_ranks = 4}));
  // Another cut is another order of summation: close, and recorded with the run.
  const Outcome one = TrainSmall(config, {});
  EXPECT_NEAR(one.losses[0], four.losses[0], 1e-12);
  EXPECT_NEAR(one.losses[1], four.losses[1], 1e-5 * one.losses[1]);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineBits,
                         testing::Values("gpt2-tiny", "mpt-tiny", "llama-tiny", "modern-tiny"),
                         [](const auto& param) {
                           std::string name = param.param;
                           name.erase(name.find('-'));
                           return name;
                         });

// Tables that are only looked up take no part in products; a tied embedding is also the head.
TEST(ModelConfig, ProductsLeaveOutLookups) {
  Result<ModelConfig> config = NamedModel("gpt2-124m");
  ASSERT_TRUE(config.ok());
  const double width = static_cast<double>(config->d_model);
  EXPECT_EQ(TrainFlopsPerToken(*config, 1024) - ProductFlopsPerToken(*config, 1024),
            6 * width * static_cast<double>(config->max_seq_len));
  config->tie_embeddings = false;
  config->bigram_buckets = 100;
  EXPECT_EQ(TrainFlopsPerToken(*config, 1024) - ProductFlopsPerToken(*config, 1024),
            6 * width * static_cast<double>(config->max_seq_len + config->vocab_size + 100));
}

// Products of bf16 as the processor multiplies them: lengths that are whole steps of its chain, and some
// that are not.
TEST(Engine, MultipliedInBf16BitsDoNotDependOnThreadsOrMicrobatch) {
  const ModelConfig config = Small("gpt2-tiny");
  for (const int64_t length : {kLength, kLength + 1, int64_t{32}}) {
    RunOptions run = {.precision = Precision::kAmpBf16,
                      .compute = kernels::Compute::kBf16,
                      .length = length};
    const Outcome base = TrainSmall(config, run);
    for (const int64_t microbatch : {1, 2, 4}) {
      run.threads = static_cast<int>(microbatch);
      run.microbatch = microbatch;
      EXPECT_TRUE(base == TrainSmall(config, run)) << length << " in passes of " << microbatch;
    }
  }
}

TEST(Engine, MuonBitsDoNotDependOnThreads) {
  const ModelConfig config = Small("modern-tiny");
  const Outcome base = TrainSmall(config, {.optimizer = UpdateRule::kMuon});
  for (const int threads : {2, 3}) {
    EXPECT_TRUE(base == TrainSmall(config, {.threads = threads, .optimizer = UpdateRule::kMuon}));
  }
}

TEST(Engine, StepAllocatesNothing) {
  ThreadPool pool(2);
  ModelConfig config = Small("modern-tiny");
  config.bigram_buckets = 64;
  for (const UpdateRule rule : {UpdateRule::kAdamW, UpdateRule::kMuon, UpdateRule::kLion}) {
    PlanOptions options;
    options.sequence_length = kLength;
    options.global_batch = kSequences;
    options.microbatch = 2;
    options.virtual_ranks = 2;
    options.precision = Precision::kAmpBf16;
    options.optimizer = rule;
    options.num_threads = 2;
    auto plan = BuildPlan(config, options);
    ASSERT_TRUE(plan.ok());
    auto engine = Engine::Create(*plan, pool);
    ASSERT_TRUE(engine.ok());
    (*engine)->InitializeWeights(7);
    const Data data = MakeData(kSequences, kLength, config.vocab_size, 1);
    const StepBatch batch{kSequences, data.tokens.data(), data.targets.data(), nullptr};
    // The second step is counted, into a timeline that is too short for it.
    OpProfile profile(100);
    for (int64_t step = 1; step <= 3; ++step) {
      (*engine)->SetProfile(step == 2 ? &profile : nullptr);
      const int64_t before = allocations.load();
      (*engine)->ForwardBackward(batch, {}, 0, step);
      UpdateOptions update;
      update.step = step;
      update.lr = update.muon_lr = 1e-3;
      (*engine)->Update(update);
      (*engine)->Evaluate(batch);
      EXPECT_EQ(allocations.load() - before, 0) << UpdateRuleName(rule) << " step " << step;
    }
  }
}

// d loss / d weight by central differences in fp32. The loss (about ln V = 5) is summed in double
// from fp32 rows, each with a relative error of about 2^-22; a step h = 1e-2 then gives a slope
// with an absolute error below 5 * 2^-22 / h + h^2 |f'''| ~ 3e-4.
TEST(Engine, GradientsMatchFiniteDifferences) {
  ThreadPool pool(2);
  for (const char* name : {"gpt2-tiny", "mpt-tiny", "llama-tiny", "modern-tiny"}) {
    ModelConfig config = Small(name);
    config.residual_dropout = config.embedding_dropout = config.attention_dropout = 0.2;
    config.sliding_window = 7;
    config.document_mask = true;
    config.logit_softcap = 10;
    config.logit_scale = 0.5;
    config.attention_softcap = 5;
    if (config.positions == Positions::kRope) config.bigram_buckets = 32;
    config.init = InitScheme::kNormal;
    config.init_std = 0.2;
    PlanOptions options;
    options.sequence_length = kLength;
    options.global_batch = options.microbatch = 2;
    options.num_threads = 2;
    auto plan = BuildPlan(config, options);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    auto engine = Engine::Create(*plan, pool);
    ASSERT_TRUE(engine.ok());
    (*engine)->InitializeWeights(7);
    const Data data = MakeData(2, kLength, config.vocab_size, 1);
    std::vector<int32_t> segments(2 * kLength);
    for (int64_t i = 0; i < 2 * kLength; ++i) segments[static_cast<size_t>(i)] = i % kLength < 9 ? 0 : 9;
    const StepBatch batch{2, data.tokens.data(), data.targets.data(), segments.data()};
    const LossOptions loss{.label_smoothing = 0.1, .z_loss = 0.01};
    (*engine)->ForwardBackward(batch, loss, 5, 1);
    struct Probe {
      Parameter parameter;
      int64_t index;
      double gradient;
    };
    std::vector<Probe> probes;
    for (const Parameter& p : (*engine)->parameters()) {
      int64_t largest = 0;
      for (int64_t i = 0; i < p.spec.size(); ++i) {
        if (std::abs(p.grad[i]) > std::abs(p.grad[largest])) largest = i;
      }
      probes.push_back({p, largest, static_cast<double>(p.grad[largest])});
    }
    for (const Probe& probe : probes) {
      float& weight = probe.parameter.value[probe.index];
      const float saved = weight;
      const double h = 1e-2;
      double slope = 0;
      for (const double sign : {1.0, -1.0}) {
        weight = saved + static_cast<float>(sign * h);
        (*engine)->WeightsChanged();
        slope += sign * (*engine)->ForwardBackward(batch, loss, 5, 1).loss / (2 * h);
      }
      weight = saved;
      EXPECT_NEAR(slope, probe.gradient, 1e-3 + 0.02 * std::abs(probe.gradient))
          << name << " " << probe.parameter.spec.name;
    }
  }
}

// A step's gradients replace those of the step before: of tied and of separate tables, from one pass or
// several, of one virtual rank or several.
TEST(Engine, GradientsStartAnewEachStep) {
  ThreadPool pool(2);
  for (const char* name : {"gpt2-tiny", "llama-tiny", "modern-tiny"}) {
    const ModelConfig config = Small(name);
    for (const int64_t ranks : {1, 2}) {
      PlanOptions options;
      options.sequence_length = kLength;
      options.global_batch = kSequences;
      options.virtual_ranks = ranks;
      options.precision = ranks == 1 ? Precision::kFp32 : Precision::kAmpBf16;
      options.num_threads = 2;
      auto plan = BuildPlan(config, options);
      ASSERT_TRUE(plan.ok()) << plan.error().message;
      auto engine = Engine::Create(*plan, pool);
      ASSERT_TRUE(engine.ok());
      (*engine)->InitializeWeights(7);
      const Data first = MakeData(kSequences, kLength, config.vocab_size, 1);
      const Data other = MakeData(kSequences, kLength, config.vocab_size, 2);
      const auto gradients = [&](const Data& data) {
        const StepBatch batch{kSequences, data.tokens.data(), data.targets.data(), nullptr};
        (*engine)->ForwardBackward(batch, {}, 5, 1);
        std::vector<float> all;
        for (const Parameter& p : (*engine)->parameters()) {
          all.insert(all.end(), p.grad, p.grad + p.spec.size());
        }
        return all;
      };
      const std::vector<float> want = gradients(first);
      EXPECT_NE(want, gradients(other));
      EXPECT_EQ(want, gradients(first)) << name << " with " << ranks << " virtual ranks";
    }
  }
}

TEST(Engine, RefusesTokensOutsideTheVocabulary) {
  ThreadPool pool(1);
  ModelConfig config = Small("gpt2-tiny");
  PlanOptions options;
  options.sequence_length = kLength;
  options.global_batch = options.microbatch = 1;
  auto plan = BuildPlan(config, options);
  ASSERT_TRUE(plan.ok());
  auto engine = Engine::Create(*plan, pool);
  ASSERT_TRUE(engine.ok());
  Data data = MakeData(1, kLength, config.vocab_size, 1);
  data.tokens[4] = 131;
  const StepBatch batch{1, data.tokens.data(), data.targets.data(), nullptr};
  EXPECT_THROW((*engine)->ForwardBackward(batch, {}, 0, 1), ErrorException);
}

// Two updates from the same point: fp32 and bf16 differ by roundings of 2^-9 relative in weights
// and activations; over 200 steps losses stay within that relative distance of each other.
TEST(Engine, Bf16FollowsFp32Over200Steps) {
  ModelConfig config = Small("gpt2-tiny");
  config.residual_dropout = config.embedding_dropout = config.attention_dropout = 0;
  std::vector<double> losses[2];
  for (const int amp : {0, 1}) {
    ThreadPool pool(2);
    PlanOptions options;
    options.sequence_length = kLength;
    options.global_batch = options.microbatch = kSequences;
    options.num_threads = 2;
    options.precision = amp != 0 ? Precision::kAmpBf16 : Precision::kFp32;
    auto plan = BuildPlan(config, options);
    ASSERT_TRUE(plan.ok());
    auto engine = Engine::Create(*plan, pool);
    ASSERT_TRUE(engine.ok());
    (*engine)->InitializeWeights(7);
    for (int64_t step = 1; step <= 200; ++step) {
      const Data data = MakeData(kSequences, kLength, config.vocab_size,
                                 static_cast<uint64_t>(step % 5));
      const StepBatch batch{kSequences, data.tokens.data(), data.targets.data(), nullptr};
      losses[amp].push_back((*engine)->ForwardBackward(batch, {}, 0, step).loss);
      UpdateOptions update;
      update.step = step;
      update.lr = 1e-3;
      update.grad_clip = 1;
      (*engine)->Update(update);
    }
  }
  EXPECT_LT(losses[0].back(), 0.98 * losses[0].front());  // it learns
  // Steps of the two runs oscillate apart in sign, so windows of 20 steps are compared. About 20
  // roundings of a hidden value lie on the way to a logit, each 2^-9 relative and independent:
  // sqrt(20) * 2^-9 = 0.9% of the loss.
  for (size_t first = 0; first < losses[0].size(); first += 20) {
    double mean[2] = {0, 0};
    for (size_t i = first; i < first + 20; ++i) {
      for (const size_t amp : {0, 1}) mean[amp] += losses[amp][i] / 20;
    }
    EXPECT_NEAR(mean[1], mean[0], 0.009 * mean[0]) << "from step " << first + 1;
  }
}

}  // namespace
}  // namespace tessera
