// Flash attention backward on the tiles of AMX (docs/decisions/0017). What a core multiplies with must lie
// in L1 or be read in order past it, so scores are computed 32 rows by 32 keys at a time:
//   spans of rows, packed together into L2 -> panels of keys -> tiles of keys, whose dK and dV stay in L1
//   -> tiles of rows, which stream past -> parts of scores;
// then dQ of the span from the dS of the panel.
//
// Order of sums, fixed by the shape alone: dK and dV of a key add up the group's rows in order. dQ of a row
// is the sum over chunks in order of one chain over the chunk's keys. One thread takes a whole (sequence,
// kv head); where the last few of those would leave threads idle, a thread takes one chunk of them with a
// dQ of its own, and the chunks' dQ are added up afterwards in the same order.
#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/attention_gradient.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

inline constexpr int64_t kPart = 32;  // rows and keys of scores at a time, and keys of a tile
inline constexpr int64_t kPartsOfTile = kTile / kPart;  // of rows
inline constexpr int64_t kPanelKeys = 128;  // that are packed together
inline constexpr int64_t kMaxChunks = 8;
inline constexpr int64_t kLeastChunkKeys = 4 * kPanelKeys;
inline constexpr int64_t kSpanBytes = int64_t{512} << 10;  // Q and dO of a span, each in two forms

struct Plan : UnitShares {
  int64_t span_rows = 0;  // whole tiles of rows
  int64_t spans = 0;
  int64_t gradient_floats = 0;  // dQ of a unit: [whole parts of rows, padded]

  // What the units that are cut into chunks share.
  int64_t split_floats() const { return split_units() * chunks * gradient_floats; }
};

Plan MakePlan(const Problem& p, int num_threads) {
  Plan plan;
  const int64_t least = RoundUp(CeilDiv(p.shape.length, kMaxChunks), kPanelKeys);
  DealOutUnits(p, MaxOf(least, kLeastChunkKeys), num_threads, &plan);
  const int64_t tile_bytes = kTile * 4 * p.padded * (int64_t)sizeof(bf16);
  plan.span_rows =
      MinOf(MaxOf(kSpanBytes / tile_bytes, 1), CeilDiv(p.rows, kTile)) * kTile;
  plan.spans = CeilDiv(p.rows, plan.span_rows);
  plan.gradient_floats = RoundUp(p.rows, kPart) * p.padded;
  return plan;
}

// A tile of rows in the forms that products read, one after the other as they are read.
struct RowTile {
  float *q, *dout;      // [kTile, depth_stride]
  float *dout_t, *q_t;  // [padded, kTile / 2], pairs along rows

  static int64_t FloatsOf(const Problem& p) { return kTile * (2 * p.depth_stride + p.padded); }
  TESSERA_INLINE static RowTile At(const Problem& p, float* row_tiles, int64_t index) {
    float* const q = row_tiles + index * FloatsOf(p);
    float* const dout = q + kTile * p.depth_stride;
    float* const dout_t = dout + kTile * p.depth_stride;
    return {q, dout, dout_t, dout_t + kTile / 2 * p.padded};
  }
};

struct Scratch {
  // What a tile of keys meets again and again, one after the other.
  float* dk = nullptr;  // transposed: [padded, kPart]; with several spans of all keys of the unit
  float* dv = nullptr;
  float* p = nullptr;         // [kPart rows, kPart keys]: scores, then probabilities
  float* ds = nullptr;        // the same: dP, then dS
  float* p_pairs = nullptr;   // of a tile of rows, rounded: [kTile / 2, kPart], pairs along rows
  float* ds_pairs = nullptr;  // the same
  float* keep = nullptr;      // [kPart]
  // Of a panel of keys.
  float* rows_of_keys = nullptr;  // [kPart, depth_stride], on the way to a transpose
  float* keys_t = nullptr;        // [tiles of keys][depth_stride, kPart]
  float* values_t = nullptr;      // the same
  float* keys = nullptr;          // [kPanelKeys / 2, padded], pairs along keys
  // Of a span of rows.
  RowLimits* limits = nullptr;   // of parts
  float* minus_lse = nullptr;    // [span_rows], in units of log2
  float* minus_delta = nullptr;  // [span_rows], delta is the sum over d of dO O
  float* row_tiles = nullptr;    // RowTile after RowTile
  float* ds_words = nullptr;     // dS with pairs along keys: [span_rows, kPanelKeys / 2]
  float* dq = nullptr;           // [span_rows, padded]
  float* chunk_dq = nullptr;     // the same of a chunk after the first
  bool* part_has = nullptr;      // parts of rows of which the chunk's dQ holds something
  // Of a unit.
  bool* tile_has = nullptr;  // tiles of keys of which dk and dv hold something
  Requests* requests = nullptr;
};

