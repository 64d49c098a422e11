// `tessera bench train`: tokens per second of a whole training step beside the best rate of a large
// matrix product measured in the same run.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/json.h"
#include "base/log.h"
#include "base/median.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/threads.h"
#include "cli/commands.h"
#include "cli/product_limit.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"
#include "model/engine.h"
#include "model/plan.h"
#include "model/profile.h"

namespace tessera::cli {

namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  std::string model = "gpt2-124m";
  std::string precision = "amp_bf16";
  std::string optimizer = "adamw";
  std::string recompute = "none";
  int64_t length = 1024, batch = 4, microbatch = 0;
  int64_t steps = 3, vocab = 0;
  int64_t layers = 0, width = 0, heads = 0;
  int threads = 0;
  bool json = false, profile = false, turns = false;
  std::string trace;
};

Result<Plan> PlanFor(const Options& o, ThreadPool& pool) {
  TESSERA_ASSIGN(ModelConfig config, NamedModel(o.model));
  if (o.vocab > 0) config.vocab_size = o.vocab;
  if (o.layers > 0) config.n_layers = o.layers;
  if (o.width > 0) config.d_model = o.width;
  if (o.heads > 0) config.n_heads = o.heads;
  config.max_seq_len = std::max(config.max_seq_len, o.length);
  PlanOptions options;
  options.sequence_length = o.length;
  options.global_batch = o.batch;
  options.num_threads = pool.num_threads();
  if (o.precision == "amp_bf16") {
    options.precision = Precision::kAmpBf16;
    options.compute = kernels::MeasuredCompute().compute;
  }
  options.optimizer = o.optimizer == "muon"   ? UpdateRule::kMuon
                      : o.optimizer == "lion" ? UpdateRule::kLion
                                              : UpdateRule::kAdamW;
  options.recompute = o.recompute == "block"        ? Recompute::kBlock
                      : o.recompute == "norm"       ? Recompute::kNorm
                      : o.recompute == "activation" ? Recompute::kActivation
                                                    : Recompute::kNone;
  const int64_t available = ReadMemoryInfo().available_bytes;
  if (o.microbatch > 0) {
    options.microbatch = o.microbatch;
  } else {
    TESSERA_ASSIGN(options.microbatch, ChooseMicrobatch(config, options, available));
  }
  TESSERA_ASSIGN(Plan plan, BuildPlan(config, options));
  TESSERA_TRY(CheckFits(plan, available));
  return plan;
}

// Training steps over one batch of random tokens, and the rate of the best product around them.
class Steps {
 public:
  // `limit` and `op_limits` are null where steps and ops are not held against theirs.
  Steps(const Plan& plan, Engine& engine, ProductLimit* limit, OpLimitsMeter* op_limits,
        ThreadPool& pool)
      : plan_(plan), engine_(engine), limit_(limit), op_limits_(op_limits), pool_(pool) {
    const size_t count = static_cast<size_t>(tokens_per_step());
    const uint32_t vocab = static_cast<uint32_t>(plan.config.vocab_size);
    const RngKey key{2, RngPurpose::kCalibration, 0};
    for (size_t i = 0; i < count; ++i) {
      const auto words = key.Block(i);
      tokens_.push_back(static_cast<int32_t>(words[0] % vocab));
      targets_.push_back(static_cast<int32_t>(words[1] % vocab));
    }
  }

  int64_t tokens_per_step() const {
    return plan_.options.global_batch * plan_.options.sequence_length;
  }

  // Not counted.
  void WarmUp() { RunStep(); }

  // Counts `count` steps together as one measurement beside the product's rate before and after.
  // A measurement that `follows` another directly shares the rate between the two. Returns seconds.
  double Measure(int64_t count, bool follows) {
    if (limit_ != nullptr && !follows) last_limit_ = limit_->Measure(pool_);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      seconds_.push_back(RunStep());
      sum += seconds_.back();
    }
    if (limit_ != nullptr) {
      const double next = limit_->Measure(pool_);
      const double flops = ProductFlopsPerToken(plan_.config, plan_.options.sequence_length) *
                           static_cast<double>(tokens_per_step() * count);
      paired_.push_back(flops * 1e-9 / sum / (0.5 * (last_limit_ + next)));
      last_limit_ = next;
    }
    unmeasured_seconds_ += sum;
    if (unmeasured_seconds_ >= kLimitsEvery) MeasureOpLimits();
    return sum;
  }

  void MeasureOpLimits() {
    if (op_limits_ != nullptr) op_limits_->Measure();
    unmeasured_seconds_ = 0;
  }

  const std::vector<double>& seconds() const { return seconds_; }  // of each step
  const std::vector<double>& paired() const { return paired_; }    // fraction of each measurement
  double loss() const { return loss_; }
  double seconds_unmeasured() const { return unmeasured_seconds_; }  // of steps since MeasureOpLimits

 private:
  double RunStep() {
    const StepBatch batch{plan_.options.global_batch, tokens_.data(), targets_.data(), nullptr};
    const Clock::time_point start = Clock::now();
    ++step_;
    loss_ = engine_.ForwardBackward(batch, {}, 1, step_).loss;
    UpdateOptions update;
    update.step = step_;
    update.lr = update.muon_lr = 1e-4;
    update.grad_clip = 1;
    engine_.Update(update);
    return SecondsSince(start);
  }

  const Plan& plan_;
  Engine& engine_;
  ProductLimit* limit_;
  OpLimitsMeter* op_limits_;
  ThreadPool& pool_;
  std::vector<int32_t> tokens_, targets_;
  std::vector<double> seconds_, paired_;
  double last_limit_ = 0, loss_ = 0;
  static constexpr double kLimitsEvery = 6;  // seconds of steps
  double unmeasured_seconds_ = 0;
  int64_t step_ = 0;
};

