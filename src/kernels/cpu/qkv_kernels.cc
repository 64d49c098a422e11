// Clip, query/key norm and rotary positions between the QKV product and attention.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

// The limit of a clip, or none: kernels are written once and compiled for both. NaN passes through.
struct Clip {
  F32 limit;
  TESSERA_INLINE F32 Clamp(F32 v) const { return Max(-limit, Min(limit, v)); }
  // The gradient of Clamp at v times d.
  TESSERA_INLINE F32 Back(F32 v, F32 d) const { return Select(Abs(v) > limit, Zero(), d); }
};
struct NoClip {
  TESSERA_INLINE F32 Clamp(F32 v) const { return v; }
  TESSERA_INLINE F32 Back(F32, F32 d) const { return d; }
};
template <class Fn>
TESSERA_INLINE void WithClip(const QkvArgs& args, Fn&& fn) {
  if (args.clip > 0) {
    fn(Clip{Set(args.clip)});
  } else {
    fn(NoClip{});
  }
}

// Cosines and sines of one row's position.
struct Rotary {
  const float* cos;
  const float* sin;
  int64_t size;
  bool interleaved;
};
Rotary RotaryOf(const QkvArgs& args, int64_t row) {
  const int64_t position = row % args.length + args.first_position;
  const int64_t offset = position * (args.rotary_size / 2);
  if (args.rotary_size == 0) return {nullptr, nullptr, 0, false};
  return {args.cos + offset, args.sin + offset, args.rotary_size, args.rotary_interleaved};
}

TESSERA_INLINE int64_t Count(Full) { return kLanes; }
TESSERA_INLINE int64_t Count(Tail tail) { return tail.n; }

// count / 2 values, each in two neighbouring lanes.
TESSERA_INLINE F32 LoadTwice(const float* p, int64_t count) {
  const U32 v = Bits(LoadPartial(p, count / 2));
  return FromBits(ZipLow(v, v));
}
// A sign mask for the first (even) lane of each pair, or for the second.
TESSERA_INLINE U32 SignOf(bool odd) {
  U32 mask;
  for (int i = 0; i < kLanes; ++i) mask[i] = (i % 2 == 1) == odd ? 0x80000000u : 0u;
  return mask;
}

// Asks for the same n elements `rows` rows further on: a core's own prefetching stops at gaps between
// the parts of rows, and at pages.
template <bool kToWrite = false, class T>
TESSERA_INLINE void RequestAhead(const T* p, int64_t n, int64_t row_size, int64_t rows = 2) {
  const T* ahead = p + rows * row_size;
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(ahead + i, kToWrite);
}

// 0, or 1 for the second members of pairs that lie apart: an index of sums in registers.
template <int kIndex>
struct Half {
  constexpr operator int() const { return kIndex; }
};

// Turns the pairs of one head by theta (kBack: by -theta): load(i, part) gives the values to turn,
// store(i, part, v, Half) takes the results; both members of a pair are loaded before either is
// stored.
template <bool kBack, class LoadFn, class StoreFn>
TESSERA_INLINE void ForTurned(const Rotary& rotary, int64_t head_size, LoadFn&& load,
                              StoreFn&& store) {
  if (rotary.interleaved) {
    const U32 signs = SignOf(kBack);
    ForVectors(0, rotary.size, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 v = load(i, part);
      const F32 c = LoadTwice(rotary.cos + i / 2, Count(part));
      const F32 s = FromBits(Bits(LoadTwice(rotary.sin + i / 2, Count(part))) ^ signs);
      store(i, part, Fma(v, c, SwapPairs(v) * s), Half<0>{});
    });
  } else {
    const int64_t half = rotary.size / 2;
    ForVectors(0, half, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 first = load(i, part), second = load(half + i, part);
      const F32 c = Load(rotary.cos + i, part);
      const F32 s = kBack ? -Load(rotary.sin + i, part) : Load(rotary.sin + i, part);
      store(i, part, Fma(first, c, -(second * s)), Half<0>{});
      store(half + i, part, Fma(second, c, first * s), Half<1>{});
    });
  }
  ForVectors(rotary.size, head_size, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    store(i, part, load(i, part), Half<0>{});
  });
}

