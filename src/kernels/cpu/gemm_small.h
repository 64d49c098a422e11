// Products with at most four rows (decoding): B streams past once, unpacked, at the rate of memory.
#pragma once

#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr int64_t kSmallRows = 4;
inline constexpr int64_t kSmallWordsA = int64_t{1} << 19;  // fp32 copy of A
inline constexpr int64_t kSmallWordsC = 4096;              // sums of one chunk of columns
inline constexpr int64_t kSmallWords = kSmallWordsA + kSmallRows * kLanes + kSmallWordsC;

// B as [k, n] keeps the chain over k, so it serves every product in fp32; the dot products of B as
// [n, k] sum by lanes, and pairs of bf16 are not followed here.
inline bool TakesSmallPath(const GemmArgs& args) {
  if (args.m > kSmallRows || args.packed_b != nullptr || args.k == 0) return false;
  if (args.row_sums != nullptr) return false;  // A is not packed here
  if (args.m * args.k > kSmallWordsA) return false;
  if (!args.exact_chain) return true;
  const bool pairs = kHasBf16Dot && args.compute == Compute::kBf16 &&
                     args.a.dtype == DType::kBf16 && args.b.dtype == DType::kBf16;
  return !args.b.transposed && !pairs;
}

// Columns that a thread takes together.
inline int64_t SmallGrain(const GemmArgs& args) { return args.b.transposed ? 1 : kLanes; }

TESSERA_INLINE float ElementOfA(const MatrixRef& a, int64_t row, int64_t k) {
  const int64_t index = a.transposed ? k * a.ld + row : row * a.ld + k;
  return a.dtype == DType::kBf16 ? ToFloat(static_cast<const bf16*>(a.data)[index])
                                 : static_cast<const float*>(a.data)[index];
}

template <class T>
TESSERA_INLINE void WidenRow(const T* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, Load(in + i));
  if (i < n) Store(out + i, LoadPartial(in + i, n - i));
}

// One row of A as floats, zero from k up to whole vectors.
inline void CopyRowOfA(const MatrixRef& a, int64_t row, int64_t k, float* out) {
  if (a.transposed) {
    for (int64_t i = 0; i < RoundUp(k, kLanes); ++i) out[i] = i < k ? ElementOfA(a, row, i) : 0.0f;
  } else if (a.dtype == DType::kBf16) {
    WidenRow(static_cast<const bf16*>(a.data) + row * a.ld, k, out);
  } else {
    WidenRow(static_cast<const float*>(a.data) + row * a.ld, k, out);
  }
}

// sums[kRows][1] of dot products with one column over [0, k): lanes of four chains in fixed places,
// one tree at the end. a: [kRows][ld_a] floats, zero from k up to whole vectors.
template <int kRows, class In>
TESSERA_INLINE void DotColumn(const float* a, int64_t ld_a, const In* b, int64_t k, float* sums,
                              int64_t ld_sums) {
  constexpr int kChains = 4;
  constexpr int64_t kBlock = kChains * kLanes;
  // Columns follow one another.
  constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(In));
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
  F32 acc[kRows][kChains] = {};
  const auto add = [&](F32 vector, int64_t step, int chain) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      acc[r][chain] = Fma(Load(a + r * ld_a + step), vector, acc[r][chain]);
    }
  };
  int64_t step = 0;
  for (; step + kBlock <= k; step += kBlock) {
#pragma GCC unroll 4
    for (int64_t line = 0; line < kBlock; line += kLine) {
      __builtin_prefetch(b + step + kAhead + line, 0, 2);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add(Load(b + step + c * kLanes), step + c * kLanes, c);
  }
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c, step += kLanes) {
    if (step + kLanes <= k) {
      add(Load(b + step), step, c);
    } else if (step < k) {
      add(LoadPartial(b + step, k - step), step, c);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r * ld_sums] = Sum((acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]));
  }
}

// Columns one after the other, as they lie in memory: it is read in order.
template <int kRows, class In>
void DotChunk(const float* a, int64_t ld_a, const In* b, int64_t ld_b, int64_t k, int64_t cols,
              float* sums, int64_t ld_sums) {
  // Rows whose chains the registers hold; the others find the column in the nearest cache.
  constexpr int kTogether = kLanes >= 16 || kRows <= 2 ? kRows : 2;
  for (int64_t col = 0; col < cols; ++col) {
    const In* column = b + col * ld_b;
    DotColumn<kTogether>(a, ld_a, column, k, sums + col, ld_sums);
    if constexpr (kTogether < kRows) {
      DotColumn<kRows - kTogether>(a + kTogether * ld_a, ld_a, column, k,
                                   sums + kTogether * ld_sums + col, ld_sums);
    }
  }
}

