// `tessera bench train`: tokens per second of a whole training step beside the best rate of a large
// matrix product measured in the same run.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/threads.h"
#include "cli/commands.h"
#include "cli/median.h"
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
  bool json = false, profile = false;
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

Status Run(const Options& o) {
  ThreadPool pool(o.threads);
  TESSERA_ASSIGN(const Plan plan, PlanFor(o, pool));
  TESSERA_ASSIGN(ProductLimit limit, ProductLimit::Create(pool));
  const int64_t rss_before = ResidentBytes();
  TESSERA_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Create(plan, pool));
  engine->InitializeWeights(1);
  const int64_t count = o.batch * o.length;
  std::vector<int32_t> tokens(static_cast<size_t>(count)), targets(tokens.size());
  const RngKey key{2, RngPurpose::kCalibration, 0};
  for (int64_t i = 0; i < count; ++i) {
    const auto words = key.Block(static_cast<uint64_t>(i));
    const uint32_t vocab = static_cast<uint32_t>(plan.config.vocab_size);
    tokens[static_cast<size_t>(i)] = static_cast<int32_t>(words[0] % vocab);
    targets[static_cast<size_t>(i)] = static_cast<int32_t>(words[1] % vocab);
  }
  const StepBatch batch{o.batch, tokens.data(), targets.data(), nullptr};
  std::vector<double> seconds, limits;  // The product's rate before each step and after the last.
  double loss = 0;
  constexpr int64_t kTraceEvents = int64_t{1} << 18;
  OpProfile profile(o.trace.empty() ? 0 : kTraceEvents);
  const bool counts = o.profile || !o.trace.empty();
  if (counts) engine->SetProfile(&profile);
  for (int64_t step = 0; step <= o.steps; ++step) {
    const double before = limit.Measure(pool);
    if (step > 0) limits.push_back(before);
    if (step == 1) profile.Reset();  // the first step warms up
    const Clock::time_point start = Clock::now();
    loss = engine->ForwardBackward(batch, {}, 1, step + 1).loss;
    UpdateOptions update;
    update.step = step + 1;
    update.lr = update.muon_lr = 1e-4;
    update.grad_clip = 1;
    engine->Update(update);
    if (step > 0) seconds.push_back(SecondsSince(start));
  }
  limits.push_back(limit.Measure(pool));
  const double flops = TrainFlopsPerToken(plan.config, o.length);
  std::vector<double> paired;
  for (size_t i = 0; i < seconds.size(); ++i) {
    const double achieved = static_cast<double>(count) * flops * 1e-9 / seconds[i];
    paired.push_back(achieved / (0.5 * (limits[i] + limits[i + 1])));
  }
  const double median = Median(seconds);
  const double tokens_per_s = static_cast<double>(count) / median;
  const double gflops = tokens_per_s * flops * 1e-9;
  const int64_t rss = ResidentBytes();
  Json profile_json;
  if (o.profile) {
    double sum = 0;
    for (const double one : seconds) sum += one;
    profile_json = ProfileToJson(profile, MeasureOpLimits(limit.best_gflops(), pool), o.steps,
                                 sum / static_cast<double>(o.steps));
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
                {"steps", o.steps},
                {"step_seconds", median},
                {"tokens_per_s", tokens_per_s},
                {"flops_per_token", flops},
                {"gflops", gflops},
                {"gemm_gflops", limit.best_gflops()},
                {"fraction", gflops / limit.best_gflops()},
                {"paired_fraction", Median(paired)},
                {"planned_bytes", plan.memory.total()},
                {"resident_bytes", rss - rss_before},
                {"loss", loss}};
    if (o.profile) out["profile"] = profile_json;
    fmt::print("{}\n", JsonText(out, 2));
    return {};
  }
  fmt::print("{}: {} parameters, batch {} x {}, {}, {} threads, {}\n", o.model,
             FormatCount(static_cast<double>(CountParameters(plan.config))), o.batch, o.length,
             o.precision, pool.num_threads(), kernels::IsaName(kernels::ActiveIsa()));
  fmt::print("  {:<22} {:>10.1f}\n", "tokens/s", tokens_per_s);
  fmt::print("  {:<22} {:>10.1f}\n", "GFLOP/s", gflops);
  fmt::print("  {:<22} {:>10.1f}\n", "best product GFLOP/s", limit.best_gflops());
  fmt::print("  {:<22} {:>10.3f}\n", "fraction", gflops / limit.best_gflops());
  fmt::print("  {:<22} {:>10.3f}\n", "of the rate around it", Median(paired));
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
  command.AddFlag("--json", options->json);
  command.SetFooter(
      "Examples:\n"
      "  tessera bench train --model gpt2-124m --seq 1024 --batch 4 --json\n"
      "  tessera bench train --model gpt2-124m --profile --trace steps.json");
  command.SetCallback([options, &outcome] { outcome.status = Run(*options); });
}

}  // namespace tessera::cli
