// The decode step: the rows of a group (new tokens by query heads) against the cache. Few rows: the
// keys are cut into splits of a fixed length, whose partial results are merged in order, so that
// one long sequence occupies every thread. Many rows (a prompt): tiles of rows, as in forward; only
// these are multiplied on tiles of AMX.
#include "kernels/cpu/attention_online.h"
#if !defined(TESSERA_TILES)
#include "kernels/cpu/attention_rows.h"
#endif

namespace tessera::kernels::TESSERA_ISA {

namespace {

inline constexpr int64_t kSplitKeys = 512;

struct Plan {
  int64_t units = 0;
  int64_t blocks = 1;   // of rows, where there are many
  int64_t tiles = 1;    // a block
  int64_t splits = 1;   // of keys, where there are few rows
  int64_t partial = 0;  // floats of one split: [rows][padded] sums, then max and sum of each row
};

// What this file's set multiplies.
inline constexpr Word kWord = kHasTiles ? Word::kPair : Word::kFloat;

Problem MakeDecodeProblem(const AttentionDecodeArgs& args) {
  AttentionShape shape = args.shape;
  shape.causal = true;
  shape.dropout = 0;
  shape.segment_start = nullptr;
  return MakeProblem(shape, args.past, kWord);
}

// Depends on the capacity, not on `past`, so that the workspace can be planned.
Plan MakePlan(const Problem& p, int64_t capacity, int num_threads) {
  Plan plan;
  plan.units = p.shape.batch * p.shape.kv_heads;
  if (p.rows <= kTile) {
    plan.splits = CeilDiv(capacity, kSplitKeys);
    plan.partial = p.rows * (p.padded + 2);
    return plan;
  }
  const int64_t row_tiles = CeilDiv(p.rows, kTile);
  plan.tiles = TilesOfBlock(p.padded);
  while (plan.tiles > 1 && plan.units * CeilDiv(row_tiles, plan.tiles) < 4 * num_threads) {
    plan.tiles /= 2;
  }
  plan.blocks = CeilDiv(row_tiles, plan.tiles);
  return plan;
}

// Merges a unit's splits: each is weighted by 2^(its max - the largest max).
template <class T>
void Merge(const Problem& p, const Plan& plan, const float* partials, int64_t splits,
           const GroupRows<T>& out, float* row_sum) {
  for (int64_t r = 0; r < p.rows; ++r) {
    float max = -1e30f;
    for (int64_t s = 0; s < splits; ++s) {
      const float split_max = partials[s * plan.partial + p.rows * p.padded + r];
      max = split_max > max ? split_max : max;
    }
    float total = 0;
    for (int64_t d = 0; d < p.padded; d += kLanes) Store(row_sum + d, Zero());
    for (int64_t s = 0; s < splits; ++s) {
      const float* partial = partials + s * plan.partial;
      const float* state = partial + p.rows * p.padded;
      const F32 weight = Exp2(Set(state[r] - max));
      total += weight[0] * state[p.rows + r];
      for (int64_t d = 0; d < p.padded; d += kLanes) {
        Store(row_sum + d, Fma(weight, Load(partial + r * p.padded + d), Load(row_sum + d)));
      }
    }
    UnpackRow(row_sum, p.shape.head_size, total > 0 ? 1.0f / total : 0.0f, out.Row(r));
  }
}

template <class T>
struct Unit {
  GroupRows<const T> q;
  GroupRows<T> out;
  KeyValues<T> kv;
  int64_t sequence, kv_head;
  int64_t keys;  // that the last new token sees
};

template <class T>
Unit<T> MakeUnit(const AttentionDecodeArgs& args, const Problem& p, int64_t unit) {
  const int64_t size = p.shape.head_size;
  const int64_t sequence = unit / p.shape.kv_heads, kv_head = unit % p.shape.kv_heads;
  const int64_t token = sequence * p.shape.length, head = kv_head * p.group;
  const int64_t stride = p.shape.kv_heads * size;
  const int64_t kv_offset = sequence * args.capacity * stride + kv_head * size;
  return {{(const T*)args.q + token * args.q_stride + head * size, args.q_stride, size, p.group},
          {(T*)args.out + token * args.out_stride + head * size, args.out_stride, size, p.group},
          {(const T*)args.k_cache + kv_offset, (const T*)args.v_cache + kv_offset, stride},
          sequence,
          kv_head,
          args.past[sequence] + p.shape.length};
}

template <class T>
void Decode(const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool) {
  const Problem p = MakeDecodeProblem(args);
  const Plan plan = MakePlan(p, args.capacity, pool.num_threads());
  const bool split = plan.partial > 0;
  const int64_t partial_floats = plan.units * plan.splits * plan.partial;
  Carver measure;
  CarveOnline(&measure, p.padded, false);
  Carver shared = {(char*)workspace, 0};
  float* partials = shared.Floats(partial_floats);
  const auto scratch_of = [&](int thread) {
    Carver carver = {(char*)workspace + shared.used + thread * measure.used, 0};
    return CarveOnline(&carver, p.padded, false);
  };

  const int64_t pieces = split ? plan.splits : plan.blocks, items = plan.units * pieces;
  const auto piece_of = [&](int64_t item) { return pieces - 1 - item % pieces; };
  const auto attend = [&](const OnlineScratch& scratch, int64_t item) {
    const int64_t piece = piece_of(item);
    const Unit<T> unit = MakeUnit<T>(args, p, item / pieces);
    int64_t tiles = 0;
    const int64_t first = split ? 0 : piece * plan.tiles * kTile;
    const int64_t end = MinOf(p.rows, first + plan.tiles * kTile);
    const int64_t key_begin = split ? piece * kSplitKeys : 0;
    const int64_t key_end = split ? MinOf(unit.keys, key_begin + kSplitKeys) : unit.keys;
    if (key_begin >= key_end) return;
    CountItem(item, static_cast<double>((end - first) * (key_end - key_begin)));
#if !defined(TESSERA_TILES)
    if (p.rows <= kFewRows) {
      // The item that this thread takes next, where all are equally fast.
      const T* next = nullptr;
      const int64_t following = item + pool.num_threads();
      if (following < items && p.shape.window == 0) {
        const Unit<T> after = MakeUnit<T>(args, p, following / pieces);
        const int64_t key = piece_of(following) * kSplitKeys;
        if (key + kTile <= after.keys) next = after.kv.k + key * after.kv.stride;
      }
      tiles = 1;
      BeginRows(p, unit.sequence, unit.kv_head, p.rows, unit.q, &scratch.tiles[0]);
      AttendRows(p, unit.kv, key_begin, key_end, next, scratch, &scratch.tiles[0]);
    } else
#endif
    {
      for (int64_t row = first; row < end; row += kTile, ++tiles) {
        BeginTile<kWord>(p, unit.sequence, unit.kv_head, row, MinOf(kTile, end - row),
                         unit.q, scratch.keys, &scratch.tiles[tiles]);
      }
      AttendBlock<kWord>(p, unit.kv, key_begin, key_end, scratch, tiles,
                         (const GroupRows<T>*)nullptr);
    }
    if (!split || unit.keys <= kSplitKeys) {
      for (int64_t i = 0; i < tiles; ++i) EndTile(p, scratch.tiles[i], unit.out);
      return;
    }
    const QueryTile& tile = scratch.tiles[0];
    float* partial = partials + (item / pieces * plan.splits + piece) * plan.partial;
    float* state = partial + p.rows * p.padded;
    std::memcpy(partial, tile.out, (size_t)(p.rows * p.padded) * 4);
    std::memcpy(state, tile.max, (size_t)p.rows * 4);
    std::memcpy(state + p.rows, tile.sum, (size_t)p.rows * 4);
  };
  int64_t next = 0;
  pool.Run([&](int thread) {
    const AttentionScope scope;
    const OnlineScratch scratch = scratch_of(thread);
    for (int64_t item = TakeItem(&next); item < items; item = TakeItem(&next)) {
      attend(scratch, item);
    }
  });
  if (!split || plan.splits == 1) return;

  int64_t next_unit = 0;
  pool.Run([&](int thread) {
    const OnlineScratch scratch = scratch_of(thread);
    for (int64_t i = TakeItem(&next_unit); i < plan.units; i = TakeItem(&next_unit)) {
      const Unit<T> unit = MakeUnit<T>(args, p, i);
      if (unit.keys <= kSplitKeys) continue;
      Merge(p, plan, partials + i * plan.splits * plan.partial, CeilDiv(unit.keys, kSplitKeys),
            unit.out, scratch.scores);
    }
  });
}

}  // namespace

int64_t DecodeBytes(const AttentionDecodeArgs& args, int num_threads) {
  const Problem p = MakeDecodeProblem(args);
  const Plan plan = MakePlan(p, args.capacity, num_threads);
  Carver carver;
  carver.Floats(plan.units * plan.splits * plan.partial);
  Carver scratch;
  CarveOnline(&scratch, p.padded, false);
  return carver.used + scratch.used * num_threads;
}

void RunDecode(const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool) {
#if defined(TESSERA_TILES)
  Decode<bf16>(args, workspace, pool);
#else
  if (args.dtype == DType::kBf16) {
    Decode<bf16>(args, workspace, pool);
  } else {
    Decode<float>(args, workspace, pool);
  }
#endif
}

}  // namespace tessera::kernels::TESSERA_ISA