// sums[kRows][cols] += a b over kSteps steps of k in order; a: [kSteps][kRows].
template <int kRows, int kSteps, class In>
TESSERA_INLINE void AddSteps(const float* a, const In* b, int64_t ld_b, int64_t cols, float* sums,
                             int64_t ld_sums) {
  F32 factors[kSteps][kRows];
#pragma GCC unroll 8
  for (int s = 0; s < kSteps; ++s) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) factors[s][r] = BroadcastFloat(a + s * kRows + r);
  }
  for (int64_t col = 0; col < cols; col += kLanes) {
    const bool whole = col + kLanes <= cols;
    F32 acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[r] = Load(sums + r * ld_sums + col);
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) {
      const F32 vector =
          whole ? Load(b + s * ld_b + col) : LoadPartial(b + s * ld_b + col, cols - col);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r] = Fma(factors[s][r], vector, acc[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) Store(sums + r * ld_sums + col, acc[r]);
  }
}

template <int kRows, class In>
void ChainChunk(const float* a, const In* b, int64_t ld_b, int64_t k, int64_t cols, float* sums,
                int64_t ld_sums) {
  constexpr int kSteps = kRows <= 2 ? 8 : 4;
  int64_t step = 0;
  for (; step + kSteps <= k; step += kSteps) {
    AddSteps<kRows, kSteps>(a + step * kRows, b + step * ld_b, ld_b, cols, sums, ld_sums);
  }
  for (; step < k; ++step) {
    AddSteps<kRows, 1>(a + step * kRows, b + step * ld_b, ld_b, cols, sums, ld_sums);
  }
}

template <int kRows, class In>
void RunSmallRows(const GemmArgs& args, int64_t begin, int64_t end, float* workspace) {
  float* const a = workspace;
  float* const sums = workspace + kSmallWordsA + kSmallRows * kLanes;
  const bool dots = args.b.transposed;
  const int64_t ld_a = RoundUp(args.k, kLanes);
  for (int r = 0; r < kRows; ++r) {
    if (dots) {
      CopyRowOfA(args.a, r, args.k, a + r * ld_a);
    } else {
      for (int64_t k = 0; k < args.k; ++k) a[k * kRows + r] = ElementOfA(args.a, r, k);
    }
  }
  const In* b = static_cast<const In*>(args.b.data);
  const float* c = static_cast<const float*>(args.c);
  constexpr int64_t kChunk = kSmallWordsC / kRows / kLanes * kLanes;
  for (int64_t col = begin; col < end; col += kChunk) {
    const int64_t cols = Smaller(kChunk, end - col);
    if (dots) {
      DotChunk<kRows>(a, ld_a, b + col * args.b.ld, args.b.ld, args.k, cols, sums, kChunk);
      if (args.accumulate) {
        for (int r = 0; r < kRows; ++r) {
          for (int64_t x = 0; x < cols; ++x) sums[r * kChunk + x] += c[r * args.ldc + col + x];
        }
      }
    } else {
      for (int r = 0; r < kRows; ++r) {
        for (int64_t x = 0; x < kChunk; ++x) {
          sums[r * kChunk + x] = args.accumulate && x < cols ? c[r * args.ldc + col + x] : 0.0f;
        }
      }
      ChainChunk<kRows>(a, b + col, args.b.ld, args.k, cols, sums, kChunk);
    }
    FinishTile(args, sums, kChunk, 0, kRows, col, cols);
  }
}

template <class In>
void RunSmallFrom(const GemmArgs& args, int64_t begin, int64_t end, float* workspace) {
  switch (args.m) {
    case 1:
      return RunSmallRows<1, In>(args, begin, end, workspace);
    case 2:
      return RunSmallRows<2, In>(args, begin, end, workspace);
    case 3:
      return RunSmallRows<3, In>(args, begin, end, workspace);
    default:
      return RunSmallRows<4, In>(args, begin, end, workspace);
  }
}

// Columns [begin, end) of C. `workspace` holds kSmallWords floats.
inline void RunSmall(const GemmArgs& args, int64_t begin, int64_t end, float* workspace) {
  if (args.b.dtype == DType::kBf16) {
    RunSmallFrom<bf16>(args, begin, end, workspace);
  } else {
    RunSmallFrom<float>(args, begin, end, workspace);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
