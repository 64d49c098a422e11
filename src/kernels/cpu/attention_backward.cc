// Flash attention backward: scores are recomputed from Q, K and the saved log-sum-exp. Keys lie
// along the lanes: score tiles are [queries][kTile keys].
//
// Order of sums, fixed by the shape alone: keys are cut into chunks, chunks into panels that stay
// in L2. dK and dV of a panel are private sums over the group's rows in order. dQ of a row is the
// sum over chunks in order of the sum over the chunk's panels in order. One thread takes a whole
// (sequence, kv head); where the last few of those would leave threads idle, a thread takes one
// chunk of them with a dQ of its own, and the chunks' dQ are added up afterwards in the same order.
#include "kernels/cpu/attention_gradient.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

// Keys whose packed forms and gradients (5 panels of fp32) stay in a 1 MiB L2 beside a row tile.
int64_t PanelKeys(int64_t padded) { return padded <= 128 ? 256 : 128; }
inline constexpr int64_t kMaxChunks = 8;

struct Plan : UnitShares {
  int64_t panel_keys = 0;
  int64_t gradient_floats = 0;  // dQ of a unit: [rows, padded]
};

Plan MakePlan(const Problem& p, int num_threads) {
  Plan plan;
  plan.panel_keys = PanelKeys(p.padded);
  plan.gradient_floats = p.rows * p.padded;
  const int64_t chunk_keys = RoundUp(CeilDiv(p.shape.length, kMaxChunks), plan.panel_keys);
  DealOutUnits(p, chunk_keys, num_threads, &plan);
  return plan;
}

struct Scratch {
  RowLimits* rows = nullptr;
  float* keys_t = nullptr;    // [panel tiles][depth, kTile]
  float* values_t = nullptr;  // the same
  float* keys = nullptr;      // [panel_keys, padded], or half as many rows of pairs
  float* dk = nullptr;        // [panel_keys, padded]
  float* dv = nullptr;
  float* q = nullptr;          // [kTile, depth_stride]; floats are scaled
  float* dout = nullptr;       // [kTile, depth_stride]
  float* q_rows = nullptr;     // the same as B of products over rows: in floats the same memory,
  float* dout_rows = nullptr;  // in pairs [kTile / 2, padded]
  float* dq = nullptr;        // [kTile, padded]: the panel's part
  float* p = nullptr;         // [kTile queries, kTile keys]: scores, then probabilities
  float* ds = nullptr;        // the same: dP, then dS
  float* ds_words = nullptr;  // dS with pairs along keys: [kTile, kTile / 2]; floats: ds
  float* keep = nullptr;      // [kTile]
  float* delta = nullptr;     // [rows]
  float* chunk_dq = nullptr;  // [rows, padded], where a chunk has several panels
  float* unit_dq = nullptr;   // [rows, padded]
  Requests* requests = nullptr;
};

// The same size for both kinds of words.
Scratch CarveScratch(Carver* carver, const Problem& p, const Plan& plan, Word word) {
  const int64_t panel = plan.panel_keys * p.padded, tile = kTile * p.padded;
  Scratch s;
  s.rows = (RowLimits*)carver->Take((int64_t)sizeof(RowLimits));
  s.keys_t = carver->Floats(panel);
  s.values_t = carver->Floats(panel);
  s.keys = carver->Floats(panel);
  s.dk = carver->Floats(panel);
  s.dv = carver->Floats(panel);
  s.q = carver->Floats(tile);
  s.dout = carver->Floats(tile);
  s.q_rows = carver->Floats(tile / 2);
  s.dout_rows = carver->Floats(tile / 2);
  s.dq = carver->Floats(tile);
  s.p = carver->Floats(kTile * kTile);
  s.ds = carver->Floats(kTile * kTile);
  s.ds_words = carver->Floats(kTile * kTile / 2);
  s.keep = carver->Floats(kTile);
  s.delta = carver->Floats(p.rows);
  s.requests = (Requests*)carver->Take((int64_t)sizeof(Requests));
  if (s.requests != nullptr) s.requests->Clear();
  s.unit_dq = carver->Floats(plan.gradient_floats);
  s.chunk_dq = plan.chunk_keys > plan.panel_keys ? carver->Floats(plan.gradient_floats) : nullptr;
  if (word == Word::kFloat) {
    s.q_rows = s.q;
    s.dout_rows = s.dout;
    s.ds_words = s.ds;
  }
  return s;
}