// The norm of one unit: a head (RMS) or all heads of q or of k (LayerNorm).
struct Unit {
  float mean = 0, rstd = 1;
  float mean_q = 0, mean_qx = 0;  // backward: means of q = dz gain and of q xh
};

// Of the distances to the mean.
template <class T, class C>
TESSERA_INLINE float SquaresOf(const T* in, int64_t n, float mean, const C& clip) {
  float square = 0;
  Reduce<1>(n, &square, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
    const F32 v = ZeroPast(clip.Clamp(Load(in + i, part)) - mean, part);
    acc[0] = Fma(v, v, acc[0]);
  });
  return square;
}

// Of LayerNorm over n values.
template <class T, class C>
Unit UnitOf(const T* in, int64_t n, float eps, const C& clip) {
  Unit unit;
  float total = 0;
  Reduce<1>(n, &total, [&](int64_t i, auto part, F32* acc) TESSERA_INLINE_LAMBDA {
    acc[0] = acc[0] + clip.Clamp(Load(in + i, part));
  });
  unit.mean = total / static_cast<float>(n);
  const float square = SquaresOf(in, n, unit.mean, clip);
  unit.rstd = 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + eps);
  return unit;
}

// 1 / root mean square of heads whose sums of squares over d values these are: a root and a division a
// vector of heads, not a head.
TESSERA_INLINE void RmsOfHeads(const float* squares, int64_t heads, int64_t d, float eps,
                               float* rstd) {
  const F32 count = Set(static_cast<float>(d));
  ForVectors(0, heads, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Store(rstd + i, Set(1.0f) / Sqrt(Load(squares + i, part, 1.0f) / count + Set(eps)), part);
  });
}

// Query heads, or key heads.
struct Group {
  int64_t heads, offset;  // offset of its first value in a row
  const float* gain;
  const float* bias;
  float* dgain;
  float* dbias;
  int64_t first_unit;  // in a row's units
};
struct Groups {
  Group group[2];
  int64_t row_size, units;  // values and units a row
};
Groups GroupsOf(const QkvArgs& args) {
  const int64_t d = args.head_size;
  const bool per_head = args.norm == QkNorm::kRmsPerHead;
  Groups groups = {};
  groups.group[0] = {args.heads, 0, args.q_gain, args.q_bias, nullptr, nullptr, 0};
  groups.group[1] = {args.kv_heads, args.heads * d, args.k_gain, args.k_bias,
                     nullptr,       nullptr,        per_head ? args.heads : 1};
  groups.row_size = (args.heads + 2 * args.kv_heads) * d;
  groups.units = per_head ? args.heads + args.kv_heads : 2;
  return groups;
}

// Offset of a head's gains: per-head gains are shared by all heads.
TESSERA_INLINE int64_t GainOffset(const QkvArgs& args, int64_t head) {
  return args.norm == QkNorm::kLayerNormFull ? head * args.head_size : 0;
}

