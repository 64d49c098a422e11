// Transposition of bf16 to what tiles of AMX take by rows: pairs along what were columns.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

// 16 bytes of each of the four rows p, p + stride, ..., side by side.
TESSERA_INLINE __m512i LoadLanes(const bf16* p, int64_t stride) {
  __m512i lanes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)p));
  lanes = _mm512_mask_broadcast_i32x4(lanes, 0x00f0, _mm_loadu_si128((const __m128i*)(p + stride)));
  lanes =
      _mm512_mask_broadcast_i32x4(lanes, 0x0f00, _mm_loadu_si128((const __m128i*)(p + 2 * stride)));
  return _mm512_mask_broadcast_i32x4(lanes, 0xf000,
                                     _mm_loadu_si128((const __m128i*)(p + 3 * stride)));
}

// [32][16 of ld] from `source` to 16 rows of 32, `out_ld` words from row to row. Loads place 16 bytes
// of every eighth source row into one vector, so that what is left to exchange lies within lanes of
// 16 bytes.
TESSERA_INLINE void TransposeToPairs(const bf16* source, int64_t ld, uint32_t* out, int64_t out_ld) {
#pragma GCC unroll 2
  for (int64_t eight = 0; eight < 2; ++eight) {  // rows of the result at a time
    __m512i low[4], high[4];  // pairs of source rows j, j + 4, ..: rows 0..3 and 4..7 of the eight
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      const bf16* p = source + 2 * j * ld + 8 * eight;
      const __m512i even = LoadLanes(p, 8 * ld), odd = LoadLanes(p + ld, 8 * ld);
      low[j] = _mm512_unpacklo_epi16(even, odd);
      high[j] = _mm512_unpackhi_epi16(even, odd);
    }
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
      const __m512i* w = half == 0 ? low : high;
      const __m512i a = _mm512_maskz_unpacklo_epi32(0xffff, w[0], w[1]);
      const __m512i b = _mm512_maskz_unpackhi_epi32(0xffff, w[0], w[1]);
      const __m512i c = _mm512_maskz_unpacklo_epi32(0xffff, w[2], w[3]);
      const __m512i d = _mm512_maskz_unpackhi_epi32(0xffff, w[2], w[3]);
      uint32_t* rows = out + (8 * eight + 4 * half) * out_ld;
      StoreWords(rows, (U32)_mm512_maskz_unpacklo_epi64(0xff, a, c));
      StoreWords(rows + out_ld, (U32)_mm512_maskz_unpackhi_epi64(0xff, a, c));
      StoreWords(rows + 2 * out_ld, (U32)_mm512_maskz_unpacklo_epi64(0xff, b, d));
      StoreWords(rows + 3 * out_ld, (U32)_mm512_maskz_unpackhi_epi64(0xff, b, d));
    }
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
