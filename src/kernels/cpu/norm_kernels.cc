// LayerNorm and RMSNorm. Rows are independent; gains' gradients are chains over rows, one thread a
// block of columns.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

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
      const F32 v = RoundTo<T>(Load(residual + i, part) + Load(x + i, part));
      Store(sum + i, v, part);
      acc[0] = kKind == NormKind::kLayerNorm ? acc[0] + v : Fma(v, v, acc[0]);
    });
    x = sum;
  } else {
    Reduce<1>(width, &total, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
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

  const float* gain = args.gain;
  const float* bias = args.bias;
  T* y = static_cast<T*>(args.y) + row * width;
  const F32 rstds = Set(rstd);
  if (args.low_precision) {
    ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      F32 v = RoundTo<T>((Load(x + i, part) - mean) * rstds);
      if (gain != nullptr) v = RoundTo<T>(v * RoundTo<T>(Load(gain + i, part)));
      if (bias != nullptr) v = v + RoundTo<T>(Load(bias + i, part));
      Store(y + i, v, part);
    });
    return;
  }
  ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    F32 v = (Load(x + i, part) - mean) * rstds;
    const F32 b = bias != nullptr ? Load(bias + i, part) : Zero();
    v = gain != nullptr ? Fma(v, Load(gain + i, part), b) : v + b;
    Store(y + i, v, part);
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

template <class T, NormKind kKind>
void BackwardRow(const NormBackwardArgs& args, int64_t row) {
  const int64_t width = args.width;
  const T* x = static_cast<const T*>(args.x) + row * width;
  const T* dy = static_cast<const T*>(args.dy) + row * width;
  T* dx = static_cast<T*>(args.dx) + row * width;
  const float* gain = args.gain;
  const float mean = kKind == NormKind::kLayerNorm ? args.mean[row] : 0.0f;
  const F32 rstd = Set(args.rstd[row]);
  float sums[2] = {0, 0};  // of q xh and, for LayerNorm, of q
  Reduce<2>(width, sums, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
    F32 q = Load(dy + i, part);
    if (gain != nullptr) q = q * Load(gain + i, part);
    const F32 xh = (Load(x + i, part, mean) - mean) * rstd;
    acc[0] = Fma(q, xh, acc[0]);
    if constexpr (kKind == NormKind::kLayerNorm) acc[1] = acc[1] + q;
  });
  const F32 mean_qx = Set(sums[0] / static_cast<float>(width));
  const F32 mean_q = Set(sums[1] / static_cast<float>(width));
  const bool accumulate = args.accumulate_dx;
  ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    F32 q = Load(dy + i, part);
    if (gain != nullptr) q = q * Load(gain + i, part);
    const F32 xh = (Load(x + i, part) - mean) * rstd;
    if constexpr (kKind == NormKind::kLayerNorm) q = q - mean_q;
    F32 d = rstd * Fma(-xh, mean_qx, q);
    if (accumulate) d = d + Load(dx + i, part);
    Store(dx + i, d, part);
  });
}

// Adds rows [first, last) to the gradients of columns [begin, end).
template <class T, NormKind kKind>
void BackwardColumns(const NormBackwardArgs& args, int64_t first, int64_t last, Range columns) {
  const int64_t width = args.width;
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  float* dgain = args.dgain;
  float* dbias = args.dbias;
  const auto block = [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    F32 dg = dgain != nullptr ? Load(dgain + i, part) : Zero();
    F32 db = dbias != nullptr ? Load(dbias + i, part) : Zero();
    for (int64_t row = first; row < last; ++row) {
      const F32 d = Load(dy + row * width + i, part);
      if (dgain != nullptr) {
        const float mean = kKind == NormKind::kLayerNorm ? args.mean[row] : 0.0f;
        const F32 xh = (Load(x + row * width + i, part) - mean) * Set(args.rstd[row]);
        dg = Fma(d, xh, dg);
      }
      db = db + d;
    }
    if (dgain != nullptr) Store(dgain + i, dg, part);
    if (dbias != nullptr) Store(dbias + i, db, part);
  };
  // Two vectors at a time hide the latency of the chains.
  int64_t i = columns.begin;
  if (dgain != nullptr) {
    for (; i + 2 * kLanes <= columns.end; i += 2 * kLanes) {
      F32 dg0 = Load(dgain + i), dg1 = Load(dgain + i + kLanes);
      F32 db0 = dbias != nullptr ? Load(dbias + i) : Zero();
      F32 db1 = dbias != nullptr ? Load(dbias + i + kLanes) : Zero();
      for (int64_t row = first; row < last; ++row) {
        const T* dys = dy + row * width + i;
        const T* xs = x + row * width + i;
        const float mean = kKind == NormKind::kLayerNorm ? args.mean[row] : 0.0f;
        const F32 rstd = Set(args.rstd[row]);
        const F32 d0 = Load(dys), d1 = Load(dys + kLanes);
        dg0 = Fma(d0, (Load(xs) - mean) * rstd, dg0);
        dg1 = Fma(d1, (Load(xs + kLanes) - mean) * rstd, dg1);
        db0 = db0 + d0;
        db1 = db1 + d1;
      }
      Store(dgain + i, dg0);
      Store(dgain + i + kLanes, dg1);
      if (dbias != nullptr) {
        Store(dbias + i, db0);
        Store(dbias + i + kLanes, db1);
      }
    }
  }
  ForVectors(i, columns.end, block);
}

// Neither part writes what the other reads, so threads need no barrier between them; they go
// through the rows together in chunks, so that the second part finds x and dy in the cache.
template <class T, NormKind kKind>
void BackwardAll(const NormBackwardArgs& args, ThreadPool& pool) {
  ParallelParts(pool, args.rows * args.width, [&](int part, int parts) {
    const Range columns = PartOf(args.width, kColumnGrain, part, parts);
    const bool has_columns = args.dgain != nullptr || args.dbias != nullptr;
    const int64_t chunk = kColumnRows * parts;
    for (int64_t first = 0; first < args.rows; first += chunk) {
      const int64_t last = first + chunk < args.rows ? first + chunk : args.rows;
      const Range rows = PartOf(last - first, 1, part, parts);
      for (int64_t row = first + rows.begin; row < first + rows.end; ++row) {
        BackwardRow<T, kKind>(args, row);
      }
      if (has_columns) BackwardColumns<T, kKind>(args, first, last, columns);
    }
  });
}

void Backward(const NormBackwardArgs& args, ThreadPool& pool) {
  const bool layer = args.kind == NormKind::kLayerNorm;
  if (args.dtype == DType::kBf16) {
    layer ? BackwardAll<bf16, NormKind::kLayerNorm>(args, pool)
          : BackwardAll<bf16, NormKind::kRmsNorm>(args, pool);
  } else {
    layer ? BackwardAll<float, NormKind::kLayerNorm>(args, pool)
          : BackwardAll<float, NormKind::kRmsNorm>(args, pool);
  }
}

}  // namespace

void FillNorm(KernelTable& table) {
  table.norm_forward = Forward;
  table.norm_backward = Backward;
}

}  // namespace tessera::kernels::TESSERA_ISA
