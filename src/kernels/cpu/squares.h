// Sums of squares of floats in double.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr int64_t kHalf = kLanes / 2;
typedef double F64 __attribute__((vector_size(kHalf * 8)));

// Half a vector of floats.
TESSERA_INLINE F64 LoadWide(const float* p) {
#if defined(__AVX512F__)  // compilers would widen a quarter at a time
  return (F64)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#else
  typedef float HalfF32 __attribute__((vector_size(kHalf * 4)));
  HalfF32 v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, F64);
#endif
}

// Of one block, in 32 chains (element i in chain i % 32), the chains added in order. Products of two
// floats are exact in double, so every instruction set gives the same bits.
inline double BlockSquares(const float* x, int64_t n) {
  constexpr int64_t kChains = 32;
  F64 sums[kChains / kHalf] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t k = 0; k < kChains / kHalf; ++k) {
      // Far ahead, where a core's own prefetching stops: a third more of the memory's rate.
      if (k * kHalf % 16 == 0) __builtin_prefetch(x + i + kAheadBytes / 4 + k * kHalf);
      const F64 wide = LoadWide(x + i + k * kHalf);
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
