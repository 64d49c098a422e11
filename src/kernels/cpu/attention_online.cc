// One query tile against one packed key tile: scores, online softmax, weighted sum of values.
#include "kernels/cpu/attention_online.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr int kTogether = 4;  // vectors computed as one (many.h)

// One vector of each of N rows of a tile.
template <int N>
TESSERA_INLINE Many<N> LoadRows(const float* p, Several<N>) {
  Many<N> out;
  Each<N>(TESSERA_EACH(i) { out.v[i] = Load(p + i * kTile); });
  return out;
}
template <int N>
TESSERA_INLINE void StoreRows(float* p, const Many<N>& v, Several<N>) {
  Each<N>(TESSERA_EACH(i) { Store(p + i * kTile, v.v[i]); });
}

// Scores to 2^(score - max) for one vector of queries and keys [from, to) of the tile at `begin`;
// updates max, sum and scale.
template <bool kEdge, bool kAlibi, bool kCap>
TESSERA_INLINE void OnlineSoftmax(const Problem& p, QueryTile* tile, int64_t lane, float* scores,
                                  int64_t begin, int64_t from, int64_t to) {
  float* s = scores + lane;
  F32 slope = Zero(), position = Zero();
  I32 lo = {}, hi = {};
  if constexpr (kAlibi) {
    slope = Zero() - Load(tile->rows.slope + lane);
    position = Load(tile->rows.position + lane) - Set((float)begin);
  }
  if constexpr (kEdge) {
    std::memcpy(&lo, tile->rows.lo + lane, sizeof(lo));
    std::memcpy(&hi, tile->rows.hi + lane, sizeof(hi));
    lo -= (int32_t)begin;
    hi -= (int32_t)begin;
  }
  // The keys' rows [k, k + N) at this vector of queries.
  const auto score = [&](int64_t k, auto part) TESSERA_INLINE_LAMBDA {
    auto x = LoadRows(s + k * kTile, part);
    if constexpr (kHasTiles) x = Set(p.q_scale) * x;
    if constexpr (kCap) x = Set(p.cap) * Tanh(x);
    if constexpr (kAlibi || kEdge) {
      Each<part.kCount>(TESSERA_EACH(i) {
        const int32_t key = (int32_t)k + i;
        if constexpr (kAlibi) x.v[i] = Fma(slope, Abs(position - Set((float)key)), x.v[i]);
        if constexpr (kEdge) {
          x.v[i] = Select((lo <= key) & (hi > key), x.v[i], Set(-__builtin_inff()));
        }
      });
    }
    if constexpr (kHasTiles || kEdge || kAlibi || kCap) StoreRows(s + k * kTile, x, part);
    return x;
  };
  constexpr Several<kTogether> kPart;
  constexpr Several<1> kOne;
  KeepTilesAwake();
  const F32 old = Load(tile->max + lane);
  Many<kTogether> most = old;
  int64_t k = from;
  for (; k + kTogether <= to; k += kTogether) most = Max(most, score(k, kPart));
  for (; k < to; ++k) most.v[0] = Max(most.v[0], score(k, kOne).v[0]);
  const F32 max = Max(Max(most.v[0], most.v[1]), Max(most.v[2], most.v[3]));
  const F32 scale = Exp2(old - max);
  const auto probability = [&](int64_t key, auto part) TESSERA_INLINE_LAMBDA {
    const auto x = Exp2(LoadRows(s + key * kTile, part) - max);
    StoreRows(s + key * kTile, x, part);
    return x;
  };
  Many<kTogether> sums = Zero();
  sums.v[0] = Load(tile->sum + lane) * scale;
  for (k = from; k + kTogether <= to; k += kTogether) sums = sums + probability(k, kPart);
  for (; k < to; ++k) sums.v[0] = sums.v[0] + probability(k, kOne).v[0];
  Store(tile->max + lane, max);
  Store(tile->scale + lane, scale);
  Store(tile->sum + lane, (sums.v[0] + sums.v[1]) + (sums.v[2] + sums.v[3]));
}

