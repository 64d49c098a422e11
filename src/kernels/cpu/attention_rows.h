// Decoding with few query rows: one row at a time against the cache, keys along the lanes of its
// scores. A tile of queries along the lanes, as in attention_online.h, would be mostly empty.
#pragma once

#include "kernels/cpu/attention_online.h"

namespace tessera::kernels::TESSERA_ISA {

// Rows of a group from which tiles are faster.
inline constexpr int64_t kFewRows = 8;

// Starts rows [0, count) of a group; tile->q is [count, padded].
template <class T>
TESSERA_INLINE void BeginRows(const Problem& p, int64_t sequence, int64_t kv_head, int64_t count,
                              const GroupRows<const T>& q, QueryTile* tile) {
  FillRows(p, sequence, kv_head, 0, count, &tile->rows);
  for (int64_t r = 0; r < count; ++r) {
    PackRow<Word::kFloat>(q.Row(r), p.shape.head_size, p.q_scale, tile->q + r * p.padded);
    tile->max[r] = -1e30f;  // finite: -inf minus it is -inf, not NaN
    tile->sum[r] = 0;
  }
  std::memset(tile->out, 0, (size_t)(count * p.padded) * 4);
  tile->empty = false;
}

// q . k of n <= kLanes keys; the lanes past them are 0.
template <class T>
TESSERA_INLINE F32 DotKeys(const Problem& p, const float* q, const T* k, int64_t stride,
                           int64_t n) {
  const int64_t size = p.shape.head_size, whole = size / kLanes * kLanes;
  F32 block[kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) {
    block[i] = Zero();
    if (i >= n) continue;
    const T* key = k + i * stride;
    for (int64_t d = 0; d < whole; d += kLanes) {
      block[i] = Fma(Load(q + d), Load(key + d), block[i]);
    }
    if (whole < size) {
      block[i] = Fma(Load(q + whole), LoadPartial(key + whole, size - whole), block[i]);
    }
  }
  return SumsOf(block);
}

// out [padded] = out * scale + sum of weights[i] v[i] over n keys.
template <class T>
TESSERA_INLINE void AddValues(const Problem& p, const float* weights, const T* v, int64_t stride,
                              int64_t n, F32 scale, float* out) {
  constexpr int kBlock = 4;
  const int64_t size = p.shape.head_size;
  int64_t d = 0;
  for (; d + kBlock * kLanes <= size; d += kBlock * kLanes) {
    F32 sum[kBlock];
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) sum[j] = Load(out + d + j * kLanes) * scale;
    for (int64_t i = 0; i < n; ++i) {
      const F32 weight = Set(weights[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kBlock; ++j) {
        sum[j] = Fma(weight, Load(v + i * stride + d + j * kLanes), sum[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) Store(out + d + j * kLanes, sum[j]);
  }
  for (; d < size; d += kLanes) {
    F32 sum = Load(out + d) * scale;
    for (int64_t i = 0; i < n; ++i) {
      const T* value = v + i * stride + d;
      const F32 part = d + kLanes <= size ? Load(value) : LoadPartial(value, size - d);
      sum = Fma(Set(weights[i]), part, sum);
    }
    Store(out + d, sum);
  }
}

// Scores of n keys from position `key` on, in units of log2, into scores [n, rounded up to whole
// vectors], -inf past n; returns the largest of them and `max`. ask(row, i) asks for memory while
// keys from i on are multiplied.
template <class T, class Ask>
TESSERA_INLINE float ScoreKeys(const Problem& p, const QueryTile& tile, int64_t row, const T* k,
                               int64_t stride, int64_t key, int64_t n, float* scores, Ask&& ask) {
  alignas(64) float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = (float)i;
  const F32 lane = Load(lanes);
  F32 max = Set(tile.max[row]);
  for (int64_t i = 0; i < n; i += kLanes) {
    ask(row, i);
    const int64_t left = n - i;
    const T* keys = k + i * stride;
    const float* q = tile.q + row * p.padded;
    F32 x =
        left >= kLanes ? DotKeys(p, q, keys, stride, kLanes) : DotKeys(p, q, keys, stride, left);
    if (p.cap > 0) x = Set(p.cap) * Tanh(x);
    if (p.shape.alibi_slopes != nullptr) {
      const F32 position = Set((float)(key + i)) + lane;
      x = Fma(Zero() - Set(tile.rows.slope[row]), Abs(Set(tile.rows.position[row]) - position), x);
    }
    if (left < kLanes) x = Select(lane < Set((float)left), x, Set(-__builtin_inff()));
    Store(scores + i, x);
    max = Max(max, x);
  }
  return MaxLane(max);
}

// Attends every row to keys [begin, begin + n) of one tile, whose first key k and v point at.
template <class T, class Ask>
TESSERA_INLINE void AttendRowsTile(const Problem& p, const T* k, const T* v, int64_t stride,
                                   int64_t begin, int64_t n, float* scores, QueryTile* tile,
                                   Ask&& ask) {
  for (int64_t r = 0; r < tile->rows.count; ++r) {
    int64_t from = 0, to = 0;
    tile->rows.KeysOf(r, 1, begin, n, &from, &to);
    if (from == to) continue;
    const int64_t keys = to - from;
    const float max =
        ScoreKeys(p, *tile, r, k + from * stride, stride, begin + from, keys, scores, ask);
    const F32 scale = Exp2(Set(tile->max[r] - max));
    F32 sum = Zero();
    for (int64_t i = 0; i < keys; i += kLanes) {
      const F32 weight = Exp2(Load(scores + i) - Set(max));
      Store(scores + i, weight);
      sum = sum + weight;
    }
    tile->max[r] = max;
    tile->sum[r] = tile->sum[r] * scale[0] + Sum(sum);
    AddValues(p, scores, v + from * stride, stride, keys, scale, tile->out + r * p.padded);
  }
}

// Attends the rows of a group to keys [key_begin, key_end) as far as they see them. `next` are the first
// keys of the work item that comes after, or null.
template <class T>
TESSERA_INLINE void AttendRows(const Problem& p, const KeyValues<T>& kv, int64_t key_begin,
                               int64_t key_end, const T* next, const OnlineScratch& scratch,
                               QueryTile* tile) {
  const int64_t size = p.shape.head_size, stride = kv.stride;
  const int64_t first = MaxOf(tile->rows.min_lo / kTile * kTile, key_begin);
  const int64_t end = MinOf(tile->rows.max_hi, key_end);
  // Into L2, which has more lines on their way from memory than L1 can.
  const auto ask_rows = [&](const T* rows, int64_t from, int64_t to) TESSERA_INLINE_LAMBDA {
    for (int64_t key = from; key < to; ++key) {
      const T* row = rows + key * stride;
      for (int64_t d = 0; d < size; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + d, 0, 2);
    }
  };
  const bool widened = sizeof(T) < 4 && tile->rows.count > 1;  // once for all rows
  if (!widened) ask_rows(kv.k, first, MinOf(first + kTile, end));
  for (int64_t begin = first; begin < end; begin += kTile) {
    const int64_t n = MinOf(kTile, end - begin);
    const T *k = kv.k + begin * stride, *v = kv.v + begin * stride;
    if (widened) {
      PackRows<Word::kFloat>(p, k, stride, n, scratch.keys);
      PackRows<Word::kFloat>(p, v, stride, n, scratch.values);
      AttendRowsTile(p, scratch.keys, scratch.values, p.padded, begin, n, scratch.scores, tile,
                     [](int64_t, int64_t) {});
    } else {  // the tile's values are used after its keys, and then the next keys
      const bool last = begin + kTile >= end;
      const T* keys_after = last ? next : k + kTile * stride;
      const int64_t after = last ? kTile : MinOf(kTile, end - begin - kTile);
      AttendRowsTile(p, k, v, stride, begin, n, scratch.scores, tile,
                     [&](int64_t row, int64_t i) TESSERA_INLINE_LAMBDA {
                       if (row > 0) return;  // the first has asked
                       ask_rows(v, i, MinOf(i + kLanes, n));
                       if (keys_after != nullptr) ask_rows(keys_after, i, MinOf(i + kLanes, after));
                     });
    }
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