// What the units that are cut into chunks share.
struct Shared {
  float* delta = nullptr;  // [units, rows]
  float* dq = nullptr;     // [units, chunks][rows, padded]
};

Shared CarveShared(Carver* carver, const Problem& p, const Plan& plan) {
  const int64_t units = plan.split_units();
  Shared s;
  s.delta = carver->Floats(units * p.rows);
  s.dq = carver->Floats(units * plan.chunks * plan.gradient_floats);
  return s;
}

// delta[r] = sum over d of dO O.
template <class T>
void FillDelta(const Problem& p, const Unit<T>& unit, int64_t begin, int64_t end, float* delta) {
  const int64_t size = p.shape.head_size;
  for (int64_t r = begin; r < end; ++r) {
    const T *a = unit.dout.Row(r), *b = unit.out.Row(r);
    if (r + kRowsAhead < end) {
      PrefetchRow(unit.dout.Row(r + kRowsAhead), size);
      PrefetchRow(unit.out.Row(r + kRowsAhead), size);
    }
    delta[r] = Dot(a, b, size);
  }
}

// The finished tiles p and ds as words of pairs: along rows both, along keys ds alone.
void RoundTiles(const Scratch& s, int64_t count) {
  const int64_t rows = RoundUp(count, 2);
  if (rows > count) {
    const size_t bytes = (size_t)((rows - count) * kTile) * 4;
    std::memset(s.p + count * kTile, 0, bytes);
    std::memset(s.ds + count * kTile, 0, bytes);
  }
  for (int64_t r = 0; r < count; ++r) {
    const float* from = s.ds + r * kTile;
    for (int64_t k = 0; k < kTile; k += 2 * kLanes) {
      StoreWords(s.ds_words + r * kTile / 2 + k / 2,
                 RoundToWords(Load(from + k), Load(from + k + kLanes)));
    }
  }
  RoundRowsToPairs(0, rows, kTileVectors, s.p);
  RoundRowsToPairs(0, rows, kTileVectors, s.ds);
}

// Whether one of two rows that see keys [from[i], to[i]) sees one of [begin, end).
TESSERA_INLINE bool SeesSome(const int64_t* from, const int64_t* to, int64_t begin, int64_t end) {
  return (from[0] < end && to[0] > begin) || (from[1] < end && to[1] > begin);
}

// ScoreRow and RoundTiles in one, without bias, cap and dropout, for rows [0, end) (even) from the raw
// products Q K^T. Where kEdge, row r sees keys [from[r], to[r]) of the tile, none past the last row.
template <bool kEdge>
void PlainRows(const Problem& problem, const Scratch& s, int64_t end, const float* lse,
               const float* delta, const int64_t* from, const int64_t* to) {
  constexpr int kVectors = 2;  // of keys, of two rows each
  using Part = Many<2 * kVectors>;
  const F32 q_scale = Set(problem.q_scale);
  I32 lanes;
  for (int32_t i = 0; i < kLanes; ++i) lanes[i] = i;
  for (int64_t r = 0; r < end; r += 2) {
    const float *p = s.p + r * kTile, *ds = s.ds + r * kTile;
    float *p_pairs = s.p + r / 2 * kTile, *ds_pairs = s.ds + r / 2 * kTile;
    Part minus_lse, minus_delta;
    Each<2 * kVectors>(TESSERA_EACH(i) {
      const int64_t row = r + i / kVectors;
      const bool exists = !kEdge || row < s.rows->count;
      minus_lse.v[i] = Set(exists ? -lse[row] : 0.0f);
      minus_delta.v[i] = Set(exists ? -delta[row] : 0.0f);
    });
    for (int64_t k = 0; k < kTile; k += kVectors * kLanes) {
      if (kEdge && !SeesSome(from + r, to + r, k, k + kVectors * kLanes)) {
        for (int v = 0; v < kVectors; ++v) {
          StoreWords(p_pairs + k + v * kLanes, U32{});
          StoreWords(ds_pairs + k + v * kLanes, U32{});
        }
        for (int64_t i = 0; i < 2; ++i) StoreWords(s.ds_words + (r + i) * kTile / 2 + k / 2, U32{});
        continue;
      }
      Part x, d;
      Each<2 * kVectors>(TESSERA_EACH(i) {
        const int64_t at = i / kVectors * kTile + k + i % kVectors * kLanes;
        x.v[i] = Load(p + at);
        d.v[i] = Load(ds + at);
      });
      x = Exp2(Fma(x, q_scale, minus_lse));
      d = x * (d + minus_delta);
      if constexpr (kEdge) {  // what stands there of another tile may be anything
        Each<2 * kVectors>(TESSERA_EACH(i) {
          const int64_t row = r + i / kVectors;
          const I32 key = lanes + (int32_t)(k + i % kVectors * kLanes);
          const I32 seen = (key >= (int32_t)from[row]) & (key < (int32_t)to[row]);
          x.v[i] = Select(seen, x.v[i], Zero());
          d.v[i] = Select(seen, d.v[i], Zero());
        });
      }
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = k + v * kLanes;
        StoreWords(p_pairs + at, RoundToPairs(x.v[v], x.v[kVectors + v]));
        StoreWords(ds_pairs + at, RoundToPairs(d.v[v], d.v[kVectors + v]));
      }
      for (int64_t i = 0; i < 2; ++i) {
        StoreWords(s.ds_words + (r + i) * kTile / 2 + k / 2,
                   RoundToWords(d.v[i * kVectors], d.v[i * kVectors + 1]));
      }
    }
  }
}