Scratch CarveScratch(Carver* carver, const Problem& p, const Plan& plan) {
  const int64_t key_tiles = CeilDiv(p.shape.length, kPart);
  const int64_t sums = kPart * p.padded * (plan.spans > 1 ? key_tiles : 1);
  const int64_t parts = plan.span_rows / kPart;
  Scratch s;
  s.dk = carver->Floats(sums);
  s.dv = carver->Floats(sums);
  s.p = carver->Floats(kPart * kPart);
  s.ds = carver->Floats(kPart * kPart);
  s.p_pairs = carver->Floats(kTile / 2 * kPart);
  s.ds_pairs = carver->Floats(kTile / 2 * kPart);
  s.keep = carver->Floats(kPart);
  s.rows_of_keys = carver->Floats(kPart * p.depth_stride);
  s.keys_t = carver->Floats(kPanelKeys * p.depth_stride);
  s.values_t = carver->Floats(kPanelKeys * p.depth_stride);
  s.keys = carver->Floats(kPanelKeys / 2 * p.padded);
  s.limits = (RowLimits*)carver->Take(parts * (int64_t)sizeof(RowLimits));
  s.minus_lse = carver->Floats(plan.span_rows);
  s.minus_delta = carver->Floats(plan.span_rows);
  s.row_tiles = carver->Floats(plan.span_rows / kTile * RowTile::FloatsOf(p));
  s.ds_words = carver->Floats(plan.span_rows * kPanelKeys / 2);
  s.dq = carver->Floats(plan.span_rows * p.padded);
  s.chunk_dq = carver->Floats(plan.span_rows * p.padded);
  s.part_has = (bool*)carver->Take(parts);
  s.tile_has = (bool*)carver->Take(key_tiles);
  s.requests = (Requests*)carver->Take((int64_t)sizeof(Requests));
  if (s.requests != nullptr) s.requests->Clear();
  return s;
}

// Rows [first, first + count) of a unit, packed.
struct Span {
  int64_t first, count;

  int64_t parts() const { return CeilDiv(count, kPart); }
};

// Keys [begin, begin + count) of a unit, packed.
struct Panel {
  int64_t begin, count;

  int64_t tiles() const { return CeilDiv(count, kPart); }
};

// Keys of each column of pairs that RoundTwoRows writes, within the tile: UNPCKLWD and UNPCKHWD interleave the
// halves of each 16 bytes.
TESSERA_INLINE int64_t KeyOfColumn(int64_t column) {
  const int64_t half = column / kLanes, at = column % kLanes;
  return at / 4 * 8 + half * 4 + at % 4;
}

// Two rows of kPart keys of p and of ds, rounded: as pairs along the rows (in the order of KeyOfColumn), and
// ds as words along the keys.
TESSERA_INLINE void RoundTwoRows(const F32* p, const F32* ds, float* p_pairs, float* ds_pairs,
                                 float* words, int64_t words_stride) {
  const auto pairs = [](const __m512i low, const __m512i high, float* to) TESSERA_INLINE_LAMBDA {
    StoreWords(to, (U32)_mm512_unpacklo_epi16(low, high));
    StoreWords(to + kLanes, (U32)_mm512_unpackhi_epi16(low, high));
  };
  pairs((__m512i)RoundToWords(p[0], p[1]), (__m512i)RoundToWords(p[2], p[3]), p_pairs);
  const U32 first = RoundToWords(ds[0], ds[1]), second = RoundToWords(ds[2], ds[3]);
  StoreWords(words, first);
  StoreWords(words + words_stride, second);
  pairs((__m512i)first, (__m512i)second, ds_pairs);
}

