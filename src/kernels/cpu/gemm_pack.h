// Packing of operands into the slivers that gemm_micro.h multiplies: widening, transposing and
// pairing on the way.
#pragma once

#include <utility>

#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/many.h"

namespace tessera::kernels::TESSERA_ISA {

template <int kBit, int... kLane>
TESSERA_INLINE void ExchangeBlocks(U32& a, U32& b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = static_cast<int>(kLanes);
  const U32 low =
      __builtin_shufflevector(a, b, ((kLane & kBit) != 0 ? kCount + kLane - kBit : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kBit) != 0 ? kCount + kLane : kLane + kBit)...);
  a = low;
}

template <int kBit>
TESSERA_INLINE void TransposeFrom(U32 (&rows)[kLanes]) {
  if constexpr (kBit < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kBit) == 0) {
        ExchangeBlocks<kBit>(rows[i], rows[i + kBit],
                             std::make_integer_sequence<int, static_cast<int>(kLanes)>());
      }
    }
    TransposeFrom<kBit * 2>(rows);
  }
}

// kLanes x kLanes words in place, by exchanging ever larger blocks across the diagonal.
TESSERA_INLINE void Transpose(U32 (&rows)[kLanes]) { TransposeFrom<1>(rows); }

// kLanes words from consecutive k of one row.
template <Word kWord, class Source>
TESSERA_INLINE U32 LoadAlongK(const Source* p) {
  if constexpr (kWord == Word::kFloat) {
    return Bits(Load(p));
  } else if constexpr (sizeof(Source) == 2) {
    return LoadWords(p);
  } else {
    return RoundToWords(Load(p), Load(p + kLanes));
  }
}

// The same where only `count` elements exist; the others are zero.
template <Word kWord, class Source>
TESSERA_INLINE U32 LoadAlongKPartial(const Source* p, int64_t count) {
  Source buffer[2 * kLanes] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return LoadAlongK<kWord>(buffer);
}

// kLanes words from consecutive rows (or columns) at one k; `next` is the address at k + 1.
template <Word kWord, class Source>
TESSERA_INLINE U32 LoadAcross(const Source* p, const Source* next) {
  if constexpr (kWord == Word::kFloat) {
    return Bits(Load(p));
  } else if constexpr (sizeof(Source) == 2) {
    return LoadPairs(p, next);
  } else {
    return RoundToPairs(Load(p), Load(next));
  }
}

// Packs `width` rows (of op(A), or columns of op(B)) times `k` steps into a sliver with `stride`
// words a step. Whole vectors are stored: with stride < kLanes the words past `width` fall on the
// next step and are overwritten by it, and the last ones spill past the sliver; otherwise the words
// from `width` up to the next multiple of kLanes become zero.
//
// Source rows contiguous in k: element (i, step) at p[i * ld + step].
template <Word kWord, class Source>
void PackAlongK(const Source* p, int64_t ld, int64_t width, int64_t k, int64_t stride,
                uint32_t* out) {
  constexpr int64_t kSteps = kStepsPerWord<kWord> * kLanes;
  for (int64_t first = 0; first < width; first += kLanes) {
    const int64_t rows = width - first < kLanes ? width - first : kLanes;
    const Source* source = p + first * ld;
    uint32_t* target = out + first;
    for (int64_t step = 0; step < k; step += kSteps) {
      U32 block[kLanes];
      const int64_t rest = k - step;
      if (rest >= kSteps && rows == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = LoadAlongK<kWord>(source + i * ld + step);
      } else if (rest >= kSteps) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          // Rows that do not exist repeat the last one: no branch, and never out of bounds.
          const U32 words = LoadAlongK<kWord>(source + (i < rows ? i : rows - 1) * ld + step);
          block[i] = i < rows ? words : U32{};
        }
      } else {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = i < rows ? LoadAlongKPartial<kWord>(source + i * ld + step, rest) : U32{};
        }
      }
      Transpose(block);
      uint32_t* words = target + step / kStepsPerWord<kWord> * stride;
      if (rest >= kSteps) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) StoreWords(words + i * stride, block[i]);
      } else {
        const int64_t count = (rest + kStepsPerWord<kWord> - 1) / kStepsPerWord<kWord>;
        for (int64_t i = 0; i < count; ++i) StoreWords(words + i * stride, block[i]);
      }
    }
  }
}

// Source steps contiguous in the width: element (i, step) at p[step * ld + i]. `readable` elements
// of each step may be read (at least width).
template <Word kWord, class Source>
void PackAcross(const Source* p, int64_t ld, int64_t width, int64_t readable, int64_t k,
                int64_t stride, uint32_t* out) {
  const Source zeros[kLanes] = {};
  for (int64_t step = 0; step < k; step += kStepsPerWord<kWord>) {
    const Source* source = p + step * ld;
    const bool has_next = kWord == Word::kPair && step + 1 < k;
    uint32_t* target = out + step / kStepsPerWord<kWord> * stride;
    for (int64_t first = 0; first < width; first += kLanes) {
      const bool whole = stride < kLanes ? first + kLanes <= readable : first + kLanes <= width;
      if (whole) {
        const Source* next = has_next ? source + ld + first : zeros;
        StoreWords(target + first, LoadAcross<kWord>(source + first, next));
      } else {
        Source buffer[2][kLanes] = {};
        for (int64_t i = first; i < width; ++i) {
          buffer[0][i - first] = source[i];
          if (has_next) buffer[1][i - first] = source[ld + i];
        }
        StoreWords(target + first, LoadAcross<kWord>(buffer[0], buffer[1]));
      }
    }
  }
}

