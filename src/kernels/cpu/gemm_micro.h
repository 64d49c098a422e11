// Register tiles of the matrix product: kMR rows times kNV vectors of C in registers, a sliver of A
// broadcast word by word against a sliver of B.
//
// Slivers (both 64-byte aligned where the workspace is):
//   A, fp32:   [k][rows] floats, rows <= kMR
//   A, pairs:  [ceil(k/2)][rows] words of two bf16, (k, k+1) from the low half up
//   B, fp32:   [k][kNR] floats
//   B, pairs:  [ceil(k/2)][kNR] words of two bf16, (k, k+1) from the low half up
// Every kernel continues one chain of multiply-adds per element of C in increasing k.
#pragma once

#include <type_traits>

#include "kernels/cpu/bf16_dot.h"
#include "kernels/cpu/many.h"
#include "kernels/cpu/register_block.h"

namespace tessera::kernels::TESSERA_ISA {

// 28 accumulators, two vectors of B and one broadcast fill the 32 registers of AVX-512; 6 x 2 does
// the same with 16. Packing transposes blocks of kLanes rows, so kMR <= kLanes.
#if defined(__AVX512F__)
inline constexpr int kMR = 14;
#elif defined(__AVX2__)
inline constexpr int kMR = 6;
#else
inline constexpr int kMR = 4;
#endif
inline constexpr int kNV = 2;
inline constexpr int kNR = kNV * static_cast<int>(kLanes);
static_assert(kMR <= kLanes);

// How the words of the slivers meet.
enum class Multiplier {
  kFloat,  // fp32 A, fp32 B
  kWiden,  // fp32 A, B in pairs of bf16, widened in registers
  kDot,    // both in pairs, VDPBF16PS
};

// Rows whose word of A is broadcast into a register for all vectors; the others read it from memory
// inside each multiply-add (AVX-512 can). The first costs an instruction a row, the second a load a
// vector. Measured on a core whose other hardware thread is busy, where a step has half of the
// instructions and half of the loads: 8 of 14 is best there (0.71 of peak; 0.69 with 11, 0.65 with
// all 14) and makes no difference on a core of its own (0.92).
#if defined(__AVX512F__)
inline constexpr int kRegisterRows = 8;
#else
inline constexpr int kRegisterRows = kMR;
#endif

template <int kRows, int kVectors>
struct Tile {
  F32 acc[kRows][kVectors];

  TESSERA_INLINE void Multiply(const float* a, const F32 (&b)[kVectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      if (kVectors == 2 && i >= kRegisterRows) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) FmaBroadcast(acc[i][v], a + i, b[v]);
        continue;
      }
      const F32 word = BroadcastFloat(a + i);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) FmaInPlace(acc[i][v], word, b[v]);
    }
  }

  TESSERA_INLINE void Multiply(const uint32_t* a, const U32 (&b)[kVectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const U32 word = BroadcastWord(a + i);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = DotPairs(acc[i][v], word, b[v]);
    }
  }

  TESSERA_INLINE void Load(const float* c, int64_t ldc) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        acc[i][v] = TESSERA_ISA::Load(c + i * ldc + v * kLanes);
      }
    }
  }
  TESSERA_INLINE void Clear() {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Zero();
    }
  }
  // `bias` may be null.
  template <class Out>
  TESSERA_INLINE void Store(const float* bias, Out* c, int64_t ldc) {
    if (bias != nullptr) {
      F32 terms[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) terms[v] = TESSERA_ISA::Load(bias + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[i][v] = acc[i][v] + terms[v];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      Many<kVectors> row;
      Each<kVectors>(TESSERA_EACH(v) { row.v[v] = acc[i][v]; });
      TESSERA_ISA::Store(c + i * ldc, row, Several<kVectors>{});
    }
  }
};

// Where a tile's chains begin and its sums go.
struct TileEnds {
  const float* from = nullptr;  // [rows][from_ld]; null: they begin with 0
  int64_t from_ld = 0;
  void* to = nullptr;  // [rows][to_ld]
  int64_t to_ld = 0;
  const float* bias = nullptr;  // added to the sums of each row, or null
};

// `count` pairs of lines of 64 bytes, `stride` bytes from pair to pair.
struct Lines {
  const char* at = nullptr;
  int64_t stride = 0;
  int64_t count = 0;
};
inline constexpr int64_t kPairOfLines = 128;

// What a tile asks the caches for while it multiplies: the lines of the next tile of C first, then
// those of A that are wanted soon. Both would else be waited for when their turn comes.
struct Ahead {
  Lines c;  // a row of the tile each, as many as it has
  Lines a;
};

inline constexpr int kRequestSteps = 4;  // steps between two requests

