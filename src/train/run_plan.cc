#include "train/run_plan.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/strings.h"
#include "data/dataset.h"
#include "tokenizer/tokenizer.h"
#include "train/run_state.h"

namespace tessera {

namespace {

// Stands for a vocabulary that nobody knows yet, so that the rest can be planned.
constexpr int64_t kAssumedVocabulary = 32768;

std::filesystem::path TokenizerFile(const std::string& name) {
  std::filesystem::path path = name;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) path /= "tokenizer.json";
  return path;
}

void EstimateRun(const Duration& max_duration, RunPlan* plan) {
  const std::optional<double> step_seconds = plan->step.has_value() && plan->step->seconds > 0
                                                 ? std::optional(plan->step->seconds)
                                                 : std::nullopt;
  const double tokens_per_step = static_cast<double>(plan->tokens_per_step);
  double steps = 0;
  switch (max_duration.unit) {
    case TimeUnit::kBatch:
      steps = max_duration.value;
      break;
    case TimeUnit::kToken:
      steps = std::ceil(max_duration.value / tokens_per_step);
      break;
    case TimeUnit::kSecond:
      if (!step_seconds.has_value()) return;
      steps = std::max(1.0, std::ceil(max_duration.value / *step_seconds));
      break;
    case TimeUnit::kEpoch: {
      const Result<DatasetInfo> info = ReadDatasetInfo(plan->config.data.dataset);
      if (plan->config.data.dataset.empty() || !info.ok()) return;
      const double tokens = static_cast<double>(info->train.tokens + info->train.documents);
      steps = std::ceil(max_duration.value * tokens / tokens_per_step);
      break;
    }
    case TimeUnit::kFraction:
      return;
  }
  if (steps * tokens_per_step > 9e18) return;
  plan->steps = static_cast<int64_t>(steps);
  plan->tokens = static_cast<int64_t>(steps * tokens_per_step);
  if (max_duration.unit == TimeUnit::kSecond) {
    plan->seconds = max_duration.value;
  } else if (step_seconds.has_value()) {
    plan->seconds = steps * *step_seconds;
  }
}

// The message without the memory table that follows it: the plan shows that one anyway.
std::string FitAdvice(const RunPlan& plan) {
  const std::string& message = plan.fits.error().message;
  return message.substr(0, message.find('\n'));
}

}  // namespace

Result<int64_t> VocabularyOf(const RunConfig& config) {
  if (config.tokenizer.train.vocab_size > 0) return config.tokenizer.train.vocab_size;
  if (!config.tokenizer.name.empty()) {
    TESSERA_ASSIGN(const auto tokenizer, Tokenizer::Load(TokenizerFile(config.tokenizer.name)));
    return tokenizer.vocab_size();
  }
  if (!config.data.dataset.empty() && PathExists(config.data.dataset)) {
    TESSERA_ASSIGN(const DatasetInfo info, ReadDatasetInfo(config.data.dataset));
    return info.vocab_size;
  }
  return int64_t{0};
}

kernels::Compute ComputeFor(const RunConfig& config) {
  if (config.precision == Precision::kFp32) return kernels::Compute::kF32;
  return kernels::MeasuredCompute().compute;
}

Result<RunPlan> PlanRun(const RunConfig& config, ThreadPool& pool, const RunPlanOptions& options) {
  RunPlan result;
  result.config = config;
  ModelConfig& model = result.config.model;
  if (model.vocab_size == 0) {
    TESSERA_ASSIGN(model.vocab_size, VocabularyOf(config));
    result.vocabulary_known = model.vocab_size > 0;
    if (!result.vocabulary_known) model.vocab_size = kAssumedVocabulary;
  }
  result.available_bytes = options.available_bytes;
  if (result.available_bytes == 0) result.available_bytes = config.memory_limit;
  if (result.available_bytes == 0) result.available_bytes = ReadMemoryInfo().available_bytes;
  if (config.precision == Precision::kAmpBf16) result.compute = kernels::MeasuredCompute();

  int64_t microbatch = config.device_train_microbatch_size;
  if (microbatch == 0) {
    result.microbatch_chosen = true;
    const Result<int64_t> chosen = ChooseMicrobatch(
        model, PlanOptionsFor(result.config, 1, pool.num_threads(), ComputeFor(config)),
        result.available_bytes);
    // One sequence is the least that a pass can hold: the table of that tells what is too large.
    if (!chosen.ok() && chosen.error().code != ErrorCode::kOutOfMemory) return chosen.error();
    microbatch = chosen.ok() ? *chosen : 1;
  }
  TESSERA_ASSIGN(result.plan,
                 BuildPlan(model, PlanOptionsFor(result.config, microbatch, pool.num_threads(),
                                                 ComputeFor(config))));
  result.fits = CheckFits(result.plan, result.available_bytes);
  result.tokens_per_step = config.global_train_batch_size * config.max_seq_len;
  result.parameters = CountParameters(model);
  result.flops_per_token = TrainFlopsPerToken(model, config.max_seq_len);
  // A run that would be refused needs no estimate; at such sizes measuring alone can take minutes.
  if (options.measure_rates && result.fits.ok()) {
    result.rates = MeasureRates(result.plan, pool);
    result.step = MeasureStep(result.plan, *result.rates, pool);
  }
  EstimateRun(config.max_duration, &result);
  return result;
}

namespace {

std::string_view BasisText(EstimateBasis basis) {
  switch (basis) {
    case EstimateBasis::kRates:
      return "rates";
    case EstimateBasis::kOneBlock:
      return "steps of one block";
    case EstimateBasis::kWholeSteps:
      return "steps";
  }
  return "?";
}

}  // namespace

