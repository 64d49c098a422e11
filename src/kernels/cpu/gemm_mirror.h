// The other half of a symmetric product.
#pragma once

#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_pack.h"

namespace tessera::kernels::TESSERA_ISA {

// Copies the triangle right of the diagonal to the rows [begin, end) left of it.
template <class T>
void Mirror(T* c, int64_t ld, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t rows = Smaller(kLanes, end - i);
    for (int64_t j = 0; j < i; j += kLanes) {
      if (sizeof(T) == 4 && rows == kLanes && j + kLanes <= i) {
        U32 block[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) block[r] = LoadWords(c + (j + r) * ld + i);
        Transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) StoreWords(c + (i + r) * ld + j, block[r]);
      } else {
        for (int64_t r = i; r < i + rows; ++r) {
          for (int64_t x = j; x < Smaller(j + kLanes, r); ++x) c[r * ld + x] = c[x * ld + r];
        }
      }
    }
    for (int64_t r = i; r < i + rows; ++r) {
      for (int64_t x = i; x < r; ++x) c[r * ld + x] = c[x * ld + r];
    }
  }
}

inline void MirrorRows(const GemmArgs& args, int64_t begin, int64_t end) {
  if (args.c_dtype == DType::kBf16) {
    Mirror(static_cast<bf16*>(args.c), args.ldc, begin, end);
  } else {
    Mirror(static_cast<float*>(args.c), args.ldc, begin, end);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