// A part of scores: which rows and keys, and where its results go.
struct Part {
  const RowLimits& rows;
  const float *minus_lse, *minus_delta;  // [kPart]
  int64_t begin;                         // its first key
  float *p_pairs, *ds_pairs;             // [kPart / 2, kPart]
  float* words;                          // [kPart, words_stride]
  int64_t words_stride;
};

// From raw products Q K^T in s.p and dP in s.ds to probabilities and dS, without bias, cap and dropout.
// Where kEdge, rows see some of the keys.
template <bool kEdge>
void PlainPart(const Problem& problem, const Scratch& s, const Part& part) {
  constexpr int kRows = 4, kVectors = kPart / kLanes, kTogether = kRows * kVectors;
  const F32 q_scale = Set(problem.q_scale);
  I32 key[kVectors];
  for (int32_t i = 0; i < kPart; ++i) key[i / kLanes][i % kLanes] = (int32_t)part.begin + i;
  for (int64_t r = 0; r < kPart; r += kRows) {
    Many<kTogether> x, d;
    Each<kTogether>(TESSERA_EACH(i) {
      x.v[i] = Fma(Load(s.p + r * kPart + i * kLanes), q_scale, Set(part.minus_lse[r + i / kVectors]));
    });
    x = Exp2(x);
    Each<kTogether>(TESSERA_EACH(i) {
      d.v[i] = Load(s.ds + r * kPart + i * kLanes) + Set(part.minus_delta[r + i / kVectors]);
    });
    d = x * d;
    if constexpr (kEdge) {  // what stands there of another tile may be anything
      Each<kTogether>(TESSERA_EACH(i) {
        const int64_t row = r + i / kVectors;
        const I32& at = key[i % kVectors];
        const I32 seen = (at >= part.rows.lo[row]) & (at < part.rows.hi[row]);
        x.v[i] = Select(seen, x.v[i], Zero());
        d.v[i] = Select(seen, d.v[i], Zero());
      });
    }
    for (int64_t i = 0; i < kRows; i += 2) {
      const int64_t pair = (r + i) / 2 * kPart;
      RoundTwoRows(x.v + i * kVectors, d.v + i * kVectors, part.p_pairs + pair, part.ds_pairs + pair,
                   part.words + (r + i) * part.words_stride, part.words_stride);
    }
  }
}

// The same with all features.
void FeaturedPart(const Problem& problem, const Scratch& s, const Part& part, bool edge) {
  WithFeatures(problem, edge, [&](auto edge_on, auto alibi, auto cap) {
    for (int64_t r = 0; r < kPart; ++r) {
      if (r % 8 == 0) KeepTilesAwake();
      const int64_t from = edge ? part.rows.lo[r] - part.begin : 0;
      const int64_t to = edge ? part.rows.hi[r] - part.begin : kPart;
      ScoreRow<kPart, true, decltype(edge_on)::kOn, decltype(alibi)::kOn, decltype(cap)::kOn>(
          problem, part.rows, r, -part.minus_lse[r], -part.minus_delta[r], part.begin, from, to, s.keep,
          s.p + r * kPart, s.ds + r * kPart);
    }
  });
  for (int64_t r = 0; r < kPart; r += 2) {
    F32 p[4], ds[4];
    for (int64_t i = 0; i < 4; ++i) {
      p[i] = Load(s.p + r * kPart + i * kLanes);
      ds[i] = Load(s.ds + r * kPart + i * kLanes);
    }
    RoundTwoRows(p, ds, part.p_pairs + r / 2 * kPart, part.ds_pairs + r / 2 * kPart,
                 part.words + r * part.words_stride, part.words_stride);
  }
}