// One tile of rows (packed in scratch) with one tile of keys: adds to dk and dv of scratch, and to dq, which
// the first keys write.
template <Word kWord>
void BackwardTile(const Problem& problem, const Scratch& s, const float* lse, const float* delta,
                  int64_t panel_begin, int64_t tile_index, int64_t n, bool writes_dq) {
  constexpr bool kPairs = kWord == Word::kPair;
  constexpr Update kScores = kPairs ? Update::kScaled : Update::kStore;
  const RowLimits& rows = *s.rows;
  const int64_t begin = panel_begin + tile_index * kTile;
  const int64_t depth = problem.depth, padded = problem.padded;
  const bool edge = !rows.SeesAll(begin, begin + kTile);
  int64_t from[kTile], to[kTile];
  const bool plain = kPairs && !problem.HasExtras();
  const bool cut = edge || rows.count < kTile;  // what PlainRows has to look at
  if (edge || (kPairs && cut)) {
    for (int64_t r = 0; r < kTile; ++r) rows.KeysOf(r, 1, begin, n, &from[r], &to[r]);
  }

  const float* keys_t = s.keys_t + tile_index * depth * kTile;
  const float* values_t = s.values_t + tile_index * depth * kTile;
  const Product scores = {.a = s.q,
                          .lda = problem.depth_stride,
                          .b = keys_t,
                          .ldb = kTile,
                          .c = s.p,
                          .ldc = kTile,
                          .scale = &problem.q_scale};
  const Product dp = {.a = s.dout,
                      .lda = problem.depth_stride,
                      .b = values_t,
                      .ldb = kTile,
                      .c = s.ds,
                      .ldc = kTile};
  Strips strips;
  if (edge) {
    const auto columns = [&](int64_t row, int64_t count) {
      int64_t low = 0, high = 0;
      rows.KeysOf(row, count, begin, n, &low, &high);
      return Extent{0, depth, low / kLanes, CeilDiv(high, kLanes)};
    };
    CutIntoStrips(0, rows.count, columns, &strips);
  } else {
    WholeStrips(rows.count, depth, kTileVectors, &strips);
  }
  if (plain) Multiply<kWord, Layout::kRows, Update::kStore>(scores, strips, kTileVectors, s.requests);
  else Multiply<kWord, Layout::kRows, kScores>(scores, strips, kTileVectors, s.requests);
  Multiply<kWord, Layout::kRows, Update::kStore>(dp, strips, kTileVectors, s.requests);

  if (plain) {
    const int64_t end = RoundUp(rows.count, 2);
    if (cut) PlainRows<true>(problem, s, end, lse, delta, from, to);
    else PlainRows<false>(problem, s, end, lse, delta, from, to);
  } else {
    WithFeatures(problem, edge, [&](auto edge_on, auto alibi, auto cap) {
      constexpr bool kEdge = decltype(edge_on)::kOn;
      for (int64_t r = 0; r < rows.count; ++r) {
        ScoreRow<kTile, false, kEdge, decltype(alibi)::kOn, decltype(cap)::kOn>(
            problem, rows, r, lse[r], delta[r], begin, kEdge ? from[r] : 0, kEdge ? to[r] : n, s.keep,
            s.p + r * kTile, s.ds + r * kTile);
      }
    });
    if (kPairs) RoundTiles(s, rows.count);
  }
  const int64_t offset = tile_index * kTile * padded;
  const Product dv = {
      .a = s.p, .lda = kTile, .b = s.dout_rows, .ldb = padded, .c = s.dv + offset, .ldc = padded};
  const Product dk = {
      .a = s.ds, .lda = kTile, .b = s.q_rows, .ldb = padded, .c = s.dk + offset, .ldc = padded};
  const Product dq = {.a = s.ds_words,
                      .lda = WordSteps(kWord, kTile),
                      .b = s.keys + offset / kStepsPerWord<kWord>,
                      .ldb = padded,
                      .c = s.dq,
                      .ldc = padded};
  if (edge) {
    const auto queries = [&](int64_t key, int64_t count) {
      int64_t first = 0, last = rows.count;
      while (first < last && (to[first] <= key || from[first] >= key + count)) ++first;
      while (last > first && (to[last - 1] <= key || from[last - 1] >= key + count)) --last;
      return ExtentOf<kWord>(first, last, 0, problem.vectors);
    };
    CutIntoStrips(0, n, queries, &strips);
  } else {
    WholeStrips(n, WordSteps(kWord, rows.count), problem.vectors, &strips);
  }
  Multiply<kWord, Layout::kColumns, Update::kAdd>(dv, strips, problem.vectors, s.requests);
  Multiply<kWord, Layout::kColumns, Update::kAdd>(dk, strips, problem.vectors, s.requests);
  if (edge) {
    const auto keys = [&](int64_t row, int64_t count) {
      int64_t low = 0, high = 0;
      rows.KeysOf(row, count, begin, n, &low, &high);
      return ExtentOf<kWord>(low, high, 0, problem.vectors);
    };
    CutIntoStrips(0, rows.count, keys, &strips);
  } else {
    WholeStrips(rows.count, WordSteps(kWord, n), problem.vectors, &strips);
  }
  if (writes_dq) Multiply<kWord, Layout::kRows, Update::kStore>(dq, strips, problem.vectors, s.requests);
  else Multiply<kWord, Layout::kRows, Update::kAdd>(dq, strips, problem.vectors, s.requests);
}

