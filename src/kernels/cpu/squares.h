// Sums of squares of floats in double.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

// Of one block, in 32 chains (element i in chain i % 32), the chains added in order. Products of two
// floats are exact in double, so every instruction set gives the same bits.
inline double BlockSquares(const float* x, int64_t n) {
  constexpr int64_t kChains = 32;
  constexpr int64_t kHalf = kLanes / 2;
  typedef float HalfF32 __attribute__((vector_size(kHalf * 4)));
  typedef double F64 __attribute__((vector_size(kHalf * 8)));
  F64 sums[kChains / kHalf] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    // A page ahead, where a core's own prefetching stops: a third more of the memory's rate.
    __builtin_prefetch(x + i + kAheadBytes / 4);
    __builtin_prefetch(x + i + kAheadBytes / 4 + kChains / 2);
    for (int64_t k = 0; k < kChains / kHalf; ++k) {
      HalfF32 v;
      std::memcpy(&v, x + i + k * kHalf, sizeof(v));
      const F64 wide = __builtin_convertvector(v, F64);
      sums[k] += wide * wide;
    }
  }
  double chains[kChains];
  std::memcpy(chains, sums, sizeof(chains));
  for (int64_t k = 0; i < n; ++i, ++k) chains[k] += static_cast<double>(x[i]) * x[i];
  double total = 0;
  for (int64_t k = 0; k < kChains; ++k) total += chains[k];
  return total;
}

}  // namespace tessera::kernels::TESSERA_ISA