// The first row of the span, in whole tiles, that may see a key from `begin` on.
TESSERA_INLINE int64_t FirstRow(const Problem& p, const Span& span, int64_t begin) {
  return p.up_to_self ? MaxOf(begin * p.group - span.first, 0) / kTile * kTile : 0;
}

// A tile of keys of the panel (`tile` counts there) against all rows of the span: adds to dk and dv, which
// the first rows write where `begun` is false, and leaves dS in ds_words. Returns whether they hold
// something now.
bool KeyTile(const Problem& problem, const Scratch& s, const Span& span, const Panel& panel,
             int64_t tile, bool begun, float* dk, float* dv) {
  const int64_t begin = panel.begin + tile * kPart;
  const float* keys_t = s.keys_t + tile * problem.depth_stride * kPart;
  const float* values_t = s.values_t + tile * problem.depth_stride * kPart;
  for (int64_t row = FirstRow(problem, span, begin); row < span.count; row += kTile) {
    const RowTile row_tile = RowTile::At(problem, s.row_tiles, row / kTile);
    int64_t first = kPartsOfTile, last = 0;  // parts of the tile of rows that see some of the keys
    for (int64_t i = 0; i < kPartsOfTile && row + i * kPart < span.count; ++i) {
      if (s.limits[row / kPart + i].SeesNone(begin, begin + kPart)) continue;
      first = MinOf(first, i);
      last = i + 1;
    }
    for (int64_t i = first; i < last; ++i) {
      const int64_t at = row + i * kPart;
      const RowLimits& rows = s.limits[at / kPart];
      const auto multiply = [&](const float* a, const float* b, float* c) {
        const Product product = {.a = a + i * kPart * problem.depth_stride,
                                 .lda = problem.depth_stride,
                                 .b = b,
                                 .ldb = kPart,
                                 .c = c,
                                 .ldc = kPart};
        MultiplyOnTiles(Update::kStore, product, 0, kPart, kPart, 0, problem.depth_stride, s.requests);
      };
      multiply(row_tile.q, keys_t, s.p);
      multiply(row_tile.dout, values_t, s.ds);
      const Part part = {.rows = rows,
                         .minus_lse = s.minus_lse + at,
                         .minus_delta = s.minus_delta + at,
                         .begin = begin,
                         .p_pairs = s.p_pairs + i * kPart / 2 * kPart,
                         .ds_pairs = s.ds_pairs + i * kPart / 2 * kPart,
                         .words = s.ds_words + at * kPanelKeys / 2 + tile * kPart / 2,
                         .words_stride = kPanelKeys / 2};
      const bool edge = !rows.SeesAll(begin, begin + kPart) || rows.count < kPart;
      if (problem.HasExtras()) FeaturedPart(problem, s, part, edge);
      else if (edge) PlainPart<true>(problem, s, part);
      else PlainPart<false>(problem, s, part);
    }
    if (first >= last) continue;
    const auto add = [&](const float* rows_t, const float* pairs, float* c) {
      const Product product = {.a = rows_t,
                               .lda = kTile / 2,
                               .b = pairs,
                               .ldb = kPart,
                               .c = c,
                               .ldc = kPart};
      MultiplyOnTiles(begun ? Update::kAdd : Update::kStore, product, 0, problem.padded, kPart,
                      first * kPart / 2, last * kPart / 2, s.requests);
    };
    add(row_tile.dout_t, s.p_pairs, dv);
    add(row_tile.q_t, s.ds_pairs, dk);
    begun = true;
  }
  return begun;
}

