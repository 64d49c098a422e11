// Compares the engine with numbers that PyTorch computed in double precision
// (scripts/make_golden.py): logits, loss, every gradient, ten AdamW losses, Muon's update.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/memory.h"
#include "kernels/isa.h"
#include "kernels/optimizer.h"
#include "model/engine.h"
#include "tensor/safetensors.h"

namespace tessera {
namespace {

constexpr int64_t kBatch = 2, kLength = 24, kVocab = 96, kWidth = 32, kLayers = 2, kHeads = 4;

std::vector<double> HashedUniform(const std::string& name, int64_t count) {
  std::vector<double> out;
  const uint64_t seed = HashName(name);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = seed + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    out.push_back(static_cast<double>(z >> 40) / static_cast<double>(1 << 23) - 1.0);
  }
  return out;
}

ModelConfig GoldenModel(const std::string& name) {
  ModelConfig c;
  c.n_layers = kLayers;
  c.d_model = kWidth;
  c.n_heads = kHeads;
  c.vocab_size = kVocab;
  c.max_seq_len = 64;
  if (name == "gpt2") {
    c.family = "gpt2";
  } else if (name == "mpt") {
    c.positions = Positions::kAlibi;
    c.biases = false;
    c.activation = kernels::Activation::kGeluErf;
    c.qk_norm = kernels::QkNorm::kLayerNormFull;
    c.clip_qkv = 0.4;
  } else {
    c.positions = Positions::kRope;
    c.norm = kernels::NormKind::kRmsNorm;
    c.biases = false;
    c.tie_embeddings = false;
    c.family = name;
    if (name == "llama") {
      c.activation = kernels::Activation::kSilu;
      c.gated_ffn = true;
      c.n_kv_heads = 2;
      c.ffn_hidden = 88;
    } else {
      c.norm_gain = false;
      c.activation = kernels::Activation::kReluSquared;
      c.qk_norm = kernels::QkNorm::kRmsPerHead;
      c.qk_norm_gain = false;
      c.logit_softcap = 15;
      c.bigram_buckets = 64;
      c.sliding_window = 9;
    }
  }
  return c;
}

struct Batch {
  std::vector<int32_t> tokens, targets;
};

Batch MakeBatch(const std::string& name) {
  const std::vector<double> noise = HashedUniform(name, kBatch * (kLength + 1));
  Batch batch;
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t t = 0; t < kLength; ++t) {
      const auto id = [&](int64_t i) {
        return static_cast<int32_t>((noise[static_cast<size_t>(i)] + 1) / 2 * kVocab);
      };
      batch.tokens.push_back(id(b * (kLength + 1) + t));
      batch.targets.push_back(b == 0 && t == 3 ? -100 : id(b * (kLength + 1) + t + 1));
    }
  }
  return batch;
}

std::vector<float> Reference(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.header().Find(name);
  EXPECT_NE(entry, nullptr) << name;
  if (entry == nullptr) return {};
  std::vector<float> out(static_cast<size_t>(entry->bytes / 4));
  const auto bytes = file.data(*entry);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// Roundings along the longest path from weights to a gradient and back: per layer the reductions
// over the width (three norms' sums and three products), the head size, the keys and the MLP, twice
// (forward and backward), then the vocabulary and the tokens. Each step adds at most one unit
// roundoff of the tensor's largest value.
double Tolerance(const std::vector<float>& reference) {
  const double path = 2 * kLayers * (6.0 * kWidth + 8 + kLength + 4.0 * kWidth) + kVocab +
                      static_cast<double>(kBatch * kLength);
  double largest = 0;
  for (const float x : reference) largest = std::max(largest, std::abs(static_cast<double>(x)));
  return path * 0x1p-24 * largest + 1e-12;
}

void ExpectClose(const float* actual, const std::vector<float>& reference, const std::string& what) {
  const double tolerance = Tolerance(reference);
  double worst = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(actual[i]) -
                                     static_cast<double>(reference[i])));
  }
  EXPECT_LE(worst, tolerance) << what;
}

class GoldenTest : public testing::TestWithParam<std::tuple<std::string, kernels::Isa>> {
 protected:
  void SetUp() override {
    before_ = kernels::ActiveIsa();
    kernels::SetActiveIsa(std::get<1>(GetParam()));
  }
  void TearDown() override { kernels::SetActiveIsa(before_); }
  kernels::Isa before_ = kernels::Isa::kGeneric;
};

