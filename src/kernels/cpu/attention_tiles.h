// What forward, backward and decoding share: the rows of a tile and what each may see, packing of
// tiles, dropout factors, and the layout of scratch memory.
//
// Tiles hold fp32, or with Word::kPair the bf16 that came and probabilities and their gradients
// rounded to bf16, as pairs along the depth of the product that they enter; sums are fp32 always.
//
// The query heads of a group share keys and values, so the rows of a group are ordered token by
// token: row r is token r / group, query head kv_head * group + r % group. Tiles are kTile rows by
// kTile keys; key tiles start at multiples of kTile.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/attention_micro.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/shuffle.h"

namespace tessera::kernels::TESSERA_ISA {

#if defined(TESSERA_TILES)
// Pairs are multiplied on tiles of AMX (attention_amx.h).
inline constexpr bool kHasTiles = true;
#else
inline constexpr bool kHasTiles = false;
#endif
// Query or key rows that tiles take at a time: the depth of their products.
inline constexpr int64_t kDepthRows = 32;

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;

TESSERA_INLINE int64_t MinOf(int64_t a, int64_t b) { return a < b ? a : b; }
TESSERA_INLINE int64_t MaxOf(int64_t a, int64_t b) { return a > b ? a : b; }
TESSERA_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
TESSERA_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Hands out 64-byte aligned pieces of a workspace; with a null base it only measures.
struct Carver {
  char* base = nullptr;
  int64_t used = 0;

