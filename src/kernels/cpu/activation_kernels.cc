// Activations of the MLP, plain and gated, one pass over memory.
#include "kernels/cpu/gelu.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

// act(x) and, where wanted, its derivative, both of one exponential. Without it the functions are those
// of the matrix product's epilogues (gelu.h), to the bit; with it too, but for the erf form.
template <class V>
struct Value {
  V y, slope;
};

constexpr float kInvSqrtTwoPi = 0.3989422804014327f;

// Standard normal distribution function and density. With a = |x| and t = 1 / (1 + 0.35 a),
// Phi(-a) = e^(-a^2/2) R(t), R a minimax polynomial on a in [0, 14] (relative error 3.2e-8); the
// rounding of a^2/2 is put back after the exponential, so both tails keep full relative accuracy.
template <class V>
struct Normal {
  V distribution, density;
};
template <class V>
TESSERA_INLINE Normal<V> NormalOf(V x) {
  const V a = Abs(x);
  const V t = Set(1.0f) / Fma(a, Set(0.35f), Set(1.0f));
  V r = Fma(Set(-0.02914591424f), t, Set(0.1439716233f));
  r = Fma(r, t, Set(-0.2557141084f));
  r = Fma(r, t, Set(0.1591740031f));
  r = Fma(r, t, Set(-0.02310973347f));
  r = Fma(r, t, Set(0.1055079638f));
  r = Fma(r, t, Set(0.1198328771f));
  r = Fma(r, t, Set(0.1398618685f));
  r = Fma(r, t, Set(0.1396214044f));
  r = r * t;
  const V half = a * Set(0.5f);
  const V h = half * a;
  const V lost = Fma(half, a, -h);
  const V e = Exp(-h);
  const V gauss = Fma(-e, lost, e);
  const V tail = gauss * r;
  return {Select(x < Zero(), tail, Set(1.0f) - tail), gauss * Set(kInvSqrtTwoPi)};
}

// Vectors computed as one (many.h).
constexpr int kTogether = 4;

template <Activation kActivation, bool kSlope, class V>
TESSERA_INLINE Value<V> Evaluate(V x) {
  const F32 one = Set(1.0f);
  Value<V> out = {};
  if constexpr (!kSlope && kActivation == Activation::kGeluErf) {
    out.y = GeluErf(x);
    return out;
  }
  if constexpr (kActivation == Activation::kGeluTanh) {
    const V x2 = x * x;
    const V s = GeluSigmoid(x, x2);
    out.y = x * s;
    if constexpr (kSlope) {
      const V du =
          Fma(x2, Set(6.0f * kSqrtTwoOverPi * 0.044715f), Set(2.0f * kSqrtTwoOverPi));
      out.slope = Fma(out.y * (one - s), du, s);
    }
  } else if constexpr (kActivation == Activation::kGeluErf) {
    const Normal<V> normal = NormalOf(x);
    out.y = x * normal.distribution;
    if constexpr (kSlope) out.slope = Fma(x, normal.density, normal.distribution);
  } else if constexpr (kActivation == Activation::kRelu) {
    out.y = Max(Zero(), x);  // NaN for NaN
    if constexpr (kSlope) out.slope = Select(x > Zero(), V(one), V(Zero()));
  } else if constexpr (kActivation == Activation::kReluSquared) {
    const V r = Max(Zero(), x);
    out.y = r * r;
    if constexpr (kSlope) out.slope = r + r;
  } else {
    const V s = Sigmoid(x);
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
      ForManyVectors<kTogether>(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        AskAhead(x + i, part);
        AskAhead<true>(y + i, part);
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
      ForManyVectors<kTogether>(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(out + i, Evaluate<kActivation, false>(Load(gate + i, part)).y * Load(up + i, part),
              part);
      });
    }
  });
}

// act(x) as the forward pass computes it; `value` is what came with the derivative.
template <Activation kActivation, class V>
TESSERA_INLINE V Again(V x, const Value<V>& value) {
  if constexpr (kActivation == Activation::kGeluErf) return GeluErf(x);
  else return value.y;
}

template <class T, Activation kActivation, bool kAgain>
void BackwardAll(const ActivationArgs& args, ThreadPool& pool) {
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  T* y = static_cast<T*>(args.y);
  T* dx = static_cast<T*>(args.dx);
  const int64_t width = args.width;
  if (!args.gated) {
    ParallelElements(pool, args.rows * width, [=](int64_t begin, int64_t end) {
      ForManyVectors<kTogether>(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        AskAhead(x + i, part);
        AskAhead(dy + i, part);
        AskAhead<true>(dx + i, part);
        if constexpr (kAgain) AskAhead<true>(y + i, part);
        const auto in = Load(x + i, part);
        const auto v = Evaluate<kActivation, true>(in);
        if constexpr (kAgain) Store(y + i, Again<kActivation>(in, v), part);
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
      ForManyVectors<kTogether>(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        const auto in = Load(gate + i, part);
        const auto v = Evaluate<kActivation, true>(in);
        const auto d = Load(dout + i, part);
        const auto u = Load(up + i, part);
        if constexpr (kAgain) Store(y + row * width + i, Again<kActivation>(in, v) * u, part);
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

template <class T, Activation kActivation>
void BackwardAs(const ActivationArgs& args, ThreadPool& pool) {
  if (args.y != nullptr) BackwardAll<T, kActivation, true>(args, pool);
  else BackwardAll<T, kActivation, false>(args, pool);
}

template <class T>
void BackwardOf(const ActivationArgs& args, ThreadPool& pool) {
  switch (args.activation) {
    case Activation::kGeluTanh: return BackwardAs<T, Activation::kGeluTanh>(args, pool);
    case Activation::kGeluErf: return BackwardAs<T, Activation::kGeluErf>(args, pool);
    case Activation::kRelu: return BackwardAs<T, Activation::kRelu>(args, pool);
    case Activation::kReluSquared: return BackwardAs<T, Activation::kReluSquared>(args, pool);
    case Activation::kSilu: return BackwardAs<T, Activation::kSilu>(args, pool);
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
