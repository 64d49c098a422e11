// Products with at most four rows (decoding): B streams past once, unpacked, at the rate of memory.
#pragma once

#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr int64_t kSmallRows = 4;
inline constexpr int64_t kSmallWordsA = int64_t{1} << 19;  // A in floats, or in pairs
inline constexpr int64_t kSmallWordsC = 4096;              // sums of one chunk of columns
inline constexpr int64_t kSmallWords = kSmallWordsA + kSmallRows * kLanes + kSmallWordsC;

// Whether the multiplier takes pairs of bf16 of both operands.
inline bool MultipliesPairs(const GemmArgs& args) {
  return kHasBf16Dot && args.compute == Compute::kBf16 && args.a.dtype == DType::kBf16 &&
         args.b.dtype == DType::kBf16;
}

// B as [k, n] keeps the chain over k, so it serves every product in fp32; the dot products of B as
// [n, k] sum by lanes, and pairs of bf16 are not followed here.
inline bool TakesSmallPath(const GemmArgs& args) {
  if (args.m > kSmallRows || args.packed_b != nullptr || args.k == 0) return false;
  if (args.row_sums != nullptr) return false;  // A is not packed here
  if (args.m * args.k > kSmallWordsA) return false;
  if (!args.exact_chain) return true;
  return !args.b.transposed && !MultipliesPairs(args);
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

// The same of a bf16 A as it is, zero from k up to whole vectors of pairs.
inline void CopyPairsOfA(const MatrixRef& a, int64_t row, int64_t k, bf16* out) {
  const bf16* in = static_cast<const bf16*>(a.data);
  if (a.transposed) {
    for (int64_t i = 0; i < k; ++i) out[i] = in[i * a.ld + row];
  } else {
    std::memcpy(out, in + row * a.ld, static_cast<size_t>(k) * sizeof(bf16));
  }
  const int64_t end = RoundUp(k, 2 * kLanes);
  std::memset(out + k, 0, static_cast<size_t>(end - k) * sizeof(bf16));
}

// What dot products are made of: floats of A with any B, or pairs of bf16 of both.
template <Word kWord>
struct DotSteps;

template <>
struct DotSteps<Word::kFloat> {
  using A = float;
  static constexpr int64_t kSteps = kLanes;  // of a vector
  template <class In>
  TESSERA_INLINE static F32 Take(const In* b) { return Load(b); }
  template <class In>
  TESSERA_INLINE static F32 TakePartial(const In* b, int64_t n) { return LoadPartial(b, n); }
  TESSERA_INLINE static F32 Add(const float* a, F32 b, F32 sum) { return Fma(Load(a), b, sum); }
};

template <>
struct DotSteps<Word::kPair> {
  using A = bf16;
  static constexpr int64_t kSteps = 2 * kLanes;
  TESSERA_INLINE static U32 Take(const bf16* b) { return LoadWords(b); }
  TESSERA_INLINE static U32 TakePartial(const bf16* b, int64_t n) {
    bf16 padded[kSteps] = {};
    std::memcpy(padded, b, static_cast<size_t>(n) * sizeof(bf16));
    return LoadWords(padded);
  }
  TESSERA_INLINE static F32 Add(const bf16* a, U32 b, F32 sum) {
    return DotPairs(sum, LoadWords(a), b);
  }
};

// sums[kRows][1] of dot products with one column over [0, k): lanes of four chains in fixed places,
// one tree at the end. a: [kRows][ld_a], zero from k up to whole vectors.
template <int kRows, Word kWord, class In>
TESSERA_INLINE void DotColumn(const typename DotSteps<kWord>::A* a, int64_t ld_a, const In* b,
                              int64_t k, float* sums, int64_t ld_sums) {
  using Steps = DotSteps<kWord>;
  constexpr int kChains = 4;
  constexpr int64_t kSteps = Steps::kSteps, kBlock = kChains * kSteps;
  // Columns follow one another.
  constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(In));
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
  F32 acc[kRows][kChains] = {};
  const auto add = [&](auto vector, int64_t step, int chain) TESSERA_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      acc[r][chain] = Steps::Add(a + r * ld_a + step, vector, acc[r][chain]);
    }
  };
  int64_t step = 0;
  for (; step + kBlock <= k; step += kBlock) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      if (c * kSteps % kLine == 0) __builtin_prefetch(b + step + kAhead + c * kSteps, 0, 2);
      add(Steps::Take(b + step + c * kSteps), step + c * kSteps, c);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c, step += kSteps) {
    if (step + kSteps <= k) {
      add(Steps::Take(b + step), step, c);
    } else if (step < k) {
      add(Steps::TakePartial(b + step, k - step), step, c);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r * ld_sums] = Sum((acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]));
  }
}

// Columns one after the other, as they lie in memory: it is read in order.
template <int kRows, Word kWord, class In>
void DotChunk(const typename DotSteps<kWord>::A* a, int64_t ld_a, const In* b, int64_t ld_b,
              int64_t k, int64_t cols, float* sums, int64_t ld_sums) {
  // Rows whose chains the registers hold; the others find the column in the nearest cache.
  constexpr int kTogether = kLanes >= 16 || kRows <= 2 ? kRows : 2;
  for (int64_t col = 0; col < cols; ++col) {
    const In* column = b + col * ld_b;
    DotColumn<kTogether, kWord>(a, ld_a, column, k, sums + col, ld_sums);
    if constexpr (kTogether < kRows) {
      DotColumn<kRows - kTogether, kWord>(a + kTogether * ld_a, ld_a, column, k,
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

// Dot products with columns [col, col + cols) of B^T, whose A is copied already.
template <int kRows, class In>
void DotColumns(const GemmArgs& args, const float* a, int64_t col, int64_t cols, float* sums,
                int64_t ld_sums) {
  const In* b = static_cast<const In*>(args.b.data) + col * args.b.ld;
  if constexpr (kHasBf16Dot && sizeof(In) == 2) {
    if (MultipliesPairs(args)) {
      DotChunk<kRows, Word::kPair>(reinterpret_cast<const bf16*>(a), RoundUp(args.k, 2 * kLanes), b,
                                   args.b.ld, args.k, cols, sums, ld_sums);
      return;
    }
  }
  DotChunk<kRows, Word::kFloat>(a, RoundUp(args.k, kLanes), b, args.b.ld, args.k, cols, sums,
                                ld_sums);
}

template <int kRows, class In>
void RunSmallRows(const GemmArgs& args, int64_t begin, int64_t end, float* workspace) {
  float* const a = workspace;
  float* const sums = workspace + kSmallWordsA + kSmallRows * kLanes;
  const bool dots = args.b.transposed;
  for (int r = 0; r < kRows; ++r) {
    if (dots && MultipliesPairs(args)) {
      const int64_t ld = RoundUp(args.k, 2 * kLanes);
      CopyPairsOfA(args.a, r, args.k, reinterpret_cast<bf16*>(a) + r * ld);
    } else if (dots) {
      CopyRowOfA(args.a, r, args.k, a + r * RoundUp(args.k, kLanes));
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
      DotColumns<kRows, In>(args, a, col, cols, sums, kChunk);
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
