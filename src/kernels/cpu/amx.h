// Tiles of AMX: eight registers of 16 rows of 64 bytes, and the product of bf16 pairs over them.
//
// TDPBF16PS adds to each of the 16 x 16 floats of C the product of A [16][32 steps of k] and
// B [16 pairs of steps][16 columns], each word of B a pair (k, k+1) from the low half up:
//   even = odd = 0
//   for p in 0..15: even = fma(A[2p], B[p].low, even); odd = fma(A[2p+1], B[p].high, odd)
//   C = C + (even + odd)
// rounded to nearest, subnormals flushed, whatever the thread's mode says (Intel SDM, volume 2). Where
// TESSERA_EMULATE_AMX is defined the same function is computed without the instruction.
#pragma once

#include "kernels/cpu/simd.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr int64_t kTileRows = 16;   // rows of a tile, and words or floats of its row
inline constexpr int64_t kTileSteps = 32;  // of k that one product of tiles takes
inline constexpr int64_t kTileBytes = 1024;

#if !defined(TESSERA_EMULATE_AMX)

// While one lives, the thread's tiles are of 16 rows of 64 bytes each.
class TileScope {
 public:
  TESSERA_INLINE TileScope() {
    // Palette 1, then bytes of a row and rows of each tile.
    struct alignas(64) Shape {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {};
    shape.palette = 1;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = kTileRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  TESSERA_INLINE ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// `stride` is in bytes, from row to row.
template <int kTile>
TESSERA_INLINE void LoadTile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
TESSERA_INLINE void StoreTile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
TESSERA_INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// C += A B.
template <int kC, int kA, int kB>
TESSERA_INLINE void MultiplyTile() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#else

struct EmulatedTiles {
  alignas(64) uint32_t words[8][kTileRows][kTileRows];
};
inline thread_local EmulatedTiles emulated_tiles;

class TileScope {
 public:
  TileScope() {}
  ~TileScope() {}
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
TESSERA_INLINE void LoadTile(const void* p, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    std::memcpy(emulated_tiles.words[kTile][r], static_cast<const char*>(p) + r * stride, 64);
  }
}
template <int kTile>
TESSERA_INLINE void StoreTile(void* p, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    std::memcpy(static_cast<char*>(p) + r * stride, emulated_tiles.words[kTile][r], 64);
  }
}
template <int kTile>
TESSERA_INLINE void ZeroTile() {
  std::memset(emulated_tiles.words[kTile], 0, kTileBytes);
}
template <int kC, int kA, int kB>
TESSERA_INLINE void MultiplyTile() {
  auto& tiles = emulated_tiles.words;
  const auto factor = [](uint32_t bits) { return FromBits(U32{} + bits); };
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t col = 0; col < kTileRows; col += kLanes) {
      F32 even = Zero(), odd = Zero();
      for (int64_t p = 0; p < kTileRows; ++p) {
        const uint32_t a = tiles[kA][r][p];
        const U32 b = LoadWords(&tiles[kB][p][col]);
        even = Fma(factor(a << 16), FromBits(b << 16), even);
        odd = Fma(factor(a & 0xffff0000u), FromBits(b & 0xffff0000u), odd);
      }
      float* c = reinterpret_cast<float*>(&tiles[kC][r][col]);
      Store(c, Load(c) + (even + odd));
    }
  }
}

#endif

// Where the tiles of one operand lie, in bytes.
struct TileInput {
  const char* data;
  int64_t step;    // from step to step of k
  int64_t row;     // from row to row of a tile
  int64_t second;  // to the tile beside (B) or below (A)
};

// C [32][32] (or one tile of it) = `from` (zero where null) + A B over `steps` steps of k, to `to`.
// between(step) is called among the products.
template <int kRowTiles, int kColTiles, class Between>
TESSERA_INLINE void MultiplySteps(int64_t steps, const TileInput& a, const TileInput& b,
                                  const float* from, int64_t from_ld, float* to, int64_t to_ld,
                                  const Between& between) {
  constexpr bool kRows = kRowTiles == 2, kCols = kColTiles == 2;
  if (from != nullptr) {
    const float* low = from + kTileRows * from_ld;
    LoadTile<0>(from, from_ld * 4);
    if constexpr (kCols) LoadTile<1>(from + kTileRows, from_ld * 4);
    if constexpr (kRows) LoadTile<2>(low, from_ld * 4);
    if constexpr (kRows && kCols) LoadTile<3>(low + kTileRows, from_ld * 4);
  } else {
    ZeroTile<0>();
    if constexpr (kCols) ZeroTile<1>();
    if constexpr (kRows) ZeroTile<2>();
    if constexpr (kRows && kCols) ZeroTile<3>();
  }
  const char *pa = a.data, *pb = b.data;
  for (int64_t s = 0; s < steps; ++s) {
    LoadTile<6>(pb, b.row);
    LoadTile<4>(pa, a.row);
    MultiplyTile<0, 4, 6>();
    between(s);
    if constexpr (kCols) {
      LoadTile<7>(pb + b.second, b.row);
      MultiplyTile<1, 4, 7>();
    }
    if constexpr (kRows) {
      LoadTile<5>(pa + a.second, a.row);
      MultiplyTile<2, 5, 6>();
      if constexpr (kCols) MultiplyTile<3, 5, 7>();
    }
    pa += a.step;
    pb += b.step;
  }
  float* low = to + kTileRows * to_ld;
  StoreTile<0>(to, to_ld * 4);
  if constexpr (kCols) StoreTile<1>(to + kTileRows, to_ld * 4);
  if constexpr (kRows) StoreTile<2>(low, to_ld * 4);
  if constexpr (kRows && kCols) StoreTile<3>(low + kTileRows, to_ld * 4);
}

// The same for a C of which `rows` and `cols` exist, at most 32.
template <class Between>
TESSERA_INLINE void MultiplyPart(int64_t rows, int64_t cols, int64_t steps, const TileInput& a,
                                 const TileInput& b, const float* from, int64_t from_ld, float* to,
                                 int64_t to_ld, const Between& between) {
  if (rows > kTileRows) {
    if (cols > kTileRows) {
      MultiplySteps<2, 2>(steps, a, b, from, from_ld, to, to_ld, between);
    } else {
      MultiplySteps<2, 1>(steps, a, b, from, from_ld, to, to_ld, between);
    }
  } else if (cols > kTileRows) {
    MultiplySteps<1, 2>(steps, a, b, from, from_ld, to, to_ld, between);
  } else {
    MultiplySteps<1, 1>(steps, a, b, from, from_ld, to, to_ld, between);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
