// Slow oracles of the matrix product.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/gemm.h"

namespace tessera::kernels::reference {

// What the sum of one element of C is compared with.
struct GemmResult {
  std::vector<double> value;      // [m, n], after bias and epilogue
  std::vector<double> before;     // [m, n], before the epilogue
  std::vector<double> magnitude;  // [m, n], sum of |a| |b| (+ |c| + |bias|): scales the rounding
};
// In double, with C as it is before the call. `packed_b` is ignored: args.b must be given.
GemmResult Gemm(const GemmArgs& args);

// The order of an element's sum over k.
enum class ChainOrder {
  kSteps,  // one after the other
  kPairs,  // of VDPBF16PS: the odd element of a pair first
  kTiles,  // of TDPBF16PS: 32 at a time, the even and the odd ones apart, whose sum is added
};
// The chain of the contract, one fused multiply-add in fp32 per step of k, before bias: what every
// set with fused multiply-adds must give bit for bit. Call it on a thread that flushes subnormals
// as the pool's do.
std::vector<float> GemmChain(const GemmArgs& args, ChainOrder order);

// Element (row, col) of op(X).
double Element(const MatrixRef& x, int64_t row, int64_t col);

double ApplyEpilogue(GemmEpilogue epilogue, double x);

}  // namespace tessera::kernels::reference
