#include "model/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/cpu_info.h"
#include "base/strings.h"
#include "model/layout.h"
#include "model/program.h"

namespace tessera {

std::string_view PrecisionName(Precision precision) {
  return precision == Precision::kFp32 ? "fp32" : "amp_bf16";
}

std::string_view RecomputeName(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone: return "none";
    case Recompute::kActivation: return "activation";
    case Recompute::kNorm: return "norm";
    case Recompute::kBlock: return "block";
  }
  return "?";
}

std::string_view UpdateRuleName(UpdateRule rule) {
  switch (rule) {
    case UpdateRule::kAdamW: return "adamw";
    case UpdateRule::kLion: return "lion";
    case UpdateRule::kMuon: return "muon";
  }
  return "?";
}

std::string FormatMemoryTable(const MemoryTable& table) {
  std::string out;
  const auto row = [&out](std::string_view name, int64_t bytes) {
    if (bytes > 0) out += fmt::format("  {:<12} {:>12}\n", name, FormatBytes(bytes));
  };
  row("weights", table.weights);
  row("bf16 weights", table.working);
  row("gradients", table.gradients);
  row("moments", table.moments);
  row("average", table.average);
  row("activations", table.activations);
  row("workspace", table.workspace);
  row("batch", table.data);
  row("process", table.process);
  out += fmt::format("  {:<12} {:>12}\n", "total", FormatBytes(table.total()));
  return out;
}

namespace {

std::vector<std::string> CheckOptions(const ModelConfig& config, const PlanOptions& options) {
  std::vector<std::string> errors;
  if (options.sequence_length < 1) {
    errors.push_back(fmt::format("the sequence length is {}", options.sequence_length));
  }
  if (options.sequence_length > config.max_seq_len) {
    errors.push_back(fmt::format(
        "sequences of {} tokens are longer than the model's max_seq_len {}: lower max_seq_len of "
        "the run, or raise model.max_seq_len",
        options.sequence_length, config.max_seq_len));
  }
  if (options.global_batch < 1 || options.microbatch < 1 || options.virtual_ranks < 1) {
    errors.push_back("global_train_batch_size, device_train_microbatch_size and virtual_ranks must "
                     "be at least 1");
  } else if (options.training &&
             options.global_batch % (options.virtual_ranks * options.microbatch) != 0) {
    errors.push_back(fmt::format(
        "global_train_batch_size {} is not a multiple of virtual_ranks {} times "
        "device_train_microbatch_size {}",
        options.global_batch, options.virtual_ranks, options.microbatch));
  }
  return errors;
}

// What the process holds before the plan's memory: its image, libraries and thread stacks.
int64_t ProcessBytes() {
  const int64_t now = ResidentBytes();
  return std::max<int64_t>(now, int64_t{16} << 20);
}

}  // namespace

Result<Plan> BuildPlan(const ModelConfig& config, const PlanOptions& options) {
  std::vector<std::string> errors = CheckModelConfig(config);
  if (errors.empty()) errors = CheckOptions(config, options);
  if (!errors.empty()) return InvalidArgument(Join(errors, "\n"));
  Plan plan;
  plan.config = config;
  plan.options = options;
  auto program = std::make_shared<Program>(BuildProgram(config, options, options.training));
  const Program eval = BuildProgram(config, options, false);
  const Layout layout = ComputeLayout(config, options, *program);
  plan.memory.weights = layout.value_elements * 4;
  plan.memory.working = layout.working_elements * 2;
  plan.memory.gradients =
      (layout.value_elements * layout.gradient_copies + layout.lookup_elements) * 4;
  plan.memory.moments = (layout.state0_elements + layout.state1_elements) * 4;
  plan.memory.average = options.weight_average ? layout.value_elements * 4 : 0;
  plan.memory.activations = std::max(program->arena_bytes, eval.arena_bytes);
  plan.memory.workspace = layout.workspace_bytes;
  plan.memory.data = layout.data_bytes;
  plan.memory.process = ProcessBytes();
  plan.program = std::move(program);
  return plan;
}

Status CheckFits(const Plan& plan, int64_t available_bytes) {
  const int64_t needed = plan.memory.total();
  if (needed <= available_bytes) return {};
  // Switches from the cheapest in time to the dearest.
  struct Switch {
    std::string text;
    std::function<bool(PlanOptions*)> apply;
  };
  const std::vector<Switch> switches = {
      {"recompute=activation",
       [](PlanOptions* o) {
         if (o->recompute != Recompute::kNone) return false;
         o->recompute = Recompute::kActivation;
         return true;
       }},
      {"recompute=norm",
       [](PlanOptions* o) {
         if (o->recompute >= Recompute::kNorm) return false;
         o->recompute = Recompute::kNorm;
         return true;
       }},
      {"device_train_microbatch_size=1",
       [](PlanOptions* o) {
         if (o->microbatch == 1) return false;
         o->microbatch = 1;
         return true;
       }},
      {"recompute=block",
       [](PlanOptions* o) {
         if (o->recompute == Recompute::kBlock) return false;
         o->recompute = Recompute::kBlock;
         return true;
       }},
      {"device_train_microbatch_size=1 recompute=block",
       [](PlanOptions* o) {
         o->microbatch = 1;
         o->recompute = Recompute::kBlock;
         return true;
       }},
      {"precision=amp_bf16 device_train_microbatch_size=1 recompute=block",
       [](PlanOptions* o) {
         if (o->precision == Precision::kAmpBf16) return false;
         o->precision = Precision::kAmpBf16;
         o->microbatch = 1;
         o->recompute = Recompute::kBlock;
         return true;
       }},
  };
  std::string advice = "no switch makes it fit here: take a smaller model, a shorter sequence or a "
                       "machine with more memory";
  if (plan.options.training) {
    for (const Switch& candidate : switches) {
      PlanOptions options = plan.options;
      if (!candidate.apply(&options)) continue;
      const Result<Plan> other = BuildPlan(plan.config, options);
      if (other.ok() && other->memory.total() <= available_bytes) {
        advice = fmt::format("{} makes it {}", candidate.text, FormatBytes(other->memory.total()));
        break;
      }
    }
  }
  return OutOfMemory(fmt::format("the plan needs {}, {} are available: {}\n{}", FormatBytes(needed),
                                 FormatBytes(available_bytes), advice,
                                 FormatMemoryTable(plan.memory)));
}

Result<int64_t> ChooseMicrobatch(const ModelConfig& config, const PlanOptions& options,
                                 int64_t available_bytes) {
  const int64_t per_rank = options.global_batch / std::max<int64_t>(options.virtual_ranks, 1);
  // Products reach their full rate from about 4,096 rows; beyond that a larger pass only spreads
  // activations over more memory.
  const int64_t enough = std::max<int64_t>(1, 4096 / std::max<int64_t>(options.sequence_length, 1));
  int64_t best = 0;
  std::string smallest;
  for (int64_t candidate = 1; candidate <= per_rank; ++candidate) {
    if (per_rank % candidate != 0) continue;
    PlanOptions trial = options;
    trial.microbatch = candidate;
    TESSERA_ASSIGN(const Plan plan, BuildPlan(config, trial));
    const Status fits = CheckFits(plan, available_bytes);
    if (!fits.ok()) {
      if (best == 0) return fits.error();
      break;
    }
    best = candidate;
    if (candidate >= enough) break;
  }
  if (best == 0) return InvalidArgument("global_train_batch_size must be at least virtual_ranks");
  return best;
}

}  // namespace tessera
