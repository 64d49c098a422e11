// Words of two bf16 and their dot product, for what multiplies in pairs: matrix products and
// attention.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

#if defined(__AVX512BF16__) || defined(TESSERA_EMULATE_BF16_DOT)
inline constexpr bool kHasBf16Dot = true;
#else
inline constexpr bool kHasBf16Dot = false;
#endif

// What a word of four bytes holds: one float, or the bf16 of steps (k, k+1) from the low half up.
enum class Word { kFloat, kPair };

template <Word kWord>
inline constexpr int64_t kStepsPerWord = kWord == Word::kPair ? 2 : 1;

constexpr int64_t WordSteps(Word word, int64_t k) { return word == Word::kPair ? (k + 1) / 2 : k; }

TESSERA_INLINE U32 BroadcastWord(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
#if defined(__AVX512F__)
  return (U32)_mm512_set1_epi32(static_cast<int>(word));
#elif defined(__AVX2__)
  return (U32)_mm256_set1_epi32(static_cast<int>(word));
#else
  return U32{} + word;
#endif
}

// acc + a[1] b[1] + a[0] b[0] on pairs of bf16, in the order that VDPBF16PS documents: the odd
// element first, each addition rounded to nearest, subnormals flushed. Its products are exact in
// fp32, so two fused multiply-adds are the same function under the pool's flush-to-zero mode.
TESSERA_INLINE F32 DotPairs(F32 acc, U32 a, U32 b) {
#if defined(__AVX512BF16__)
  return (F32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  acc = Fma(FromBits(a & 0xffff0000u), FromBits(b & 0xffff0000u), acc);
  return Fma(FromBits(a << 16), FromBits(b << 16), acc);
#endif
}

// Words (low[i], high[i]), rounded to bf16.
TESSERA_INLINE U32 RoundToPairs(F32 low, F32 high) {
#if defined(__AVX512BF16__)
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  alignas(64) static constexpr uint16_t kZip[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                    21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                    11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (U32)_mm512_maskz_permutexvar_epi16((__mmask32)-1, _mm512_load_si512(kZip), halves);
#else
  return Widen(ToBf16Bits(low)) | (Widen(ToBf16Bits(high)) << 16);
#endif
}

// The words of 2 kLanes consecutive elements, rounded to bf16.
TESSERA_INLINE U32 RoundToWords(F32 first, F32 second) {
#if defined(__AVX512BF16__)
  return (U32)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  bf16 halves[2 * kLanes];
  Store(halves, first);
  Store(halves + kLanes, second);
  return LoadWords(halves);
#endif
}

// Words (low[i], high[i]) of kLanes elements each.
TESSERA_INLINE U32 LoadPairs(const bf16* low, const bf16* high) {
  U16 l, h;
  std::memcpy(&l, low, sizeof(l));
  std::memcpy(&h, high, sizeof(h));
  return Widen(l) | (Widen(h) << 16);
}

}  // namespace tessera::kernels::TESSERA_ISA
