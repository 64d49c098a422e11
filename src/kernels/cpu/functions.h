// Exponentials and tanh of V, which is F32 or Many of them. NaN stays NaN.
#pragma once

#include "kernels/cpu/many.h"

namespace tessera::kernels::TESSERA_ISA {

#if !defined(__AVX512F__)
// p 2^n, or 0 where x < least, for p in (0.5, 2] and n integral: onto the exponent's bits, where the
// result is normal. The conversion takes NaN to 2^31, of which the shift leaves nothing.
TESSERA_INLINE F32 TimesPowerOfTwo(F32 p, F32 n, F32 x, float least) {
#if defined(__AVX2__)
  const U32 whole = (U32)_mm256_cvtps_epi32((__m256)n);
#elif defined(__SSE2__)
  const U32 whole = (U32)_mm_cvtps_epi32((__m128)n);
#else
  U32 whole;
  for (int64_t i = 0; i < kLanes; ++i) whole[i] = n[i] == n[i] ? (uint32_t)(int32_t)n[i] : 0;
#endif
  return FromBits((Bits(p) + (whole << 23)) & ~(U32)(x < Set(least)));
}
#endif

// e^x to 1 ulp and |x| 3e-9, the rounding of ln 2 (relative): x = n ln2 + r with |r| <= ln2/2, a
// degree-6 minimax polynomial (relative error 3e-9 before rounding), scaled by 2^n. Below -87.3 the
// result is 0, above 88.7 it saturates at the largest finite power (the order of operands in Min and
// Max lets NaN through). kAtMostZero: of no x above 0, to the same bits; what is below -87.3 then goes
// through the polynomial too, as whatever comes of it is replaced by 0.
template <bool kAtMostZero = false, class V>
TESSERA_INLINE V Exp(V x) {
  constexpr float kLeast = -87.33654f;
  V clamped = x;
  if constexpr (!kAtMostZero) {
    clamped = Min(Set(88.72283f), x);
#if !defined(__AVX512F__)
    clamped = Max(Set(kLeast), clamped);
#endif
  }
  const F32 magic = Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = Fma(clamped, Set(1.44269504088896341f), magic) - magic;
  const V r = Fma(n, Set(-0.693147180559945309f), clamped);
  V p = Fma(Set(1.3814466954e-3f), r, Set(8.36878040859e-3f));
  p = Fma(p, r, Set(4.16683942113e-2f));
  p = Fma(p, r, Set(1.66665201079e-1f));
  p = Fma(p, r, Set(4.99999934125e-1f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  return Map(
      [](F32 p1, F32 n1, F32 x1) TESSERA_INLINE_LAMBDA {
#if defined(__AVX512F__)
        const __mmask16 above = _mm512_cmp_ps_mask((__m512)x1, (__m512)Set(kLeast), _CMP_NLT_UQ);
        return (F32)_mm512_maskz_scalef_ps(above, (__m512)p1, (__m512)n1);
#else
        return TimesPowerOfTwo(p1, n1, x1, kLeast);
#endif
      },
      p, n, x);
}

// 2^x to about 2 ulp: 2^floor(x) times a degree-5 minimax polynomial of the fraction in [0, 1)
// (relative error 8.2e-8, exactly 1 at 0). Below -126 the result is 0, -inf included; x must stay
// below 128.
template <class V>
TESSERA_INLINE V Exp2(V x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const V r = Map(
      [](F32 x1) TESSERA_INLINE_LAMBDA {  // x - floor(x); 0 for -inf
        return (F32)_mm512_maskz_reduce_ps((__mmask16)-1, (__m512)x1, 1);
      },
      x);
#else
  const V clamped = Max(x, Set(-127.0f));
  const F32 magic = Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = ((clamped - Set(0.5f)) + magic) - magic;
  const V r = clamped - n;
#endif
  V p = Fma(Set(0.0018671301659196615f), r, Set(0.009017029777169228f));
  p = Fma(p, r, Set(0.05579991266131401f));
  p = Fma(p, r, Set(0.24016444385051727f));
  p = Fma(p, r, Set(0.6931512951850891f));
  p = Fma(p, r, Set(1.0f));
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return Map(
      [](F32 p1, F32 x1) TESSERA_INLINE_LAMBDA {
        return (F32)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p1, (__m512)x1);
      },
      p, x);
#else
  return Map(
      [](F32 p1, F32 n1, F32 x1) TESSERA_INLINE_LAMBDA {
        return TimesPowerOfTwo(p1, n1, x1, -126.0f);
      },
      p, n, x);
#endif
}

template <class V>
TESSERA_INLINE V Sigmoid(V x) {
  return Set(1.0f) / (Set(1.0f) + Exp(-x));
}

// tanh x = x P(x^2) / Q(x^2), both of degree 4: a minimax fit of the relative error (2e-8) on
// [0, 9.01], beyond which tanh rounds to 1; with rounding 5 units in the last place.
template <class V>
TESSERA_INLINE V Tanh(V x) {
  const V clamped = Max(Set(-9.01f), Min(Set(9.01f), x));
  const V x2 = clamped * clamped;
  V p = Fma(Set(1.33380382e-8f), x2, Set(2.05972083e-5f));
  V q = Fma(Set(7.76979277e-7f), x2, Set(3.28445894e-4f));
  p = Fma(p, x2, Set(3.49487085e-3f));
  q = Fma(q, x2, Set(2.58742571e-2f));
  p = Fma(p, x2, Set(0.133804232f));
  q = Fma(q, x2, Set(0.467137396f));
  p = Fma(p, x2, Set(1.0f));
  q = Fma(q, x2, Set(1.0f));
  return Max(Set(-1.0f), Min(Set(1.0f), clamped * p / q));
}

}  // namespace tessera::kernels::TESSERA_ISA
