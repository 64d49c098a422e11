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

template <GemmEpilogue kEpilogue>
TESSERA_INLINE F32 ApplyEpilogue(F32 x) {
  if constexpr (kEpilogue == GemmEpilogue::kGeluTanh) return GeluTanh(x);
  if constexpr (kEpilogue == GemmEpilogue::kGeluErf) return GeluErf(x);
  if constexpr (kEpilogue == GemmEpilogue::kReluSquared) return ReluSquared(x);
  return x;
}

template <GemmEpilogue kEpilogue, class Out>
void FinishTileAs(const GemmArgs& args, const float* tile, int64_t ld, int64_t row, int64_t rows,
                  int64_t col, int64_t cols) {
  Out* c = static_cast<Out*>(args.c) + row * args.ldc + col;
  Out* before = args.pre_activation == nullptr
                    ? nullptr
                    : static_cast<Out*>(args.pre_activation) + row * args.ldc + col;
  const float* bias = args.bias == nullptr ? nullptr : args.bias + col;
  for (int64_t first = 0; first < cols; first += kLanes) {
    const int64_t count = cols - first;
    if (count >= kLanes) {
      const F32 b = bias == nullptr ? Zero() : Load(bias + first);
      for (int64_t i = 0; i < rows; ++i) {
        F32 x = Load(tile + i * ld + first);
        if (bias != nullptr) x = x + b;
        if (before != nullptr) Store(before + i * args.ldc + first, x);
        Store(c + i * args.ldc + first, ApplyEpilogue<kEpilogue>(x));
      }
    } else {
      const F32 b = bias == nullptr ? Zero() : LoadPartial(bias + first, count);
      for (int64_t i = 0; i < rows; ++i) {
        F32 x = Load(tile + i * ld + first);
        if (bias != nullptr) x = x + b;
        if (before != nullptr) StorePartial(before + i * args.ldc + first, x, count);
        StorePartial(c + i * args.ldc + first, ApplyEpilogue<kEpilogue>(x), count);
      }
    }
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
