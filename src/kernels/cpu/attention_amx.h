// Attention's products on the tiles of AMX. A tile takes A by rows alone, so where the products of the
// other sets read A by columns the transposed result is computed: out^T = V^T P^T, dV^T = dO^T P,
// dK^T = Q^T dS.
#pragma once

#include "kernels/cpu/attention_tiles.h"

#if defined(TESSERA_TILES)
#include "kernels/cpu/amx.h"
#include "kernels/cpu/transpose_pairs.h"
#endif

namespace tessera::kernels::TESSERA_ISA {

#if defined(TESSERA_TILES)

using AttentionScope = TileScope;

// C [row_begin, row_end) x [0, cols) = (kStore) or += (kAdd) A B over words [depth_begin, depth_end);
// all of them multiples of kTileRows. A is what streams past: what stays in L1 are B and C.
inline void MultiplyOnTiles(Update update, const Product& p, int64_t row_begin, int64_t row_end,
                            int64_t cols, int64_t depth_begin, int64_t depth_end,
                            Requests* requests) {
  const int64_t steps = (depth_end - depth_begin) / kTileRows;
  for (int64_t row = row_begin; row < row_end; row += 2 * kTileRows) {
    const TileInput a = {(const char*)(p.a + row * p.lda + depth_begin), 64, p.lda * 4,
                         kTileRows * p.lda * 4};
    for (int64_t col = 0; col < cols; col += 2 * kTileRows) {
      const TileInput b = {(const char*)(p.b + depth_begin * p.ldb + col), kTileRows * p.ldb * 4,
                           p.ldb * 4, 64};
      float* c = p.c + row * p.ldc + col;
      const float* from = update == Update::kAdd ? c : nullptr;
      requests->Ask();
      MultiplyPart<Streamed::kA>(row_end - row, cols - col, steps, a, b, from, p.ldc, c, p.ldc, nullptr,
                                 [](int64_t, auto) {});
    }
  }
}

// Rows 0..n-1 of `size` elements, `stride` apart, to [padded, out_ld] words: pairs of rows
// (2 i, 2 i + 1) along the words, zeros up to whole steps of kDepthRows.
inline void PackTransposed(const bf16* rows, int64_t stride, int64_t n, int64_t size,
                           float* out, int64_t out_ld) {
  constexpr int64_t kColumns = 16;
  for (int64_t r = 0; r < n; r += kDepthRows) {
    const int64_t count = MinOf(kDepthRows, n - r), ahead = MinOf(kDepthRows, n - r - count);
    const bf16* from = rows + r * stride;
    KeepTilesAwake();
    for (int64_t i = 0; i < ahead; ++i) PrefetchRow(from + (kDepthRows + i) * stride, size);
    for (int64_t d = 0; d < size; d += kColumns) {
      uint32_t* to = (uint32_t*)(out + d * out_ld + r / 2);
      if (count == kDepthRows && d + kColumns <= size) {
        TransposeToPairs(from + d, stride, to, out_ld);
        continue;
      }
      bf16 part[kDepthRows][kColumns] = {};
      const size_t bytes = (size_t)MinOf(kColumns, size - d) * sizeof(bf16);
      for (int64_t i = 0; i < count; ++i) std::memcpy(part[i], from + i * stride + d, bytes);
      TransposeToPairs(part[0], kColumns, to, out_ld);
    }
  }
}

#else

inline void PackTransposed(const bf16*, int64_t, int64_t, int64_t, float*, int64_t) {}

TESSERA_INLINE void KeepTilesAwake() {}

struct AttentionScope {
  TESSERA_INLINE AttentionScope() {}
  TESSERA_INLINE ~AttentionScope() {}
};

// Named by code that other sets compile and never run.
inline void MultiplyOnTiles(Update, const Product&, int64_t, int64_t, int64_t, int64_t, int64_t,
                            Requests*) {}
inline constexpr int64_t kTileRows = 16;

#endif

// As after most tiles, whose scores leave each row's maximum where it was.
TESSERA_INLINE bool AllOnes(F32 x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)Set(1.0f), _CMP_NEQ_UQ) == 0;
#else
  bool all = true;
  for (int64_t i = 0; i < kLanes; ++i) all &= x[i] == 1.0f;
  return all;
#endif
}

// x [rows, kTile] times `scale`, column by column.
TESSERA_INLINE void ScaleColumns(const float* scale, int64_t rows, int64_t vectors, float* x) {
  for (int64_t v = 0; v < vectors; ++v) {
    const F32 factor = Load(scale + v * kLanes);
    if (AllOnes(factor)) continue;
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
      float* at = x + r * kTile + v * kLanes;
      Store(at, Load(at) * factor);
    }
  }
}

// The first `count` columns of x [size, kLd], times scale[column], as rows row_at(column) of `size`
// elements; null rows are left out. Whole vectors of x are read.
template <int64_t kLd = kTile, class RowAt>
TESSERA_INLINE void UnpackTransposed(const float* x, int64_t size, int64_t count, const float* scale,
                                     const RowAt& row_at) {
  for (int64_t c0 = 0; c0 < count; c0 += kLanes) {
    const int64_t columns = MinOf(kLanes, count - c0);
    decltype(row_at(c0)) rows[kLanes];
    for (int64_t c = 0; c < columns; ++c) rows[c] = row_at(c0 + c);
    const F32 factor = Load(scale + c0);
    int64_t d0 = 0;
    for (; d0 + 2 * kLanes <= size; d0 += 2 * kLanes) {  // rounded first: half as much to transpose
      F32 block[kLanes];
#pragma GCC unroll 16
      for (int64_t d = 0; d < kLanes; ++d) {
        const float* pair = x + (d0 + 2 * d) * kLd + c0;
        block[d] = FromBits(RoundToPairs(Load(pair) * factor, Load(pair + kLd) * factor));
      }
      Transpose(block);
      for (int64_t c = 0; c < columns; ++c) {
        if (rows[c] != nullptr) StoreWords(rows[c] + d0, Bits(block[c]));
      }
    }
    for (; d0 < size; d0 += kLanes) {
      F32 block[kLanes];
#pragma GCC unroll 16
      for (int64_t d = 0; d < kLanes; ++d) block[d] = Load(x + (d0 + d) * kLd + c0) * factor;
      Transpose(block);
      const int64_t left = size - d0;
      for (int64_t c = 0; c < columns; ++c) {
        if (rows[c] == nullptr) continue;
        if (left < kLanes) StorePartial(rows[c] + d0, block[c], left);
        else Store(rows[c] + d0, block[c]);
      }
    }
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
