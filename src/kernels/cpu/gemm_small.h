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
inline int64_t SmallGrain(const GemmArgs& args) { return args.b.transposed ? 4 : kLanes; }

TESSERA_INLINE float ElementOfA(const MatrixRef& a, int64_t row, int64_t k) {
  const int64_t index = a.transposed ? k * a.ld + row : row * a.ld + k;
  return a.dtype == DType::kBf16 ? ToFloat(static_cast<const bf16*>(a.data)[index])
                                 : static_cast<const float*>(a.data)[index];
}

// sums[kRows][kCols] of dot products over [0, k): lanes in fixed places, one tree at the end.
// a: [kRows][ld_a] floats, zero from k up to whole vectors.
template <int kRows, int kCols, class In>
TESSERA_INLINE void DotColumns(const float* a, int64_t ld_a, const In* b, int64_t ld_b, int64_t k,
                               float* sums, int64_t ld_sums) {
  // Asks for the next columns, whose rows a core's own prefetching does not foresee, into L2.
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
  F32 acc[kRows][kCols] = {};
  const auto add = [&](int64_t step, int c) {
    const F32 vector = Load(b + c * ld_b + step);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      acc[r][c] = Fma(Load(a + r * ld_a + step), vector, acc[r][c]);
    }
  };
  int64_t step = 0;
  for (; step + kLine <= k; step += kLine) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      __builtin_prefetch(b + (kCols + c) * ld_b + step, 0, 2);
#pragma GCC unroll 4
      for (int64_t lane = 0; lane < kLine; lane += kLanes) add(step + lane, c);
    }
  }
  for (; step + kLanes <= k; step += kLanes) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) add(step, c);
  }
  if (step < k) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const F32 vector = LoadPartial(b + c * ld_b + step, k - step);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[r][c] = Fma(Load(a + r * ld_a + step), vector, acc[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) sums[r * ld_sums + c] = Sum(acc[r][c]);
  }
}

template <int kRows, class In>
void DotChunk(const float* a, int64_t ld_a, const In* b, int64_t ld_b, int64_t k, int64_t cols,
              float* sums, int64_t ld_sums) {
  constexpr int kCols = kRows <= 2 ? 4 : 2;
  int64_t col = 0;
  for (; col + kCols <= cols; col += kCols) {
    DotColumns<kRows, kCols>(a, ld_a, b + col * ld_b, ld_b, k, sums + col, ld_sums);
  }
  for (; col < cols; ++col) {
    DotColumns<kRows, 1>(a, ld_a, b + col * ld_b, ld_b, k, sums + col, ld_sums);
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
    for (int64_t k = 0; k < args.k; ++k) {
      a[dots ? r * ld_a + k : k * kRows + r] = ElementOfA(args.a, r, k);
    }
    for (int64_t k = args.k; dots && k < ld_a; ++k) a[r * ld_a + k] = 0;
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