// `rms`: of the row's query and key heads, for kRmsPerHead.
template <class T, class C>
void ForwardRow(const QkvArgs& args, const Groups& groups, int64_t row, const float* rms,
                const C& clip) {
  const int64_t d = args.head_size;
  const T* in = static_cast<const T*>(args.in) + row * groups.row_size;
  T* out = static_cast<T*>(args.out) + row * groups.row_size;
  const Rotary rotary = RotaryOf(args, row);
  for (const Group& group : groups.group) {
    Unit unit;
    if (args.norm == QkNorm::kLayerNormFull) {
      unit = UnitOf(in + group.offset, group.heads * d, args.eps, clip);
    }
    for (int64_t head = 0; head < group.heads; ++head) {
      if (args.norm == QkNorm::kRmsPerHead) unit.rstd = rms[group.first_unit + head];
      const T* x = in + group.offset + head * d;
      T* y = out + group.offset + head * d;
      RequestAhead<true>(y, d, groups.row_size);
      const int64_t gains = GainOffset(args, head);
      const float* gain = group.gain == nullptr ? nullptr : group.gain + gains;
      const float* bias = group.bias == nullptr ? nullptr : group.bias + gains;
      const F32 mean = Set(unit.mean), rstd = Set(unit.rstd);
      ForTurned<false>(
          rotary, d,
          [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
            F32 v = (clip.Clamp(Load(x + i, part)) - mean) * rstd;
            if (gain != nullptr) v = v * Load(gain + i, part);
            if (bias != nullptr) v = v + Load(bias + i, part);
            return v;
          },
          [&](int64_t i, auto part, F32 v, auto) TESSERA_INLINE_LAMBDA { Store(y + i, v, part); });
    }
  }
  const int64_t values = (args.heads + args.kv_heads) * d;
  if (args.in == args.out) return;
  RequestAhead(in + values, groups.row_size - values, groups.row_size);
  RequestAhead<true>(out + values, groups.row_size - values, groups.row_size);
  ForVectors(values, groups.row_size, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Store(out + i, clip.Clamp(Load(in + i, part)), part);
  });
}

// Heads under norms of their own are taken several rows at a time, so that none waits for its root.
constexpr int64_t kHeadsTogether = 32;
constexpr int64_t kMostHeads = 2048;  // of a row (checked by dispatch)

template <class T, class C>
void ForwardRms(const QkvArgs& args, const Groups& groups, int64_t begin, int64_t end,
                const C& clip) {
  const int64_t d = args.head_size, units = groups.units;
  const int64_t together = units < kHeadsTogether ? kHeadsTogether / units : 1;
  alignas(64) float squares[kMostHeads], rms[kMostHeads];
  for (int64_t first = begin; first < end; first += together) {
    const int64_t rows = end - first < together ? end - first : together;
    for (int64_t r = 0; r < rows; ++r) {
      const T* x = static_cast<const T*>(args.in) + (first + r) * groups.row_size;
      for (int64_t head = 0; head < units; ++head) {
        RequestAhead(x + head * d, d, groups.row_size, together);
        squares[r * units + head] = SquaresOf(x + head * d, d, 0, clip);
      }
    }
    RmsOfHeads(squares, rows * units, d, args.eps, rms);
    for (int64_t r = 0; r < rows; ++r) ForwardRow<T>(args, groups, first + r, rms + r * units, clip);
  }
}

template <class T>
void ForwardAll(const QkvArgs& args, ThreadPool& pool) {
  const Groups groups = GroupsOf(args);
  ParallelRows(pool, args.rows, groups.row_size, [&](int64_t begin, int64_t end) {
    WithClip(args, [&](const auto& clip) {
      if (args.norm == QkNorm::kRmsPerHead) return ForwardRms<T>(args, groups, begin, end, clip);
      for (int64_t row = begin; row < end; ++row) ForwardRow<T>(args, groups, row, nullptr, clip);
    });
  });
}

void Forward(const QkvArgs& args, ThreadPool& pool) {
  args.dtype == DType::kBf16 ? ForwardAll<bf16>(args, pool) : ForwardAll<float>(args, pool);
}

