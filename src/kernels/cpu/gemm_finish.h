// From finished sums to C: bias, activation, rounding.
#pragma once

#include "kernels/cpu/gelu.h"
#include "kernels/cpu/simd.h"
#include "kernels/gemm.h"

namespace tessera::kernels::TESSERA_ISA {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
constexpr int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t Larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <GemmEpilogue kEpilogue, class V>
TESSERA_INLINE V ApplyEpilogue(V x) {
  if constexpr (kEpilogue == GemmEpilogue::kGeluTanh) return GeluTanh(x);
  else if constexpr (kEpilogue == GemmEpilogue::kGeluErf) return GeluErf(x);
  else if constexpr (kEpilogue == GemmEpilogue::kReluSquared) return ReluSquared(x);
  else return x;
}

// One vector of columns, `count` of them, of rows [i, i + N).
template <GemmEpilogue kEpilogue, int N, class Out>
TESSERA_INLINE void FinishRows(const float* tile, int64_t ld, const float* bias, int64_t count,
                               Out* before, Out* c, int64_t ldc) {
  Many<N> x;
  Each<N>(TESSERA_EACH(r) { x.v[r] = Load(tile + r * ld); });
  if (bias != nullptr) x = x + (count < kLanes ? LoadPartial(bias, count) : Load(bias));
  const auto store = [&](Out* to) TESSERA_INLINE_LAMBDA {
    Each<N>(TESSERA_EACH(r) {
      if (count < kLanes) StorePartial(to + r * ldc, x.v[r], count);
      else Store(to + r * ldc, x.v[r]);
    });
  };
  if (before != nullptr) store(before);
  x = ApplyEpilogue<kEpilogue>(x);
  store(c);
}

template <GemmEpilogue kEpilogue, class Out>
void FinishTileAs(const GemmArgs& args, const float* tile, int64_t ld, int64_t row, int64_t rows,
                  int64_t col, int64_t cols) {
  constexpr int kTogether = 2;  // rows computed as one (many.h): a divisor of a whole tile's
  const int64_t ldc = args.ldc;
  for (int64_t first = 0; first < cols; first += kLanes) {
    const int64_t count = cols - first, at = row * ldc + col + first;
    const float* bias = args.bias == nullptr ? nullptr : args.bias + col + first;
    Out* before =
        args.pre_activation == nullptr ? nullptr : static_cast<Out*>(args.pre_activation) + at;
    Out* c = static_cast<Out*>(args.c) + at;
    int64_t i = 0;
    const auto finish = [&](auto part) TESSERA_INLINE_LAMBDA {
      FinishRows<kEpilogue, part.kCount>(tile + i * ld + first, ld, bias, count,
                                         before == nullptr ? nullptr : before + i * ldc,
                                         c + i * ldc, ldc);
      i += part.kCount;
    };
    while (i + kTogether <= rows) finish(Several<kTogether>{});
    while (i < rows) finish(Several<1>{});
  }
}

template <class Out>
void FinishTileTo(const GemmArgs& args, const float* tile, int64_t ld, int64_t row, int64_t rows,
                  int64_t col, int64_t cols) {
  switch (args.epilogue) {
    case GemmEpilogue::kNone:
      return FinishTileAs<GemmEpilogue::kNone, Out>(args, tile, ld, row, rows, col, cols);
    case GemmEpilogue::kGeluTanh:
      return FinishTileAs<GemmEpilogue::kGeluTanh, Out>(args, tile, ld, row, rows, col, cols);
    case GemmEpilogue::kGeluErf:
      return FinishTileAs<GemmEpilogue::kGeluErf, Out>(args, tile, ld, row, rows, col, cols);
    case GemmEpilogue::kReluSquared:
      return FinishTileAs<GemmEpilogue::kReluSquared, Out>(args, tile, ld, row, rows, col, cols);
  }
}

// Writes C from a tile of finished sums (its rows hold whole vectors).
inline void FinishTile(const GemmArgs& args, const float* tile, int64_t ld, int64_t row,
                       int64_t rows, int64_t col, int64_t cols) {
  if (args.c_dtype == DType::kBf16) {
    FinishTileTo<bf16>(args, tile, ld, row, rows, col, cols);
  } else {
    FinishTileTo<float>(args, tile, ld, row, rows, col, cols);
  }
}

inline bool HasEpilogue(const GemmArgs& args) {
  return args.bias != nullptr || args.epilogue != GemmEpilogue::kNone ||
         args.pre_activation != nullptr;
}

}  // namespace tessera::kernels::TESSERA_ISA
