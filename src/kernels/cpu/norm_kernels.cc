// LayerNorm and RMSNorm, rows in parallel; see norm.h for the order of the sums over rows.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

template <class T>
constexpr int64_t kLine = 64 / (int64_t)sizeof(T);  // elements of a cache line
template <class T>
constexpr int64_t kAhead = kAheadBytes / (int64_t)sizeof(T);

// From normalised values at columns i on to y. Gain and bias may be null.
struct Affine {
  const float *gain, *bias;

  template <class Part>
  TESSERA_INLINE F32 operator()(int64_t i, F32 v, Part part) const {
    const F32 b = bias != nullptr ? Load(bias + i, part) : Zero();
    return gain != nullptr ? Fma(v, Load(gain + i, part), b) : v + b;
  }
  template <class T, class Part>
  TESSERA_INLINE F32 InLowPrecision(int64_t i, F32 v, Part part) const {
    v = RoundTo<T>(v);
    if (gain != nullptr) v = RoundTo<T>(v * RoundTo<T>(Load(gain + i, part)));
    if (bias != nullptr) v = v + RoundTo<T>(Load(bias + i, part));
    return v;
  }
};

template <class T, NormKind kKind>
void ForwardRow(const NormForwardArgs& args, int64_t row) {
  const int64_t width = args.width;
  const T* x = static_cast<const T*>(args.x) + row * width;
  float total = 0;
  // Statistics are those of the stored sum, so that the backward pass sees the same input.
  if (args.residual != nullptr) {
    const T* residual = static_cast<const T*>(args.residual) + row * width;
    T* sum = static_cast<T*>(args.sum) + row * width;
    Reduce<1>(width, &total, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
      if (i % kLine<T> == 0) {
        __builtin_prefetch(x + kAhead<T> + i);
        __builtin_prefetch(residual + kAhead<T> + i);
        __builtin_prefetch(sum + kAhead<T> + i, 1);
      }
      const F32 exact = Load(residual + i, part) + Load(x + i, part);
      Store(sum + i, exact, part);
      const F32 v = RoundTo<T>(exact);  // rounded once for both
      acc[0] = kKind == NormKind::kLayerNorm ? acc[0] + v : Fma(v, v, acc[0]);
    });
    x = sum;
  } else {
    Reduce<1>(width, &total, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
      if (i % kLine<T> == 0) __builtin_prefetch(x + kAhead<T> + i);
      const F32 v = Load(x + i, part);
      acc[0] = kKind == NormKind::kLayerNorm ? acc[0] + v : Fma(v, v, acc[0]);
    });
  }
  float mean = 0, square = total;
  if constexpr (kKind == NormKind::kLayerNorm) {
    mean = total / static_cast<float>(width);
    Reduce<1>(width, &square, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
      const F32 v = Load(x + i, part, mean) - mean;
      acc[0] = Fma(v, v, acc[0]);
    });
    if (args.mean != nullptr) args.mean[row] = mean;
  }
  const float rstd = 1.0f / __builtin_sqrtf(square / static_cast<float>(width) + args.eps);
  if (args.rstd != nullptr) args.rstd[row] = rstd;

  T* y = static_cast<T*>(args.y) + row * width;
  const F32 rstds = Set(rstd);
  const Affine affine = {args.gain, args.bias};
  if (args.low_precision) {
    ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 v = (Load(x + i, part) - mean) * rstds;
      Store(y + i, affine.InLowPrecision<T>(i, v, part), part);
    });
    return;
  }
  ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    if (i % kLine<T> == 0) __builtin_prefetch(y + 2 * width + i, 1);
    const F32 v = (Load(x + i, part) - mean) * rstds;
    Store(y + i, affine(i, v, part), part);
  });
}

template <class T, NormKind kKind>
void ForwardAll(const NormForwardArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.rows, args.width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) ForwardRow<T, kKind>(args, row);
  });
}