// Adds one head's sums of q xh and of q.
template <class T, class C>
TESSERA_INLINE void AddMoments(const T* x, const T* dout, const float* gain, const Unit& unit,
                               const Rotary& rotary, int64_t d, const C& clip, F32* sums) {
  const F32 mean = Set(unit.mean), rstd = Set(unit.rstd);
  ForTurned<true>(
      rotary, d,
      [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA { return Load(dout + i, part); },
      [&](int64_t i, auto part, F32 q, auto) TESSERA_INLINE_LAMBDA {
        if (gain != nullptr) q = q * Load(gain + i, part);
        const F32 xh = (clip.Clamp(Load(x + i, part)) - mean) * rstd;
        sums[0] = sums[0] + ZeroPast(q, part);
        sums[1] = sums[1] + ZeroPast(q * xh, part);
      });
}

// Of one head under its own RMS norm: sums of x^2 and of q x, in one pass, as mean(q xh) needs rstd
// only as a factor.
struct Moments {
  float square, product;
};
// Hands q to use(i, part, q) too.
template <class T, class C, class UseFn>
TESSERA_INLINE Moments MomentsOf(const T* x, const T* dout, const float* gain, const Rotary& rotary,
                                 int64_t d, const C& clip, UseFn&& use) {
  F32 square[2] = {}, product[2] = {};
  ForTurned<true>(
      rotary, d,
      [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA { return Load(dout + i, part); },
      [&](int64_t i, auto part, F32 q, auto half) TESSERA_INLINE_LAMBDA {
        if (gain != nullptr) q = q * Load(gain + i, part);
        const F32 v = ZeroPast(clip.Clamp(Load(x + i, part)), part);
        square[half] = Fma(v, v, square[half]);
        product[half] = Fma(ZeroPast(q, part), v, product[half]);
        use(i, part, q);
      });
  return {Sum(square[0] + square[1]), Sum(product[0] + product[1])};
}
TESSERA_INLINE Unit UnitOf(const Moments& moments, int64_t d, float eps) {
  const float count = static_cast<float>(d);
  Unit unit;
  unit.rstd = 1.0f / __builtin_sqrtf(moments.square / count + eps);
  unit.mean_qx = moments.product * unit.rstd / count;
  return unit;
}

template <class T, class C>
void RowUnits(const QkvBackwardArgs& back, const Groups& groups, int64_t row, const C& clip,
              Unit* units) {
  const QkvArgs& args = back.forward;
  const int64_t d = args.head_size;
  const bool layer = args.norm == QkNorm::kLayerNormFull;
  const T* in = static_cast<const T*>(args.in) + row * groups.row_size;
  const T* dout = static_cast<const T*>(back.dout) + row * groups.row_size;
  const Rotary rotary = RotaryOf(args, row);
  for (const Group& group : groups.group) {
    const T* x = in + group.offset;
    const T* dy = dout + group.offset;
    Unit* unit = units + group.first_unit;
    if (layer) {
      *unit = UnitOf(x, group.heads * d, args.eps, clip);
      F32 sums[2] = {};
      for (int64_t head = 0; head < group.heads; ++head) {
        const float* gain = group.gain == nullptr ? nullptr : group.gain + head * d;
        AddMoments(x + head * d, dy + head * d, gain, *unit, rotary, d, clip, sums);
      }
      unit->mean_q = Sum(sums[0]) / static_cast<float>(group.heads * d);
      unit->mean_qx = Sum(sums[1]) / static_cast<float>(group.heads * d);
      continue;
    }
    for (int64_t head = 0; head < group.heads; ++head) {
      RequestAhead(x + head * d, d, groups.row_size);
      RequestAhead(dy + head * d, d, groups.row_size);
      const Moments moments = MomentsOf(x + head * d, dy + head * d, group.gain, rotary, d, clip,
                                        [](int64_t, auto, F32) {});
      unit[head] = UnitOf(moments, d, args.eps);
    }
  }
}

// Where a row of the backward pass lies.
template <class T>
struct BackwardSpan {
  const T* in;
  const T* dout;
  T* din;

  BackwardSpan(const QkvBackwardArgs& back, const Groups& groups, int64_t row)
      : in(static_cast<const T*>(back.forward.in) + row * groups.row_size),
        dout(static_cast<const T*>(back.dout) + row * groups.row_size),
        din(static_cast<T*>(back.din) + row * groups.row_size) {}
};

// The values' part of a row.
template <class T, class C>
TESSERA_INLINE void BackwardValues(const QkvBackwardArgs& back, const Groups& groups,
                                   const BackwardSpan<T>& span, const C& clip) {
  const QkvArgs& args = back.forward;
  if (args.clip <= 0 && back.din == back.dout) return;
  const int64_t values = (args.heads + args.kv_heads) * args.head_size;
  ForVectors(values, groups.row_size, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Store(span.din + i, clip.Back(Load(span.in + i, part), Load(span.dout + i, part)), part);
  });
}

template <class T, bool kNormed, class C>
void BackwardRow(const QkvBackwardArgs& back, const Groups& groups, int64_t row, const C& clip,
                 const Unit* units) {
  const QkvArgs& args = back.forward;
  const int64_t d = args.head_size;
  const BackwardSpan<T> span(back, groups, row);
  const Rotary rotary = RotaryOf(args, row);
  for (const Group& group : groups.group) {
    for (int64_t head = 0; head < group.heads; ++head) {
      const int64_t offset = group.offset + head * d;
      const T* x = span.in + offset;
      const T* dy = span.dout + offset;
      T* dx = span.din + offset;
      Unit unit;
      if (kNormed) unit = units[group.first_unit + (args.norm == QkNorm::kRmsPerHead ? head : 0)];
      const float* gain = group.gain == nullptr ? nullptr : group.gain + GainOffset(args, head);
      const F32 mean = Set(unit.mean), rstd = Set(unit.rstd);
      const F32 mean_q = Set(unit.mean_q), mean_qx = Set(unit.mean_qx);
      ForTurned<true>(
          rotary, d,
          [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA { return Load(dy + i, part); },
          [&](int64_t i, auto part, F32 dz, auto) TESSERA_INLINE_LAMBDA {
            const F32 raw = Load(x + i, part);
            if constexpr (kNormed) {
              if (gain != nullptr) dz = dz * Load(gain + i, part);
              const F32 xh = (clip.Clamp(raw) - mean) * rstd;
              dz = rstd * Fma(-xh, mean_qx, dz - mean_q);
            }
            Store(dx + i, clip.Back(raw, dz), part);
          });
    }
  }
  BackwardValues(back, groups, span, clip);
}

// Rows of heads under their own RMS norms where no gain's gradient is asked for, some heads at a time:
// their turned gradients wait in the nearest cache for these heads' sums. kSize: of a head whose values
// are all turned, pairs apart, or 0 for any other.
constexpr int64_t kTurnedSize = 256, kTurnedFloats = 4096;

template <class T, int64_t kSize, class C>
void BackwardRms(const QkvBackwardArgs& back, const Groups& groups, int64_t begin, int64_t end,
                 const C& clip) {
  const QkvArgs& args = back.forward;
  const int64_t d = kSize > 0 ? kSize : args.head_size, units = groups.units;
  const int64_t together = kTurnedFloats / d < kHeadsTogether ? kTurnedFloats / d : kHeadsTogether;
  const int64_t ahead = together / units + 2;  // rows
  alignas(64) float turned[kTurnedFloats];
  alignas(64) float squares[kHeadsTogether], products[kHeadsTogether];
  alignas(64) float rms[kHeadsTogether], means[kHeadsTogether];
  const F32 values = Set(static_cast<float>(d));
  // Heads in the order of memory, across rows: query heads, then key heads. body(i, row, head, last)
  // takes those of one row, the first of which is number i.
  const auto for_rows = [&](int64_t first, int64_t count, auto&& body) TESSERA_INLINE_LAMBDA {
    int64_t row = first / units, head = first % units;
    for (int64_t i = 0; i < count;) {
      const int64_t last = head + count - i < units ? head + count - i : units;
      body(i, row, head, last);
      i += last - head;
      head = 0;
      ++row;
    }
  };
  for (int64_t first = begin * units; first < end * units; first += together) {
    const int64_t left = end * units - first, count = left < together ? left : together;
    for_rows(first, count, [&](int64_t i, int64_t row, int64_t head, int64_t last)
                               TESSERA_INLINE_LAMBDA {
      const BackwardSpan<T> span(back, groups, row);
      Rotary rotary = RotaryOf(args, row);
      if (kSize > 0) {
        rotary.size = kSize;
        rotary.interleaved = false;
      }
      for (; head < last; ++head, ++i) {
        const T* x = span.in + head * d;
        float* kept = turned + i * d;
        RequestAhead(x, d, groups.row_size, ahead);
        RequestAhead<true>(span.din + head * d, d, groups.row_size, ahead);
        if (span.din != span.dout) RequestAhead(span.dout + head * d, d, groups.row_size, ahead);
        const float* gain = groups.group[head < args.heads ? 0 : 1].gain;
        const Moments moments = MomentsOf(x, span.dout + head * d, gain, rotary, d, clip,
                                          [&](int64_t j, auto part, F32 q) TESSERA_INLINE_LAMBDA {
                                            Store(kept + j, q, part);
                                          });
        squares[i] = moments.square;
        products[i] = moments.product;
      }
    });
    RmsOfHeads(squares, count, d, args.eps, rms);
    ForVectors(0, count, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(means + i, Load(products + i, part) * Load(rms + i, part) / values, part);
    });
    for_rows(first, count, [&](int64_t i, int64_t row, int64_t head, int64_t last)
                               TESSERA_INLINE_LAMBDA {
      const BackwardSpan<T> span(back, groups, row);
      for (; head < last; ++head, ++i) {
        const T* x = span.in + head * d;
        T* dx = span.din + head * d;
        const float* kept = turned + i * d;
        const F32 rstd = Set(rms[i]), mean_qx = Set(means[i]);
        ForVectors(0, d, [&](int64_t j, auto part) TESSERA_INLINE_LAMBDA {
          const F32 raw = Load(x + j, part);
          const F32 xh = clip.Clamp(raw) * rstd;
          Store(dx + j, clip.Back(raw, rstd * Fma(-xh, mean_qx, Load(kept + j, part))), part);
        });
      }
    });
  }
  for (int64_t row = begin; row < end; ++row) {
    BackwardValues(back, groups, BackwardSpan<T>(back, groups, row), clip);
  }
}

// Gradients of gain and bias for one column vector.
struct Chain {
  F32 gain, bias;
};
template <class Part>
TESSERA_INLINE Chain LoadChain(const Group& group, int64_t i, Part part) {
  return {group.dgain == nullptr ? Zero() : Load(group.dgain + i, part),
          group.dbias == nullptr ? Zero() : Load(group.dbias + i, part)};
}
template <class Part>
TESSERA_INLINE void StoreChain(const Group& group, int64_t i, Part part, const Chain& chain) {
  if (group.dgain != nullptr) Store(group.dgain + i, chain.gain, part);
  if (group.dbias != nullptr) Store(group.dbias + i, chain.bias, part);
}

// The columns of one head are cut into pieces that a thread can own alone: pairs of vectors (or
// interleaved vectors) of the rotary part, then vectors of the rest.
struct Pieces {
  int64_t rotary, rest;
};
Pieces PiecesOf(const QkvArgs& args) {
  const int64_t span = args.rotary_interleaved ? args.rotary_size : args.rotary_size / 2;
  return {(span + kLanes - 1) / kLanes,
          (args.head_size - args.rotary_size + kLanes - 1) / kLanes};
}

// Adds rows [first, last) and heads [head_begin, head_end) to the gradients of one piece.
template <class T, class C>
void AddPiece(const QkvBackwardArgs& back, const Groups& groups, const Group& group, int64_t first,
              int64_t last, int64_t head_begin, int64_t head_end, int64_t piece, const C& clip,
              const Unit* units) {
  const QkvArgs& args = back.forward;
  const int64_t d = args.head_size, half = args.rotary_size / 2;
  const int64_t gains = GainOffset(args, head_begin);
  const bool per_head = args.norm == QkNorm::kRmsPerHead;
  const int64_t rotary_pieces = PiecesOf(args).rotary;
  const auto for_heads = [&](auto&& body) TESSERA_INLINE_LAMBDA {
    for (int64_t row = first; row < last; ++row) {
      const int64_t start = row * groups.row_size + group.offset;
      const Rotary rotary = RotaryOf(args, row);
      const Unit* row_units = units + (row - first) * groups.units + group.first_unit;
      for (int64_t head = head_begin; head < head_end; ++head) {
        body(static_cast<const T*>(args.in) + start + head * d,
             static_cast<const T*>(back.dout) + start + head * d,
             row_units[per_head ? head : 0], rotary);
      }
    }
  };
  const auto add = [&](Chain& chain, const T* x, auto part, F32 dz, const Unit& unit)
                       TESSERA_INLINE_LAMBDA {
    const F32 xh = (clip.Clamp(Load(x, part)) - unit.mean) * Set(unit.rstd);
    chain.gain = Fma(dz, xh, chain.gain);
    chain.bias = chain.bias + dz;
  };
  const auto one = [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {  // no rotation
    Chain chain = LoadChain(group, gains + i, part);
    for_heads([&](const T* x, const T* dy, const Unit& unit, const Rotary&) TESSERA_INLINE_LAMBDA {
      add(chain, x + i, part, Load(dy + i, part), unit);
    });
    StoreChain(group, gains + i, part, chain);
  };
  const auto interleaved = [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Chain chain = LoadChain(group, gains + i, part);
    const U32 signs = SignOf(true);
    for_heads([&](const T* x, const T* dy, const Unit& unit, const Rotary& rotary)
                  TESSERA_INLINE_LAMBDA {
      const F32 v = Load(dy + i, part);
      const F32 c = LoadTwice(rotary.cos + i / 2, Count(part));
      const F32 s = FromBits(Bits(LoadTwice(rotary.sin + i / 2, Count(part))) ^ signs);
      add(chain, x + i, part, Fma(v, c, SwapPairs(v) * s), unit);
    });
    StoreChain(group, gains + i, part, chain);
  };
  const auto pair = [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Chain low = LoadChain(group, gains + i, part);
    Chain high = LoadChain(group, gains + half + i, part);
    for_heads([&](const T* x, const T* dy, const Unit& unit, const Rotary& rotary)
                  TESSERA_INLINE_LAMBDA {
      const F32 a = Load(dy + i, part), b = Load(dy + half + i, part);
      const F32 c = Load(rotary.cos + i, part), s = Load(rotary.sin + i, part);
      add(low, x + i, part, Fma(a, c, b * s), unit);
      add(high, x + half + i, part, Fma(b, c, -(a * s)), unit);
    });
    StoreChain(group, gains + i, part, low);
    StoreChain(group, gains + half + i, part, high);
  };
  const auto dispatch = [&](int64_t begin, int64_t end, auto&& body) TESSERA_INLINE_LAMBDA {
    const int64_t stop = begin + kLanes < end ? begin + kLanes : end;
    ForVectors(begin, stop, body);
  };
  if (piece >= rotary_pieces) {
    dispatch(args.rotary_size + (piece - rotary_pieces) * kLanes, d, one);
  } else if (args.rotary_interleaved) {
    dispatch(piece * kLanes, args.rotary_size, interleaved);
  } else {
    dispatch(piece * kLanes, half, pair);
  }
}

template <class T, class C>
void GainColumns(const QkvBackwardArgs& back, const Groups& groups, int64_t first, int64_t last,
                 const C& clip, const Unit* units, int part, int parts) {
  const QkvArgs& args = back.forward;
  const Pieces pieces = PiecesOf(args);
  const int64_t count = pieces.rotary + pieces.rest;
  if (args.norm == QkNorm::kRmsPerHead) {
    const Range range = PartOf(count, 1, part, parts);
    for (int64_t piece = range.begin; piece < range.end; ++piece) {
      for (const Group& group : groups.group) {
        if (group.dgain == nullptr) continue;
        AddPiece<T>(back, groups, group, first, last, 0, group.heads, piece, clip, units);
      }
    }
    return;
  }
  const Range range = PartOf((args.heads + args.kv_heads) * count, 1, part, parts);
  for (int64_t item = range.begin; item < range.end; ++item) {
    const int64_t head = item / count;
    const bool is_key = head >= args.heads;
    const Group& group = groups.group[is_key ? 1 : 0];
    if (group.dgain == nullptr && group.dbias == nullptr) continue;
    const int64_t own = is_key ? head - args.heads : head;
    AddPiece<T>(back, groups, group, first, last, own, own + 1, item % count, clip, units);
  }
}

// Statistics of a chunk of rows are kept between the passes: rows (statistics), columns (gains),
// rows (din, which may lie over dout and so comes last).
template <class T, class C>
void BackwardAll(const QkvBackwardArgs& back, const C& clip, ThreadPool& pool) {
  const QkvArgs& args = back.forward;
  Groups groups = GroupsOf(args);
  groups.group[0].dgain = back.dq_gain;
  groups.group[0].dbias = back.dq_bias;
  groups.group[1].dgain = back.dk_gain;
  groups.group[1].dbias = back.dk_bias;
  if (args.norm == QkNorm::kNone) {
    ParallelRows(pool, args.rows, groups.row_size, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        BackwardRow<T, false>(back, groups, row, clip, nullptr);
      }
    });
    return;
  }
  const bool has_gains = back.dq_gain != nullptr || back.dk_gain != nullptr ||
                         back.dq_bias != nullptr || back.dk_bias != nullptr;
  if (!has_gains && args.norm == QkNorm::kRmsPerHead && args.head_size <= kTurnedSize) {
    ParallelRows(pool, args.rows, groups.row_size, [&](int64_t begin, int64_t end) {
      const bool usual = args.rotary_size == args.head_size && !args.rotary_interleaved;
      if (usual && args.head_size == 64) return BackwardRms<T, 64>(back, groups, begin, end, clip);
      if (usual && args.head_size == 128) return BackwardRms<T, 128>(back, groups, begin, end, clip);
      BackwardRms<T, 0>(back, groups, begin, end, clip);
    });
    return;
  }
  Unit units[kMostHeads];
  const int64_t chunk = kMostHeads / groups.units;
  for (int64_t first = 0; first < args.rows; first += chunk) {
    const int64_t last = first + chunk < args.rows ? first + chunk : args.rows;
    ParallelRows(pool, last - first, groups.row_size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        RowUnits<T>(back, groups, first + i, clip, units + i * groups.units);
        if (has_gains) continue;
        BackwardRow<T, true>(back, groups, first + i, clip, units + i * groups.units);
      }
    });
    if (!has_gains) continue;
    ParallelParts(pool, (last - first) * groups.row_size, [&](int part, int parts) {
      GainColumns<T>(back, groups, first, last, clip, units, part, parts);
    });
    ParallelRows(pool, last - first, groups.row_size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        BackwardRow<T, true>(back, groups, first + i, clip, units + i * groups.units);
      }
    });
  }
}

void Backward(const QkvBackwardArgs& back, ThreadPool& pool) {
  WithClip(back.forward, [&](const auto& clip) {
    back.forward.dtype == DType::kBf16 ? BackwardAll<bf16>(back, clip, pool)
                                       : BackwardAll<float>(back, clip, pool);
  });
}

}  // namespace

void FillQkv(KernelTable& table) {
  table.qkv_forward = Forward;
  table.qkv_backward = Backward;
}

}  // namespace tessera::kernels::TESSERA_ISA
