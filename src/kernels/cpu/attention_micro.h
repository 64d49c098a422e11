// Small products of attention: C[rows, columns] from A read word by word (broadcast) and B read in
// whole vectors of words, accumulated in registers. All sizes of a tile are kept in L1 or L2 by the
// callers; here only registers matter.
#pragma once

#include "kernels/cpu/bf16_dot.h"
#include "kernels/cpu/register_block.h"

// Loops over register blocks must vanish before arrays are placed in registers.
#if defined(__clang__)
#define TESSERA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TESSERA_UNROLL _Pragma("GCC unroll 8")
#endif

namespace tessera::kernels::TESSERA_ISA {

// Rows (queries) and columns (keys) of a tile.
inline constexpr int64_t kTile = 64;
inline constexpr int64_t kTileVectors = kTile / kLanes;

// Register block: kBlockRows * kBlockCols accumulators, kBlockCols of B, one broadcast of A.
// 6 x 4 of 32 registers with AVX-512; 6 x 2 of 16 with AVX2; 4 x 2 where a product needs a
// temporary of its own (no fused multiply-add).
#if defined(__AVX512F__)
inline constexpr int64_t kBlockRows = 6, kBlockCols = 4;
#elif defined(__AVX2__)
inline constexpr int64_t kBlockRows = 6, kBlockCols = 2;
#else
inline constexpr int64_t kBlockRows = 4, kBlockCols = 2;
#endif

// How A lies in memory: word (row r, depth k) is a[r * lda + k] or a[k * lda + r].
enum class Layout { kRows, kColumns };
// C = A B; C = scale[0] A B; C += A B; C = scale[row] C + A B.
enum class Update { kStore, kScaled, kAdd, kScaleAdd };

// A and B in words of Word::kFloat or, typed as floats of the same size, Word::kPair: the depth of
// a product is counted in words.
struct Product {
  const float* a = nullptr;
  int64_t lda = 0;
  const float* b = nullptr;  // [depth, >= columns]
  int64_t ldb = 0;
  float* c = nullptr;
  int64_t ldc = 0;
  const float* scale = nullptr;  // Update::kScaled and kScaleAdd only
};

// The part of a product that a strip of rows needs; columns are counted in vectors.
struct Extent {
  int64_t depth_begin, depth_end, col_begin, col_end;
};

// What a step of a product is made of, for both kinds of words.
template <Word kWord>
TESSERA_INLINE auto LoadStep(const float* b) {
  if constexpr (kWord == Word::kPair) return LoadWords(b);
  else return LoadInOrder(b);
}
template <Word kWord>
TESSERA_INLINE auto BroadcastStep(const float* a) {
  if constexpr (kWord == Word::kPair) return BroadcastWord(a);
  else return BroadcastFloat(a);
}
TESSERA_INLINE void AddProduct(F32& sum, U32 a, U32 b) { sum = DotPairs(sum, a, b); }
TESSERA_INLINE void AddProduct(F32& sum, F32 a, F32 b) { FmaInPlace(sum, a, b); }

// Every element is one chain over depth from 0, so the bits do not depend on the blocking.
template <Word kWord, Layout kLayout, Update kUpdate, int kRows, int kCols>
[[gnu::noinline]] void MicroKernel(const float* a, int64_t lda, const float* b, int64_t ldb,
                                   float* c, int64_t ldc, const float* scale, int64_t depth) {
  F32 sum[kRows][kCols];
  TESSERA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TESSERA_UNROLL
    for (int n = 0; n < kCols; ++n) sum[r][n] = Zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    decltype(LoadStep<kWord>(b)) bn[kCols];
    TESSERA_UNROLL
    for (int n = 0; n < kCols; ++n) bn[n] = LoadStep<kWord>(b + n * kLanes);
    TESSERA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto ar = BroadcastStep<kWord>(kLayout == Layout::kRows ? a + r * lda : a + r);
      TESSERA_UNROLL
      for (int n = 0; n < kCols; ++n) AddProduct(sum[r][n], ar, bn[n]);
    }
    a += kLayout == Layout::kRows ? 1 : lda;
    b += ldb;
  }
  TESSERA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TESSERA_UNROLL
    for (int n = 0; n < kCols; ++n) {
      float* out = c + r * ldc + n * kLanes;
      if constexpr (kUpdate == Update::kAdd) {
        sum[r][n] = Load(out) + sum[r][n];
      } else if constexpr (kUpdate == Update::kScaled) {
        sum[r][n] = Set(scale[0]) * sum[r][n];
      } else if constexpr (kUpdate == Update::kScaleAdd) {
        sum[r][n] = Fma(Set(scale[r]), Load(out), sum[r][n]);
      }
      Store(out, sum[r][n]);
    }
  }
}