// Rows of a source that are asked for before their turn.
inline constexpr int64_t kRowsAhead = 16;

// `slivers` whole slivers of kWidth words a step from a source that is contiguous in the width:
// step by step over all of them, so that each line and page of the source is visited once. Of A up
// to kLanes elements from the start of the last sliver must be readable.
template <Word kWord, int kWidth, class Source>
void PackAcrossSlivers(const Source* p, int64_t ld, int64_t slivers, int64_t k,
                       int64_t sliver_words, uint32_t* out) {
  constexpr int64_t kSteps = kStepsPerWord<kWord>;
  const Source zeros[kLanes] = {};
  for (int64_t step = 0; step < k; step += kSteps) {
    const bool has_next = kWord == Word::kPair && step + 1 < k;
    const bool last = step + kSteps >= k;
    const Source* source = p + step * ld;
    uint32_t* target = out + step / kSteps * kWidth;
    const Source* ahead = source + kRowsAhead * ld;
    for (int64_t s = 0; s < slivers; ++s) {
      __builtin_prefetch(ahead);
      if (kSteps == 2) __builtin_prefetch(ahead + ld);
      ahead += kWidth;
      for (int64_t first = 0; first < kWidth; first += kLanes) {
        const U32 words = LoadAcross<kWord>(source + first, has_next ? source + ld + first : zeros);
        if (kWidth % kLanes == 0 || !last) {
          StoreWords(target + first, words);
        } else {
          std::memcpy(target, &words, kWidth * 4);  // The next words are those of another sliver.
        }
      }
      source += kWidth;
      target += sliver_words;
    }
  }
}

template <int kWidth>
void PackAcrossSlivers(const MatrixRef& x, int64_t first, int64_t slivers, int64_t k_begin,
                       int64_t k, Word word, int64_t sliver_words, uint32_t* out) {
  const int64_t offset = k_begin * x.ld + first;
  if (x.dtype == DType::kBf16) {
    const bf16* p = static_cast<const bf16*>(x.data) + offset;
    if (word == Word::kFloat) {
      PackAcrossSlivers<Word::kFloat, kWidth>(p, x.ld, slivers, k, sliver_words, out);
    } else {
      PackAcrossSlivers<Word::kPair, kWidth>(p, x.ld, slivers, k, sliver_words, out);
    }
  } else {
    const float* p = static_cast<const float*>(x.data) + offset;
    if (word == Word::kFloat) {
      PackAcrossSlivers<Word::kFloat, kWidth>(p, x.ld, slivers, k, sliver_words, out);
    } else {
      PackAcrossSlivers<Word::kPair, kWidth>(p, x.ld, slivers, k, sliver_words, out);
    }
  }
}

inline constexpr int64_t kSliversTogether = 8;  // streams of stores that the processor keeps apart

template <class Source>
TESSERA_INLINE void PackSliverFrom(const Source* data, int64_t ld, bool along_k, int64_t first,
                                   int64_t width, int64_t limit, int64_t k_begin, int64_t k,
                                   int64_t stride, Word word, uint32_t* out) {
  if (along_k) {
    const Source* p = data + first * ld + k_begin;
    if (word == Word::kFloat) {
      PackAlongK<Word::kFloat>(p, ld, width, k, stride, out);
    } else {
      PackAlongK<Word::kPair>(p, ld, width, k, stride, out);
    }
  } else {
    const Source* p = data + k_begin * ld + first;
    if (word == Word::kFloat) {
      PackAcross<Word::kFloat>(p, ld, width, limit - first, k, stride, out);
    } else {
      PackAcross<Word::kPair>(p, ld, width, limit - first, k, stride, out);
    }
  }
}

// One sliver of an operand: rows of op(A) or columns of op(B) from `first`, `width` of them, of
// `limit` in all; steps k_begin .. k_begin + k.
inline void PackSliver(const MatrixRef& x, bool along_k, int64_t first, int64_t width,
                       int64_t limit, int64_t k_begin, int64_t k, int64_t stride, Word word,
                       uint32_t* out) {
  if (x.dtype == DType::kBf16) {
    PackSliverFrom(static_cast<const bf16*>(x.data), x.ld, along_k, first, width, limit, k_begin, k,
                   stride, word, out);
  } else {
    PackSliverFrom(static_cast<const float*>(x.data), x.ld, along_k, first, width, limit, k_begin,
                   k, stride, word, out);
  }
}