// The same without bias and cap from raw products Q K^T (a positive q_scale is applied here), to rows
// of pairs of keys rounded to bf16, all kTile / 2 of them: zeros where no key of [from, to) is. The
// pairs may be written over the scores.
template <bool kEdge>
TESSERA_INLINE void PlainSoftmaxAs(const Problem& p, QueryTile* tile, int64_t lane,
                                   const float* scores, float* probabilities, int64_t begin,
                                   int64_t from, int64_t to) {
  const float* s = scores + lane;
  float* out = probabilities + lane;
  constexpr Several<kTogether> kPart;
  I32 lo = {}, hi = {};
  if constexpr (kEdge) {
    std::memcpy(&lo, tile->rows.lo + lane, sizeof(lo));
    std::memcpy(&hi, tile->rows.hi + lane, sizeof(hi));
    lo -= (int32_t)begin;
    hi -= (int32_t)begin;
    from = from / kTogether * kTogether;
    to = RoundUp(to, kTogether);
  } else {
    from = 0;
    to = kTile;
  }
  const auto load = [&](int64_t k) TESSERA_INLINE_LAMBDA {
    auto x = LoadRows(s + k * kTile, kPart);
    if constexpr (kEdge) {
      Each<kTogether>(TESSERA_EACH(i) {
        const int32_t key = (int32_t)k + i;
        x.v[i] = Select((lo <= key) & (hi > key), x.v[i], Set(-__builtin_inff()));
      });
    }
    return x;
  };
  const F32 q_scale = Set(p.q_scale), old = Load(tile->max + lane);
  Many<kTogether> most = Set(-__builtin_inff());
  for (int64_t k = from; k < to; k += kTogether) most = Max(most, load(k));
  const F32 max = Max(old, q_scale * Max(Max(most.v[0], most.v[1]), Max(most.v[2], most.v[3])));
  const F32 scale = Exp2(old - max), minus_max = Zero() - max;
  Many<kTogether> sums = Zero();
  sums.v[0] = Load(tile->sum + lane) * scale;
  for (int64_t k = from; k < to; k += kTogether) {
    const auto x = Exp2(Fma(load(k), q_scale, minus_max));
    sums = sums + x;
    float* pairs = out + k / 2 * kTile;
    StoreWords(pairs, RoundToPairs(x.v[0], x.v[1]));
    StoreWords(pairs + kTile, RoundToPairs(x.v[2], x.v[3]));
  }
  if constexpr (kEdge) {
    for (int64_t k = 0; k < from / 2; ++k) StoreWords(out + k * kTile, U32{});
    for (int64_t k = to / 2; k < kTile / 2; ++k) StoreWords(out + k * kTile, U32{});
  }
  Store(tile->max + lane, max);
  Store(tile->scale + lane, scale);
  Store(tile->sum + lane, (sums.v[0] + sums.v[1]) + (sums.v[2] + sums.v[3]));
}

TESSERA_INLINE void PlainSoftmax(const Problem& p, QueryTile* tile, int64_t lane,
                                 const float* scores, float* probabilities, int64_t begin,
                                 int64_t from, int64_t to, bool edge) {
  if (edge) PlainSoftmaxAs<true>(p, tile, lane, scores, probabilities, begin, from, to);
  else PlainSoftmaxAs<false>(p, tile, lane, scores, probabilities, begin, from, to);
}

// Multiplies the probabilities by the factors of dropout (the sums stay as they are).
TESSERA_INLINE void DropScores(const Problem& p, const RowLimits& rows, int64_t begin, float* keep,
                               float* scores) {
  for (int64_t r = 0; r < rows.count; ++r) {
    KeepRow(p, rows.element[r], begin, keep + r * kTile);
  }
  for (int64_t r0 = 0; r0 < rows.count; r0 += kLanes) {
    for (int64_t k0 = 0; k0 < kTile; k0 += kLanes) {
      F32 block[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        block[r] = r0 + r < rows.count ? Load(keep + (r0 + r) * kTile + k0) : Zero();
      }
      Transpose(block);
      for (int64_t k = 0; k < kLanes; ++k) {
        float* s = scores + (k0 + k) * kTile + r0;
        Store(s, Load(s) * block[k]);
      }
    }
  }
}

// What one step of AttendPlainKeys works on: some queries of a tile and a key tile.
struct Part {
  const float* keys;
  const float* values;
  int64_t begin, n;      // keys
  int64_t first, count;  // vectors of queries
  bool edge;             // some row does not see some key of the tile
  bool empty;            // the rows meet their first keys
  int64_t lane() const { return first * kLanes; }
};

// Scores of a part, transposed.
void MultiplyKeys(const Problem& p, const OnlineScratch& scratch, const Part& part,
                  const QueryTile& tile) {
  const Product scores = {.a = part.keys,
                          .lda = p.depth_stride,
                          .b = tile.q + part.lane(),
                          .ldb = kTile,
                          .c = scratch.scores + part.lane(),
                          .ldc = kTile};
  MultiplyOnTiles(Update::kStore, scores, 0, RoundUp(part.n, kTileRows), part.count * kLanes, 0,
                  p.depth_stride, scratch.requests);
}

