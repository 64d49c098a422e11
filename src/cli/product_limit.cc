#include "cli/product_limit.h"

#include <algorithm>

#include "base/rng.h"
#include "base/time.h"
#include "kernels/gemm.h"

namespace tessera::cli {

namespace {

constexpr int64_t kRows = 4096, kOut = 3072, kIn = 768;

}  // namespace

Result<ProductLimit> ProductLimit::Create(DType dtype, ThreadPool& pool) {
  ProductLimit limit;
  limit.dtype_ = dtype;
  TESSERA_ASSIGN(limit.x_, MemoryRegion::Allocate(kRows * kIn * 4, "the limit", pool));
  TESSERA_ASSIGN(limit.w_, MemoryRegion::Allocate(kOut * kIn * 4, "the limit", pool));
  TESSERA_ASSIGN(limit.y_, MemoryRegion::Allocate(kRows * kOut * 4, "the limit", pool));
  TESSERA_ASSIGN(
      limit.workspace_,
      MemoryRegion::Allocate(kernels::GemmWorkspaceBytes(pool.num_threads()), "the limit", pool));
  const RngKey key{1, RngPurpose::kCalibration, 0};
  for (MemoryRegion* region : {&limit.x_, &limit.w_}) {
    float* values = region->as<float>();
    for (int64_t i = 0; i < region->bytes() / 4; ++i) {
      values[i] = key.Uniform(static_cast<uint64_t>(i)) - 0.5f;
    }
  }
  return limit;
}

double ProductLimit::Measure(ThreadPool& pool) {
  double now = 0;
  const kernels::ComputeChoice& choice = kernels::MeasuredCompute();
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    if (dtype == DType::kBf16 && dtype_ == DType::kF32) continue;
    kernels::GemmArgs forward;
    forward.m = kRows;
    forward.n = kOut;
    forward.k = kIn;
    forward.a = {x_.data(), dtype, kIn, false};
    forward.b = {w_.data(), dtype, kIn, true};
    forward.c = y_.data();
    forward.ldc = kOut;
    forward.c_dtype = dtype;
    forward.compute = dtype == DType::kBf16 ? choice.compute : kernels::Compute::kF32;
    const Stopwatch watch;
    kernels::Gemm(forward, workspace_.data(), pool);
    now = std::max(now, 2e-9 * kRows * kOut * kIn / watch.Seconds());
  }
  best_ = std::max(best_, now);
  return now;
}

}  // namespace tessera::cli