// Adds dS K of the panel to dq, whose parts are written first.
void QueryGradients(const Problem& problem, const Scratch& s, const Span& span, const Panel& panel,
                    float* dq) {
  for (int64_t i = FirstRow(problem, span, panel.begin) / kPart; i < span.parts(); ++i) {
    int64_t from = panel.tiles(), to = 0;  // tiles of keys that some row of the part sees
    for (int64_t tile = 0; tile < panel.tiles(); ++tile) {
      const int64_t begin = panel.begin + tile * kPart;
      if (s.limits[i].SeesNone(begin, begin + kPart)) continue;
      from = MinOf(from, tile);
      to = tile + 1;
    }
    if (from >= to) continue;
    const Product product = {.a = s.ds_words + i * kPart * kPanelKeys / 2,
                             .lda = kPanelKeys / 2,
                             .b = s.keys,
                             .ldb = problem.padded,
                             .c = dq + i * kPart * problem.padded,
                             .ldc = problem.padded};
    MultiplyOnTiles(s.part_has[i] ? Update::kAdd : Update::kStore, product, 0, kPart, problem.padded,
                    from * kPart / 2, to * kPart / 2, s.requests);
    s.part_has[i] = true;
  }
}

void PackSpan(const Problem& p, const Unit<bf16>& unit, const Scratch& s, const Span& span) {
  const int64_t size = p.shape.head_size;
  for (int64_t first = 0; first < span.count; first += kTile) {
    const RowTile tile = RowTile::At(p, s.row_tiles, first / kTile);
    const int64_t count = MinOf(kTile, span.count - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = first + i, row = span.first + r;
      if (r + kRowsAhead < span.count) {
        PrefetchRow(unit.q.Row(row + kRowsAhead), size);
        PrefetchRow(unit.dout.Row(row + kRowsAhead), size);
        PrefetchRow(unit.out.Row(row + kRowsAhead), size);
      }
      PackRow<Word::kPair>(unit.q.Row(row), size, 1.0f, tile.q + i * p.depth_stride);
      PackRow<Word::kPair>(unit.dout.Row(row), size, 1.0f, tile.dout + i * p.depth_stride);
      s.minus_lse[r] = -unit.lse[p.RowInHeads(row)] * kLog2E;
      s.minus_delta[r] = -Dot(unit.dout.Row(row), unit.out.Row(row), size);
    }
    // Rows that fill up the last tile: finite, as they are multiplied with zeros, or masked.
    const int64_t rest = kTile - count;
    std::memset(tile.q + count * p.depth_stride, 0, (size_t)(rest * p.depth_stride) * 4);
    std::memset(tile.dout + count * p.depth_stride, 0, (size_t)(rest * p.depth_stride) * 4);
    std::memset(s.minus_lse + first + count, 0, (size_t)rest * 4);
    std::memset(s.minus_delta + first + count, 0, (size_t)rest * 4);
    PackTransposed((const bf16*)tile.dout, 2 * p.depth_stride, count, size, tile.dout_t, kTile / 2);
    PackTransposed((const bf16*)tile.q, 2 * p.depth_stride, count, size, tile.q_t, kTile / 2);
  }
  for (int64_t r = 0; r < span.count; r += kPart) {
    FillRows(p, unit.sequence, unit.kv_head, span.first + r, MinOf(kPart, span.count - r),
             &s.limits[r / kPart]);
  }
}

void PackPanel(const Problem& p, const Unit<bf16>& unit, const Scratch& s, const Panel& panel) {
  const bf16* k = unit.k + panel.begin * unit.kv_stride;
  const bf16* v = unit.v + panel.begin * unit.kv_stride;
  for (int64_t j = 0; j < panel.count; j += kPart) {
    const auto transpose = [&](const bf16* rows, float* to) {
      const int64_t count = MinOf(kPart, panel.count - j);
      PackRows<Word::kPair>(p, rows + j * unit.kv_stride, unit.kv_stride, count, s.rows_of_keys);
      TransposeTile(s.rows_of_keys, count, p.depth_stride, p.depth_stride, to + j * p.depth_stride,
                    kPart);
    };
    transpose(k, s.keys_t);
    transpose(v, s.values_t);
  }
  PackAlongRows<Word::kPair>(p, k, unit.kv_stride, panel.count, s.keys);
  const int64_t pairs = CeilDiv(panel.count, 2), whole = panel.tiles() * kPart / 2;
  std::memset(s.keys + pairs * p.padded, 0, (size_t)((whole - pairs) * p.padded) * 4);
}

