// Flash attention forward: each tile of query rows is one chain over key tiles in order, whoever
// computes it.
#include "kernels/cpu/attention_online.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

struct Plan {
  int64_t units;   // (sequence, kv head) pairs
  int64_t blocks;  // a unit, of `tiles` tiles each
  int64_t tiles;
};

Plan MakePlan(const Problem& p, int num_threads) {
  Plan plan;
  plan.units = p.shape.batch * p.shape.kv_heads;
  plan.tiles = TilesOfBlock(p.padded);
  const int64_t row_tiles = CeilDiv(p.rows, kTile);
  while (plan.tiles > 1 && plan.units * CeilDiv(row_tiles, plan.tiles) < 4 * num_threads) {
    plan.tiles /= 2;
  }
  plan.blocks = CeilDiv(row_tiles, plan.tiles);
  return plan;
}

// Where a unit's rows lie.
template <class T>
struct Unit {
  int64_t sequence, kv_head;
  GroupRows<const T> q;
  GroupRows<T> out;
  KeyValues<T> kv;
};

template <class T>
Unit<T> MakeUnit(const AttentionForwardArgs& args, const Problem& p, int64_t index) {
  const int64_t size = p.shape.head_size;
  const int64_t sequence = index / p.shape.kv_heads, kv_head = index % p.shape.kv_heads;
  const int64_t token = sequence * p.shape.length, head = kv_head * p.group;
  const int64_t kv = token * args.kv_stride + kv_head * size;
  return {sequence,
          kv_head,
          {(const T*)args.q + token * args.q_stride + head * size, args.q_stride, size, p.group},
          {(T*)args.out + token * args.out_stride + head * size, args.out_stride, size, p.group},
          {(const T*)args.k + kv, (const T*)args.v + kv, args.kv_stride}};
}

// Asks for what the first work item of a unit reads.
template <class T>
void RequestUnit(const Problem& p, const Plan& plan, const Unit<T>& unit, RequestQueue* requests) {
  const int64_t stride = unit.kv.stride * (int64_t)sizeof(T);
  const int64_t row_bytes = p.shape.head_size * (int64_t)sizeof(T);
  const int64_t first = (plan.blocks - 1) * plan.tiles * kTile;
  unit.q.Request(first, p.rows - first, requests);
  requests->Add(unit.kv.k, stride, p.keys, row_bytes);
  requests->Add(unit.kv.v, stride, p.keys, row_bytes);
}

template <Word kWord, class T>
void ForwardItem(const AttentionForwardArgs& args, const Problem& p, const Plan& plan,
                 const Unit<T>& unit, int64_t block, const OnlineScratch& scratch) {
  const int64_t sequence = unit.sequence, kv_head = unit.kv_head, head = kv_head * p.group;
  const GroupRows<const T>& q = unit.q;
  const GroupRows<T>& out = unit.out;
  int64_t tiles = 0;
  const int64_t end = MinOf(p.rows, (block + 1) * plan.tiles * kTile);
  for (int64_t first = block * plan.tiles * kTile; first < end; first += kTile, ++tiles) {
    BeginTile<kWord>(p, sequence, kv_head, first, MinOf(kTile, end - first), q, scratch.keys,
                     &scratch.tiles[tiles]);
  }
  AttendBlock<kWord>(p, unit.kv, 0, p.keys, scratch, tiles, &out);
  for (int64_t i = 0; i < tiles; ++i) {
    const QueryTile& tile = scratch.tiles[i];
    EndTile(p, tile, out);
    if (args.lse == nullptr) continue;
    float* lse = args.lse + (sequence * p.shape.heads + head) * p.shape.length;
    for (int64_t r = 0; r < tile.rows.count; ++r) {
      lse[p.RowInHeads(tile.rows.first + r)] = tile.max[r] * kLn2 + __builtin_logf(tile.sum[r]);
    }
  }
}

template <Word kWord, class T>
void Forward(const AttentionForwardArgs& args, void* workspace, ThreadPool& pool) {
  const Problem p = MakeProblem(args.shape, nullptr, kWord);
  const Plan plan = MakePlan(p, pool.num_threads());
  const int64_t items = plan.units * plan.blocks;
  const int64_t thread_bytes = ForwardBytes(args.shape, 1);
  const auto scratch_of = [&](int thread) {
    Carver carver = {(char*)workspace + thread * thread_bytes, 0};
    return CarveOnline(&carver, p.padded, p.shape.dropout > 0);
  };
  // Many units: in shares, so that a thread meets the sequences whose rows it had in the ops before.
  if (plan.units >= 8 * pool.num_threads()) {
    pool.RunShares(items, 1, [&](int thread, int64_t begin, int64_t end) {
      const AttentionScope scope;
      const OnlineScratch scratch = scratch_of(thread);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t unit = item / plan.blocks, block = plan.blocks - 1 - item % plan.blocks;
        if (kHasTiles && item % plan.blocks == 0) {
          scratch.requests->Clear();
          if (item + plan.blocks < end) {
            RequestUnit(p, plan, MakeUnit<T>(args, p, unit + 1), &scratch.requests->later);
          }
        }
        ForwardItem<kWord, T>(args, p, plan, MakeUnit<T>(args, p, unit), block, scratch);
      }
    });
    return;
  }
  // Few: long items first.
  int64_t next = 0;
  pool.Run([&](int thread) {
    const AttentionScope scope;
    const OnlineScratch scratch = scratch_of(thread);
    for (int64_t item = TakeItem(&next); item < items; item = TakeItem(&next)) {
      const int64_t unit = item % plan.units, block = plan.blocks - 1 - item / plan.units;
      // Rows of a causal block see the keys before its end.
      const int64_t first = block * plan.tiles * kTile;
      const int64_t end = MinOf(p.rows, first + plan.tiles * kTile);
      const int64_t keys = p.shape.causal ? end / p.group : p.keys;
      CountItem(item, static_cast<double>((end - first) * keys));
      ForwardItem<kWord, T>(args, p, plan, MakeUnit<T>(args, p, unit), block, scratch);
    }
  });
}

}  // namespace

int64_t ForwardBytes(const AttentionShape& shape, int num_threads) {
  Carver carver;
  CarveOnline(&carver, RoundUp(shape.head_size, kLanes), shape.dropout > 0);
  return carver.used * num_threads;
}

void RunForward(const AttentionForwardArgs& args, void* workspace, ThreadPool& pool) {
#if defined(TESSERA_TILES)
  Forward<Word::kPair, bf16>(args, workspace, pool);
#else
  if (args.dtype == DType::kF32) return Forward<Word::kFloat, float>(args, workspace, pool);
  if constexpr (kHasBf16Dot) {
    if (args.compute == Compute::kBf16) {
      return Forward<Word::kPair, bf16>(args, workspace, pool);
    }
  }
  Forward<Word::kFloat, bf16>(args, workspace, pool);
#endif
}

}  // namespace tessera::kernels::TESSERA_ISA
