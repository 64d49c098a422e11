// Several vectors computed as one. A polynomial is one chain of dependent instructions, and a core
// holds too few of those that wait (64 of a Zen 3) to find the next vector's chain behind this one's;
// written step by step over N vectors, N chains advance together. Each element's result is that of
// F32.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

// Calls fn(0) .. fn(N - 1), written out.
template <int N, class Fn>
TESSERA_INLINE void Each(Fn&& fn) {
  if constexpr (N > 0) {
    Each<N - 1>(fn);
    fn(N - 1);
  }
}

// After a lambda's parameters: its vectors must stay in registers.
#define TESSERA_INLINE_LAMBDA __attribute__((always_inline))
#define TESSERA_EACH(i) [&](int i) TESSERA_INLINE_LAMBDA

template <int N>
struct ManyMask {
  I32 v[N];
};

template <int N>
struct Many {
  F32 v[N];

  Many() = default;
  TESSERA_INLINE Many(F32 all) { Each<N>(TESSERA_EACH(i) { v[i] = all; }); }
  TESSERA_INLINE Many(float all) : Many(Set(all)) {}

#define TESSERA_MANY_BINARY(name, expression)                          \
  TESSERA_INLINE friend Many name(const Many& a, const Many& b) {      \
    Many out;                                                          \
    Each<N>(TESSERA_EACH(i) { out.v[i] = expression; });               \
    return out;                                                        \
  }
  TESSERA_MANY_BINARY(operator+, a.v[i] + b.v[i])
  TESSERA_MANY_BINARY(operator-, a.v[i] - b.v[i])
  TESSERA_MANY_BINARY(operator*, a.v[i] * b.v[i])
  TESSERA_MANY_BINARY(operator/, a.v[i] / b.v[i])
  TESSERA_MANY_BINARY(Max, TESSERA_ISA::Max(a.v[i], b.v[i]))
  TESSERA_MANY_BINARY(Min, TESSERA_ISA::Min(a.v[i], b.v[i]))
#undef TESSERA_MANY_BINARY

  TESSERA_INLINE friend Many operator-(const Many& a) {
    Many out;
    Each<N>(TESSERA_EACH(i) { out.v[i] = -a.v[i]; });
    return out;
  }
  TESSERA_INLINE friend Many Abs(const Many& a) {
    Many out;
    Each<N>(TESSERA_EACH(i) { out.v[i] = TESSERA_ISA::Abs(a.v[i]); });
    return out;
  }
  TESSERA_INLINE friend Many Fma(const Many& a, const Many& b, const Many& c) {
    Many out;
    Each<N>(TESSERA_EACH(i) { out.v[i] = TESSERA_ISA::Fma(a.v[i], b.v[i], c.v[i]); });
    return out;
  }
  TESSERA_INLINE friend ManyMask<N> operator<(const Many& a, const Many& b) {
    ManyMask<N> out;
    Each<N>(TESSERA_EACH(i) { out.v[i] = a.v[i] < b.v[i]; });
    return out;
  }
  TESSERA_INLINE friend ManyMask<N> operator>(const Many& a, const Many& b) { return b < a; }
  TESSERA_INLINE friend Many Select(const ManyMask<N>& mask, const Many& a, const Many& b) {
    Many out;
    Each<N>(TESSERA_EACH(i) { out.v[i] = TESSERA_ISA::Select(mask.v[i], a.v[i], b.v[i]); });
    return out;
  }
};

// fn of F32s, element by element: Map(fn, a, b) is fn(a, b).
template <class Fn, class... Rest>
TESSERA_INLINE F32 Map(Fn&& fn, F32 a, Rest... rest) {
  return fn(a, rest...);
}
template <class Fn, int N, class... Rest>
TESSERA_INLINE Many<N> Map(Fn&& fn, const Many<N>& a, const Rest&... rest) {
  Many<N> out;
  Each<N>(TESSERA_EACH(i) { out.v[i] = fn(a.v[i], rest.v[i]...); });
  return out;
}

// N full vectors.
template <int N>
struct Several {
  static constexpr int kCount = N;
};
template <int N, class T>
TESSERA_INLINE Many<N> Load(const T* p, Several<N>, float = 0.0f) {
  Many<N> out;
  Each<N>(TESSERA_EACH(k) { out.v[k] = Load(p + k * kLanes); });
  return out;
}
template <int N, class T>
TESSERA_INLINE void Store(T* p, const Many<N>& v, Several<N>) {
  Each<N>(TESSERA_EACH(k) { Store(p + k * kLanes, v.v[k]); });
}
#if defined(__AVX512BF16__)
// Rounded by one instruction, stored as one line.
template <>
TESSERA_INLINE void Store(bf16* p, const Many<2>& v, Several<2>) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)v.v[1], (__m512)v.v[0]);
  _mm512_storeu_si512(p, both);
}
#endif

}  // namespace tessera::kernels::TESSERA_ISA
