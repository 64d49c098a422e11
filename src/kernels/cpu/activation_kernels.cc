// Activations of the MLP, plain and gated, one pass over memory.
#include "kernels/cpu/gelu.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

// act(x) and, where wanted, its derivative. Without it the functions are those of the matrix product's
// epilogues (gelu.h), to the bit; with it both come from one exponential.
struct Value {
  F32 y, slope;
};

constexpr float kSqrtTwoOverPi = 0.7978845608028654f;
constexpr float kInvSqrtTwoPi = 0.3989422804014327f;

// Standard normal distribution function and density. With a = |x| and t = 1 / (1 + 0.35 a),
// Phi(-a) = e^(-a^2/2) R(t), R a minimax polynomial on a in [0, 14] (relative error 3.2e-8); the
// rounding of a^2/2 is put back after the exponential, so both tails keep full relative accuracy.
struct Normal {
  F32 distribution, density;
};
TESSERA_INLINE Normal NormalOf(F32 x) {
  const F32 a = Abs(x);
  const F32 t = Set(1.0f) / Fma(a, Set(0.35f), Set(1.0f));
  F32 r = Set(-0.02914591424f);
  r = Fma(r, t, Set(0.1439716233f));
  r = Fma(r, t, Set(-0.2557141084f));
  r = Fma(r, t, Set(0.1591740031f));
  r = Fma(r, t, Set(-0.02310973347f));
  r = Fma(r, t, Set(0.1055079638f));
  r = Fma(r, t, Set(0.1198328771f));
  r = Fma(r, t, Set(0.1398618685f));
  r = Fma(r, t, Set(0.1396214044f));
  r = r * t;
  const F32 half = a * Set(0.5f);
  const F32 h = half * a;
  const F32 lost = Fma(half, a, -h);
  const F32 e = Exp(-h);
  const F32 gauss = Fma(-e, lost, e);
  const F32 tail = gauss * r;
  return {Select(x < Zero(), tail, Set(1.0f) - tail), gauss * Set(kInvSqrtTwoPi)};
}

template <Activation kActivation, bool kSlope>
TESSERA_INLINE Value Evaluate(F32 x) {
  const F32 one = Set(1.0f);
  Value out = {};
  if constexpr (!kSlope && kActivation == Activation::kGeluTanh) {
    out.y = GeluTanh(x);
    return out;
  }
  if constexpr (!kSlope && kActivation == Activation::kGeluErf) {
    out.y = GeluErf(x);
    return out;
  }
  if constexpr (!kSlope && kActivation == Activation::kReluSquared) {
    out.y = ReluSquared(x);
    return out;
  }
  if constexpr (kActivation == Activation::kGeluTanh) {
    // x/2 (1 + tanh u) = x sigmoid(2u): no cancellation where tanh is near -1.
    const F32 x2 = x * x;
    const F32 u = x * Fma(x2, Set(2.0f * kSqrtTwoOverPi * 0.044715f), Set(2.0f * kSqrtTwoOverPi));
    const F32 s = Sigmoid(u);
    out.y = x * s;
    if constexpr (kSlope) {
      const F32 du =
          Fma(x2, Set(6.0f * kSqrtTwoOverPi * 0.044715f), Set(2.0f * kSqrtTwoOverPi));
      out.slope = Fma(out.y * (one - s), du, s);
    }
  } else if constexpr (kActivation == Activation::kGeluErf) {
    const Normal normal = NormalOf(x);
    out.y = x * normal.distribution;
    if constexpr (kSlope) out.slope = Fma(x, normal.density, normal.distribution);
  } else if constexpr (kActivation == Activation::kRelu) {
    out.y = Select(x > Zero(), x, x * Zero());  // 0, or NaN for NaN
    if constexpr (kSlope) out.slope = Select(x > Zero(), one, Zero());
  } else if constexpr (kActivation == Activation::kReluSquared) {
    const F32 r = Select(x > Zero(), x, x * Zero());
    out.y = r * r;
    if constexpr (kSlope) out.slope = r + r;
  } else {
    const F32 s = Sigmoid(x);
    out.y = x * s;
    if constexpr (kSlope) out.slope = Fma(out.y, one - s, s);
  }
  return out;
}

template <class T, Activation kActivation>
void ForwardAll(const ActivationArgs& args, ThreadPool& pool) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t width = args.width;
  if (!args.gated) {
    ParallelElements(pool, args.rows * width, [=](int64_t begin, int64_t end) {
      ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(y + i, Evaluate<kActivation, false>(Load(x + i, part)).y, part);
      });
    });
    return;
  }
  ParallelRows(pool, args.rows, width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = x + row * 2 * width;
      const T* up = gate + width;
      T* out = y + row * width;
      ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(out + i, Evaluate<kActivation, false>(Load(gate + i, part)).y * Load(up + i, part),
              part);
      });
    }
  });
}

template <class T, Activation kActivation>
void BackwardAll(const ActivationArgs& args, ThreadPool& pool) {
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  const int64_t width = args.width;
  if (!args.gated) {
    ParallelElements(pool, args.rows * width, [=](int64_t begin, int64_t end) {
      ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        const Value v = Evaluate<kActivation, true>(Load(x + i, part));
        Store(dx + i, Load(dy + i, part) * v.slope, part);
      });
    });
    return;
  }
  ParallelRows(pool, args.rows, width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = x + row * 2 * width;
      const T* up = gate + width;
      const T* dout = dy + row * width;
      T* dgate = dx + row * 2 * width;
      T* dup = dgate + width;
      ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        const Value v = Evaluate<kActivation, true>(Load(gate + i, part));
        const F32 d = Load(dout + i, part);
        const F32 u = Load(up + i, part);
        Store(dgate + i, d * u * v.slope, part);
        Store(dup + i, d * v.y, part);
      });
    }
  });
}

template <class T>
void ForwardOf(const ActivationArgs& args, ThreadPool& pool) {
  switch (args.activation) {
    case Activation::kGeluTanh: return ForwardAll<T, Activation::kGeluTanh>(args, pool);
    case Activation::kGeluErf: return ForwardAll<T, Activation::kGeluErf>(args, pool);
    case Activation::kRelu: return ForwardAll<T, Activation::kRelu>(args, pool);
    case Activation::kReluSquared: return ForwardAll<T, Activation::kReluSquared>(args, pool);
    case Activation::kSilu: return ForwardAll<T, Activation::kSilu>(args, pool);
  }
}

template <class T>
void BackwardOf(const ActivationArgs& args, ThreadPool& pool) {
  switch (args.activation) {
    case Activation::kGeluTanh: return BackwardAll<T, Activation::kGeluTanh>(args, pool);
    case Activation::kGeluErf: return BackwardAll<T, Activation::kGeluErf>(args, pool);
    case Activation::kRelu: return BackwardAll<T, Activation::kRelu>(args, pool);
    case Activation::kReluSquared: return BackwardAll<T, Activation::kReluSquared>(args, pool);
    case Activation::kSilu: return BackwardAll<T, Activation::kSilu>(args, pool);
  }
}

void Forward(const ActivationArgs& args, ThreadPool& pool) {
  args.dtype == DType::kBf16 ? ForwardOf<bf16>(args, pool) : ForwardOf<float>(args, pool);
}
void Backward(const ActivationArgs& args, ThreadPool& pool) {
  args.dtype == DType::kBf16 ? BackwardOf<bf16>(args, pool) : BackwardOf<float>(args, pool);
}

}  // namespace

void FillActivation(KernelTable& table) {
  table.activation_forward = Forward;
  table.activation_backward = Backward;
}

}  // namespace tessera::kernels::TESSERA_ISA