// Asks for at most `most` rows of two tensors of keys from `begin` on.
template <class Queue>
void RequestKeys(const Problem& p, const Unit<bf16>& unit, const bf16* x, const bf16* y, int64_t begin,
                 int64_t most, Queue* requests) {
  const int64_t rows = MinOf(most, p.shape.length - begin);
  for (const bf16* first : {x, y}) {
    requests->Add(first + begin * unit.kv_stride, unit.kv_stride * (int64_t)sizeof(bf16), rows,
                  p.shape.head_size * (int64_t)sizeof(bf16));
  }
}

// Writes dK and dV of the tile of keys from `begin` on; zeros where no row sees them.
void WriteKeys(const Problem& p, const Unit<bf16>& unit, int64_t begin, bool has, float* dk, float* dv) {
  if (!has) {
    std::memset(dk, 0, (size_t)(kPart * p.padded) * 4);
    std::memset(dv, 0, (size_t)(kPart * p.padded) * 4);
  }
  const auto write = [&](const float* from, float scale, bf16* to) {
    alignas(64) float scales[kPart];
    for (float& x : scales) x = scale;
    UnpackTransposed<kPart>(from, p.shape.head_size, kPart, scales, [&](int64_t column) -> bf16* {
      const int64_t key = begin + KeyOfColumn(column);
      return key < p.shape.length ? to + key * unit.kv_stride : nullptr;
    });
  };
  write(dk, p.shape.scale, unit.dk);
  write(dv, 1.0f, unit.dv);
}

// Adds what a chunk gave to the dQ of the span; the first chunk's is there already, short of parts that see
// none of its keys.
void EndChunk(const Problem& p, const Scratch& s, const Span& span, const float* chunk_dq, float* dq) {
  const int64_t part = kPart * p.padded;
  for (int64_t i = 0; i < span.parts(); ++i) {
    float* const to = dq + i * part;
    if (chunk_dq != dq && s.part_has[i]) AddTo(chunk_dq + i * part, part, to);
    if (chunk_dq == dq && !s.part_has[i]) std::memset(to, 0, (size_t)part * 4);
  }
}

// Chunks [first, last) of a unit's keys against all rows: writes dK and dV of those keys and their dq [rows
// in whole parts, padded], or where that is null, as these are all chunks, the unit's dQ.
void BackwardChunks(const Problem& p, const Plan& plan, const Unit<bf16>& unit, const Scratch& s,
                    int64_t first, int64_t last, float* dq) {
  std::memset(s.tile_has, 0, (size_t)CeilDiv(p.shape.length, kPart));
  for (int64_t i = 0; i < plan.spans; ++i) {
    Span span;
    span.first = i * plan.span_rows;
    span.count = MinOf(plan.span_rows, p.rows - span.first);
    PackSpan(p, unit, s, span);
    float* const span_dq = dq == nullptr ? s.dq : dq + span.first * p.padded;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* const chunk_dq = chunk == first ? span_dq : s.chunk_dq;
      std::memset(s.part_has, 0, (size_t)span.parts());
      const int64_t end = MinOf(p.shape.length, (chunk + 1) * plan.chunk_keys);
      for (int64_t begin = chunk * plan.chunk_keys; begin < end; begin += kPanelKeys) {
        const Panel panel = {begin, MinOf(kPanelKeys, end - begin)};
        PackPanel(p, unit, s, panel);
        RequestKeys(p, unit, unit.k, unit.v, begin + kPanelKeys, kPanelKeys, s.requests);  // the next
        for (int64_t tile = 0; tile < panel.tiles(); ++tile) {
          const int64_t index = begin / kPart + tile;
          const int64_t at = plan.spans > 1 ? index * kPart * p.padded : 0;  // of the tile's sums
          bool& has = s.tile_has[index];
          const bool writes = i == plan.spans - 1;
          const int64_t key = begin + tile * kPart;
          if (writes) RequestKeys(p, unit, unit.dk, unit.dv, key, kPart, s.requests);
          has = KeyTile(p, s, span, panel, tile, has, s.dk + at, s.dv + at);
          if (writes) WriteKeys(p, unit, key, has, s.dk + at, s.dv + at);
        }
        if (dq == nullptr && begin + panel.count == p.shape.length) {
          unit.dq.Request(span.first, span.count, s.requests);
        }
        QueryGradients(p, s, span, panel, chunk_dq);
      }
      EndChunk(p, s, span, chunk_dq, span_dq);
    }
    if (dq != nullptr) continue;
    for (int64_t r = 0; r < span.count; ++r) {
      UnpackRow(s.dq + r * p.padded, p.shape.head_size, p.shape.scale, unit.dq.Row(span.first + r));
    }
  }
}