template <Word kWord, Layout kLayout, Update kUpdate, int kRows>
TESSERA_INLINE void RowsOfProduct(const Product& p, int64_t row, int64_t col, int64_t cols,
                                  int64_t depth_begin, int64_t depth_end) {
  const float* a =
      kLayout == Layout::kRows ? p.a + row * p.lda + depth_begin : p.a + depth_begin * p.lda + row;
  const float* b = p.b + depth_begin * p.ldb + col * kLanes;
  float* c = p.c + row * p.ldc + col * kLanes;
  const float* scale = kUpdate == Update::kScaleAdd ? p.scale + row : p.scale;
  const int64_t depth = depth_end - depth_begin;
  if constexpr (kBlockCols >= 4) {
    if (cols == 4) {
      MicroKernel<kWord, kLayout, kUpdate, kRows, 4>(a, p.lda, b, p.ldb, c, p.ldc, scale, depth);
      return;
    }
    if (cols == 3) {
      MicroKernel<kWord, kLayout, kUpdate, kRows, 3>(a, p.lda, b, p.ldb, c, p.ldc, scale, depth);
      return;
    }
  }
  if (cols == 2) {
    MicroKernel<kWord, kLayout, kUpdate, kRows, 2>(a, p.lda, b, p.ldb, c, p.ldc, scale, depth);
  } else {
    MicroKernel<kWord, kLayout, kUpdate, kRows, 1>(a, p.lda, b, p.ldb, c, p.ldc, scale, depth);
  }
}

// Rows [row_begin, row_end) by columns [0, cols) vectors; extent_of(row, rows) narrows a strip.
template <Word kWord, Layout kLayout, Update kUpdate, class ExtentOf>
TESSERA_INLINE void Multiply(const Product& p, int64_t row_begin, int64_t row_end, int64_t cols,
                             const ExtentOf& extent_of) {
  for (int64_t block = 0; block < cols; block += kBlockCols) {
    const int64_t block_end = block + kBlockCols < cols ? block + kBlockCols : cols;
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t left = row_end - row;
      const int64_t rows = left >= kBlockRows ? kBlockRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const Extent e = extent_of(row, rows);
      const int64_t col_begin = e.col_begin > block ? e.col_begin : block;
      const int64_t col_end = e.col_end < block_end ? e.col_end : block_end;
      const int64_t count = col_end - col_begin;
      if (count > 0 && (kUpdate != Update::kAdd || e.depth_end > e.depth_begin)) {
        switch (rows) {
          case kBlockRows:
            RowsOfProduct<kWord, kLayout, kUpdate, kBlockRows>(p, row, col_begin, count,
                                                               e.depth_begin, e.depth_end);
            break;
#if defined(__AVX2__)
          case 4:
            RowsOfProduct<kWord, kLayout, kUpdate, 4>(p, row, col_begin, count, e.depth_begin,
                                                      e.depth_end);
            break;
#endif
          case 2:
            RowsOfProduct<kWord, kLayout, kUpdate, 2>(p, row, col_begin, count, e.depth_begin,
                                                      e.depth_end);
            break;
          default:
            RowsOfProduct<kWord, kLayout, kUpdate, 1>(p, row, col_begin, count, e.depth_begin,
                                                      e.depth_end);
        }
      }
      row += rows;
    }
  }
}

// The same with one extent for all rows.
template <Word kWord, Layout kLayout, Update kUpdate>
TESSERA_INLINE void MultiplyAll(const Product& p, int64_t rows, int64_t depth, int64_t cols) {
  Multiply<kWord, kLayout, kUpdate>(p, 0, rows, cols, [&](int64_t, int64_t) {
    return Extent{0, depth, 0, cols};
  });
}

// 2^x to about 2 ulp: 2^floor(x) times a degree-5 minimax polynomial of the fraction in [0, 1)
// (relative error 8.2e-8, exactly 1 at 0). Below -126 the result is 0, -inf included; x must stay
// below 128.
TESSERA_INLINE F32 Exp2(F32 x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const F32 r =
      (F32)_mm512_maskz_reduce_ps((__mmask16)-1, (__m512)x, 1);  // x - floor(x); 0 for -inf
#else
  const F32 clamped = Max(x, Set(-127.0f));
  const F32 magic = Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32 shifted = (clamped - Set(0.5f)) + magic;
  const F32 r = clamped - (shifted - magic);
#endif
  F32 p = Set(0.0018671301659196615f);
  p = Fma(p, r, Set(0.009017029777169228f));
  p = Fma(p, r, Set(0.05579991266131401f));
  p = Fma(p, r, Set(0.24016444385051727f));
  p = Fma(p, r, Set(0.6931512951850891f));
  p = Fma(p, r, Set(1.0f));
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return (F32)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)x);
#else
  const I32 whole = (I32)Bits(shifted) - (I32)Bits(magic);
  return Select(x < Set(-126.0f), Zero(), p * FromBits((U32)((whole + 127) << 23)));
#endif
}

}  // namespace tessera::kernels::TESSERA_ISA