  TESSERA_INLINE void* Take(int64_t bytes) {
    void* out = base == nullptr ? nullptr : base + used;
    used += RoundUp(bytes, 64);
    return out;
  }
  TESSERA_INLINE float* Floats(int64_t n) { return (float*)Take(n * 4); }
};

// The next of a shared list of work items; which thread takes one never changes a result.
TESSERA_INLINE int64_t TakeItem(int64_t* counter) {
  return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

// One call, in the form that the tiles use.
struct Problem {
  AttentionShape shape;
  const int64_t* past = nullptr;  // [B]: position of a sequence's first row; null: 0
  int64_t group = 1;              // query heads a kv head
  int64_t rows = 0;               // rows of a group: length * group
  int64_t padded = 0;             // head size rounded up to whole vectors
  int64_t vectors = 0;            // padded / kLanes
  int64_t depth = 0;              // words of a packed row of Q or K
  int64_t depth_stride = 0;       // the same in whole vectors
  int64_t keys = 0;               // keys of a sequence where past is null
  bool up_to_self = true;         // causal or windowed: no key after the row's own position
  float q_scale = 0;              // scores are Q K^T times this: in units of log2 (or of the cap)
  float cap = 0;                  // soft cap times log2 e, or 0
  float keep_scale = 1;           // 1 / (1 - dropout)
  PhiloxStream rng = {};

  // Whether scores take more than a factor and the mask: bias, cap or dropout.
  TESSERA_INLINE bool HasExtras() const {
    return cap != 0 || shape.alibi_slopes != nullptr || shape.dropout != 0;
  }
  // Where row r of a group is in an array [group, length].
  TESSERA_INLINE int64_t RowInHeads(int64_t r) const {
    if (group == 1) return r;  // no division, which costs as much as a row
    return r % group * shape.length + r / group;
  }
};

// RngKey::Mixed, repeated here so that no inline function is shared between instruction sets.
TESSERA_INLINE PhiloxStream MixKey(const RngKey& rng) {
  uint64_t z = rng.seed + 0x9E3779B97F4A7C15ull * ((uint64_t)rng.purpose + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return {(uint32_t)z, (uint32_t)(z >> 32), (uint32_t)rng.stream, (uint32_t)(rng.stream >> 32)};
}

TESSERA_INLINE Problem MakeProblem(const AttentionShape& shape, const int64_t* past,
                                   Word word = Word::kFloat) {
  Problem p;
  p.shape = shape;
  p.past = past;
  p.group = shape.heads / shape.kv_heads;
  p.rows = shape.length * p.group;
  p.padded = RoundUp(shape.head_size, kLanes);
  p.vectors = p.padded / kLanes;
  p.depth = WordSteps(word, shape.head_size);
  p.depth_stride = RoundUp(p.depth, kLanes);
  p.keys = shape.length;
  p.up_to_self = shape.causal || shape.window > 0;
  p.q_scale = shape.softcap > 0 ? shape.scale / shape.softcap : shape.scale * kLog2E;
  p.cap = shape.softcap > 0 ? shape.softcap * kLog2E : 0.0f;
  if (shape.dropout > 0) {
    p.keep_scale = 1.0f / (1.0f - shape.dropout);
    p.rng = MixKey(shape.dropout_key);
  }
  return p;
}

// The rows of one tile: row r sees keys lo[r] .. hi[r] - 1.
struct RowLimits {
  alignas(64) int32_t lo[kTile];
  alignas(64) int32_t hi[kTile];
  alignas(64) float position[kTile];
  alignas(64) float slope[kTile];  // ALiBi, times log2 e
  uint64_t element[kTile];         // dropout index of key 0
  int64_t first = 0, count = 0;    // rows first .. first + count - 1 of the group
  int64_t min_lo = 0, max_lo = 0, min_hi = 0, max_hi = 0;

  // Every row sees every key of [begin, end).
  TESSERA_INLINE bool SeesAll(int64_t begin, int64_t end) const {
    return max_lo <= begin && min_hi >= end;
  }
  TESSERA_INLINE bool SeesNone(int64_t begin, int64_t end) const {
    return min_lo >= end || max_hi <= begin;
  }
  // The keys of tile [begin, begin + n) that some row of [row, row + rows) may see, relative to
  // begin; empty as 0, 0.
  TESSERA_INLINE void KeysOf(int64_t row, int64_t rows, int64_t begin, int64_t n, int64_t* from,
                             int64_t* to) const {
    int64_t low = n, high = 0;
    for (int64_t r = row; r < row + rows; ++r) {
      if (lo[r] >= hi[r]) continue;
      low = MinOf(low, lo[r] - begin);
      high = MaxOf(high, hi[r] - begin);
    }
    low = MaxOf(low, 0);
    high = MinOf(high, n);
    *from = low < high ? low : 0;
    *to = low < high ? high : 0;
  }
};

// Rows past `count` see nothing.
TESSERA_INLINE void FillRows(const Problem& p, int64_t sequence, int64_t kv_head, int64_t first,
                             int64_t count, RowLimits* rows) {
  const AttentionShape& shape = p.shape;
  const int64_t past = p.past == nullptr ? 0 : p.past[sequence];
  rows->first = first;
  rows->count = count;
  rows->min_lo = rows->min_hi = INT32_MAX;
  rows->max_lo = rows->max_hi = 0;
  int64_t token = first / p.group, head = first % p.group;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t position = past + token;
    const int64_t query_head = kv_head * p.group + head;
    int64_t lo = shape.window > 0 ? MaxOf(position - shape.window + 1, 0) : 0;
    if (shape.segment_start != nullptr) {
      lo = MaxOf(lo, shape.segment_start[sequence * shape.length + token]);
    }
    const int64_t hi = p.up_to_self ? position + 1 : p.keys;
    lo = MinOf(lo, hi);
    rows->lo[r] = (int32_t)lo;
    rows->hi[r] = (int32_t)hi;
    rows->position[r] = (float)position;
    rows->slope[r] = shape.alibi_slopes == nullptr ? 0.0f : shape.alibi_slopes[query_head] * kLog2E;
    if (shape.dropout > 0) {
      const int64_t row = (shape.first_sequence + sequence) * shape.heads + query_head;
      rows->element[r] = ((uint64_t)row * (uint64_t)shape.length + (uint64_t)token) *
                         (uint64_t)shape.length;
    }
    rows->min_lo = MinOf(rows->min_lo, lo);
    rows->max_lo = MaxOf(rows->max_lo, lo);
    rows->min_hi = MinOf(rows->min_hi, hi);
    rows->max_hi = MaxOf(rows->max_hi, hi);
    if (++head == p.group) {
      head = 0;
      ++token;
    }
  }
  for (int64_t r = count; r < kTile; ++r) {
    rows->lo[r] = rows->hi[r] = 0;
    rows->position[r] = rows->slope[r] = 0;
  }
}

// Where rows of a group lie in a tensor of [tokens, heads, head_size] with a token stride.
template <class T>
struct GroupRows {
  T* base;  // token 0 of the sequence, first query head of the group
  int64_t token_stride, head_size, group;

  TESSERA_INLINE T* Row(int64_t r) const {
    if (group == 1) return base + r * token_stride;  // no division, which costs as much as a row
    return base + r / group * token_stride + r % group * head_size;
  }
  // Asks for rows [first, first + count): those of a token lie together.
  template <class Queue>
  TESSERA_INLINE void Request(int64_t first, int64_t count, Queue* requests) const {
    if (count <= 0) return;
    const int64_t token = first / group, last = (first + count - 1) / group;
    requests->Add(base + token * token_stride, token_stride * (int64_t)sizeof(T), last - token + 1,
                  group * head_size * (int64_t)sizeof(T));
  }
};

// The words of src[0, size) and zeros up to whole vectors. Floats are multiplied by `scale`; pairs
// stay as they are.
template <Word kWord, class T>
TESSERA_INLINE void PackRow(const T* src, int64_t size, float scale, float* dst) {
  int64_t d = 0;
  if constexpr (kWord == Word::kFloat) {
    for (; d + kLanes <= size; d += kLanes) Store(dst + d, Load(src + d) * Set(scale));
    if (d < size) Store(dst + d, LoadPartial(src + d, size - d) * Set(scale));
  } else {
    for (; d + 2 * kLanes <= size; d += 2 * kLanes) StoreWords(dst + d / 2, LoadWords(src + d));
    if (d == size) return;
    StoreWords(dst + d / 2, U32{});
    std::memcpy(dst + d / 2, src + d, (size_t)(size - d) * sizeof(T));
  }
}

// src times scale, where -0 becomes 0: sums may have begun with their first term or with 0.
template <class T>
TESSERA_INLINE void UnpackRow(const float* src, int64_t size, float scale, T* dst) {
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) Store(dst + d, Fma(Load(src + d), Set(scale), Zero()));
  if (d < size) StorePartial(dst + d, Fma(Load(src + d), Set(scale), Zero()), size - d);
}

// The rows of a head lie far apart, where a core's own prefetching does not follow: loops over them
// ask for the row this many ahead.
inline constexpr int64_t kRowsAhead = 8;
template <class T>
TESSERA_INLINE void PrefetchRow(const T* row, int64_t size) {
  for (int64_t d = 0; d < size; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + d);
}

// n rows, `stride` elements apart, one after the other.
template <Word kWord, class T>
TESSERA_INLINE void PackRows(const Problem& p, const T* src, int64_t stride, int64_t n,
                             float* dst) {
  const int64_t size = p.shape.head_size;
  const int64_t row_words = kWord == Word::kFloat ? p.padded : p.depth_stride;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kRowsAhead < n) PrefetchRow(src + (i + kRowsAhead) * stride, size);
    PackRow<kWord>(src + i * stride, size, 1.0f, dst + i * row_words);
  }
}