// Asks for what a unit reads first.
void RequestUnit(const Problem& p, const Unit<bf16>& unit, RequestQueue* requests) {
  unit.dout.Request(0, p.rows, requests);
  unit.out.Request(0, p.rows, requests);
  unit.q.Request(0, p.rows, requests);
  RequestKeys(p, unit, unit.k, unit.v, 0, kPanelKeys, requests);
}

}  // namespace

int64_t BackwardBytes(const AttentionShape& shape, int num_threads) {
  const Problem p = MakeProblem(shape, nullptr, Word::kPair);
  const Plan plan = MakePlan(p, num_threads);
  Carver shared, scratch;
  shared.Floats(plan.split_floats());
  CarveScratch(&scratch, p, plan);
  return shared.used + scratch.used * num_threads;
}

void RunBackward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool) {
  const Problem p = MakeProblem(args.forward.shape, nullptr, Word::kPair);
  const Plan plan = MakePlan(p, pool.num_threads());
  Carver carver = {(char*)workspace, 0};
  float* const split_dq = carver.Floats(plan.split_floats());  // [units, chunks][gradient_floats]
  Carver measure;
  CarveScratch(&measure, p, plan);
  const auto scratch_of = [&](int thread) {
    Carver own = {(char*)workspace + carver.used + thread * measure.used, 0};
    return CarveScratch(&own, p, plan);
  };

  if (plan.split_units() == 0) {  // in shares, as forward
    pool.RunShares(plan.units, 1, [&](int thread, int64_t begin, int64_t end) {
      const AttentionScope scope;
      const Scratch scratch = scratch_of(thread);
      for (int64_t index = begin; index < end; ++index) {
        scratch.requests->Clear();
        if (index + 1 < end) {
          RequestUnit(p, MakeUnit<bf16>(args, p, index + 1), &scratch.requests->later);
        }
        BackwardChunks(p, plan, MakeUnit<bf16>(args, p, index), scratch, 0, plan.chunks, nullptr);
      }
    });
    return;
  }

  const auto dq_of = [&](int64_t u) { return split_dq + u * plan.chunks * plan.gradient_floats; };
  int64_t next = 0;
  pool.Run([&](int thread) {
    const AttentionScope scope;
    const Scratch scratch = scratch_of(thread);
    for (int64_t i = TakeItem(&next); i < plan.items(); i = TakeItem(&next)) {
      const UnitItem item = CountedItem(p, plan, i);
      const int64_t u = item.unit - plan.whole_units;
      BackwardChunks(p, plan, MakeUnit<bf16>(args, p, item.unit), scratch, item.first, item.last,
                     u < 0 ? nullptr : dq_of(u) + item.first * plan.gradient_floats);
    }
  });
  pool.ParallelFor(plan.split_units() * p.rows, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin / p.rows; u * p.rows < end; ++u) {
      SumChunks(p, plan.chunks, plan.gradient_floats, MakeUnit<bf16>(args, p, plan.whole_units + u),
                MaxOf(begin - u * p.rows, 0), MinOf(end - u * p.rows, p.rows), dq_of(u));
    }
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
