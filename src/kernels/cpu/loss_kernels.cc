// Softmax cross entropy: a row per thread, three passes over a row that lies in the cache, one of them
// of exponentials. These are kept where the gradient will be, times the soft-cap's derivative; only
// with both soft-cap and label smoothing, whose gradient is no multiple of them, the capped logits are.
// A bf16 gradient covers the front half of its row of logits: the back halves of a range's rows are all
// kept over that of its first row, which stays in the cache, so that memory gets none of them.
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

// Asks for the first quarter of `next` meanwhile.
float RowMax(const float* x, int64_t n, const float* next) {
  const float lowest = -__builtin_inff();
  F32 top[4];
  for (F32& v : top) v = Set(lowest);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    __builtin_prefetch(next + i / 4, 0, 2);
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

// Where a row is cut: behind what its bf16 gradient may cover. Sums over a row are those of both parts.
int64_t FrontOf(int64_t vocab) {
  constexpr int64_t kPart = 64;
  const int64_t front = (vocab / 2 / kPart + 1) * kPart;
  return front < vocab ? front : vocab;
}

// The bf16 gradient of a row may lie over the front half of the row's logits: passes go upwards and
// read each vector before they write its gradient, which never reaches past what was read.
// `spare`, this row of logits or one whose gradient is done, takes the back half of what is kept.
template <class G, bool kCap, bool kSmooth>
void Row(const CrossEntropyArgs& args, int64_t row, float* spare) {
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
  const float* const next = x + args.ld;  // asked for over all three passes
  const float max_raw = RowMax(x, vocab, next);
  if (args.argmax != nullptr) args.argmax[row] = FirstEqual(x, vocab, max_raw);
  const float max = Capped<kCap>(Set(max_raw), cap, inverse)[0];
  const float raw_target = target < 0 ? 0.0f : x[target];

  // Where the exponentials or, with keeps_logits, the capped logits wait for the gradient's pass.
  constexpr bool keeps_logits = kCap && kSmooth;
  float* kept = nullptr;
  if (d != nullptr && args.dlogits == args.logits) kept = x;
  if constexpr (sizeof(G) == sizeof(float)) {
    if (d != nullptr) kept = d;
  }
  const int64_t front = FrontOf(vocab);
  struct Part {
    int64_t first, last;
    float* kept;  // of the whole row
  };
  const bool over_logits = sizeof(G) < sizeof(float) && kept != nullptr;
  const Part row_parts[2] = {{0, front, kept}, {front, vocab, over_logits ? spare : kept}};
  float sums[2] = {0, 0};  // of exponentials and, with label smoothing, of l - max
  for (const Part& cut : row_parts) {
    const float* from = x + cut.first;
    float* to = cut.kept == nullptr ? nullptr : cut.kept + cut.first;
    float terms[2];
    const int64_t count = cut.last - cut.first;
    ReduceMany<2, kTogether>(count, terms, [&](int64_t i, auto part, auto* acc) TESSERA_INLINE_LAMBDA {
      const float* ahead = next + vocab / 4 + (cut.first + i) / 2;
      __builtin_prefetch(ahead, 0, 2);
      const auto l = Capped<kCap>(Load(from + i, part), cap, inverse);
      const auto shifted = l - Set(max);
      const auto e = Exp<true>(shifted);
      if (to != nullptr) {
        auto value = e;
        if constexpr (keeps_logits) value = l;
        else if constexpr (kCap) value = e * CapDerivative(l, inverse);
        Store(to + i, value, part);
      }
      acc[0] = acc[0] + ZeroPast(e, part);
      if constexpr (kSmooth) acc[1] = acc[1] + ZeroPast(shifted, part);
      // Apart from its neighbour: two requests in a row take longer (docs/decisions/0018).
      if constexpr (kTogether * kLanes > 32) __builtin_prefetch(ahead + 16, 0, 2);
    });
    sums[0] += terms[0];
    sums[1] += terms[1];
  }
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
  if constexpr (kSmooth) {
    const double below = static_cast<double>(sums[1]) / static_cast<double>(vocab);
    loss = (1 - smoothing) * nll + smoothing * (lse - (static_cast<double>(max) + below));
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
  for (const Part& cut : row_parts) {
    const float* from = cut.kept != nullptr ? cut.kept : x;
    if (kept != nullptr && !keeps_logits) {
      ForManyVectors<kTogether>(cut.first, cut.last, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        __builtin_prefetch(next + vocab / 4 * 3 + i / 4, 0, 2);
        Store(d + i, Fma(Load(from + i, part), scale, uniform), part);
      });
    } else {
      ForManyVectors<kTogether>(cut.first, cut.last, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        auto l = Load(from + i, part);
        if (kept == nullptr) l = Capped<kCap>(l, cap, inverse);
        Store(d + i, gradient(Exp(l - Set(max)), l, uniform), part);
      });
    }
  }
  // The target's own term joins before rounding to the gradient's type.
  const F32 own = uniform - static_cast<float>(weight * (1 - smoothing));
  StorePartial(d + target, gradient(Exp(target_logit - max), target_logit, own), 1);
}

template <class G, bool kCap, bool kSmooth>
void AllRows(const CrossEntropyArgs& args, ThreadPool& pool) {
  const bool shares = args.dlogits_columns <= 2 * FrontOf(args.vocab);
  ParallelRows(pool, args.rows, args.vocab, [&args, shares](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Row<G, kCap, kSmooth>(args, row, args.logits + (shares ? begin : row) * args.ld);
      if (args.dlogits != nullptr && args.dlogits_columns > args.vocab) {
        ZeroRow(static_cast<G*>(args.dlogits) + row * args.dld + args.vocab,
                args.dlogits_columns - args.vocab);
      }
    }
  });
}

template <class G>
void LossTo(const CrossEntropyArgs& args, ThreadPool& pool) {
  const bool smooth = args.label_smoothing > 0;
  if (args.softcap > 0) {
    smooth ? AllRows<G, true, true>(args, pool) : AllRows<G, true, false>(args, pool);
  } else {
    smooth ? AllRows<G, false, true>(args, pool) : AllRows<G, false, false>(args, pool);
  }
}

void Loss(const CrossEntropyArgs& args, ThreadPool& pool) {
  args.dlogits_dtype == DType::kBf16 ? LossTo<bf16>(args, pool) : LossTo<float>(args, pool);
}

}  // namespace

void FillLoss(KernelTable& table) { table.cross_entropy = Loss; }

}  // namespace tessera::kernels::TESSERA_ISA