// Says that it is ready, then runs the number of steps on each line of the standard input and
// prints their seconds, until the input ends.
Status TakeTurns(Steps* steps) {
  const auto say = [](std::string_view line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  };
  say(R"({"ready": true})");
  std::string line;
  while (std::getline(std::cin, line)) {
    int64_t count = 0;
    const char* end = line.data() + line.size();
    const auto [rest, error] = std::from_chars(line.data(), end, count);
    if (error != std::errc() || rest != end || count < 1 || count > 10000) {
      return InvalidArgument(
          fmt::format("bench train --turns wants a number of steps from 1 to 10000 on each line of "
                      "the standard input, not '{}'",
                      line));
    }
    say(fmt::format(R"({{"steps": {}, "seconds": {}}})", count, steps->Measure(count, false)));
  }
  if (steps->seconds().empty()) {
    return InvalidArgument("the standard input of bench train --turns ended before the first turn");
  }
  return {};
}

Status Run(const Options& o) {
  ThreadPool pool(o.threads);
  TESSERA_ASSIGN(const Plan plan, PlanFor(o, pool));
  const DType dtype = o.precision == "amp_bf16" ? DType::kBf16 : DType::kF32;
  // Beside another program the process holds the job alone: its peak memory is compared too.
  std::optional<ProductLimit> limit;
  if (!o.turns || o.profile) {
    TESSERA_ASSIGN(limit, ProductLimit::Create(dtype, pool));
  }
  const int64_t rss_before = ResidentBytes();
  TESSERA_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Create(plan, pool));
  engine->InitializeWeights(1);
  OpLimitsMeter op_limits(pool);
  Steps steps(plan, *engine, limit ? &*limit : nullptr, o.profile ? &op_limits : nullptr, pool);
  constexpr int64_t kTraceEvents = int64_t{1} << 18;
  OpProfile profile(o.trace.empty() ? 0 : kTraceEvents);
  if (o.profile || !o.trace.empty()) engine->SetProfile(&profile);
  steps.WarmUp();
  profile.Reset();
  steps.MeasureOpLimits();
  if (o.turns) {
    TESSERA_TRY(TakeTurns(&steps));
  } else {
    for (int64_t step = 0; step < o.steps; ++step) steps.Measure(1, step > 0);
  }
  const std::vector<double>& seconds = steps.seconds();
  const int64_t count = steps.tokens_per_step();
  const double flops = ProductFlopsPerToken(plan.config, o.length);
  const double median = Median(seconds);
  const double tokens_per_s = static_cast<double>(count) / median;
  const double gflops = tokens_per_s * flops * 1e-9;
  const int64_t rss = ResidentBytes();
  Json profile_json;
  if (o.profile) {
    if (steps.seconds_unmeasured() > 0) steps.MeasureOpLimits();
    double sum = 0;
    for (const double one : seconds) sum += one;
    profile_json = ProfileToJson(profile, op_limits.Limits(limit->best_gflops()),
                                 static_cast<int64_t>(seconds.size()),
                                 sum / static_cast<double>(seconds.size()));
  }
  if (!o.trace.empty()) {
    TESSERA_TRY(profile.WriteTrace(o.trace));
    if (profile.dropped_events() > 0) {
      LogWarning("{} holds the first {} calls; {} later ones are left out: use fewer --steps",
                 o.trace, kTraceEvents, profile.dropped_events());
    }
  }
  if (o.json) {
    Json out = {{"model", o.model},
                {"parameters", CountParameters(plan.config)},
                {"sequence_length", o.length},
                {"batch", o.batch},
                {"microbatch", plan.options.microbatch},
                {"precision", o.precision},
                {"optimizer", o.optimizer},
                {"compute", plan.options.compute == kernels::Compute::kBf16 ? "bf16" : "fp32"},
                {"isa", kernels::IsaName(kernels::ActiveIsa())},
                {"threads", pool.num_threads()},
                {"processor", ThisCpu().brand},
                {"steps", seconds.size()},
                {"step_seconds", median},
                {"tokens_per_s", tokens_per_s},
                {"flops_per_token", flops},
                {"gflops", gflops},
                {"planned_bytes", plan.memory.total()},
                {"resident_bytes", rss - rss_before},
                {"loss", steps.loss()}};
    if (limit) {
      out["gemm_gflops"] = limit->best_gflops();
      out["fraction"] = gflops / limit->best_gflops();
      out["paired_fraction"] = Median(steps.paired());
    }
    if (o.profile) out["profile"] = profile_json;
    fmt::print("{}\n", JsonText(out, 2));
    return {};
  }
  fmt::print("{}: {} parameters, batch {} x {}, {}, {} threads, {}\n", o.model,
             FormatCount(static_cast<double>(CountParameters(plan.config))), o.batch, o.length,
             o.precision, pool.num_threads(), kernels::IsaName(kernels::ActiveIsa()));
  fmt::print("  {:<22} {:>10.1f}\n", "tokens/s", tokens_per_s);
  fmt::print("  {:<22} {:>10.1f}\n", "GFLOP/s", gflops);
  if (limit) {
    fmt::print("  {:<22} {:>10.1f}\n", "best product GFLOP/s", limit->best_gflops());
    fmt::print("  {:<22} {:>10.3f}\n", "fraction", gflops / limit->best_gflops());
    fmt::print("  {:<22} {:>10.3f}\n", "of the rate around it", Median(steps.paired()));
  }
  fmt::print("  {:<22} {:>10}\n", "planned memory", FormatBytes(plan.memory.total()));
  if (o.profile) fmt::print("\n{}", FormatProfile(profile_json));
  if (!o.trace.empty()) fmt::print("the timeline of the steps is in {}\n", o.trace);
  return {};
}

}  // namespace