TEST_P(GoldenTest, MatchesPyTorch) {
  const std::string name = std::get<0>(GetParam());
  auto file = SafetensorsFile::Open(std::string(TESSERA_SOURCE_DIR "/tests/golden/") + name +
                                    ".safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message;
  ThreadPool pool(2);
  PlanOptions options;
  options.sequence_length = kLength;
  options.microbatch = options.global_batch = kBatch;
  options.num_threads = 2;
  options.loss_chunk_tokens = 20;  // an odd cut of the 48 rows
  auto plan = BuildPlan(GoldenModel(name), options);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  auto created = Engine::Create(*plan, pool);
  ASSERT_TRUE(created.ok()) << created.error().message;
  Engine& engine = **created;
  for (const Parameter& p : engine.parameters()) {
    const std::vector<double> noise = HashedUniform(name + "/" + p.spec.name, p.spec.size());
    for (int64_t i = 0; i < p.spec.size(); ++i) {
      const double x = noise[static_cast<size_t>(i)];
      p.value[i] = static_cast<float>(p.spec.kind == ParameterKind::kGain   ? 1.0 + 0.1 * x
                                      : p.spec.kind == ParameterKind::kBias ? 0.1 * x
                                                                            : 0.15 * x);
    }
  }
  engine.WeightsChanged();

  const LossOptions loss_options{.z_loss = name == "modern" ? 1e-2 : 0.0};
  Batch batch = MakeBatch(name + "/tokens/0");
  const auto step_batch = [&] {
    return StepBatch{kBatch, batch.tokens.data(), batch.targets.data(), nullptr};
  };
  std::vector<float> logits(kBatch * kLength * kVocab);
  engine.Logits(batch.tokens.data(), kBatch, logits.data());
  ExpectClose(logits.data(), Reference(*file, "logits"), "logits");

  const StepResult result = engine.ForwardBackward(step_batch(), loss_options, 0, 0);
  EXPECT_EQ(result.targets, kBatch * kLength - 1);
  const float loss = static_cast<float>(result.loss);
  ExpectClose(&loss, Reference(*file, "loss"), "loss");
  for (const Parameter& p : engine.parameters()) {
    ExpectClose(p.grad, Reference(*file, "grad." + p.spec.name), p.spec.name);
  }

  const std::vector<float> losses = Reference(*file, "adamw_losses");
  for (int64_t step = 1; step <= 10; ++step) {
    batch = MakeBatch(fmt::format("{}/tokens/{}", name, step));
    const StepResult now = engine.ForwardBackward(step_batch(), loss_options, 0, step);
    // Adam divides by the root of the second moment, so an early gradient near zero turns its
    // relative error (up to the tolerance of a gradient, about 1e-4 of the largest) into a step of
    // order lr in one weight; lr * that error * weights moves the loss by less than 1e-3.
    EXPECT_NEAR(now.loss, static_cast<double>(losses[static_cast<size_t>(step - 1)]), 1e-3)
        << "step " << step;
    UpdateOptions update;
    update.step = step;
    update.lr = 1e-2;
    update.weight_decay = 0.1;
    engine.Update(update);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         testing::Combine(testing::Values("gpt2", "mpt", "llama", "modern"),
                                          testing::ValuesIn(kernels::SupportedIsas())),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" +
                                  std::string(kernels::IsaName(std::get<1>(param.param)));
                         });

TEST(GoldenMuon, MatchesPyTorch) {
  auto file = SafetensorsFile::Open(TESSERA_SOURCE_DIR "/tests/golden/muon.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message;
  ThreadPool pool(2);
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{16, 40}, {40, 16}, {32, 32}};
  for (const auto& [rows, cols] : shapes) {
    const std::string shape = fmt::format("{}x{}", rows, cols);
    const int64_t size = rows * cols;
    std::vector<float> p, g(static_cast<size_t>(size)), buffer(static_cast<size_t>(size));
    for (const double x : HashedUniform("muon/p/" + shape, size)) p.push_back(static_cast<float>(x));
    auto workspace = MemoryRegion::Allocate(
        kernels::MuonWorkspaceBytes(rows, cols, 1, pool.num_threads()), "test", pool);
    ASSERT_TRUE(workspace.ok());
    for (int step = 0; step < 3; ++step) {
      const std::vector<double> noise = HashedUniform(fmt::format("muon/g/{}/{}", shape, step), size);
      for (size_t i = 0; i < g.size(); ++i) g[i] = static_cast<float>(noise[i]);
      const kernels::MuonArgs args{rows, cols, p.data(), g.data(), buffer.data()};
      kernels::MuonOptions options;
      options.lr = 0.02f;
      options.decay = 0.02f * 0.1f;
      options.scale = std::sqrt(std::max(1.0f, static_cast<float>(rows) / static_cast<float>(cols)));
      kernels::Muon(&args, 1, options, workspace->data(), pool);
    }
    // Newton-Schulz multiplies an error by at most |a| + |b| + |c| = 10.3 a step while singular
    // values are near 0; with products of length 40 that is far below 5 * 40 * 10 * 2^-24 of the
    // unit-norm update, here scaled by lr and taken three times.
    ExpectClose(p.data(), Reference(*file, "p." + shape), shape);
  }
}

}  // namespace
}  // namespace tessera
