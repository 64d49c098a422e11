// The time of a step, from steps: where the rates alone leave out what an engine does around its
// products (caches between ops, small shapes, start of parallel regions), a short run does not.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "base/threads.h"
#include "model/engine.h"
#include "model/layout.h"
#include "model/plan.h"
#include "model/program.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kWholeStepSeconds = 1.0;    // longer steps are measured on one block
constexpr double kOneBlockSeconds = 2.0;     // longer ones are estimated from the rates
constexpr double kProbeBudgetSeconds = 3.0;  // of all measured steps together
constexpr int64_t kProbeTokens = 2048;
constexpr int64_t kProbeVocabulary = 8192;

double Real(int64_t value) { return static_cast<double>(value); }

// A batch of random tokens, and steps over it.
class Steps {
 public:
  Steps(const Plan& plan, ThreadPool& pool) : length_(plan.options.sequence_length) {
    Result<std::unique_ptr<Engine>> engine = Engine::Create(plan, pool);
    if (!engine.ok()) throw ErrorException(engine.error());
    engine_ = std::move(engine).value();
    engine_->InitializeWeights(1);
    sequences_ = plan.options.global_batch;
    const uint64_t vocab = static_cast<uint64_t>(plan.config.vocab_size);
    const RngKey key{1, RngPurpose::kCalibration, 0};
    tokens_.resize(static_cast<size_t>(sequences_ * length_));
    for (size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<int32_t>(key.Block(i)[0] % vocab);
    }
  }
  Engine& engine() { return *engine_; }

  double Run() {
    const Clock::time_point start = Clock::now();
    const StepBatch batch{sequences_, tokens_.data(), tokens_.data(), nullptr};
    engine_->ForwardBackward(batch, {}, 1, ++step_);
    UpdateOptions update;
    update.step = step_;
    update.grad_clip = 1;
    update.lr = 1e-4;
    update.muon_lr = 1e-3;
    engine_->Update(update);
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  int64_t length_, sequences_ = 0, step_ = 0;
  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> tokens_;
};

int RepeatsFor(double seconds) {
  return static_cast<int>(std::clamp(kProbeBudgetSeconds / std::max(seconds, 1e-6), 3.0, 20.0));
}

// How many of n measurements count: the faster half, as a pause of the machine is not the step's.
size_t Counted(size_t n) { return (n + 1) / 2; }

double MeasureWholeStep(const Plan& plan, ThreadPool& pool) {
  Steps steps(plan, pool);
  std::vector<double> seconds(static_cast<size_t>(RepeatsFor(steps.Run())));
  for (double& s : seconds) s = steps.Run();
  std::sort(seconds.begin(), seconds.end());
  const size_t counted = Counted(seconds.size());
  double sum = 0;
  for (size_t i = 0; i < counted; ++i) sum += seconds[i];
  return sum / static_cast<double>(counted);
}

// Parameters that AdamW or Lion updates, and all.
struct Elements {
  double vectors = 0, all = 0;
};
Elements CountElements(const Plan& plan) {
  const Layout layout = ComputeLayout(plan.config, plan.options, *plan.program);
  Elements elements;
  elements.all = elements.vectors = Real(layout.value_elements);
  for (const MuonBlock& block : layout.muon_blocks)
    elements.vectors -= Real(block.rows * block.cols);
  elements.vectors = std::max(elements.vectors, 1.0);
  return elements;
}

// The same model with one block, few tokens and a smaller vocabulary; each kind of op is then
// scaled by how much more of it the real step does.
double MeasureOneBlock(const Plan& plan, const Plan& small, ThreadPool& pool) {
  Steps steps(small, pool);
  steps.engine().EnableProfile(true);
  struct Measured {
    double seconds = 0;
    std::vector<Engine::OpTime> ops;
  };
  std::vector<Measured> measured(static_cast<size_t>(std::min(RepeatsFor(steps.Run()), 5)));
  steps.engine().TakeProfile();
  for (Measured& m : measured) {
    m.seconds = steps.Run();
    m.ops = steps.engine().TakeProfile();
  }
  std::sort(measured.begin(), measured.end(),
            [](const Measured& a, const Measured& b) { return a.seconds < b.seconds; });
  measured.resize(Counted(measured.size()));

  const double blocks = Real(plan.config.n_layers);
  const double rows = Real(plan.options.global_batch) / Real(small.options.global_batch);
  const double vocab = Real(plan.config.vocab_size) / Real(small.config.vocab_size);
  const Elements large = CountElements(plan), reduced = CountElements(small);
  const auto scale = [&](std::string_view name) {
    if (name == OpKindName(OpKind::kLoss)) return rows * vocab;
    if (name == OpKindName(OpKind::kEmbedding) || name == OpKindName(OpKind::kEmbeddingBackward)) {
      return rows;
    }
    // Two norms in a block and one behind the last.
    if (name == OpKindName(OpKind::kNorm) || name == OpKindName(OpKind::kNormBackward)) {
      return rows * (2 * blocks + 1) / 3;
    }
    if (name == kProfileOptimizer) return large.vectors / reduced.vectors;
    if (name == kProfileMuon) return blocks;
    if (name == kProfileGradientNorm) return large.all / reduced.all;
    return rows * blocks;
  };
  double total = 0;
  for (const Measured& m : measured) {
    double rest = m.seconds;  // what no op counts: clearing and merging of gradients
    for (const Engine::OpTime& op : m.ops) {
      total += op.seconds * scale(op.name);
      rest -= op.seconds;
    }
    total += std::max(rest, 0.0) * large.all / reduced.all;
  }
  return total / static_cast<double>(measured.size());
}

}  // namespace

StepEstimate MeasureStep(const Plan& plan, const MachineRates& rates, ThreadPool& pool) {
  StepEstimate estimate = EstimateStep(plan, rates);
  double seconds = 0;
  if (estimate.seconds <= kWholeStepSeconds) {
    seconds = MeasureWholeStep(plan, pool);
    estimate.basis = EstimateBasis::kWholeSteps;
  } else {
    ModelConfig config = plan.config;
    PlanOptions options = plan.options;
    config.n_layers = 1;
    config.vocab_size = std::min(config.vocab_size, kProbeVocabulary);
    options.microbatch =
        std::clamp<int64_t>(kProbeTokens / options.sequence_length, 1, options.microbatch);
    options.global_batch = options.microbatch;
    options.virtual_ranks = 1;
    const Result<Plan> small = BuildPlan(config, options);
    if (!small.ok() || EstimateStep(*small, rates).seconds > kOneBlockSeconds) return estimate;
    seconds = MeasureOneBlock(plan, *small, pool);
    estimate.basis = EstimateBasis::kOneBlock;
  }
  // The parts keep the shares that the rates give them.
  const double ratio = seconds / estimate.seconds;
  for (double* part : {&estimate.seconds, &estimate.gemm_seconds, &estimate.attention_seconds,
                       &estimate.elementwise_seconds, &estimate.optimizer_seconds}) {
    *part *= ratio;
  }
  estimate.tokens_per_s =
      Real(plan.options.global_batch * plan.options.sequence_length) / estimate.seconds;
  return estimate;
}

}  // namespace tessera
