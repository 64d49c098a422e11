// Matrix products: C = op(A) op(B) (+ C) (+ bias), row-major, on every thread of the pool.
//
// Contract on bits: every element of C is one chain of fused multiply-adds in fp32 over
// k = 0..K-1 in increasing order, started from 0 or, with `accumulate`, from C. With
// Compute::kBf16 the chain takes several steps of k at a time: pairs (k, k+1) as VDPBF16PS does, or
// 32 as TDPBF16PS does (cpu/amx.h). So the result depends neither on the number of threads nor on
// how rows (or, when accumulating, k at multiples of ChainGrain) are cut into calls. Products with
// M <= 4 that take no packed operand may sum in another fixed order (they serve decoding), see
// GemmArgs::exact_chain.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

// What the multiplier takes. kBf16 needs bf16 inputs; kF32 widens bf16 inputs while packing.
enum class Compute { kF32, kBf16 };

// Applied to C after bias and, as if it had been stored, after rounding to C's type; then it is rounded again.
enum class GemmEpilogue { kNone, kGeluTanh, kGeluErf, kReluSquared };

// A matrix operand in memory: [rows, cols] row-major with `ld` elements from row to row.
struct MatrixRef {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kF32 or kBf16
  int64_t ld = 0;
  bool transposed = false;  // op(X) = X^T
};

struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;
  MatrixRef a;                    // op(A) is [m, k]
  MatrixRef b;                    // op(B) is [k, n]
  const void* packed_b = nullptr;  // From PackB: replaces b when not null.
  void* c = nullptr;              // [m, n]
  DType c_dtype = DType::kF32;    // kF32 or kBf16
  int64_t ldc = 0;
  bool accumulate = false;        // C += ...; needs an fp32 C
  const float* bias = nullptr;    // [n], added to every row
  GemmEpilogue epilogue = GemmEpilogue::kNone;
  void* pre_activation = nullptr;  // [m, n] like C: the value before the epilogue, or null
  // [m]: each row of op(A) is added up into it, one fp32 chain over k from what stands there (bias
  // gradients); or null. Not with `symmetric`.
  float* row_sums = nullptr;
  Compute compute = Compute::kF32;
  // Each row of A, not transposed, goes on with zeros up to a multiple of 32 columns at least.
  bool a_padded = false;
  bool exact_chain = true;        // false allows faster orders of summation when m <= 4
  // C is known to be symmetric (m == n, as X X^T): one triangle is computed and mirrored. Only for
  // B without packing and C without bias, epilogue and pre_activation; with `accumulate` the C that
  // is added to is symmetric too.
  bool symmetric = false;
};

// Steps of k that the active instruction set's chain of bf16 products takes at a time: 1, 2 or 32.
int64_t ChainGrain(Compute compute);

// Bytes of scratch that any Gemm call may use with this many threads; independent of the shape.
int64_t GemmWorkspaceBytes(int num_threads);

// 2*m*n*k FLOPs. `workspace` has GemmWorkspaceBytes(pool.num_threads()), 64-byte aligned.
void Gemm(const GemmArgs& args, void* workspace, ThreadPool& pool);

// An operand packed once and used by many products. The packed form holds `storage` elements (bf16
// halves the memory; kF32 compute then widens in the micro-kernel). It pays where the packed form
// stays in a cache from product to product; one that comes from memory costs more than packing anew.
int64_t PackedBBytes(int64_t k, int64_t n, DType storage, Compute compute);
void PackB(const MatrixRef& b, int64_t k, int64_t n, DType storage, Compute compute, void* packed,
           ThreadPool& pool);

// Independent products of one shape, spread over the threads one product a thread where that is
// faster (many small matrices, as in Muon).
void GemmBatch(const GemmArgs* args, int64_t count, void* workspace, ThreadPool& pool);

// The faster of the two multipliers on this processor, measured once per process (a few
// milliseconds): kBf16 only where the bf16 dot beats fp32 by at least 1.2 times.
struct ComputeChoice {
  Compute compute = Compute::kF32;
  double f32_gflops = 0;   // measured on one thread
  double bf16_gflops = 0;  // 0 where the processor has no bf16 dot
};
const ComputeChoice& MeasuredCompute();

// GFLOP/s of the multiplier alone on every thread of the pool: multiply-adds in registers, the best
// of some bursts of a few milliseconds. kBf16 is fp32 where the processor has no bf16 dot.
double PeakGflops(Compute compute, ThreadPool& pool);

}  // namespace tessera::kernels
