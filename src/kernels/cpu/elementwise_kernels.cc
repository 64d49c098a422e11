// Casts, sums, dropout: one pass over memory each.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

PhiloxStream StreamOf(const RngKey& key) {
  // RngKey::Mixed, written out: kernel files call no shared inline functions.
  uint64_t z = key.seed + 0x9E3779B97F4A7C15ull * (static_cast<uint64_t>(key.purpose) + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32),
          static_cast<uint32_t>(key.stream), static_cast<uint32_t>(key.stream >> 32)};
}

// Calls body(i, part, random words of elements first_index + i ...) over [begin, end).
template <class Body>
TESSERA_INLINE void ForRandomVectors(const PhiloxStream& stream, int64_t first_index, int64_t begin,
                                     int64_t end, Body&& body) {
  // Room for a vector that starts at the last words.
  alignas(64) uint32_t words[kPhiloxWords + kLanes] = {};
  for (int64_t i = begin; i < end;) {
    const uint64_t element = static_cast<uint64_t>(first_index + i);
    PhiloxWords(stream, element >> 2, words);
    const uint32_t* from = words + (element & 3);
    const int64_t count = kPhiloxWords - static_cast<int64_t>(element & 3);
    const int64_t stop = i + count < end ? i + count : end;
    const int64_t base = i;
    ForVectors(i, stop, [&](int64_t j, auto part) TESSERA_INLINE_LAMBDA {
      body(j, part, LoadWords(from + (j - base)));
    });
    i = stop;
  }
}

TESSERA_INLINE F32 RoundStochastically(F32 v, U32 words) {
  const U32 bits = Bits(v);
  const U32 rounded = bits + (words >> 16);
  const U32 quiet = bits | 0x400000u;
  const U32 is_nan = (U32)(v != v);
  return FromBits(((is_nan & quiet) | (~is_nan & rounded)) & 0xffff0000u);
}

void Cast(const float* x, bf16* y, int64_t n, Rounding rounding, const RngKey& key,
          int64_t first_index, ThreadPool& pool) {
  if (rounding == Rounding::kNearest) {
    ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
      ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(y + i, Load(x + i, part), part);
      });
    });
    return;
  }
  const PhiloxStream stream = StreamOf(key);
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForRandomVectors(stream, first_index, begin, end,
                     [&](int64_t i, auto part, U32 words) TESSERA_INLINE_LAMBDA {
                       Store(y + i, RoundStochastically(Load(x + i, part), words), part);
                     });
  });
}

void CastBack(const bf16* x, float* y, int64_t n, ThreadPool& pool) {
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(y + i, Load(x + i, part), part);
    });
  });
}

void FillWith(float* x, float value, int64_t n, ThreadPool& pool) {
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      __builtin_prefetch(x + i + kAheadBytes / 4, 1);
      Store(x + i, Set(value), part);
    });
  });
}

void ScaleBy(float* x, float factor, int64_t n, ThreadPool& pool) {
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(x + i, Load(x + i, part) * factor, part);
    });
  });
}

void AddTimes(float a, const float* x, float* y, int64_t n, ThreadPool& pool) {
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(y + i, Fma(Set(a), Load(x + i, part), Load(y + i, part)), part);
    });
  });
}

void BlendInto(float a, const float* x, float b, float* y, int64_t n, ThreadPool& pool) {
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(y + i, Fma(Set(a), Load(x + i, part), Load(y + i, part) * b), part);
    });
  });
}

template <class T>
void AddTo(const void* from, void* to, int64_t n, ThreadPool& pool) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      Store(y + i, Load(x + i, part) + Load(y + i, part), part);
    });
  });
}
void Add(const void* x, void* y, int64_t n, DType dtype, ThreadPool& pool) {
  dtype == DType::kBf16 ? AddTo<bf16>(x, y, n, pool) : AddTo<float>(x, y, n, pool);
}

template <class T>
void DropOf(const void* from, void* to, int64_t n, float p, const RngKey& key, int64_t first_index,
            ThreadPool& pool) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const PhiloxStream stream = StreamOf(key);
  const float scale = 1.0f / (1.0f - p);
  ParallelElements(pool, n, [=](int64_t begin, int64_t end) {
    ForRandomVectors(stream, first_index, begin, end,
                     [&](int64_t i, auto part, U32 words) TESSERA_INLINE_LAMBDA {
                       const F32 uniform =
                           __builtin_convertvector((I32)(words >> 8), F32) * 0x1p-24f;
                       const F32 kept = Load(x + i, part) * scale;
                       Store(y + i, Select(uniform >= Set(p), kept, Zero()), part);
                     });
  });
}
void Drop(const void* x, void* y, int64_t n, DType dtype, float p, const RngKey& key,
          int64_t first_index, ThreadPool& pool) {
  dtype == DType::kBf16 ? DropOf<bf16>(x, y, n, p, key, first_index, pool)
                        : DropOf<float>(x, y, n, p, key, first_index, pool);
}

}  // namespace

void FillElementwise(KernelTable& table) {
  table.cast_to_bf16 = Cast;
  table.cast_to_float = CastBack;
  table.fill = FillWith;
  table.scale = ScaleBy;
  table.add_scaled = AddTimes;
  table.blend = BlendInto;
  table.add_activation = Add;
  table.dropout = Drop;
}

}  // namespace tessera::kernels::TESSERA_ISA