// The words of rows `low` and `high`, element by element; a null row is zeros.
TESSERA_INLINE void PackRowPair(const bf16* low, const bf16* high, int64_t size, float* dst) {
  bf16 padded[2][kLanes];
  for (int64_t d = 0; d < size; d += kLanes) {
    const bf16 *l = low + d, *h = high + d;
    if (high == nullptr || d + kLanes > size) {
      std::memset(padded, 0, sizeof(padded));
      const size_t bytes = (size_t)MinOf(kLanes, size - d) * sizeof(bf16);
      std::memcpy(padded[0], l, bytes);
      if (high != nullptr) std::memcpy(padded[1], h, bytes);
      l = padded[0];
      h = padded[1];
    }
    StoreWords(dst + d, LoadPairs(l, h));
  }
}

// n rows as B of a product over them: floats as PackRows, pairs [(n + 1) / 2, padded] of rows
// (2 i, 2 i + 1).
template <Word kWord, class T>
TESSERA_INLINE void PackAlongRows(const Problem& p, const T* src, int64_t stride, int64_t n,
                                  float* dst) {
  if constexpr (kWord == Word::kFloat) {
    PackRows<kWord>(p, src, stride, n, dst);
  } else {
    for (int64_t i = 0; i < n; i += 2) {
      for (int64_t ahead = i + kRowsAhead; ahead < MinOf(i + kRowsAhead + 2, n); ++ahead) {
        PrefetchRow(src + ahead * stride, p.shape.head_size);
      }
      PackRowPair(src + i * stride, i + 1 < n ? src + (i + 1) * stride : nullptr, p.shape.head_size,
                  dst + i / 2 * p.padded);
    }
  }
}