// Keys [begin, begin + n) against all rows: writes dk and dv, adds to dq [rows, padded], or where that
// is null, as these are all keys, writes the unit's dq.
template <Word kWord, class T>
void BackwardPanel(const Problem& p, const Unit<T>& unit, const Scratch& s, const float* delta,
                   int64_t begin, int64_t n, float* dq) {
  const int64_t size = p.shape.head_size;
  const T* k = unit.k + begin * unit.kv_stride;
  const T* v = unit.v + begin * unit.kv_stride;
  // dv is free until its sums begin: V passes through it on the way to its transpose.
  PackAlongRows<kWord>(p, k, unit.kv_stride, n, s.keys);
  PackRows<kWord>(p, v, unit.kv_stride, n, s.dv);
  const float* key_rows = s.keys;
  if (kWord == Word::kPair) {  // dk is free as well
    PackRows<kWord>(p, k, unit.kv_stride, n, s.dk);
    key_rows = s.dk;
  }
  const int64_t depth = p.depth;
  for (int64_t j = 0; j < n; j += kTile) {
    const int64_t count = MinOf(kTile, n - j), row = j * p.depth_stride;
    TransposeTile(key_rows + row, count, depth, p.depth_stride, s.keys_t + j * depth);
    TransposeTile(s.dv + row, count, depth, p.depth_stride, s.values_t + j * depth);
  }
  std::memset(s.dk, 0, (size_t)(n * p.padded) * 4);
  std::memset(s.dv, 0, (size_t)(n * p.padded) * 4);

  const auto write_dq = [&](int64_t first, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      UnpackRow(s.dq + r * p.padded, size, p.shape.scale, unit.dq.Row(first + r));
    }
  };
  const int64_t first_row = p.up_to_self ? begin * p.group / kTile * kTile : 0;
  for (int64_t first = first_row; first < p.rows; first += kTile) {
    const int64_t count = MinOf(kTile, p.rows - first);
    FillRows(p, unit.sequence, unit.kv_head, first, count, s.rows);
    if (s.rows->SeesNone(begin, begin + n)) {
      if (dq != nullptr) continue;
      std::memset(s.dq, 0, (size_t)(count * p.padded) * 4);
      write_dq(first, count);
      continue;
    }
    float lse[kTile];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first + r;
      if (r + kRowsAhead < count) {
        PrefetchRow(unit.q.Row(row + kRowsAhead), size);
        PrefetchRow(unit.dout.Row(row + kRowsAhead), size);
      }
      PackRow<kWord>(unit.q.Row(row), size, p.q_scale, s.q + r * p.depth_stride);
      PackRow<kWord>(unit.dout.Row(row), size, 1.0f, s.dout + r * p.depth_stride);
      if constexpr (kWord == Word::kPair) {
        if (r % 2 == 0) {
          const bool next = r + 1 < count;
          PackRowPair(unit.q.Row(row), next ? unit.q.Row(row + 1) : nullptr, size,
                      s.q_rows + r / 2 * p.padded);
          PackRowPair(unit.dout.Row(row), next ? unit.dout.Row(row + 1) : nullptr, size,
                      s.dout_rows + r / 2 * p.padded);
        }
      }
      lse[r] = unit.lse[p.RowInHeads(row)] * kLog2E;
    }
    const int64_t next = first + kTile, next_count = MinOf(kTile, p.rows - next);
    unit.q.Request(next, next_count, s.requests);
    unit.dout.Request(next, next_count, s.requests);
    if (begin + n == p.shape.length) unit.dq.Request(first, count, s.requests);
    if (next >= p.rows) {
      const int64_t stride = unit.kv_stride * (int64_t)sizeof(T), bytes = size * (int64_t)sizeof(T);
      s.requests->Add(unit.dk + begin * unit.kv_stride, stride, n, bytes);
      s.requests->Add(unit.dv + begin * unit.kv_stride, stride, n, bytes);
    }
    bool is_first = true;
    for (int64_t j = 0; j < n; j += kTile) {
      const int64_t keys = MinOf(kTile, n - j);
      if (s.rows->SeesNone(begin + j, begin + j + keys)) continue;
      BackwardTile<kWord>(p, s, lse, delta + first, begin, j / kTile, keys, is_first);
      is_first = false;
    }
    if (is_first) std::memset(s.dq, 0, (size_t)(count * p.padded) * 4);
    if (dq != nullptr) AddTo(s.dq, count * p.padded, dq + first * p.padded);
    else write_dq(first, count);
  }

  // The true factor of dK is the shape's scale; Q that was packed as floats carries q_scale.
  const float dk_scale = kWord == Word::kPair  ? p.shape.scale
                         : p.shape.softcap > 0 ? p.shape.softcap
                                               : kLn2;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t row = (begin + j) * unit.kv_stride;
    UnpackRow(s.dk + j * p.padded, size, dk_scale, unit.dk + row);
    UnpackRow(s.dv + j * p.padded, size, 1.0f, unit.dv + row);
  }
}