void Forward(const NormForwardArgs& args, ThreadPool& pool) {
  const bool layer = args.kind == NormKind::kLayerNorm;
  if (args.dtype == DType::kBf16) {
    layer ? ForwardAll<bf16, NormKind::kLayerNorm>(args, pool)
          : ForwardAll<bf16, NormKind::kRmsNorm>(args, pool);
  } else {
    layer ? ForwardAll<float, NormKind::kLayerNorm>(args, pool)
          : ForwardAll<float, NormKind::kRmsNorm>(args, pool);
  }
}

// Rows [row, row + kRows): dx, with kAgain y, and, with kGains, their terms of the gains' gradients,
// added in the order of the rows.
template <class T, NormKind kKind, bool kGains, bool kAgain, int kRows>
TESSERA_INLINE void BackwardRows(const NormBackwardArgs& args, int64_t row, float* dgain, float* dbias) {
  constexpr bool kLayer = kKind == NormKind::kLayerNorm;
  const int64_t width = args.width;
  const T* x = static_cast<const T*>(args.x) + row * width;
  const T* dy = static_cast<const T*>(args.dy) + row * width;
  T* dx = static_cast<T*>(args.dx) + row * width;
  T* y = kAgain ? static_cast<T*>(args.y) + row * width : nullptr;
  const float* gain = args.gain;
  float mean[kRows] = {};
  F32 rstd[kRows], mean_qx[kRows], mean_q[kRows];
  for (int r = 0; r < kRows; ++r) {
    if (kLayer) mean[r] = args.mean[row + r];
    rstd[r] = Set(args.rstd[row + r]);
    float sums[2] = {0, 0};  // of q xh and, for LayerNorm, of q
    Reduce<2>(width, sums, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
      if (i % kLine<T> == 0) {  // the next rows; pass two asks for its part of them
        __builtin_prefetch(x + (kRows + r) * width + i);
        __builtin_prefetch(dy + (kRows + r) * width + i);
      }
      F32 q = Load(dy + r * width + i, part);
      if (gain != nullptr) q = q * Load(gain + i, part);
      const F32 xh = (Load(x + r * width + i, part, mean[r]) - mean[r]) * rstd[r];
      acc[0] = Fma(q, xh, acc[0]);
      if constexpr (kLayer) acc[1] = acc[1] + q;
    });
    mean_qx[r] = Set(sums[0] / static_cast<float>(width));
    mean_q[r] = Set(sums[1] / static_cast<float>(width));
  }
  const bool accumulate = args.accumulate_dx, low_precision = args.low_precision;
  const Affine affine = {gain, args.bias};
  ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    const F32 g = gain != nullptr ? Load(gain + i, part) : Set(1.0f);
    F32 dg = kGains ? Load(dgain + i, part) : Zero();
    F32 db = kGains ? Load(dbias + i, part) : Zero();
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * width + i;
      if (i % kLine<T> == 0) __builtin_prefetch(dx + kRows * width + at, 1);
      if (kAgain && i % kLine<T> == 0) __builtin_prefetch(y + kRows * width + at, 1);
      const F32 d = Load(dy + at, part);
      const F32 xh = (Load(x + at, part) - mean[r]) * rstd[r];
      if constexpr (kAgain) {
        const F32 again = low_precision ? affine.InLowPrecision<T>(i, xh, part) : affine(i, xh, part);
        Store(y + at, again, part);
      }
      if constexpr (kGains) {
        dg = Fma(d, xh, dg);
        db = db + d;
      }
      F32 q = d * g;
      if constexpr (kLayer) q = q - mean_q[r];
      F32 v = rstd[r] * Fma(-xh, mean_qx[r], q);
      if (accumulate) v = v + Load(dx + at, part);
      Store(dx + at, v, part);
    }
    if constexpr (kGains) {
      Store(dgain + i, dg, part);
      Store(dbias + i, db, part);
    }
  });
}

// Runs of up to kNormRun rows that start with each sequence.
struct Runs {
  int64_t rows, sequence, in_sequence, count;

  explicit Runs(const NormBackwardArgs& args)
      : rows(args.rows),
        sequence(args.sequence > 0 ? args.sequence : args.rows),
        in_sequence((sequence + kNormRun - 1) / kNormRun),
        count((rows + sequence - 1) / sequence * in_sequence) {}