// Words [n, stride] (n <= ld) to [size, ld], zeros in the columns past n of the last vector.
TESSERA_INLINE void TransposeTile(const float* rows, int64_t n, int64_t size, int64_t stride,
                                  float* dst, int64_t ld = kTile) {
  for (int64_t r0 = 0; r0 < n; r0 += kLanes) {
    for (int64_t d0 = 0; d0 < size; d0 += kLanes) {
      F32 block[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        block[r] = r0 + r < n ? Load(rows + (r0 + r) * stride + d0) : Zero();
      }
      Transpose(block);
      const int64_t depth = MinOf(kLanes, size - d0);
      for (int64_t d = 0; d < depth; ++d) Store(dst + (d0 + d) * ld + r0, block[d]);
    }
  }
}

// Rows [begin, end), both even, of a tile [kTile, kTile] become pairs of rows (2 i, 2 i + 1) at
// rows [begin / 2, end / 2).
TESSERA_INLINE void RoundRowsToPairs(int64_t begin, int64_t end, int64_t vectors, float* tile) {
  for (int64_t r = begin; r < end; r += 2) {
    const float* from = tile + r * kTile;
    float* to = tile + r / 2 * kTile;
    for (int64_t k = 0; k < vectors * kLanes; k += kLanes) {
      StoreWords(to + k, RoundToPairs(Load(from + k), Load(from + kTile + k)));
    }
  }
}

// An extent whose depth is [begin, end) in elements.
template <Word kWord>
TESSERA_INLINE Extent ExtentOf(int64_t begin, int64_t end, int64_t col_begin, int64_t col_end) {
  constexpr int64_t steps = kStepsPerWord<kWord>;
  return {begin / steps, CeilDiv(end, steps), col_begin, col_end};
}

// Factors of dropout of kKeys keys from `key` on of the row whose key 0 is `element`: 0, or
// 1 / (1 - p).
template <int64_t kKeys = kTile>
TESSERA_INLINE void KeepRow(const Problem& p, uint64_t element, int64_t key, float* keep) {
  alignas(64) uint32_t words[kKeys + 2 * kPhiloxWords];
  const uint64_t first = element + (uint64_t)key;
  const int64_t skip = (int64_t)(first & 3);
  for (int64_t w = 0; w < kKeys + skip; w += kPhiloxWords) {
    PhiloxWords(p.rng, (first >> 2) + (uint64_t)(w / 4), words + w);
  }
  const F32 rate = Set(p.shape.dropout), scale = Set(p.keep_scale);
  for (int64_t j = 0; j < kKeys; j += kLanes) {
    I32 word;
    std::memcpy(&word, words + skip + j, sizeof(word));
    const F32 uniform = __builtin_convertvector((I32)((U32)word >> 8), F32) * Set(0x1p-24f);
    Store(keep + j, Select(uniform >= rate, scale, Zero()));
  }
}

// Variants of the score functions: which of the rarer features are on.
struct No {
  static constexpr bool kOn = false;
};
struct Yes {
  static constexpr bool kOn = true;
};
template <class Fn>
TESSERA_INLINE void WithFeatures(const Problem& p, bool edge, const Fn& fn) {
  const bool alibi = p.shape.alibi_slopes != nullptr;
  const auto second = [&](auto edge_on) {
    if (p.cap > 0) {
      if (alibi) {
        fn(edge_on, Yes{}, Yes{});
      } else {
        fn(edge_on, No{}, Yes{});
      }
    } else if (alibi) {
      fn(edge_on, Yes{}, No{});
    } else {
      fn(edge_on, No{}, No{});
    }
  };
  if (edge) {
    second(Yes{});
  } else {
    second(No{});
  }
}

void RunForward(const AttentionForwardArgs& args, void* workspace, ThreadPool& pool);
int64_t ForwardBytes(const AttentionShape& shape, int num_threads);
void RunBackward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool);
int64_t BackwardBytes(const AttentionShape& shape, int num_threads);
void RunDecode(const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool);
int64_t DecodeBytes(const AttentionDecodeArgs& args, int num_threads);

}  // namespace tessera::kernels::TESSERA_ISA
