// What a run will take, before it starts: the plan of its step, memory, time. Behind `tessera plan`
// and `tessera train --dry-run`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "base/threads.h"
#include "model/plan.h"
#include "train/run_config.h"

namespace tessera {

struct RunPlan {
  RunConfig config;              // with the vocabulary filled in
  bool vocabulary_known = true;  // false: a tokenizer that does not exist yet decides; see the note
  Plan plan;
  bool microbatch_chosen = false;  // the file said auto
  int64_t available_bytes = 0;     // memory_limit, or what the machine has free
  Status fits;
  kernels::ComputeChoice compute;  // measured; plan.options.compute is what the run uses
  // Absent where the rates were not measured, as for a run that does not fit.
  std::optional<MachineRates> rates;
  std::optional<StepEstimate> step;

  int64_t tokens_per_step = 0;
  int64_t parameters = 0;
  double flops_per_token = 0;
  // Of the whole run; absent where they follow neither from max_duration nor from the estimate.
  std::optional<int64_t> steps;
  std::optional<int64_t> tokens;
  std::optional<double> seconds;  // without evaluation and checkpoints
};

struct RunPlanOptions {
  bool measure_rates = true;  // takes seconds and up to the memory of the plan
  // In place of the machine's: 0 asks it.
  int64_t available_bytes = 0;
};

// The words of the tokenizer that the run file names, of the dataset it names, or that it will
// train; 0 where none of them tells.
Result<int64_t> VocabularyOf(const RunConfig& config);

// The compute type of a run: the measured choice under amp_bf16, fp32 otherwise.
kernels::Compute ComputeFor(const RunConfig& config);

Result<RunPlan> PlanRun(const RunConfig& config, ThreadPool& pool,
                        const RunPlanOptions& options = {});

// For people; and for programs, with the same figures.
std::string FormatRunPlan(const RunPlan& plan);
Json RunPlanToJson(const RunPlan& plan);

}  // namespace tessera
