// Activations on one vector, shared by the matrix product's epilogues and the activation kernels so
// that a fused and a recomputed activation have the same bits.
#pragma once

#include "kernels/cpu/functions.h"

namespace tessera::kernels::TESSERA_ISA {

// erfc(z) for z >= 0 to a relative error of 4e-7: t = 1 / (1 + z/2), erfc(z) = t P(t) e^(-z^2), P a
// degree-9 minimax fit of erfc(z) e^(z^2) / t on [0, 9.5] (error 2e-8). The rounding of z^2 is
// carried into the exponential to first order; beyond 9.3 the result underflows to 0.
template <class V>
TESSERA_INLINE V Erfc(V z) {
  const V t = Set(1.0f) / Fma(z, Set(0.5f), Set(1.0f));
  V p = Fma(Set(0.013852088712155819f), t, Set(-0.13161680102348328f));
  p = Fma(p, t, Set(0.44817468523979187f));
  p = Fma(p, t, Set(-0.6950513124465942f));
  p = Fma(p, t, Set(0.4414840042591095f));
  p = Fma(p, t, Set(-0.10879412293434143f));
  p = Fma(p, t, Set(0.22901813685894012f));
  p = Fma(p, t, Set(0.23793485760688782f));
  p = Fma(p, t, Set(0.28293782472610474f));
  p = Fma(p, t, Set(0.2820605933666229f));
  const V square = z * z;
  const V rest = Fma(z, z, -square);
  return t * p * Exp(-square) * (Set(1.0f) - rest);
}

// x/2 (1 + erf(x / sqrt 2)) = x/2 erfc(-x / sqrt 2): through erfc of the magnitude, so that nothing
// cancels for negative x.
template <class V>
TESSERA_INLINE V GeluErf(V x) {
  // Above 14 the value is x or -0; the limit keeps infinities out of the difference of squares.
  const V z = Min(Abs(x), Set(14.0f)) * Set(0.70710678118654752f);
  const V tail = Erfc(z);
  return x * Set(0.5f) * Select(x < Zero(), tail, Set(2.0f) - tail);
}

constexpr float kSqrtTwoOverPi = 0.7978845608028654f;

// The sigmoid of 2u, u = sqrt(2/pi) (x + 0.044715 x^3), where x2 = x^2.
template <class V>
TESSERA_INLINE V GeluSigmoid(V x, V x2) {
  return Sigmoid(x * Fma(x2, Set(2.0f * kSqrtTwoOverPi * 0.044715f), Set(2.0f * kSqrtTwoOverPi)));
}

// x/2 (1 + tanh u) = x sigmoid(2u): no cancellation where tanh is near -1.
template <class V>
TESSERA_INLINE V GeluTanh(V x) {
  return x * GeluSigmoid(x, x * x);
}

template <class V>
TESSERA_INLINE V ReluSquared(V x) {
  const V positive = Max(Zero(), x);  // NaN for NaN
  return positive * positive;
}

}  // namespace tessera::kernels::TESSERA_ISA
