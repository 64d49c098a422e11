// Small products of attention: C[rows, columns] from A read word by word (broadcast) and B read in
// whole vectors of words, accumulated in registers. All sizes of a tile are kept in L1 or L2 by the
// callers; here only registers matter.
#pragma once

#include "kernels/cpu/bf16_dot.h"
#include "kernels/cpu/functions.h"
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

inline constexpr int kStepsARound = 8;

template <Word kWord, Layout kLayout, int kRows, int kCols>
TESSERA_INLINE void AddStep(const float* a, int64_t lda, const float* b, F32 (&sum)[kRows][kCols]) {
  decltype(LoadStep<kWord>(b)) bn[kCols];
  TESSERA_UNROLL
  for (int n = 0; n < kCols; ++n) bn[n] = LoadStep<kWord>(b + n * kLanes);
  TESSERA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const auto ar = BroadcastStep<kWord>(kLayout == Layout::kRows ? a + r * lda : a + r);
    TESSERA_UNROLL
    for (int n = 0; n < kCols; ++n) AddProduct(sum[r][n], ar, bn[n]);
  }
}

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
  // Few rounds, so that a core foresees the last.
  int64_t k = 0;
  for (; k + kStepsARound <= depth; k += kStepsARound) {
    TESSERA_UNROLL
    for (int step = 0; step < kStepsARound; ++step) {
      AddStep<kWord, kLayout>(a, lda, b, sum);
      a += kLayout == Layout::kRows ? 1 : lda;
      b += ldb;
    }
  }
  for (; k < depth; ++k) {
    AddStep<kWord, kLayout>(a, lda, b, sum);
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

// Rows of memory whose lines are asked for, some at a time.
class RequestQueue {
 public:
  // `rows` rows of `bytes`, `stride` bytes apart; dropped where too many wait already.
  TESSERA_INLINE void Add(const void* first, int64_t stride, int64_t rows, int64_t bytes) {
    if (end_ - begin_ == kMost || rows <= 0) return;
    rows_[end_++ % kMost] = {(const char*)first, stride, rows, bytes};
  }
  TESSERA_INLINE void Clear() { begin_ = end_ = offset_ = 0; }

  // Asks for the next lines; false where none are left.
  TESSERA_INLINE bool Ask() {
    if (begin_ == end_) return false;
    Rows& rows = rows_[begin_ % kMost];
    for (int i = 0; i < kLinesAtATime; ++i) {
      __builtin_prefetch(rows.at + offset_);
      offset_ += 64;
      if (offset_ < rows.bytes) continue;
      offset_ = 0;
      rows.at += rows.stride;
      if (--rows.count > 0) continue;
      ++begin_;
      break;
    }
    return true;
  }

 private:
  static constexpr int kMost = 16, kLinesAtATime = 4;
  struct Rows {
    const char* at;
    int64_t stride, count, bytes;
  };
  Rows rows_[kMost];
  int64_t begin_ = 0, end_ = 0;  // of those that wait, modulo kMost
  int64_t offset_ = 0;           // in the first one's row
};

// Memory that is wanted soon, and that of the next work item, which has its turn when nothing else is
// left. Lines are asked for among the products: rows of a head lie apart, where a core's own prefetching
// does not follow, and copying them waits for each.
struct Requests {
  RequestQueue soon, later;

  TESSERA_INLINE void Add(const void* first, int64_t stride, int64_t rows, int64_t bytes) {
    soon.Add(first, stride, rows, bytes);
  }
  TESSERA_INLINE void Clear() {
    soon.Clear();
    later.Clear();
  }
  TESSERA_INLINE void Ask() {
    if (!soon.Ask()) later.Ask();
  }
};

// The rows of a product in strips of at most kBlockRows, and the part that each needs.
struct Strips {
  struct Strip {
    int64_t row, rows;
    Extent extent;
  };
  Strip strip[kTile / kBlockRows + 3];  // one of 4, of 2 and of 1 row at the end
  int64_t count = 0;
};

// Rows [row_begin, row_end) of a tile; extent_of(row, rows) tells what a strip needs.
template <class ExtentOf>
TESSERA_INLINE void CutIntoStrips(int64_t row_begin, int64_t row_end, const ExtentOf& extent_of,
                                  Strips* out) {
  out->count = 0;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t left = row_end - row;
    const int64_t rows = left >= kBlockRows ? kBlockRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    out->strip[out->count++] = {row, rows, extent_of(row, rows)};
    row += rows;
  }
}

// The strips by columns [0, cols) vectors.
template <Word kWord, Layout kLayout, Update kUpdate>
TESSERA_INLINE void Multiply(const Product& p, const Strips& strips, int64_t cols,
                             Requests* requests) {
  for (int64_t block = 0; block < cols; block += kBlockCols) {
    const int64_t block_end = block + kBlockCols < cols ? block + kBlockCols : cols;
    for (int64_t i = 0; i < strips.count; ++i) {
      const Strips::Strip& strip = strips.strip[i];
      const int64_t row = strip.row;
      const Extent& e = strip.extent;
      const int64_t col_begin = e.col_begin > block ? e.col_begin : block;
      const int64_t col_end = e.col_end < block_end ? e.col_end : block_end;
      const int64_t count = col_end - col_begin;
      if (count <= 0 || (kUpdate == Update::kAdd && e.depth_end <= e.depth_begin)) continue;
      requests->Ask();
      switch (strip.rows) {
        case kBlockRows:
          RowsOfProduct<kWord, kLayout, kUpdate, kBlockRows>(p, row, col_begin, count, e.depth_begin,
                                                             e.depth_end);
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
  }
}

// `rows` rows that need all of it.
TESSERA_INLINE void WholeStrips(int64_t rows, int64_t depth, int64_t cols, Strips* out) {
  CutIntoStrips(0, rows, [&](int64_t, int64_t) { return Extent{0, depth, 0, cols}; }, out);
}

}  // namespace tessera::kernels::TESSERA_ISA
