// Packing of bf16 operands into slivers for the tiles of AMX: kSliver rows of A or columns of B, steps
// of k one after the other, two tiles a step:
//   A: [16 rows][32 k]
//   B: [16 pairs of k][16 columns], a word a pair
// Rows, columns and k that do not exist are zeros.
#pragma once

#include "kernels/cpu/amx.h"
#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/transpose_pairs.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr int64_t kSliver = 2 * kTileRows;
inline constexpr int64_t kStepBytes = 2 * kTileBytes;
static_assert(kLanes == kTileRows, "tiles are packed with vectors of AVX-512");

// Steps and rows of A^T, [32][ld] from `source`, to the two tiles of a step; where `sums` is given the
// rows are added up into it in order.
TESSERA_INLINE void TransposeStep(const bf16* source, int64_t ld, float* sums, uint32_t* out) {
#pragma GCC unroll 2
  for (int64_t half = 0; half < 2; ++half) {
    const bf16* p = source + half * kTileRows;
    TransposeToPairs(p, ld, out + half * (kTileBytes / 4), kTileRows);
    if (sums == nullptr) continue;
    F32 sum = Load(sums + half * kTileRows);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kTileSteps; ++i) sum = sum + Load(p + i * ld);
    Store(sums + half * kTileRows, sum);
  }
}

// [rows][cols] at `source` as bf16, with zeros around.
template <class Source>
TESSERA_INLINE void CopyPart(const Source* source, int64_t ld, int64_t rows, int64_t cols,
                             bf16 (&out)[kTileSteps][kTileSteps]) {
  std::memset(out, 0, sizeof(out));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      if constexpr (sizeof(Source) == 2) out[i][j] = source[i * ld + j];
      else out[i][j] = ToBf16(source[i * ld + j]);
    }
  }
}

// Slivers [first, first + count) of op(A), `m` rows, over steps of kTileSteps from `step` on of `k`;
// `sliver_bytes` lie from sliver to sliver in `out`. `row_sums` may be null.
inline void PackTilesA(const MatrixRef& a, int64_t m, int64_t k, int64_t first, int64_t count,
                       int64_t step, int64_t steps, float* row_sums, int64_t sliver_bytes,
                       char* out) {
  const bf16* data = static_cast<const bf16*>(a.data);
  bf16 part[kTileSteps][kTileSteps];
  if (a.transposed) {
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t begin = (step + s) * kTileSteps, depth = Smaller(kTileSteps, k - begin);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = (first + i) * kSliver, rows = Smaller(kSliver, m - row);
        const bf16* source = data + begin * a.ld + row;
        uint32_t* tiles = reinterpret_cast<uint32_t*>(out + i * sliver_bytes + s * kStepBytes);
        float* sums = row_sums == nullptr ? nullptr : row_sums + row;
        if (rows == kSliver && depth == kTileSteps) {
          TransposeStep(source, a.ld, sums, tiles);
          continue;
        }
        CopyPart(source, a.ld, depth, rows, part);
        float own[kSliver] = {};
        if (sums != nullptr) std::memcpy(own, sums, static_cast<size_t>(rows) * 4);
        TransposeStep(part[0], kTileSteps, own, tiles);
        if (sums != nullptr) std::memcpy(sums, own, static_cast<size_t>(rows) * 4);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) * kSliver, rows = Smaller(kSliver, m - row);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t begin = (step + s) * kTileSteps, depth = Smaller(kTileSteps, k - begin);
      const bf16* source = data + row * a.ld + begin;
      int64_t ld = a.ld;
      char* tiles = out + i * sliver_bytes + s * kStepBytes;
      if (rows < kSliver || depth < kTileSteps) {
        CopyPart(source, ld, rows, depth, part);
        source = part[0];
        ld = kTileSteps;
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < kSliver; ++r) StoreWords(tiles + r * 64, LoadWords(source + r * ld));
    }
  }
}

// Adds rows [begin, end) of op(A), not transposed, up into row_sums.
inline void AddRowsAlongK(const MatrixRef& a, int64_t k, int64_t begin, int64_t end,
                          float* row_sums) {
  for (int64_t row = begin; row < end; ++row) {
    const bf16* p = static_cast<const bf16*>(a.data) + row * a.ld;
    float sum = row_sums[row];
    for (int64_t i = 0; i < k; ++i) sum += ToFloat(p[i]);
    row_sums[row] = sum;
  }
}

// Steps of B as it is multiplied, [32 k][32 columns], to the two tiles of a step.
TESSERA_INLINE void PairStep(const bf16* source, int64_t ld, uint32_t* out) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileRows; ++i) {
    const bf16 *low = source + 2 * i * ld, *high = low + ld;
    StoreWords(out + i * kTileRows, LoadPairs(low, high));
    StoreWords(out + kTileBytes / 4 + i * kTileRows, LoadPairs(low + kLanes, high + kLanes));
  }
}

// The same from B^T, [32 columns][32 k].
TESSERA_INLINE void PairStepAlongK(const bf16* source, int64_t ld, uint32_t* out) {
#pragma GCC unroll 2
  for (int64_t half = 0; half < 2; ++half) {
    const bf16* p = source + half * kTileRows * ld;
    U32 block[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) block[i] = LoadWords(p + i * ld);
    Transpose(block);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      StoreWords(out + half * (kTileBytes / 4) + i * kTileRows, block[i]);
    }
  }
}

template <class Source>
void PackTilesB(const Source* data, int64_t ld, bool along_k, int64_t n, int64_t k, int64_t first,
                int64_t count, int64_t step, int64_t steps, int64_t sliver_bytes, char* out) {
  bf16 part[kTileSteps][kTileSteps];
  const auto pack = [&](int64_t i, int64_t s) TESSERA_INLINE_LAMBDA {
    const int64_t col = (first + i) * kSliver, cols = Smaller(kSliver, n - col);
    const int64_t begin = (step + s) * kTileSteps, depth = Smaller(kTileSteps, k - begin);
    const Source* from = along_k ? data + col * ld + begin : data + begin * ld + col;
    const bf16* source = nullptr;
    int64_t stride = ld;
    if constexpr (sizeof(Source) == 2) source = from;
    if (source == nullptr || cols < kSliver || depth < kTileSteps) {
      CopyPart(from, ld, along_k ? cols : depth, along_k ? depth : cols, part);
      source = part[0];
      stride = kTileSteps;
    }
    uint32_t* tiles = reinterpret_cast<uint32_t*>(out + i * sliver_bytes + s * kStepBytes);
    if (along_k) PairStepAlongK(source, stride, tiles);
    else PairStep(source, stride, tiles);
  };
  // In the order in which the matrix lies in memory.
  if (along_k) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t s = 0; s < steps; ++s) pack(i, s);
    }
  } else {
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t i = 0; i < count; ++i) pack(i, s);
    }
  }
}

// Slivers [first, first + count) of op(B), `n` columns, in the same way; fp32 is rounded.
inline void PackTilesB(const MatrixRef& b, int64_t n, int64_t k, int64_t first, int64_t count,
                       int64_t step, int64_t steps, int64_t sliver_bytes, char* out) {
  if (b.dtype == DType::kBf16) {
    PackTilesB(static_cast<const bf16*>(b.data), b.ld, b.transposed, n, k, first, count, step, steps,
               sliver_bytes, out);
  } else {
    PackTilesB(static_cast<const float*>(b.data), b.ld, b.transposed, n, k, first, count, step,
               steps, sliver_bytes, out);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
