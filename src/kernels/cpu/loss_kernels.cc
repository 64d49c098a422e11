// Softmax cross entropy: a row per thread, three passes over a row that lies in the cache, one of them
// of exponentials. These are kept where the gradient will be, times the soft-cap's derivative; only
// with both soft-cap and label smoothing, whose gradient is no multiple of them, the capped logits are.
#include "kernels/cpu/functions.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

template <bool kCap, class V>
TESSERA_INLINE V Capped(V x, F32 cap, F32 inverse) {
  if constexpr (kCap) return cap * Tanh(x * inverse);
  else return x;
}

// d cap tanh(x / cap) / dx, from l = cap tanh(x / cap).
template <class V>
TESSERA_INLINE V CapDerivative(V l, F32 inverse) {
  const V ratio = l * inverse;
  return Fma(-ratio, ratio, Set(1.0f));
}

float RowMax(const float* x, int64_t n) {
  const float lowest = -__builtin_inff();
  F32 top[4];
  for (F32& v : top) v = Set(lowest);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) top[k] = Max(Load(x + i + k * kLanes), top[k]);
  }
  ForVectors(i, n, [&](int64_t j, auto part) TESSERA_INLINE_LAMBDA {
    top[0] = Max(Load(x + j, part, lowest), top[0]);
  });
  return MaxLane(Max(Max(top[0], top[1]), Max(top[2], top[3])));
}

// The first index of the maximum; 0 when every value is NaN.
int32_t FirstEqual(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == value) return static_cast<int32_t>(i);
  }
  return 0;
}

template <class G>
void ZeroRow(G* d, int64_t n) {
  ForVectors(0, n, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA { Store(d + i, Zero(), part); });
}

// Vectors computed as one (many.h).
constexpr int kTogether = 4;

// The bf16 gradient of a row may lie over the front half of the row's logits: passes go upwards and
// read each vector before they write its gradient, which never reaches past what was read.
template <class G, bool kCap>
void Row(const CrossEntropyArgs& args, int64_t row) {
  const int64_t vocab = args.vocab;
  float* x = args.logits + row * args.ld;
  G* d = args.dlogits == nullptr ? nullptr : static_cast<G*>(args.dlogits) + row * args.dld;
  const int32_t target = args.targets[row];
  if (target < 0) {
    args.loss[row] = 0;
    if (args.nll != nullptr) args.nll[row] = 0;
    if (args.lse == nullptr && args.argmax == nullptr) {
      if (d != nullptr) ZeroRow(d, vocab);
      return;
    }
  }

  const F32 cap = Set(args.softcap), inverse = Set(kCap ? 1.0f / args.softcap : 0.0f);
  const float max_raw = RowMax(x, vocab);
  if (args.argmax != nullptr) args.argmax[row] = FirstEqual(x, vocab, max_raw);
  const float max = Capped<kCap>(Set(max_raw), cap, inverse)[0];
  const float raw_target = target < 0 ? 0.0f : x[target];

  // Where the exponentials or, with keeps_logits, the capped logits wait for the gradient's pass.
  const bool keeps_logits = kCap && args.label_smoothing > 0;
  float* kept = nullptr;
  if (d != nullptr && args.dlogits == args.logits) kept = x;
  if constexpr (sizeof(G) == sizeof(float)) {
    if (d != nullptr) kept = d;
  }
  float sums[2] = {0, 0};  // of exponentials, and of l - max for label smoothing
  ReduceMany<2, kTogether>(vocab, sums, [&](int64_t i, auto part, auto* acc) TESSERA_INLINE_LAMBDA {
    __builtin_prefetch(x + args.ld + i, 0, 2);  // the next row, while this one is computed
    if constexpr (kTogether * kLanes > 16) __builtin_prefetch(x + args.ld + i + 16, 0, 2);
    const auto l = Capped<kCap>(Load(x + i, part), cap, inverse);
    const auto shifted = l - Set(max);
    const auto e = Exp<true>(shifted);
    if (kept != nullptr) {
      auto value = e;
      if constexpr (kCap) {
        if (keeps_logits) value = l;
        else value = e * CapDerivative(l, inverse);
      }
      Store(kept + i, value, part);
    }
    acc[0] = acc[0] + ZeroPast(e, part);
    acc[1] = acc[1] + ZeroPast(shifted, part);
  });
  const double lse = static_cast<double>(max) + __builtin_log(static_cast<double>(sums[0]));
  if (args.lse != nullptr) args.lse[row] = static_cast<float>(lse);
  if (target < 0) {
    if (d != nullptr) ZeroRow(d, vocab);
    return;
  }

  const F32 target_logit = Capped<kCap>(Set(raw_target), cap, inverse);
  const double smoothing = args.label_smoothing, z = args.z_loss;
  const double nll = lse - static_cast<double>(target_logit[0]);
  double loss = nll;
  if (smoothing > 0) {
    const double mean = static_cast<double>(max) + static_cast<double>(sums[1]) / static_cast<double>(vocab);
    loss = (1 - smoothing) * nll + smoothing * (lse - mean);
  }
  if (z > 0) loss += 0.5 * z * lse * lse;
  args.loss[row] = static_cast<float>(loss);
  if (args.nll != nullptr) args.nll[row] = static_cast<float>(nll);
  if (d == nullptr) return;

  const double weight = args.weight;
  const F32 scale = Set(static_cast<float>(weight * (1 + z * lse) / static_cast<double>(sums[0])));
  const F32 uniform = Set(static_cast<float>(-weight * smoothing / static_cast<double>(vocab)));
  const auto gradient = [&](auto e, auto l, F32 constant) TESSERA_INLINE_LAMBDA {
    const auto g = Fma(e, scale, constant);
    if constexpr (kCap) return g * CapDerivative(l, inverse);
    else return g;
  };
  if (kept != nullptr && !keeps_logits) {
    ForVectors(0, vocab, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(d + i, Fma(Load(kept + i, part), scale, uniform), part);
    });
  } else {
    ForManyVectors<kTogether>(0, vocab, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      auto l = Load((kept != nullptr ? kept : x) + i, part);
      if (kept == nullptr) l = Capped<kCap>(l, cap, inverse);
      Store(d + i, gradient(Exp(l - Set(max)), l, uniform), part);
    });
  }
  // The target's own term joins before rounding to the gradient's type.
  const F32 own = uniform - static_cast<float>(weight * (1 - smoothing));
  StorePartial(d + target, gradient(Exp(target_logit - max), target_logit, own), 1);
}

template <class G, bool kCap>
void AllRows(const CrossEntropyArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.rows, args.vocab, [&args](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Row<G, kCap>(args, row);
      if (args.dlogits != nullptr && args.dlogits_columns > args.vocab) {
        ZeroRow(static_cast<G*>(args.dlogits) + row * args.dld + args.vocab,
                args.dlogits_columns - args.vocab);
      }
    }
  });
}

void Loss(const CrossEntropyArgs& args, ThreadPool& pool) {
  const bool cap = args.softcap > 0;
  if (args.dlogits_dtype == DType::kBf16) {
    cap ? AllRows<bf16, true>(args, pool) : AllRows<bf16, false>(args, pool);
  } else {
    cap ? AllRows<float, true>(args, pool) : AllRows<float, false>(args, pool);
  }
}

}  // namespace

void FillLoss(KernelTable& table) { table.cross_entropy = Loss; }

}  // namespace tessera::kernels::TESSERA_ISA
