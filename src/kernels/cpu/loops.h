// Loops over ranges of floats: full vectors, then one partial vector. Bodies are written once and
// take the kind of vector as an argument.
#pragma once

#include "kernels/cpu/many.h"

namespace tessera::kernels::TESSERA_ISA {

struct Full {};
struct Tail {
  int64_t n;  // 1 <= n < kLanes
};

template <class T>
TESSERA_INLINE F32 Load(const T* p, Full, float = 0.0f) {
  return Load(p);
}
template <class T>
TESSERA_INLINE F32 Load(const T* p, Tail tail, float fill = 0.0f) {
  return LoadPartial(p, tail.n, fill);
}
template <class T>
TESSERA_INLINE void Store(T* p, F32 v, Full) {
  Store(p, v);
}
template <class T>
TESSERA_INLINE void Store(T* p, F32 v, Tail tail) {
  StorePartial(p, v, tail.n);
}

// Calls body(i, Full or Tail) over [begin, end).
template <class Body>
TESSERA_INLINE void ForVectors(int64_t begin, int64_t end, Body&& body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, Full{});
  if (i < end) body(i, Tail{end - i});
}

// The same with body(i, Several<N>) first, for bodies that compute at length.
template <int N, class Body>
TESSERA_INLINE void ForManyVectors(int64_t begin, int64_t end, Body&& body) {
  int64_t i = begin;
  for (; i + N * kLanes <= end; i += N * kLanes) body(i, Several<N>{});
  ForVectors(i, end, body);
}

// In a body for Several<N>: asks for the lines some way after those at p. To write them, a core must own
// them, which takes as long as to read them.
template <bool kToWrite = false, class T, int N>
TESSERA_INLINE void AskAhead(const T* p, Several<N>) {
  const char* ahead = reinterpret_cast<const char*>(p) + kAheadBytes;
  Each<N * kLanes * static_cast<int>(sizeof(T)) / 64>(
      TESSERA_EACH(line) { __builtin_prefetch(ahead + 64 * line, kToWrite); });
}
template <bool kToWrite = false, class T, class Part>
TESSERA_INLINE void AskAhead(const T*, Part) {}  // the last ones

// K sums over [0, n) in an order that n alone decides: term(i, part, sums) adds to K vectors (of
// F32, or Many<N> for Several<N>) and must add zeros in the lanes past a tail's end.
template <int K, int N, class Term>
TESSERA_INLINE void ReduceMany(int64_t n, float* out, Term&& term) {
  static_assert(4 % N == 0, "four chains");
  Many<N> sums[4 / N][K];
  Each<4 / N>(TESSERA_EACH(g) {
    Each<K>(TESSERA_EACH(k) { sums[g][k] = Many<N>(Zero()); });
  });
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    Each<4 / N>(TESSERA_EACH(g) { term(i + g * N * kLanes, Several<N>{}, sums[g]); });
  }
  F32 chains[4][K];
  Each<4>(TESSERA_EACH(c) {
    Each<K>(TESSERA_EACH(k) { chains[c][k] = sums[c / N][k].v[c % N]; });
  });
  for (; i + kLanes <= n; i += kLanes) term(i, Full{}, chains[0]);
  if (i < n) term(i, Tail{n - i}, chains[1]);
  for (int k = 0; k < K; ++k) {
    out[k] = Sum((chains[0][k] + chains[1][k]) + (chains[2][k] + chains[3][k]));
  }
}
template <int K, class Term>
TESSERA_INLINE void Reduce(int64_t n, float* out, Term&& term) {
  F32 even[K] = {}, odd[K] = {}, third[K] = {}, fourth[K] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    term(i, Full{}, even);
    term(i + kLanes, Full{}, odd);
    term(i + 2 * kLanes, Full{}, third);
    term(i + 3 * kLanes, Full{}, fourth);
  }
  for (; i + kLanes <= n; i += kLanes) term(i, Full{}, even);
  if (i < n) term(i, Tail{n - i}, odd);
  for (int k = 0; k < K; ++k) out[k] = Sum((even[k] + odd[k]) + (third[k] + fourth[k]));
}

// v with the lanes past the end set to zero.
TESSERA_INLINE F32 ZeroPast(F32 v, Full) { return v; }
template <int N>
TESSERA_INLINE Many<N> ZeroPast(const Many<N>& v, Several<N>) {
  return v;
}
TESSERA_INLINE F32 ZeroPast(F32 v, Tail tail) {
  I32 lane;
  for (int32_t i = 0; i < kLanes; ++i) lane[i] = i;
  return Select(lane < (I32{} + (int32_t)tail.n), v, Zero());
}

// About 10 microseconds of one thread's work on elements: below it, a parallel region costs more
// than it gains.
inline constexpr int64_t kSmallElements = 8192;
// Columns of fp32 a thread owns at least, in multiples of a cache line.
inline constexpr int64_t kColumnGrain = 16;

// Element-wise passes: fn(begin, end) over flat ranges of [0, n).
template <class Fn>
TESSERA_INLINE void ParallelElements(ThreadPool& pool, int64_t n, Fn&& fn) {
  pool.ParallelForGrain(n, kSmallElements / 2, fn);
}

// Row-wise passes: fn(first_row, last_row), several rows a thread when they are short.
template <class Fn>
TESSERA_INLINE void ParallelRows(ThreadPool& pool, int64_t rows, int64_t width, Fn&& fn) {
  const int64_t grain = width >= kSmallElements / 2 ? 1 : kSmallElements / 2 / (width + 1) + 1;
  pool.ParallelForGrain(rows, grain, fn);
}

// The cut of [0, n) in multiples of grain for one of `parts` threads.
struct Range {
  int64_t begin, end;
};
TESSERA_INLINE Range PartOf(int64_t n, int64_t grain, int part, int parts) {
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t begin = blocks * part / parts * grain, end = blocks * (part + 1) / parts * grain;
  const Range range = {begin < n ? begin : n, end < n ? end : n};
  CountPart(part, static_cast<double>(range.end - range.begin));
  return range;
}

// Calls fn(part, parts) on every thread, or once with parts = 1 when the work is small.
template <class Fn>
TESSERA_INLINE void ParallelParts(ThreadPool& pool, int64_t elements, Fn&& fn) {
  const int parts = elements <= kSmallElements ? 1 : pool.num_threads();
  if (parts == 1) {
    ThreadPool::RunAlone(0, [&] { fn(0, 1); });
  } else {
    pool.Run([&](int part) { fn(part, parts); });
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
