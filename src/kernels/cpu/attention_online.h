// The online softmax over key tiles, shared by forward and decoding. Queries lie along the lanes:
// scores are held transposed, [keys][kTile queries], so maxima and sums need no horizontal steps.
#pragma once

#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/attention_tiles.h"

namespace tessera::kernels::TESSERA_ISA {

// Where a sequence's keys and values of one head lie.
template <class T>
struct KeyValues {
  const T* k;
  const T* v;
  int64_t stride;  // elements from key to key
};

// Query rows in progress.
struct QueryTile {
  RowLimits rows;
  alignas(64) float max[kTile];    // of the scores so far, in units of log2
  alignas(64) float sum[kTile];    // of 2^(score - max)
  alignas(64) float scale[kTile];  // 2^(old max - max) of the tile at hand
  float* q = nullptr;              // [depth, kTile], transposed; floats are scaled
  float* out = nullptr;            // [kTile, padded], not yet divided by sum; with tiles transposed
  bool empty = true;               // no key yet: out holds nothing
};

// Tiles of one work item: they share each packed key tile. The number never changes a bit. Where tiles
// multiply, packing is most of the work.
inline constexpr int64_t kMaxTilesOfBlock = kHasTiles ? 16 : 4;

struct OnlineScratch {
  QueryTile* tiles = nullptr;  // [kMaxTilesOfBlock]
  float* keys = nullptr;       // [kTile, depth_stride]
  float* values = nullptr;     // [kTile, padded], or half as many rows of pairs
  float* values_t = nullptr;   // [padded, kTile] words of pairs along keys, with tiles only
  float* scores = nullptr;     // [kTile keys, kTile queries]
  float* keep = nullptr;       // [kTile queries, kTile keys], dropout only
  Requests* requests = nullptr;
};

// Fewer tiles for wide heads, to stay in L2.
TESSERA_INLINE int64_t TilesOfBlock(int64_t padded) {
  return padded <= 128 ? kMaxTilesOfBlock : kMaxTilesOfBlock / 2;
}

TESSERA_INLINE OnlineScratch CarveOnline(Carver* carver, int64_t padded, bool dropout) {
  OnlineScratch s;
  s.tiles = (QueryTile*)carver->Take(kMaxTilesOfBlock * (int64_t)sizeof(QueryTile));
  for (int64_t i = 0; i < TilesOfBlock(padded); ++i) {
    float* q = carver->Floats(padded * kTile);
    float* out = carver->Floats(padded * kTile);
    if (carver->base == nullptr) continue;
    s.tiles[i].q = q;
    s.tiles[i].out = out;
  }
  s.keys = carver->Floats(kTile * padded);
  s.values = carver->Floats(kTile * padded);
  if (kHasTiles) s.values_t = carver->Floats(kTile * padded);
  s.scores = carver->Floats(kTile * kTile);
  if (dropout) s.keep = carver->Floats(kTile * kTile);
  s.requests = (Requests*)carver->Take((int64_t)sizeof(Requests));
  if (s.requests != nullptr) s.requests->Clear();
  return s;
}

// Starts rows [first, first + count) of a group. `staging` holds [kTile, depth_stride].
template <Word kWord, class T>
TESSERA_INLINE void BeginTile(const Problem& p, int64_t sequence, int64_t kv_head, int64_t first,
                              int64_t count, const GroupRows<const T>& q, float* staging,
                              QueryTile* tile) {
  FillRows(p, sequence, kv_head, first, count, &tile->rows);
  for (int64_t r = 0; r < count; ++r) {
    if (r + kRowsAhead < count) PrefetchRow(q.Row(first + r + kRowsAhead), p.shape.head_size);
    PackRow<kWord>(q.Row(first + r), p.shape.head_size, p.q_scale, staging + r * p.depth_stride);
  }
  TransposeTile(staging, count, kHasTiles ? p.depth_stride : p.depth, p.depth_stride, tile->q);
  for (int64_t r = 0; r < kTile; ++r) {
    tile->max[r] = -1e30f;  // finite: -inf minus it is -inf, not NaN
    tile->sum[r] = 0;
  }
  tile->empty = !kHasTiles;
  if (kHasTiles) std::memset(tile->out, 0, (size_t)(kTile * p.padded) * 4);
}

// Adds keys [begin, begin + n), packed in scratch, to a query tile.
template <Word kWord>
void AttendTile(const Problem& p, const OnlineScratch& scratch, int64_t begin, int64_t n,
                QueryTile* tile);

// Attends `tiles` query tiles to keys [key_begin, key_end) as far as their rows see them. The next
// keys and values are asked for meanwhile, and at last the rows of `out`, which may be null.
template <Word kWord, class T>
TESSERA_INLINE void AttendBlock(const Problem& p, const KeyValues<T>& kv, int64_t key_begin,
                                int64_t key_end, const OnlineScratch& scratch, int64_t tiles,
                                const GroupRows<T>* out) {
  int64_t from = INT64_MAX, to = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    from = MinOf(from, scratch.tiles[i].rows.min_lo);
    to = MaxOf(to, scratch.tiles[i].rows.max_hi);
  }
  from = MaxOf(from / kTile * kTile, key_begin);
  to = MinOf(to, key_end);
  for (int64_t begin = from; begin < to; begin += kTile) {
    const int64_t n = MinOf(kTile, to - begin);
    const int64_t next = begin + kTile, next_n = MinOf(kTile, to - next);
    const int64_t stride = kv.stride * (int64_t)sizeof(T);
    const int64_t row_bytes = p.shape.head_size * (int64_t)sizeof(T);
    scratch.requests->Add(kv.k + next * kv.stride, stride, next_n, row_bytes);
    scratch.requests->Add(kv.v + next * kv.stride, stride, next_n, row_bytes);
    const int64_t ending = tiles - CeilDiv(to - begin, kTile);
    if (out != nullptr && ending >= 0) {
      const RowLimits& rows = scratch.tiles[ending].rows;
      out->Request(rows.first, rows.count, scratch.requests);
    }
    bool packed = false;
    for (int64_t i = 0; i < tiles; ++i) {
      if (scratch.tiles[i].rows.SeesNone(begin, begin + n)) continue;
      if (!packed) {
        PackRows<kWord>(p, kv.k + begin * kv.stride, kv.stride, n, scratch.keys);
        PackAlongRows<kWord>(p, kv.v + begin * kv.stride, kv.stride, n, scratch.values);
        if constexpr (kHasTiles) {
          TransposeTile(scratch.values, CeilDiv(n, 2), p.padded, p.padded, scratch.values_t);
        }
        packed = true;
      }
      AttendTile<kWord>(p, scratch, begin, n, &scratch.tiles[i]);
    }
  }
  for (int64_t i = 0; i < tiles; ++i) {
    QueryTile& tile = scratch.tiles[i];
    if (tile.empty) std::memset(tile.out, 0, (size_t)(tile.rows.count * p.padded) * 4);
    tile.empty = false;
  }
}

// out = sum of p v / sum of p, in T; zero where a row saw no key.
template <class T>
TESSERA_INLINE void EndTile(const Problem& p, const QueryTile& tile, const GroupRows<T>& out) {
  if constexpr (kHasTiles) {
    alignas(64) float inverse[kTile];
    for (int64_t r = 0; r < kTile; ++r) inverse[r] = tile.sum[r] > 0 ? 1.0f / tile.sum[r] : 0.0f;
    UnpackTransposed(tile.out, p.shape.head_size, tile.rows.count, inverse,
                     [&](int64_t r) { return out.Row(tile.rows.first + r); });
    return;
  }
  for (int64_t r = 0; r < tile.rows.count; ++r) {
    const float inverse = tile.sum[r] > 0 ? 1.0f / tile.sum[r] : 0.0f;
    UnpackRow(tile.out + r * p.padded, p.shape.head_size, inverse, out.Row(tile.rows.first + r));
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