std::string FormatRunPlan(const RunPlan& p) {
  const ModelConfig& m = p.plan.config;
  const PlanOptions& o = p.plan.options;
  std::string out;
  const auto row = [&out](std::string_view name, std::string_view value) {
    out += fmt::format("  {:<14}{}\n", name, value);
  };
  out += fmt::format("Run {}\n", p.config.run_name);
  row("model",
      fmt::format("{}: {} parameters, {} layers, width {}, {} heads{}, ffn {}, vocabulary {}{}",
                  m.family, FormatCount(static_cast<double>(p.parameters)), m.n_layers, m.d_model,
                  m.n_heads, m.kv_heads() == m.n_heads ? "" : fmt::format(" ({} kv)", m.kv_heads()),
                  m.ffn_dim(), m.vocab_size,
                  p.vocabulary_known ? "" : " (assumed: no tokenizer is there yet)"));
  row("batch",
      fmt::format("{} sequences of {} = {} tokens a step, in passes of {}{}", o.global_batch,
                  o.sequence_length, FormatCount(static_cast<double>(p.tokens_per_step)),
                  o.microbatch, p.microbatch_chosen ? " (auto)" : ""));
  row("numbers",
      fmt::format("{}, products in {}, recompute {}, {} threads", PrecisionName(o.precision),
                  ComputeName(o.compute), RecomputeName(o.recompute), o.num_threads));
  row("optimizer", fmt::format("{}, {}", UpdateRuleName(o.optimizer),
                               ScheduleKindName(p.config.scheduler.kind)));
  row("length",
      FormatDuration(p.config.max_duration) +
          (p.steps.has_value() ? fmt::format(": {} steps, {} tokens", *p.steps,
                                             FormatCount(static_cast<double>(p.tokens.value_or(0))))
                               : std::string()));
  out += "\nMemory\n" + FormatMemoryTable(p.plan.memory);
  if (!out.ends_with('\n')) out += "\n";
  out += fmt::format("  {} of {} available\n", FormatBytes(p.plan.memory.total()),
                     FormatBytes(p.available_bytes));
  if (p.step.has_value()) {
    const StepEstimate& s = *p.step;
    out += fmt::format(
        "\nTime, from {} measured now\n  step {:.4g} s, {} tokens/s, {} FLOP/s\n"
        "  products {:.4g} s, attention {:.4g} s, element-wise {:.4g} s, optimizer {:.4g} s\n",
        BasisText(s.basis), s.seconds, FormatCount(s.tokens_per_s),
        FormatCount(s.flops / s.seconds), s.gemm_seconds, s.attention_seconds,
        s.elementwise_seconds, s.optimizer_seconds);
    if (p.seconds.has_value()) {
      out += fmt::format("  the whole run {} (without evaluation and checkpoints)\n",
                         FormatDuration(*p.seconds));
    }
  }
  if (!p.fits.ok()) out += "\nDoes not fit: " + FitAdvice(p) + "\n";
  return out;
}

Json RunPlanToJson(const RunPlan& p) {
  const MemoryTable& m = p.plan.memory;
  const PlanOptions& o = p.plan.options;
  Json json = {{"run_name", p.config.run_name},
               {"model", ModelConfigToJson(p.plan.config)},
               {"vocabulary_known", p.vocabulary_known},
               {"parameters", p.parameters},
               {"flops_per_token", p.flops_per_token},
               {"tokens_per_step", p.tokens_per_step},
               {"microbatch", o.microbatch},
               {"microbatch_chosen", p.microbatch_chosen},
               {"virtual_ranks", o.virtual_ranks},
               {"precision", PrecisionName(o.precision)},
               {"compute", ComputeName(o.compute)},
               {"recompute", RecomputeName(o.recompute)},
               {"threads", o.num_threads},
               {"memory_bytes",
                {{"weights", m.weights},
                 {"working", m.working},
                 {"gradients", m.gradients},
                 {"moments", m.moments},
                 {"average", m.average},
                 {"activations", m.activations},
                 {"workspace", m.workspace},
                 {"data", m.data},
                 {"process", m.process},
                 {"total", m.total()}}},
               {"available_bytes", p.available_bytes},
               {"fits", p.fits.ok()},
               {"steps", p.steps.has_value() ? Json(*p.steps) : Json()},
               {"tokens", p.tokens.has_value() ? Json(*p.tokens) : Json()},
               {"seconds", p.seconds.has_value() ? Json(*p.seconds) : Json()},
               {"config", RunConfigToJson(p.config)}};
  if (!p.fits.ok()) json["advice"] = FitAdvice(p);
  if (p.rates.has_value()) {
    json["rates"] = {{"gemm_gflops", p.rates->gemm_gflops},
                     {"attention_gflops", p.rates->attention_gflops},
                     {"memory_gbps", p.rates->memory_gbps},
                     {"exp_gps", p.rates->exp_gps}};
  }
  if (p.step.has_value()) {
    json["step"] = {{"basis", EstimateBasisName(p.step->basis)},
                    {"seconds", p.step->seconds},
                    {"tokens_per_s", p.step->tokens_per_s},
                    {"flops", p.step->flops},
                    {"gemm_seconds", p.step->gemm_seconds},
                    {"attention_seconds", p.step->attention_seconds},
                    {"elementwise_seconds", p.step->elementwise_seconds},
                    {"optimizer_seconds", p.step->optimizer_seconds}};
  }
  return json;
}

}  // namespace tessera
