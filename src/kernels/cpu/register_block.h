// What the innermost loops over accumulators in registers are made of. Written out where g++ 12
// spoils them: it moves the loads of several steps together, which takes a Zen 3 core from 0.95 of
// its peak to 0.79, and picks forms of the multiply-add that overwrite a factor, so that accumulators
// are copied between registers (AVX-512: a tenth more instructions) or kept in memory (AVX2).
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

TESSERA_INLINE F32 BroadcastFloat(const float* p) {
#if defined(__AVX512F__)
  return (F32)_mm512_set1_ps(*p);
#elif defined(__AVX2__)
  F32 word;
  asm volatile("vbroadcastss %1, %0" : "=x"(word) : "m"(*p));
  return word;
#else
  return F32{*p, *p, *p, *p};
#endif
}

// A whole vector, read where the call stands among the others of this file.
TESSERA_INLINE F32 LoadInOrder(const float* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  struct [[gnu::packed, gnu::may_alias]] Unaligned { F32 v; };
  F32 v;
  asm volatile("vmovups %1, %0" : "=x"(v) : "m"(*reinterpret_cast<const Unaligned*>(p)));
  return v;
#else
  return Load(p);
#endif
}

// acc += a b.
TESSERA_INLINE void FmaInPlace(F32& acc, F32 a, F32 b) {
#if defined(__AVX512F__)
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#elif defined(__AVX2__)
  asm volatile("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
  acc = Fma(a, b, acc);
#endif
}

// acc += *a b, the word read by the multiply-add itself where that exists.
TESSERA_INLINE void FmaBroadcast(F32& acc, const float* a, F32 b) {
#if defined(__AVX512F__)
  asm volatile("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
#else
  acc = Fma(BroadcastFloat(a), b, acc);
#endif
}

}  // namespace tessera::kernels::TESSERA_ISA
