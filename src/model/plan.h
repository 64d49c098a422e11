// The static plan of a training step: every op, every buffer, when it lives and where it lies,
// known before anything is allocated.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/gemm.h"
#include "model/config.h"
#include "tensor/dtype.h"

namespace tessera {

enum class Precision { kFp32, kAmpBf16 };
// What backward recomputes instead of keeping: nothing; the activation's output; also the norms'
// outputs; everything but the block's input.
enum class Recompute { kNone, kActivation, kNorm, kBlock };
enum class UpdateRule { kAdamW, kLion, kMuon };

std::string_view PrecisionName(Precision precision);  // "fp32", "amp_bf16"
std::string_view RecomputeName(Recompute recompute);  // "none", "activation", "norm", "block"
std::string_view UpdateRuleName(UpdateRule rule);     // "adamw", "lion", "muon"

struct PlanOptions {
  int64_t sequence_length = 1024;
  int64_t microbatch = 1;      // sequences a pass
  int64_t global_batch = 1;    // sequences a step; a multiple of virtual_ranks * microbatch
  int64_t virtual_ranks = 1;   // the fixed cut of the global batch; a part of the run's identity
  Precision precision = Precision::kFp32;
  Recompute recompute = Recompute::kNone;
  UpdateRule optimizer = UpdateRule::kAdamW;  // of matrices under kMuon; others then use AdamW
  bool weight_average = false;                // keeps an averaged copy of the weights
  int64_t loss_chunk_tokens = 0;              // 0: chosen (512 to 2048)
  kernels::Compute compute = kernels::Compute::kF32;
  int num_threads = 1;
  bool training = true;  // false: forward only (evaluation)
};

struct MemoryTable {
  int64_t weights = 0;      // fp32 masters
  int64_t working = 0;      // bf16 working copies and packed forms
  int64_t gradients = 0;
  int64_t moments = 0;      // optimizer state
  int64_t average = 0;
  int64_t activations = 0;  // the arena: saved tensors and temporaries
  int64_t workspace = 0;    // scratch of products, attention, loss chunk, optimizer
  int64_t data = 0;         // batches of tokens
  int64_t process = 0;      // program, libraries, thread stacks
  int64_t total() const {
    return weights + working + gradients + moments + average + activations + workspace + data +
           process;
  }
};
// An aligned table for people, one row a part.
std::string FormatMemoryTable(const MemoryTable& table);

// Rates of this machine from which the time of a step is estimated.
struct MachineRates {
  double gemm_gflops = 0;       // large product, all threads, this precision
  double attention_gflops = 0;  // forward and backward together
  double memory_gbps = 0;       // streaming copy
  double exp_gps = 0;           // 10^9 vector exponentials a second (softmax of the head)
};

// What an estimate of a step's time comes from.
enum class EstimateBasis {
  kRates,       // work over the rates
  kOneBlock,    // steps of the model with one block, scaled op by op
  kWholeSteps,  // steps of the model itself
};
std::string_view EstimateBasisName(EstimateBasis basis);  // "rates", "one_block", "whole_steps"

struct StepEstimate {
  EstimateBasis basis = EstimateBasis::kRates;
  double seconds = 0;
  double tokens_per_s = 0;
  double gemm_seconds = 0, attention_seconds = 0, elementwise_seconds = 0, optimizer_seconds = 0;
  double flops = 0;
};

class Program;  // model/program.h: the ops and buffers

struct Plan {
  ModelConfig config;
  PlanOptions options;
  MemoryTable memory;
  std::shared_ptr<const Program> program;
};

// Builds the plan; an error lists every inconsistency. Allocates nothing of the model's size.
Result<Plan> BuildPlan(const ModelConfig& config, const PlanOptions& options);

// Measures this machine's rates at sizes like the plan's, for about half a second in all.
MachineRates MeasureRates(const Plan& plan, class ThreadPool& pool);
StepEstimate EstimateStep(const Plan& plan, const MachineRates& rates);
// The same from a few real steps where they are short: of the whole model, else of one of its
// blocks; takes up to about 6 seconds and at most the memory of the plan, which must fit.
StepEstimate MeasureStep(const Plan& plan, const MachineRates& rates, class ThreadPool& pool);

// Refuses a plan that needs more than `available_bytes`, naming the cheapest switch (recompute,
// microbatch, precision) that makes it fit, or saying that none does.
Status CheckFits(const Plan& plan, int64_t available_bytes);

// The largest micro-batch that divides the batch and fits, preferring the fastest by the estimate.
Result<int64_t> ChooseMicrobatch(const ModelConfig& config, const PlanOptions& options,
                                 int64_t available_bytes);

}  // namespace tessera