template <Word kWord, class T>
void BackwardChunk(const Problem& p, const Plan& plan, const Unit<T>& unit, const Scratch& s,
                   const float* delta, int64_t chunk, float* dq) {
  const int64_t end = MinOf(p.shape.length, (chunk + 1) * plan.chunk_keys);
  for (int64_t begin = chunk * plan.chunk_keys; begin < end; begin += plan.panel_keys) {
    BackwardPanel<kWord>(p, unit, s, delta, begin, MinOf(plan.panel_keys, end - begin), dq);
  }
}

template <Word kWord, class T>
void BackwardUnit(const Problem& p, const Plan& plan, const Unit<T>& unit, const Scratch& s) {
  FillDelta(p, unit, 0, p.rows, s.delta);
  if (p.shape.length <= plan.panel_keys) {
    BackwardPanel<kWord>(p, unit, s, s.delta, 0, p.shape.length, nullptr);
    return;
  }
  std::memset(s.unit_dq, 0, (size_t)plan.gradient_floats * 4);
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    // A chunk of one panel adds each row once, so a buffer of its own would change no bit.
    if (s.chunk_dq == nullptr) {
      BackwardChunk<kWord>(p, plan, unit, s, s.delta, chunk, s.unit_dq);
      continue;
    }
    std::memset(s.chunk_dq, 0, (size_t)plan.gradient_floats * 4);
    BackwardChunk<kWord>(p, plan, unit, s, s.delta, chunk, s.chunk_dq);
    AddTo(s.chunk_dq, plan.gradient_floats, s.unit_dq);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    UnpackRow(s.unit_dq + r * p.padded, p.shape.head_size, p.shape.scale, unit.dq.Row(r));
  }
}

