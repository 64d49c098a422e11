// What both forms of attention's backward pass share: how (sequence, kv head) pairs are dealt out, where
// the tensors of one lie, delta, and the gradient of a row of scores with all features.
#pragma once

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/many.h"

namespace tessera::kernels::TESSERA_ISA {

// The (sequence, kv head) pairs of a call: whole ones, one thread each, and where the last few would leave
// threads idle those by chunks of keys.
struct UnitShares {
  int64_t units = 0;
  int64_t whole_units = 0;
  int64_t chunk_keys = 0;
  int64_t chunks = 0;  // of a unit

  int64_t split_units() const { return units - whole_units; }
  int64_t items() const { return whole_units + split_units() * chunks; }
};

inline void DealOutUnits(const Problem& p, int64_t chunk_keys, int num_threads, UnitShares* shares) {
  shares->units = p.shape.batch * p.shape.kv_heads;
  shares->chunk_keys = chunk_keys;
  shares->chunks = CeilDiv(p.shape.length, chunk_keys);
  const int64_t rest = shares->units % num_threads;
  const bool splits = shares->chunks > 1 && 2 * rest <= num_threads;
  shares->whole_units = splits ? shares->units - rest : shares->units;
}

// An item of work: chunks [first, last) of a unit.
struct UnitItem {
  int64_t unit, first, last;
};

// Whole units, then the others chunk by chunk: in a causal call the first ones are the longest.
inline UnitItem CountedItem(const Problem& p, const UnitShares& shares, int64_t item) {
  if (item < shares.whole_units) {
    CountItem(item, 0.5 * static_cast<double>(p.rows * p.keys));
    return {item, 0, shares.chunks};
  }
  const int64_t unit = shares.whole_units + (item - shares.whole_units) % shares.split_units();
  const int64_t chunk = (item - shares.whole_units) / shares.split_units();
  // A chunk of keys is seen by the rows from its beginning on.
  const int64_t seen = p.rows - chunk * shares.chunk_keys * p.group;
  CountItem(item, static_cast<double>(shares.chunk_keys * MaxOf(seen, 0)) -
                      0.5 * static_cast<double>(shares.chunk_keys * shares.chunk_keys * p.group));
  return {unit, chunk, chunk + 1};
}

template <class T>
struct Unit {
  int64_t sequence, kv_head;
  GroupRows<const T> q, out, dout;
  GroupRows<T> dq;
  const T *k, *v;
  T *dk, *dv;
  int64_t kv_stride;
  const float* lse;  // [group][length]
};

template <class T>
Unit<T> MakeUnit(const AttentionBackwardArgs& args, const Problem& p, int64_t index) {
  const AttentionForwardArgs& f = args.forward;
  const int64_t size = p.shape.head_size;
  const int64_t sequence = index / p.shape.kv_heads, kv_head = index % p.shape.kv_heads;
  const int64_t token = sequence * p.shape.length, head = kv_head * p.group;
  const int64_t q = token * f.q_stride + head * size, out = token * f.out_stride + head * size;
  const int64_t kv = token * f.kv_stride + kv_head * size;
  Unit<T> unit;
  unit.sequence = sequence;
  unit.kv_head = kv_head;
  unit.q = {(const T*)f.q + q, f.q_stride, size, p.group};
  unit.out = {(const T*)f.out + out, f.out_stride, size, p.group};
  unit.dout = {(const T*)args.dout + out, f.out_stride, size, p.group};
  unit.dq = {(T*)args.dq + q, f.q_stride, size, p.group};
  unit.k = (const T*)f.k + kv;
  unit.v = (const T*)f.v + kv;
  unit.dk = (T*)args.dk + kv;
  unit.dv = (T*)args.dv + kv;
  unit.kv_stride = f.kv_stride;
  unit.lse = f.lse + (sequence * p.shape.heads + head) * p.shape.length;
  return unit;
}

// Sum over d of a b: of dO and O the delta of their row.
template <class T>
TESSERA_INLINE float Dot(const T* a, const T* b, int64_t size) {
  F32 sum = Zero();
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) sum = Fma(Load(a + d), Load(b + d), sum);
  if (d < size) sum = Fma(LoadPartial(a + d, size - d), LoadPartial(b + d, size - d), sum);
  return Sum(sum);
}

TESSERA_INLINE void AddTo(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) Store(y + i, Load(y + i) + Load(x + i));
}

// Rows [begin, end) of dQ of a unit that was cut into chunks: adds them up in the first one, dq
// [chunks][gradient_floats].
template <class T>
void SumChunks(const Problem& p, int64_t chunks, int64_t gradient_floats, const Unit<T>& unit,
               int64_t begin, int64_t end, float* dq) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = dq + r * p.padded;
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      AddTo(row + chunk * gradient_floats, p.padded, row);
    }
    UnpackRow(row, p.shape.head_size, p.shape.scale, unit.dq.Row(r));
  }
}

// Row r of a tile of `kKeys` keys from `begin` on: in p the scores (raw products Q K^T where kRaw) and in
// ds the dP of the vectors that hold keys [from, to) of the tile; out p = probabilities as they met V, ds =
// gradients of the packed product Q K^T (short of the factor that ends in q_scale). Zero for the other
// keys. `keep` [kKeys] is scratch.
template <int64_t kKeys, bool kRaw, bool kEdge, bool kAlibi, bool kCap>
TESSERA_INLINE void ScoreRow(const Problem& problem, const RowLimits& rows, int64_t r, float lse,
                             float delta, int64_t begin, int64_t from, int64_t to, float* keep, float* p,
                             float* ds) {
  constexpr int kTogether = kKeys / kLanes < 4 ? (int)(kKeys / kLanes) : 4;  // as one (many.h)
  static_assert(kKeys % (kTogether * kLanes) == 0);
  const bool dropout = problem.shape.dropout > 0;
  if (dropout) KeepRow<kKeys>(problem, rows.element[r], begin, keep);
  F32 lanes;
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = (float)i;
  for (int64_t k = 0; k < kKeys; k += kTogether * kLanes) {
    constexpr Several<kTogether> kPart;
    if (kEdge && (to <= k || from >= k + kTogether * kLanes)) {
      Store(p + k, Many<kTogether>(Zero()), kPart);
      Store(ds + k, Many<kTogether>(Zero()), kPart);
      continue;
    }
    Many<kTogether> x = Load(p + k, kPart), local;
    if constexpr (kRaw) x = Set(problem.q_scale) * x;
    Each<kTogether>(TESSERA_EACH(i) { local.v[i] = lanes + Set((float)(k + i * kLanes)); });
    Many<kTogether> slope = Set(1.0f);  // of the soft cap
    if constexpr (kCap) {
      const auto t = Tanh(x);
      slope = Set(1.0f) - t * t;
      x = Set(problem.cap) * t;
    }
    if constexpr (kAlibi) {
      const auto key = local + Set((float)begin);
      x = Fma(Set(-rows.slope[r]), Abs(Set(rows.position[r]) - key), x);
    }
    auto y = Exp2(x - Set(lse));
    if constexpr (kEdge) {  // what stands there of another tile may be anything
      y = Select(local < Set((float)from), Zero(), Select(local < Set((float)to), y, Zero()));
    }
    auto dp = Load(ds + k, kPart), met = y;
    if (dropout) {
      const auto factor = Load(keep + k, kPart);
      dp = dp * factor;
      met = y * factor;
    }
    auto d = y * (dp - Set(delta));
    if constexpr (kCap) d = d * slope;
    if constexpr (kEdge) d = Select(y > Zero(), d, Zero());
    Store(p + k, met, kPart);
    Store(ds + k, d, kPart);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