// Transposed sums of queries, [padded, kTile] from out_t.c on, times `scale`, plus values times
// probabilities over words [depth_begin, depth_end); the products alone for the first keys.
void AddValues(const Problem& p, const Product& out_t, const float* scale, int64_t vectors,
               int64_t depth_begin, int64_t depth_end, Requests* requests, bool empty) {
  const int64_t columns = vectors * kLanes;
  if (empty) {
    MultiplyOnTiles(Update::kStore, out_t, 0, p.padded, columns, depth_begin, depth_end, requests);
    return;
  }
  ScaleColumns(scale, p.padded, vectors, out_t.c);
  MultiplyOnTiles(Update::kAdd, out_t, 0, p.padded, columns, depth_begin, depth_end, requests);
}

void AddValuesOf(const Problem& p, const OnlineScratch& scratch, const Part& part,
                 const QueryTile& tile) {
  const Product out_t = {.a = part.values,
                         .lda = kTile / 2,
                         .b = scratch.probabilities + part.lane(),
                         .ldb = kTile,
                         .c = tile.out + part.lane(),
                         .ldc = kTile};
  AddValues(p, out_t, tile.scale + part.lane(), part.count, 0, RoundUp(part.n, kDepthRows) / 2,
            scratch.requests, part.empty);
}

}  // namespace

// Half of the queries at a time, so that what is computed stays in L1. The scores of the next part are
// computed between the probabilities of this one and their product with the values: neither vectors
// nor tiles then wait for what the others have just stored.
void AttendPlainKeys(const Problem& p, const OnlineScratch& scratch, int64_t begin, int64_t end,
                     QueryTile* tile) {
  constexpr int64_t kHalf = 2;  // vectors
  const RowLimits& rows = tile->rows;
  const int64_t vectors = CeilDiv(rows.count, kLanes), words = KeyTileWords(p.padded);
  const auto part_at = [&](int64_t key, int64_t first) {
    const int64_t at = (key - begin) / kTile * words, n = MinOf(kTile, end - key);
    return Part{scratch.keys + at, scratch.values + at, key, n, first, MinOf(kHalf, vectors - first),
                !rows.SeesAll(key, key + kTile), tile->empty};
  };
  const auto seen_from = [&](int64_t key) {  // the first key tile from there on that some row sees
    while (key < end && rows.SeesNone(key, MinOf(key + kTile, end))) key += kTile;
    return key;
  };
  int64_t key = seen_from(begin);
  if (key >= end) return;
  Part part = part_at(key, 0);
  MultiplyKeys(p, scratch, part, *tile);
  for (bool more = true; more;) {
    for (int64_t v = part.first; v < part.first + part.count; ++v) {
      if (v > part.first) KeepTilesAwake();
      PlainSoftmax(p, tile, v * kLanes, scratch.scores, scratch.probabilities, part.begin, 0, kTile,
                   part.edge);
    }
    int64_t first = part.first + kHalf;
    if (first >= vectors) {
      first = 0;
      key = seen_from(key + kTile);
      tile->empty = false;
    }
    more = key < end;
    const Part next = more ? part_at(key, first) : part;
    if (more) MultiplyKeys(p, scratch, next, *tile);
    AddValuesOf(p, scratch, part, *tile);
    part = next;
  }
}

