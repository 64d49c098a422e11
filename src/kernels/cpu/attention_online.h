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

// Key tiles that are packed together. Where tiles multiply, a query tile stays in L1 while it meets all
// of them, and they stay in L2.
TESSERA_INLINE int64_t TilesOfPanel(int64_t padded) {
  return kHasTiles ? MaxOf(2048 / padded, 1) : 1;
}

struct OnlineScratch {
  QueryTile* tiles = nullptr;  // [kMaxTilesOfBlock]
  // Of the key tile at hand, one of a panel:
  float* keys = nullptr;    // [kTile, depth_stride]
  float* values = nullptr;  // [kTile, padded], or half as many rows of pairs; with tiles
                            // [padded, kTile / 2] words of pairs along keys
  float* scores = nullptr;     // [kTile keys, kTile queries]
  float* probabilities = nullptr;  // with tiles: [kTile / 2, kTile queries] words of pairs of keys
  float* keep = nullptr;       // [kTile queries, kTile keys], dropout only
  Requests* requests = nullptr;
};

// Fewer tiles for wide heads, to stay in L2.
TESSERA_INLINE int64_t TilesOfBlock(int64_t padded) {
  return padded <= 128 ? kMaxTilesOfBlock : kMaxTilesOfBlock / 2;
}

// Words of a tile of keys or values: with tiles there are pairs alone.
TESSERA_INLINE int64_t KeyTileWords(int64_t padded) {
  return kTile * (kHasTiles ? RoundUp(padded / 2, kLanes) : padded);
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
  s.keys = carver->Floats(TilesOfPanel(padded) * KeyTileWords(padded));
  s.values = carver->Floats(TilesOfPanel(padded) * KeyTileWords(padded));
  s.scores = carver->Floats(kTile * kTile);
  if (kHasTiles) s.probabilities = carver->Floats(kTile * kTile / 2);
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
  tile->empty = true;
}

// Packs keys [begin, begin + n) and their values.
template <Word kWord, class T>
TESSERA_INLINE void PackKeys(const Problem& p, const KeyValues<T>& kv, int64_t begin, int64_t n,
                             const OnlineScratch& scratch) {
  const T* values = kv.v + begin * kv.stride;
  PackRows<kWord>(p, kv.k + begin * kv.stride, kv.stride, n, scratch.keys);
  if constexpr (kHasTiles) {
    PackTransposed(values, kv.stride, n, p.shape.head_size, scratch.values, kTile / 2);
  } else {
    PackAlongRows<kWord>(p, values, kv.stride, n, scratch.values);
  }
}

// Adds keys [begin, begin + n), packed in scratch, to a query tile; with tiles, where scores are not
// plain.
template <Word kWord>
void AttendTile(const Problem& p, const OnlineScratch& scratch, int64_t begin, int64_t n,
                QueryTile* tile);

// Whose maximum may be taken of raw products Q K^T.
TESSERA_INLINE bool IsPlain(const Problem& p) {
  return !p.HasExtras() && p.q_scale > 0;
}

// With tiles and plain scores: adds keys [begin, end), a panel packed in scratch.
void AttendPlainKeys(const Problem& p, const OnlineScratch& scratch, int64_t begin, int64_t end,
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
  const int64_t panel_keys = TilesOfPanel(p.padded) * kTile, words = KeyTileWords(p.padded);
  const int64_t stride = kv.stride * (int64_t)sizeof(T);
  const int64_t row_bytes = p.shape.head_size * (int64_t)sizeof(T);
  for (int64_t panel = from; panel < to; panel += panel_keys) {
    const int64_t panel_end = MinOf(panel + panel_keys, to);
    const int64_t next_n = MinOf(panel_keys, to - panel_end);
    scratch.requests->Add(kv.k + panel_end * kv.stride, stride, next_n, row_bytes);
    scratch.requests->Add(kv.v + panel_end * kv.stride, stride, next_n, row_bytes);
    const auto at = [&](int64_t begin) {  // of the key tile that begins there
      OnlineScratch s = scratch;
      s.keys += (begin - panel) / kTile * words;
      s.values += (begin - panel) / kTile * words;
      return s;
    };
    for (int64_t begin = panel; begin < panel_end; begin += kTile) {
      const int64_t n = MinOf(kTile, panel_end - begin);
      bool seen = false;
      for (int64_t i = 0; i < tiles; ++i) {
        seen = seen || !scratch.tiles[i].rows.SeesNone(begin, begin + n);
      }
      if (seen) PackKeys<kWord>(p, kv, begin, n, at(begin));
    }
    const auto ask_for_rows = [&](int64_t i) {
      const RowLimits& rows = scratch.tiles[i].rows;
      out->Request(rows.first, rows.count, scratch.requests);
    };
    // Of the last key tiles each asks for the rows of one query tile.
    const int64_t ending = tiles - CeilDiv(to - panel, kTile);
    if (!kHasTiles && out != nullptr && ending >= 0) ask_for_rows(ending);
    for (int64_t i = 0; i < tiles; ++i) {
      if (kHasTiles && out != nullptr && panel_end == to) ask_for_rows(i);
      if constexpr (kHasTiles) {
        if (IsPlain(p)) {
          AttendPlainKeys(p, scratch, panel, panel_end, &scratch.tiles[i]);
          continue;
        }
      }
      for (int64_t begin = panel; begin < panel_end; begin += kTile) {
        const int64_t n = MinOf(kTile, panel_end - begin);
        if (scratch.tiles[i].rows.SeesNone(begin, begin + n)) continue;
        AttendTile<kWord>(p, at(begin), begin, n, &scratch.tiles[i]);
      }
    }
  }
  for (int64_t i = 0; i < tiles; ++i) {
    QueryTile& tile = scratch.tiles[i];
    const int64_t columns = kHasTiles ? kTile : tile.rows.count;
    if (tile.empty) std::memset(tile.out, 0, (size_t)(columns * p.padded) * 4);
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