  int64_t First(int64_t run) const {
    const int64_t first = run / in_sequence * sequence + run % in_sequence * kNormRun;
    return first < rows ? first : rows;
  }
  int64_t Last(int64_t run) const {
    const int64_t end = (run / in_sequence + 1) * sequence;
    const int64_t last = run / in_sequence * sequence + (run % in_sequence + 1) * kNormRun;
    const int64_t bound = end < rows ? end : rows;
    return last < bound ? last : bound;
  }
};

template <class T, NormKind kKind, bool kGains, bool kAgain>
void BackwardRangeAs(const NormBackwardArgs& args, int64_t first, int64_t last, float* dgain,
                     float* dbias) {
  // With the next ones, and with y beside them, they stay in the nearest cache.
  constexpr int kTogether = kAgain ? 1 : 2;
  int64_t row = first;
  for (; row + kTogether <= last; row += kTogether) {
    BackwardRows<T, kKind, kGains, kAgain, kTogether>(args, row, dgain, dbias);
  }
  for (; row < last; ++row) BackwardRows<T, kKind, kGains, kAgain, 1>(args, row, dgain, dbias);
}

template <class T, NormKind kKind, bool kGains>
void BackwardRange(const NormBackwardArgs& args, int64_t first, int64_t last, float* dgain,
                   float* dbias) {
  if (args.y != nullptr) BackwardRangeAs<T, kKind, kGains, true>(args, first, last, dgain, dbias);
  else BackwardRangeAs<T, kKind, kGains, false>(args, first, last, dgain, dbias);
}

// Without gains' gradients rows are independent. With them each run of rows sums its terms into a
// row of the workspace next to dx, while x and dy are in the nearest cache; then the runs' sums are
// added in order, a block of columns a thread.
template <class T, NormKind kKind>
void BackwardAll(const NormBackwardArgs& args, void* workspace, ThreadPool& pool) {
  const int64_t width = args.width;
  if (args.dgain == nullptr && args.dbias == nullptr) {
    ParallelRows(pool, args.rows, width, [&](int64_t begin, int64_t end) {
      BackwardRange<T, kKind, false>(args, begin, end, nullptr, nullptr);
    });
    return;
  }
  const Runs runs(args);
  const int64_t stride = 2 * width;  // of the gain's sums and the bias's
  float* sums = static_cast<float*>(workspace);
  ParallelRows(pool, runs.count, kNormRun * width, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      float* dgain = sums + run * stride;
      ForVectors(0, stride, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(dgain + i, Zero(), part);
      });
      BackwardRange<T, kKind, true>(args, runs.First(run), runs.Last(run), dgain, dgain + width);
    }
  });
  ParallelParts(pool, runs.count * stride, [&](int part, int parts) {
    const Range columns = PartOf(width, kColumnGrain, part, parts);
    const auto add = [&](const float* from, float* to) TESSERA_INLINE_LAMBDA {
      if (to == nullptr) return;
      ForVectors(columns.begin, columns.end, [&](int64_t i, auto lanes) TESSERA_INLINE_LAMBDA {
        F32 sum = Load(to + i, lanes);
        for (int64_t run = 0; run < runs.count; ++run) sum = sum + Load(from + run * stride + i, lanes);
        Store(to + i, sum, lanes);
      });
    };
    add(sums, args.dgain);
    add(sums + width, args.dbias);
  });
}

void Backward(const NormBackwardArgs& args, void* workspace, ThreadPool& pool) {
  const bool layer = args.kind == NormKind::kLayerNorm;
  if (args.dtype == DType::kBf16) {
    layer ? BackwardAll<bf16, NormKind::kLayerNorm>(args, workspace, pool)
          : BackwardAll<bf16, NormKind::kRmsNorm>(args, workspace, pool);
  } else {
    layer ? BackwardAll<float, NormKind::kLayerNorm>(args, workspace, pool)
          : BackwardAll<float, NormKind::kRmsNorm>(args, workspace, pool);
  }
}

}  // namespace

void FillNorm(KernelTable& table) {
  table.norm_forward = Forward;
  table.norm_backward = Backward;
}

}  // namespace tessera::kernels::TESSERA_ISA