// Requests for lines of A that a tile of kMR rows makes.
constexpr int64_t RequestsOfTile(int64_t steps) {
  const int64_t chunks = steps / kRequestSteps;
  return chunks < kMR ? 0 : chunks - kMR;
}

// Calls step() `steps` times, with the requests of `ahead` between.
template <int kRows, class Step>
TESSERA_INLINE void RunSteps(int64_t steps, const Ahead& ahead, Step&& step) {
  int64_t chunks = steps / kRequestSteps;
  const auto run = [&](auto writes, const Lines& lines) __attribute__((always_inline)) {
    const int64_t count = chunks < lines.count ? chunks : lines.count;
    const char* at = lines.at;
    for (int64_t i = 0; i < count; ++i) {
      __builtin_prefetch(at, decltype(writes)::value);
      if (kNR * 4 > 64) __builtin_prefetch(at + 64, decltype(writes)::value);
      at += lines.stride;
#pragma GCC unroll 4
      for (int s = 0; s < kRequestSteps; ++s) step();
    }
    chunks -= count;
  };
  run(std::true_type(), {ahead.c.at, ahead.c.stride, kRows});
  run(std::false_type(), ahead.a);
  run(std::false_type(), {ahead.a.at, 0, chunks});
  for (int64_t i = 0; i < steps % kRequestSteps; ++i) step();
}

// to[kRows][kVectors * kLanes] = from + A B + bias over k steps, as Out.
template <int kRows, int kVectors, Multiplier kMul, class Out>
void RunTile(int64_t k, const void* a_sliver, const void* b_sliver, const TileEnds& ends,
             const Ahead& ahead) {
  Tile<kRows, kVectors> tile;
  if (ends.from != nullptr) {
    tile.Load(ends.from, ends.from_ld);
  } else {
    tile.Clear();
  }
  if constexpr (kMul == Multiplier::kDot) {
    const uint32_t* a = static_cast<const uint32_t*>(a_sliver);
    const uint32_t* b = static_cast<const uint32_t*>(b_sliver);
    RunSteps<kRows>((k + 1) / 2, ahead, [&]() __attribute__((always_inline)) {
      U32 vectors[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) vectors[v] = LoadWords(b + v * kLanes);
      tile.Multiply(a, vectors);
      a += kRows;
      b += kNR;
    });
  } else {
    const float* a = static_cast<const float*>(a_sliver);
    if constexpr (kMul == Multiplier::kFloat) {
      const float* b = static_cast<const float*>(b_sliver);
      RunSteps<kRows>(
          k, ahead, [&]() __attribute__((always_inline)) {
            F32 vectors[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) vectors[v] = LoadInOrder(b + v * kLanes);
            tile.Multiply(a, vectors);
            a += kRows;
            b += kNR;
          });
    } else {
      const uint32_t* b = static_cast<const uint32_t*>(b_sliver);
      F32 vectors[kVectors];
      RunSteps<kRows>(
          k / 2, ahead, [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              vectors[v] = FromBits(LoadWords(b + v * kLanes) << 16);
            }
            tile.Multiply(a, vectors);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              vectors[v] = FromBits(LoadWords(b + v * kLanes) & 0xffff0000u);
            }
            tile.Multiply(a + kRows, vectors);
            a += 2 * kRows;
                b += kNR;
          });
      if (k % 2 != 0) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          vectors[v] = FromBits(LoadWords(b + v * kLanes) << 16);
        }
        tile.Multiply(a, vectors);
      }
    }
  }
  tile.Store(ends.bias, static_cast<Out*>(ends.to), ends.to_ld);
}

using TileFunction = void (*)(int64_t k, const void* a_sliver, const void* b_sliver,
                              const TileEnds& ends, const Ahead& ahead);

// The kernels of one multiplier for 1..kMR rows and 1..kNV vectors.
struct TileTable {
  TileFunction tiles[kMR + 1][kNV + 1];
  TileFunction rounded[kMR + 1];  // kNV vectors, stored as bf16
};

template <Multiplier kMul, int kRows>
constexpr void AddTiles(TileTable& table) {
  table.tiles[kRows][1] = RunTile<kRows, 1, kMul, float>;
  table.tiles[kRows][2] = RunTile<kRows, 2, kMul, float>;
  table.rounded[kRows] = RunTile<kRows, kNV, kMul, bf16>;
  if constexpr (kRows > 1) AddTiles<kMul, kRows - 1>(table);
}

template <Multiplier kMul>
constexpr TileTable MakeTiles() {
  TileTable table = {};
  AddTiles<kMul, kMR>(table);
  return table;
}

}  // namespace tessera::kernels::TESSERA_ISA
