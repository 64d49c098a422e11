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

// What an activation is applied to: the value as it would lie in C, so that a product and a later pass over
// it give the same bits.
template <GemmEpilogue kEpilogue, class Out, class V>
TESSERA_INLINE V BeforeEpilogue(V x) {
  if constexpr (kEpilogue == GemmEpilogue::kNone) return x;
  else return Map([](F32 v) TESSERA_INLINE_LAMBDA { return RoundTo<Out>(v); }, x);
}

// `count` columns of a row, at most N vectors of them.
template <GemmEpilogue kEpilogue, int N, class Out>
TESSERA_INLINE void FinishVectors(const float* tile, const float* bias, int64_t count, Out* before,
                                  Out* c) {
  if (count == N * kLanes) {
    Many<N> x = Load(tile, Several<N>{});
    if (bias != nullptr) x = x + Load(bias, Several<N>{});
    x = BeforeEpilogue<kEpilogue, Out>(x);
    if (before != nullptr) Store(before, x, Several<N>{});
    Store(c, ApplyEpilogue<kEpilogue>(x), Several<N>{});
    return;
  }
  Each<N>(TESSERA_EACH(v) {
    const int64_t at = v * kLanes, left = Smaller(kLanes, count - at);
    if (left <= 0) return;
    F32 x = Load(tile + at);
    if (bias != nullptr) x = x + LoadPartial(bias + at, left);
    x = BeforeEpilogue<kEpilogue, Out>(x);
    if (before != nullptr) StorePartial(before + at, x, left);
    StorePartial(c + at, ApplyEpilogue<kEpilogue>(x), left);
  });
}

template <GemmEpilogue kEpilogue, class Out>
void FinishTileAs(const GemmArgs& args, const float* tile, int64_t ld, int64_t row, int64_t rows,
                  int64_t col, int64_t cols) {
  constexpr int kTogether = 2;  // vectors computed as one (many.h)
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t first = 0; first < cols; first += kTogether * kLanes) {
      const int64_t at = (row + i) * args.ldc + col + first;
      const float* bias = args.bias == nullptr ? nullptr : args.bias + col + first;
      Out* before =
          args.pre_activation == nullptr ? nullptr : static_cast<Out*>(args.pre_activation) + at;
      FinishVectors<kEpilogue, kTogether>(tile + i * ld + first, bias,
                                          Smaller(kTogether * kLanes, cols - first), before,
                                          static_cast<Out*>(args.c) + at);
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

// The same for rows of N whole vectors of a C of bf16 that takes nothing but a bias.
template <int N>
TESSERA_INLINE void RoundRows(const GemmArgs& args, const float* tile, int64_t row, int64_t rows,
                              int64_t col) {
  bf16* c = static_cast<bf16*>(args.c) + row * args.ldc + col;
  const auto all = [&](auto finish) TESSERA_INLINE_LAMBDA {
    for (int64_t i = 0; i < rows; ++i, tile += N * kLanes, c += args.ldc) {
      Store(c, finish(Load(tile, Several<N>{})), Several<N>{});
    }
  };
  if (args.bias == nullptr) {
    all([](const Many<N>& x) TESSERA_INLINE_LAMBDA { return x; });
  } else {
    const Many<N> bias = Load(args.bias + col, Several<N>{});
    all([&](const Many<N>& x) TESSERA_INLINE_LAMBDA { return x + bias; });
  }
}

inline bool HasEpilogue(const GemmArgs& args) {
  return args.bias != nullptr || args.epilogue != GemmEpilogue::kNone ||
         args.pre_activation != nullptr;
}

}  // namespace tessera::kernels::TESSERA_ISA
