// The plan of one stage of a run on this machine: compute type, micro-batch, memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/threads.h"
#include "model/plan.h"
#include "train/run_config.h"

namespace tessera {

struct StageOptions {
  int64_t sequence_length = 0;  // 0: the run's
  int64_t batch_size = 0;       // 0: the run's
  int num_threads = 1;
  kernels::Compute compute = kernels::Compute::kF32;
};

// The multiplier that a run of this precision uses on this machine: fp32 always multiplies in fp32,
// amp_bf16 in what was measured to be faster. `explanation` gets a line for people.
kernels::Compute ChooseCompute(Precision precision, std::string* explanation);

// Bytes that a plan may use: memory_limit, or what is free plus what this process already holds.
int64_t AvailableMemory(const RunConfig& config);

// Builds the plan of the run (model.vocab_size must be set) with the micro-batch of the run file
// or, for `auto`, the one that fits and is fastest. A plan that does not fit is refused with the
// cheapest switch that would help.
Result<Plan> PlanStage(const RunConfig& config, const StageOptions& options);

// Rate of a large product on all threads, from about 30 ms of work: the measure for utilisation.
double MeasureGemmGflops(kernels::Compute compute, ThreadPool& pool);

}  // namespace tessera
