// Vectors of floats for the CPU kernels. Each kernel file is compiled once per instruction set with
// TESSERA_ISA naming the namespace (generic, avx2, avx512, avx512_bf16); everything here lives in
// that namespace, so objects built for different sets never share a function.
//
// Rules for files that include this: no standard containers, algorithms or other inline functions
// with external linkage that the linker could share between objects; arguments come in plain
// structs; -ffp-contract=off holds, so a fused multiply-add is one exactly where Fma is called.
#pragma once

#ifndef TESSERA_ISA
#error "compile kernel files through tessera_isa_kernels (src/kernels/CMakeLists.txt)"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/threads.h"
#include "tensor/dtype.h"

#define TESSERA_INLINE [[gnu::always_inline]] inline

namespace tessera::kernels::TESSERA_ISA {

#if defined(__AVX512F__)
inline constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int64_t kLanes = 8;
#else
inline constexpr int64_t kLanes = 4;
#endif

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));

// x - 0 is x for every x (x + 0 is not: -0), so this is one broadcast.
TESSERA_INLINE F32 Set(float x) { return x - F32{}; }
TESSERA_INLINE F32 Zero() { return F32{}; }

TESSERA_INLINE F32 Load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
TESSERA_INLINE void Store(float* p, F32 v) { std::memcpy(p, &v, sizeof(v)); }

TESSERA_INLINE U32 LoadWords(const void* p) {
  U32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
TESSERA_INLINE void StoreWords(void* p, U32 v) { std::memcpy(p, &v, sizeof(v)); }

TESSERA_INLINE F32 FromBits(U32 bits) { return (F32)bits; }
TESSERA_INLINE U32 Bits(F32 v) { return (U32)v; }

// Between halves and words: g++ 12 splits the conversions of whole vectors in two.
TESSERA_INLINE U32 Widen(U16 v) {
#if defined(__AVX512F__)
  return (U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v);
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, U32);
#endif
}
TESSERA_INLINE U16 Narrow(U32 v) {
#if defined(__AVX512F__)
  return (U16)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v);
#else
  return __builtin_convertvector(v, U16);
#endif
}

TESSERA_INLINE F32 Load(const bf16* p) {
  U16 half;
  std::memcpy(&half, p, sizeof(half));
  return FromBits(Widen(half) << 16);
}

// Round to nearest even; NaN stays a quiet NaN.
TESSERA_INLINE U16 ToBf16Bits(F32 v) {
#if defined(__AVX512BF16__)
  return (U16)_mm512_cvtneps_pbh((__m512)v);
#else
  const U32 bits = Bits(v);
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 quiet = (bits >> 16) | 0x40u;
  const U32 is_nan = (U32)(v != v);  // all ones where NaN
  return Narrow((is_nan & quiet) | (~is_nan & rounded));
#endif
}
TESSERA_INLINE void Store(bf16* p, F32 v) {
  const U16 half = ToBf16Bits(v);
  std::memcpy(p, &half, sizeof(half));
}

// x rounded to the type T of memory and back.
template <class T>
TESSERA_INLINE F32 RoundTo(F32 v);
template <>
TESSERA_INLINE F32 RoundTo<float>(F32 v) {
  return v;
}
template <>
TESSERA_INLINE F32 RoundTo<bf16>(F32 v) {
  return FromBits(Widen(ToBf16Bits(v)) << 16);
}

// The first n (1 <= n <= kLanes) elements; the rest are `fill`. Nothing past them is touched.
#if defined(__AVX512F__)
TESSERA_INLINE F32 LoadPartial(const float* p, int64_t n, float fill = 0.0f) {
  const __mmask16 mask = (__mmask16)((1u << n) - 1u);
  return (F32)_mm512_mask_loadu_ps((__m512)Set(fill), mask, p);
}
TESSERA_INLINE F32 LoadPartial(const bf16* p, int64_t n, float fill = 0.0f) {
  const __mmask16 mask = (__mmask16)((1u << n) - 1u);
  const U16 half = (U16)_mm256_maskz_loadu_epi16(mask, p);
  const U32 bits = Widen(half) << 16;
  return (F32)_mm512_mask_mov_ps((__m512)Set(fill), mask, (__m512)FromBits(bits));
}
TESSERA_INLINE void StorePartial(float* p, F32 v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
}
TESSERA_INLINE void StorePartial(bf16* p, F32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1u), (__m256i)ToBf16Bits(v));
}
#else
TESSERA_INLINE F32 LoadPartial(const float* p, int64_t n, float fill = 0.0f) {
  float buffer[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) buffer[i] = fill;
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return Load(buffer);
}
TESSERA_INLINE F32 LoadPartial(const bf16* p, int64_t n, float fill = 0.0f) {
  float buffer[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) buffer[i] = fill;
  for (int64_t i = 0; i < n; ++i) buffer[i] = ToFloat(p[i]);
  return Load(buffer);
}
TESSERA_INLINE void StorePartial(float* p, F32 v, int64_t n) {
  float buffer[kLanes];
  Store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}