template <Word kWord, class T>
void Backward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool) {
  const Problem p = MakeProblem(args.forward.shape, nullptr, kWord);
  const Plan plan = MakePlan(p, pool.num_threads());
  Carver carver = {(char*)workspace, 0};
  const Shared shared = CarveShared(&carver, p, plan);
  Carver measure;
  CarveScratch(&measure, p, plan, kWord);
  const int64_t split_units = plan.split_units();

  if (split_units > 0) {
    pool.ParallelFor(split_units * p.rows, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin / p.rows; u * p.rows < end; ++u) {
        const Unit<T> unit = MakeUnit<T>(args, p, plan.whole_units + u);
        FillDelta(p, unit, MaxOf(begin - u * p.rows, 0), MinOf(end - u * p.rows, p.rows),
                  shared.delta + u * p.rows);
      }
    });
  }

  const auto scratch_of = [&](int thread) {
    Carver own = {(char*)workspace + carver.used + thread * measure.used, 0};
    return CarveScratch(&own, p, plan, kWord);
  };
  if (split_units == 0) {  // in shares, as forward
    pool.RunShares(plan.units, 1, [&](int thread, int64_t begin, int64_t end) {
      const Scratch scratch = scratch_of(thread);
      for (int64_t unit = begin; unit < end; ++unit) {
        BackwardUnit<kWord>(p, plan, MakeUnit<T>(args, p, unit), scratch);
      }
    });
    return;
  }
  int64_t next = 0;
  pool.Run([&](int thread) {
    const Scratch scratch = scratch_of(thread);
    for (int64_t i = TakeItem(&next); i < plan.items(); i = TakeItem(&next)) {
      const UnitItem item = CountedItem(p, plan, i);
      const Unit<T> unit = MakeUnit<T>(args, p, item.unit);
      const int64_t u = item.unit - plan.whole_units;
      if (u < 0) {
        BackwardUnit<kWord>(p, plan, unit, scratch);
        continue;
      }
      float* dq = shared.dq + (u * plan.chunks + item.first) * plan.gradient_floats;
      std::memset(dq, 0, (size_t)plan.gradient_floats * 4);
      BackwardChunk<kWord>(p, plan, unit, scratch, shared.delta + u * p.rows, item.first, dq);
    }
  });

  pool.ParallelFor(split_units * p.rows, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin / p.rows; u * p.rows < end; ++u) {
      SumChunks(p, plan.chunks, plan.gradient_floats, MakeUnit<T>(args, p, plan.whole_units + u),
                MaxOf(begin - u * p.rows, 0), MinOf(end - u * p.rows, p.rows),
                shared.dq + u * plan.chunks * plan.gradient_floats);
    }
  });
}

}  // namespace

int64_t BackwardBytes(const AttentionShape& shape, int num_threads) {
  const Problem p = MakeProblem(shape, nullptr);
  const Plan plan = MakePlan(p, num_threads);
  Carver shared, scratch;
  CarveShared(&shared, p, plan);
  CarveScratch(&scratch, p, plan, Word::kFloat);
  return shared.used + scratch.used * num_threads;
}

void RunBackward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool) {
  const AttentionForwardArgs& forward = args.forward;
  if (forward.dtype == DType::kF32) return Backward<Word::kFloat, float>(args, workspace, pool);
  if constexpr (kHasBf16Dot) {
    if (forward.compute == Compute::kBf16) {
      return Backward<Word::kPair, bf16>(args, workspace, pool);
    }
  }
  Backward<Word::kFloat, bf16>(args, workspace, pool);
}

}  // namespace tessera::kernels::TESSERA_ISA
