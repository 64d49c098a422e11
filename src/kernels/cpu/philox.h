// Philox4x32-10 on vectors: the same words as RngKey::Block (base/rng.h), kLanes blocks at a time.
#pragma once

#include "base/rng.h"
#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

// Words that one call of PhiloxWords makes.
inline constexpr int64_t kPhiloxWords = 4 * kLanes;

// High and low halves of the products of every lane with a constant.
struct WideProduct {
  U32 high, low;
};
TESSERA_INLINE WideProduct Multiply(U32 v, uint32_t factor) {
  typedef uint64_t U64 __attribute__((vector_size(kLanes * 4)));
  const U64 pairs = (U64)v;
  const U64 odd_lanes = pairs >> 32;
#if defined(__AVX512F__)
  const __m512i f = _mm512_set1_epi64(factor);
  const U64 even = (U64)_mm512_maskz_mul_epu32(0xff, (__m512i)pairs, f);
  const U64 odd = (U64)_mm512_maskz_mul_epu32(0xff, (__m512i)odd_lanes, f);
#elif defined(__AVX2__)
  const __m256i f = _mm256_set1_epi64x(factor);
  const U64 even = (U64)_mm256_mul_epu32((__m256i)pairs, f);
  const U64 odd = (U64)_mm256_mul_epu32((__m256i)odd_lanes, f);
#elif defined(__SSE2__)
  const __m128i f = _mm_set1_epi64x(factor);
  const U64 even = (U64)_mm_mul_epu32((__m128i)pairs, f);
  const U64 odd = (U64)_mm_mul_epu32((__m128i)odd_lanes, f);
#else
  const U64 even = (pairs & 0xffffffffu) * uint64_t{factor};
  const U64 odd = odd_lanes * uint64_t{factor};
#endif
  const U64 low_mask = U64{} + 0xffffffffu;
  return {(U32)((even >> 32) | (odd & ~low_mask)), (U32)((even & low_mask) | (odd << 32))};
}

// The key's Philox key and stream, taken once per kernel call.
struct PhiloxStream {
  uint32_t key0, key1, stream0, stream1;
};

// Words of elements [4 first_block, 4 first_block + kPhiloxWords), in the elements' order.
TESSERA_INLINE void PhiloxWords(const PhiloxStream& stream, uint64_t first_block, uint32_t* words) {
  U32 lane;
  for (uint32_t i = 0; i < kLanes; ++i) lane[i] = i;
  U32 c0 = lane + static_cast<uint32_t>(first_block);
  const U32 carry = (U32)(c0 < lane) & 1u;
  U32 c1 = carry + static_cast<uint32_t>(first_block >> 32);
  U32 c2 = U32{} + stream.stream0;
  U32 c3 = U32{} + stream.stream1;
  uint32_t key0 = stream.key0, key1 = stream.key1;
  for (int round = 0; round < 10; ++round) {
    const WideProduct p0 = Multiply(c0, 0xD2511F53u);
    const WideProduct p1 = Multiply(c2, 0xCD9E8D57u);
    c0 = p1.high ^ c1 ^ key0;
    c1 = p1.low;
    c2 = p0.high ^ c3 ^ key1;
    c3 = p0.low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  // Lane b of c0..c3 holds the words of elements 4b..4b+3: transpose.
  const U32 even_low = ZipLow(c0, c2), even_high = ZipHigh(c0, c2);
  const U32 odd_low = ZipLow(c1, c3), odd_high = ZipHigh(c1, c3);
  const U32 out[4] = {ZipLow(even_low, odd_low), ZipHigh(even_low, odd_low),
                      ZipLow(even_high, odd_high), ZipHigh(even_high, odd_high)};
  std::memcpy(words, out, sizeof(out));
}

}  // namespace tessera::kernels::TESSERA_ISA