// Rows [first, first + rows) of op(A) as consecutive slivers of kMR rows, the last one smaller.
inline void PackA(const MatrixRef& a, int64_t m, int64_t first, int64_t rows, int64_t k_begin,
                  int64_t k, Word word, uint32_t* out) {
  const int64_t steps = WordSteps(word, k);
  int64_t row = 0;
  while (a.transposed) {
    // Whole vectors are read: the last sliver must not reach past the matrix.
    const int64_t readable = m - first - row < kLanes ? 0 : (m - first - row - kLanes) / kMR + 1;
    const int64_t whole = (rows - row) / kMR;
    int64_t slivers = whole < readable ? whole : readable;
    if (slivers > kSliversTogether) slivers = kSliversTogether;
    if (slivers == 0) break;
    PackAcrossSlivers<kMR>(a, first + row, slivers, k_begin, k, word, kMR * steps,
                           out + row * steps);
    row += slivers * kMR;
  }
  for (; row < rows; row += kMR) {
    const int64_t count = rows - row < kMR ? rows - row : kMR;
    PackSliver(a, !a.transposed, first + row, count, m, k_begin, k, count, word, out + row * steps);
  }
}

// Adds the steps of N slivers of `width` rows, `words` words each, to sums[width * N].
template <int N, Word kWord>
TESSERA_INLINE void AddSlivers(const uint32_t* slivers, int64_t width, int64_t words, float* sums) {
  Many<N> acc;
  Each<N>(TESSERA_EACH(s) {
    float* own = sums + s * width;
    acc.v[s] = width < kLanes ? LoadPartial(own, width) : Load(own);
  });
  for (int64_t at = 0; at < words; at += width) {
    Each<N>(TESSERA_EACH(s) {
      // What the words past `width` add (the next step's, or past the last one) is dropped.
      const U32 step = LoadWords(slivers + s * words + at);
      if constexpr (kWord == Word::kPair) {
        acc.v[s] = acc.v[s] + FromBits(step << 16);
        acc.v[s] = acc.v[s] + FromBits(step & 0xffff0000u);
      } else {
        acc.v[s] = acc.v[s] + FromBits(step);
      }
    });
  }
  Each<N>(TESSERA_EACH(s) {
    float* own = sums + s * width;
    if (width < kLanes) StorePartial(own, acc.v[s], width);
    else Store(own, acc.v[s]);
  });
}

// Adds `k` steps of rows that PackA packed to sums[rows], each row's in order.
template <Word kWord>
TESSERA_INLINE void AddRows(const uint32_t* packed, int64_t rows, int64_t k, float* sums) {
  constexpr int kTogether = 4;  // chains that advance together (many.h)
  const int64_t steps = WordSteps(kWord, k);
  int64_t row = 0;
  for (; row + kTogether * kMR <= rows; row += kTogether * kMR) {
    AddSlivers<kTogether, kWord>(packed + row * steps, kMR, kMR * steps, sums + row);
  }
  for (; row < rows; row += kMR) {
    const int64_t width = rows - row < kMR ? rows - row : kMR;
    AddSlivers<1, kWord>(packed + row * steps, width, width * steps, sums + row);
  }
}

// Columns [first, first + cols) of op(B) as slivers of kNR columns; missing columns are zero.
inline void PackBBlock(const MatrixRef& b, int64_t n, int64_t first, int64_t cols, int64_t k_begin,
                       int64_t k, Word word, int64_t sliver_words, uint32_t* out) {
  int64_t col = 0;
  while (!b.transposed && cols - col >= kNR) {
    int64_t slivers = (cols - col) / kNR;
    if (slivers > kSliversTogether) slivers = kSliversTogether;
    PackAcrossSlivers<kNR>(b, first + col, slivers, k_begin, k, word, sliver_words,
                           out + col / kNR * sliver_words);
    col += slivers * kNR;
  }
  for (; col < cols; col += kNR) {
    const int64_t count = cols - col < kNR ? cols - col : kNR;
    uint32_t* sliver = out + col / kNR * sliver_words;
    if (count <= kNR - kLanes) {
      // Vectors that hold no column at all are not touched by PackSliver.
      const int64_t steps = WordSteps(word, k);
      const int64_t used = (count + kLanes - 1) / kLanes * kLanes;
      for (int64_t step = 0; step < steps; ++step) {
        for (int64_t i = used; i < kNR; i += kLanes) StoreWords(sliver + step * kNR + i, U32{});
      }
    }
    PackSliver(b, b.transposed, first + col, count, n, k_begin, k, kNR, word, sliver);
  }
}

// Pairs of bf16 -> floats, `k` steps of one sliver of B.
inline void WidenSliver(const uint32_t* pairs, int64_t k, uint32_t* out) {
  for (int64_t step = 0; step < k; step += 2) {
    for (int v = 0; v < kNV; ++v) {
      const U32 words = LoadWords(pairs + v * kLanes);
      StoreWords(out + v * kLanes, words << 16);
      if (step + 1 < k) StoreWords(out + kNR + v * kLanes, words & 0xffff0000u);
    }
    pairs += kNR;
    out += 2 * kNR;
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