void RegisterBenchTrain(Command bench, Outcome& outcome) {
  Command command = bench.AddCommand(
      "train", "Tokens per second of a training step, and its fraction of the best matrix product");
  auto options = std::make_shared<Options>();
  command.AddOption("--model", options->model, "A named shape").ShowDefault();
  command.AddOption("--seq", options->length, "Tokens of a sequence").ShowDefault();
  command.AddOption("--batch", options->batch, "Sequences of a step").ShowDefault();
  command.AddOption("--microbatch", options->microbatch, "Sequences of a pass; 0 chooses");
  command.AddOption("--vocab", options->vocab, "Vocabulary; 0 takes the model's");
  command.AddOption("--layers", options->layers, "Blocks; 0 takes the model's").Range(0, 10000);
  command.AddOption("--width", options->width, "Width; 0 takes the model's").Range(0, 1 << 20);
  command.AddOption("--heads", options->heads, "Heads; 0 takes the model's").Range(0, 1 << 16);
  command.AddOption("--precision", options->precision).OneOf({"fp32", "amp_bf16"}).ShowDefault();
  command.AddOption("--optimizer", options->optimizer)
      .OneOf({"adamw", "lion", "muon"})
      .ShowDefault();
  command.AddOption("--recompute", options->recompute)
      .OneOf({"none", "activation", "norm", "block"})
      .ShowDefault();
  command.AddOption("--steps", options->steps, "Measured steps after one to warm up")
      .Range(1, 10000)
      .ShowDefault();
  command.AddOption("--threads", options->threads, "Compute threads; 0 takes every core");
  command.AddFlag("--profile", options->profile,
                  "Time, FLOPs and bytes of each form of op beside this machine's limits");
  command.AddOption("--trace", options->trace,
                    "Writes the timeline of the measured steps to this file, for Perfetto "
                    "(ui.perfetto.dev) or chrome://tracing");
  command.AddFlag("--turns", options->turns,
                  "Takes turns with another program: after the warm-up each line of the standard "
                  "input is a number of steps to run, answered by a line of JSON with their seconds");
  command.AddFlag("--json", options->json);
  command.SetFooter(
      "Examples:\n"
      "  tessera bench train --model gpt2-124m --seq 1024 --batch 4 --json\n"
      "  tessera bench train --model gpt2-124m --profile --trace steps.json");
  command.SetCallback([options, &outcome] { outcome.status = Run(*options); });
}

}  // namespace tessera::cli