template <Word kWord>
void AttendTile(const Problem& p, const OnlineScratch& scratch, int64_t begin, int64_t n,
                QueryTile* tile) {
  constexpr bool kPairs = kWord == Word::kPair;
  constexpr Update kScores = kPairs ? Update::kScaled : Update::kStore;
  const RowLimits& rows = tile->rows;
  const int64_t vectors = CeilDiv(rows.count, kLanes);
  const bool plain = kPairs && !kHasTiles && IsPlain(p);
  const bool edge = !rows.SeesAll(begin, begin + (kHasTiles || plain ? kTile : n));
  int64_t key_from = 0, key_to = n;              // keys that some row sees
  int64_t from[kTileVectors], to[kTileVectors];  // and that some lane of a vector sees
  for (int64_t v = 0; v < vectors; ++v) {
    from[v] = 0;
    to[v] = n;
  }
  if (edge) {
    key_from = n;
    key_to = 0;
    for (int64_t v = 0; v < vectors; ++v) {
      rows.KeysOf(v * kLanes, kLanes, begin, n, &from[v], &to[v]);
      if (from[v] == to[v]) continue;
      key_from = MinOf(key_from, from[v]);
      key_to = MaxOf(key_to, to[v]);
    }
    if (key_from >= key_to) return;
  }
  if (kPairs) {  // whole pairs of keys, or tiles; those that no row sees get probability 0
    constexpr int64_t kTogether = kHasTiles ? kDepthRows : 2;
    key_from = key_from / kTogether * kTogether;
    key_to = RoundUp(key_to, kTogether);
  }

  const Product scores = {.a = scratch.keys,
                          .lda = p.depth_stride,
                          .b = tile->q,
                          .ldb = kTile,
                          .c = scratch.scores,
                          .ldc = kTile,
                          .scale = &p.q_scale};
  Strips strips;
  if constexpr (kHasTiles) {
    MultiplyOnTiles(Update::kStore, scores, key_from, RoundUp(MinOf(key_to, n), kTileRows),
                    vectors * kLanes, 0, p.depth_stride, scratch.requests);
  } else if (edge) {
    const auto queries = [&](int64_t key, int64_t count) {
      int64_t first = vectors, last = 0;
      for (int64_t v = 0; v < vectors; ++v) {
        if (from[v] >= key + count || to[v] <= key) continue;
        first = MinOf(first, v);
        last = v + 1;
      }
      return Extent{0, p.depth, first, last};
    };
    CutIntoStrips(key_from, MinOf(key_to, n), queries, &strips);
  } else {
    WholeStrips(n, p.depth, vectors, &strips);
  }
  if constexpr (!kHasTiles) {
    if (plain) Multiply<kWord, Layout::kRows, Update::kStore>(scores, strips, vectors, scratch.requests);
    else Multiply<kWord, Layout::kRows, kScores>(scores, strips, vectors, scratch.requests);
  }

  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t lane = v * kLanes;
    if (plain) {
      PlainSoftmax(p, tile, lane, scratch.scores, scratch.scores, begin, from[v], to[v], edge);
      continue;
    }
    if (edge || key_to > n) {
      for (int64_t k = key_from; k < key_to; ++k) {
        if (k < from[v] || k >= to[v]) Store(scratch.scores + k * kTile + lane, Zero());
      }
    }
    WithFeatures(p, edge, [&](auto edge_on, auto alibi, auto cap) {
      OnlineSoftmax<decltype(edge_on)::kOn, decltype(alibi)::kOn, decltype(cap)::kOn>(
          p, tile, lane, scratch.scores, begin, from[v], to[v]);
    });
  }
  if (p.shape.dropout > 0) DropScores(p, rows, begin, scratch.keep, scratch.scores);
  if (kPairs && !plain) RoundRowsToPairs(key_from, key_to, vectors, scratch.scores);

  if constexpr (kHasTiles) {
    const Product out_t = {.a = scratch.values,
                           .lda = kTile / 2,
                           .b = scratch.scores,
                           .ldb = kTile,
                           .c = tile->out,
                           .ldc = kTile};
    AddValues(p, out_t, tile->scale, vectors, key_from / 2, key_to / 2, scratch.requests,
              tile->empty);
    tile->empty = false;
    return;
  }
  const Product out = {.a = scratch.scores,
                       .lda = kTile,
                       .b = scratch.values,
                       .ldb = p.padded,
                       .c = tile->out,
                       .ldc = p.padded,
                       .scale = tile->scale};
  if (edge) {
    const auto keys = [&](int64_t row, int64_t count) {
      int64_t low = 0, high = 0;
      rows.KeysOf(row, count, begin, n, &low, &high);
      return ExtentOf<kWord>(low, high, 0, p.vectors);
    };
    CutIntoStrips(0, rows.count, keys, &strips);
  } else {
    WholeStrips(rows.count, WordSteps(kWord, n), p.vectors, &strips);
  }
  if (tile->empty) {
    Multiply<kWord, Layout::kColumns, Update::kStore>(out, strips, p.vectors, scratch.requests);
    tile->empty = false;
  } else {
    Multiply<kWord, Layout::kColumns, Update::kScaleAdd>(out, strips, p.vectors, scratch.requests);
  }
}

#if !defined(TESSERA_TILES)
template void AttendTile<Word::kFloat>(const Problem&, const OnlineScratch&, int64_t, int64_t,
                                       QueryTile*);
#endif
#if defined(__AVX512BF16__) || defined(TESSERA_EMULATE_BF16_DOT)
template void AttendTile<Word::kPair>(const Problem&, const OnlineScratch&, int64_t, int64_t,
                                      QueryTile*);
#endif

}  // namespace tessera::kernels::TESSERA_ISA
