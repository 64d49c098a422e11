// Transposition of square blocks of lanes.
#pragma once

#include <utility>

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

using LaneSequence = std::make_integer_sequence<int, (int)kLanes>;

// One stage of Eklundh's transposition: exchanges the off-diagonal halves of every 2s x 2s block
// of the rows x and y, which lie s apart.
template <int s, int... i>
TESSERA_INLINE void SwapHalves(F32& x, F32& y, std::integer_sequence<int, i...>) {
  constexpr int n = (int)kLanes;
  const F32 a = x, b = y;
  x = __builtin_shufflevector(a, b, ((i & s) == 0 ? i : n + i - s)...);
  y = __builtin_shufflevector(a, b, ((i & s) == 0 ? i + s : n + i)...);
}

template <int s>
TESSERA_INLINE void TransposeStage(F32* rows) {
  for (int r = 0; r < kLanes; ++r) {
    if ((r & s) == 0) SwapHalves<s>(rows[r], rows[r + s], LaneSequence{});
  }
}

// Transposes the kLanes x kLanes block in place.
TESSERA_INLINE void Transpose(F32* rows) {
  TransposeStage<1>(rows);
  TransposeStage<2>(rows);
  if constexpr (kLanes >= 8) TransposeStage<4>(rows);
  if constexpr (kLanes >= 16) TransposeStage<8>(rows);
}

// Adds the halves of each of 2s rows, whose sums are s wide, into one row for two, down to one row.
template <int s>
TESSERA_INLINE void AddHalves(F32* rows) {
  for (int r = 0; r < s; ++r) {
    SwapHalves<s>(rows[r], rows[r + s], LaneSequence{});
    rows[r] = rows[r] + rows[r + s];
  }
  if constexpr (s > 1) AddHalves<s / 2>(rows);
}

// Lane i: Sum(rows[i]), to the bit. Overwrites the rows.
TESSERA_INLINE F32 SumsOf(F32* rows) {
  AddHalves<(int)kLanes / 2>(rows);
  return rows[0];
}

}  // namespace tessera::kernels::TESSERA_ISA
