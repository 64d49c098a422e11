#include "train/stage_plan.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/cpu_info.h"
#include "base/time.h"

namespace tessera {

kernels::Compute ChooseCompute(Precision precision, std::string* explanation) {
  if (precision == Precision::kFp32) {
    *explanation = "compute: fp32 storage, fp32 products";
    return kernels::Compute::kF32;
  }
  const kernels::ComputeChoice& choice = kernels::MeasuredCompute();
  if (choice.bf16_gflops <= 0) {
    *explanation = "compute: bf16 storage, fp32 products (this processor has no bf16 dot product)";
  } else {
    *explanation = fmt::format(
        "compute: bf16 storage, {} products (measured on one thread: fp32 {:.0f}, bf16 {:.0f} "
        "GFLOP/s)",
        choice.compute == kernels::Compute::kBf16 ? "bf16" : "fp32", choice.f32_gflops,
        choice.bf16_gflops);
  }
  return choice.compute;
}

int64_t AvailableMemory(const RunConfig& config) {
  if (config.memory_limit > 0) return config.memory_limit;
  return ReadMemoryInfo().available_bytes + ResidentBytes();
}

Result<Plan> PlanStage(const RunConfig& config, const StageOptions& run) {
  PlanOptions options =
      PlanOptionsFor(config, std::max<int64_t>(config.device_train_microbatch_size, 1),
                     run.num_threads, run.compute);
  if (run.sequence_length > 0) options.sequence_length = run.sequence_length;
  if (run.batch_size > 0) options.global_batch = run.batch_size;
  const int64_t available = AvailableMemory(config);
  if (config.device_train_microbatch_size == 0) {
    TESSERA_ASSIGN(options.microbatch, ChooseMicrobatch(config.model, options, available));
  } else if (options.global_batch != config.global_train_batch_size) {
    // A stage of growth: the largest part of the run's micro-batch that divides its batch.
    options.microbatch = std::gcd(options.microbatch, options.global_batch / options.virtual_ranks);
  }
  TESSERA_ASSIGN(Plan plan, BuildPlan(config.model, options));
  TESSERA_TRY(CheckFits(plan, available));
  return plan;
}

namespace {

double BestGemmGflops(kernels::Compute compute, ThreadPool& pool) {
  // 1.2 GFLOP, 8 MB: as large as the products of a small model, several milliseconds on one core.
  constexpr int64_t kM = 1024, kN = 768, kK = 768;
  const bool bf16_inputs = compute == kernels::Compute::kBf16;
  const size_t element = bf16_inputs ? 2 : 4;
  const std::vector<std::byte> a(kM * kK * element), b(kK * kN * element);
  std::vector<float> c(kM * kN);
  const int64_t workspace_bytes = kernels::GemmWorkspaceBytes(pool.num_threads());
  std::vector<std::byte> workspace(static_cast<size_t>(workspace_bytes) + 64);
  const auto address = reinterpret_cast<uintptr_t>(workspace.data());
  void* aligned = workspace.data() + (64 - address % 64) % 64;
  kernels::GemmArgs args;
  args.m = kM;
  args.n = kN;
  args.k = kK;
  const DType dtype = bf16_inputs ? DType::kBf16 : DType::kF32;
  args.a = {a.data(), dtype, kK, false};
  args.b = {b.data(), dtype, kN, false};
  args.c = c.data();
  args.ldc = kN;
  args.compute = compute;
  // The first call pays for touching the memory and waking the threads. Several calls, so that one
  // that another process disturbs is not taken for the machine.
  constexpr int kCalls = 5;
  kernels::Gemm(args, aligned, pool);
  double best = 0;
  const Stopwatch total;
  for (int call = 0; call < kCalls || total.Seconds() < 0.1; ++call) {
    const Stopwatch watch;
    kernels::Gemm(args, aligned, pool);
    best = std::max(best, 2.0 * kM * kN * kK / watch.Seconds() * 1e-9);
  }
  return best;
}

}  // namespace

double MeasureGemmGflops(kernels::Compute compute, ThreadPool& pool) {
  const double best = BestGemmGflops(compute, pool);
  // The matrices go back to the system: they are no part of the plan.
  ::malloc_trim(0);
  return best;
}

}  // namespace tessera