TESSERA_INLINE void StorePartial(bf16* p, F32 v, int64_t n) {
  bf16 buffer[kLanes];
  Store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}
#endif

// a * b + c, rounded once where the set has the instruction.
TESSERA_INLINE F32 Fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

TESSERA_INLINE F32 Select(I32 mask, F32 a, F32 b) { return mask ? a : b; }
// a > b ? a : b and a < b ? a : b: b where either is NaN. g++ makes a comparison and a blend of the
// expressions, the instructions do the same in one.
#if defined(__AVX512F__)
TESSERA_INLINE F32 Max(F32 a, F32 b) { return (F32)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
TESSERA_INLINE F32 Min(F32 a, F32 b) { return (F32)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
TESSERA_INLINE F32 Max(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
TESSERA_INLINE F32 Min(F32 a, F32 b) { return (F32)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
TESSERA_INLINE F32 Max(F32 a, F32 b) { return (F32)_mm_max_ps((__m128)a, (__m128)b); }
TESSERA_INLINE F32 Min(F32 a, F32 b) { return (F32)_mm_min_ps((__m128)a, (__m128)b); }
#else
TESSERA_INLINE F32 Max(F32 a, F32 b) { return a > b ? a : b; }
TESSERA_INLINE F32 Min(F32 a, F32 b) { return a < b ? a : b; }
#endif
TESSERA_INLINE F32 Abs(F32 v) { return FromBits(Bits(v) & 0x7fffffffu); }

// a0 b0 a1 b1 ... from the low or the high halves of a and b, and v with neighbours exchanged.
#if defined(__AVX512F__)
#define TESSERA_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define TESSERA_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define TESSERA_SWAP 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#elif defined(__AVX2__)
#define TESSERA_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define TESSERA_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define TESSERA_SWAP 1, 0, 3, 2, 5, 4, 7, 6
#else
#define TESSERA_ZIP_LOW 0, 4, 1, 5
#define TESSERA_ZIP_HIGH 2, 6, 3, 7
#define TESSERA_SWAP 1, 0, 3, 2
#endif
TESSERA_INLINE U32 ZipLow(U32 a, U32 b) { return __builtin_shufflevector(a, b, TESSERA_ZIP_LOW); }
TESSERA_INLINE U32 ZipHigh(U32 a, U32 b) { return __builtin_shufflevector(a, b, TESSERA_ZIP_HIGH); }
TESSERA_INLINE F32 SwapPairs(F32 v) { return __builtin_shufflevector(v, v, TESSERA_SWAP); }
#undef TESSERA_ZIP_LOW
#undef TESSERA_ZIP_HIGH
#undef TESSERA_SWAP

TESSERA_INLINE F32 Sqrt(F32 v) {
#if defined(__AVX512F__)
  return (F32)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (F32)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (F32)_mm_sqrt_ps((__m128)v);
#else
  F32 out;
  for (int64_t i = 0; i < kLanes; ++i) out[i] = __builtin_sqrtf(v[i]);
  return out;
#endif
}

// Sums of lanes in one fixed pairwise tree: lane i is added to lane i + half, halving each time.
TESSERA_INLINE float Sum(F32 v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  // The masked form: g++ 12 takes the plain one's undefined source for a use of garbage.
  const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0),
                                     _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
#else
  const __m256 eight = (__m256)v;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float buffer[kLanes];
  Store(buffer, v);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) buffer[i] += buffer[i + half];
  }
  return buffer[0];
#endif
}
TESSERA_INLINE float MaxLane(F32 v) {
  float buffer[kLanes];
  Store(buffer, v);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) {
      buffer[i] = buffer[i] > buffer[i + half] ? buffer[i] : buffer[i + half];
    }
  }
  return buffer[0];
}

// How far ahead passes over memory ask for what they need: nearly a page, past which a processor asks for
// nothing itself. A whole page is a tenth slower on Granite Rapids (docs/decisions/0018).
inline constexpr int64_t kAheadBytes = 3584;

}  // namespace tessera::kernels::TESSERA_ISA
