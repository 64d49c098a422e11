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

#include <type_traits>

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
// The same for what is not read again soon: lines that come from L2 leave L1 as it is.
template <int kTile>
TESSERA_INLINE void LoadTileOnce(const void* p, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
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

// The unit that multiplies tiles falls asleep some 800 cycles after its last product, and the next one
// waits as long again until it wakes (docs/decisions/0015). One product now and then among vector work
// that lasts longer keeps it awake; it spoils tile 0.
TESSERA_INLINE void KeepTilesAwake() { MultiplyTile<0, 4, 6>(); }

#else

TESSERA_INLINE void KeepTilesAwake() {}

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
TESSERA_INLINE void LoadTileOnce(const void* p, int64_t stride) {
  LoadTile<kTile>(p, stride);
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

template <int kTile>
using TileIndex = std::integral_constant<int, kTile>;

// Where the tiles of one operand lie, in bytes.
struct TileInput {
  const char* data;
  int64_t step;    // from step to step of k
  int64_t row;     // from row to row of a tile
  int64_t second;  // to the tile beside (B) or below (A)
};

// Which operand's tiles are loaded as what is not read again soon.
enum class Streamed { kNone, kA, kB };

// C [32][32] (or one tile of it) = `from` (zero where null) + A B over `steps` steps of k, at least one,
// to `to`. between(step, TileIndex<p>) is called after each of a step's four products, p from 0, also where
// one is left out for want of its tile. Tiles of C are loaded right before their first product and stored after
// their last, among those of the others. Where kCopies, A's tiles are stored at `copy` as well, one after the
// other.
template <Streamed kStreamed, int kRowTiles, int kColTiles, bool kCopies, class Between>
TESSERA_INLINE void MultiplySteps(int64_t steps, const TileInput& a, const TileInput& b,
                                  const float* from, int64_t from_ld, float* to, int64_t to_ld,
                                  char* copy, const Between& between) {
  constexpr bool kRows = kRowTiles == 2, kCols = kColTiles == 2;
  const char *pa = a.data, *pb = b.data;
  const auto multiply = [&](int64_t s, auto first, auto last) TESSERA_INLINE_LAMBDA {
    const auto load_a = [&](auto tile, const char* p) TESSERA_INLINE_LAMBDA {
      if constexpr (kStreamed == Streamed::kA || kCopies) LoadTileOnce<tile()>(p, a.row);
      else LoadTile<tile()>(p, a.row);
    };
    const auto copy_a = [&](auto tile) TESSERA_INLINE_LAMBDA {
      if constexpr (kCopies) {
        StoreTile<tile()>(copy, 64);
        copy += kTileBytes;
      }
    };
    const auto load_b = [&](auto tile, const char* p) TESSERA_INLINE_LAMBDA {
      if constexpr (kStreamed == Streamed::kB) LoadTileOnce<tile()>(p, b.row);
      else LoadTile<tile()>(p, b.row);
    };
    const auto begin = [&](auto tile) TESSERA_INLINE_LAMBDA {
      constexpr int64_t kRow = tile() / 2 * kTileRows, kCol = tile() % 2 * kTileRows;
      if constexpr (first()) {
        if (from != nullptr) LoadTileOnce<tile()>(from + kRow * from_ld + kCol, from_ld * 4);
        else ZeroTile<tile()>();
      }
    };
    const auto end = [&](auto tile) TESSERA_INLINE_LAMBDA {
      constexpr int64_t kRow = tile() / 2 * kTileRows, kCol = tile() % 2 * kTileRows;
      if constexpr (last()) StoreTile<tile()>(to + kRow * to_ld + kCol, to_ld * 4);
    };
    load_b(TileIndex<6>{}, pb);
    load_a(TileIndex<4>{}, pa);
    begin(TileIndex<0>{});
    MultiplyTile<0, 4, 6>();
    copy_a(TileIndex<4>{});
    between(s, TileIndex<0>{});
    if constexpr (kCols) {
      load_b(TileIndex<7>{}, pb + b.second);
      begin(TileIndex<1>{});
      MultiplyTile<1, 4, 7>();
    }
    between(s, TileIndex<1>{});
    end(TileIndex<0>{});
    if constexpr (kRows) {
      load_a(TileIndex<5>{}, pa + a.second);
      begin(TileIndex<2>{});
      MultiplyTile<2, 5, 6>();
      copy_a(TileIndex<5>{});
    }
    between(s, TileIndex<2>{});
    if constexpr (kCols) end(TileIndex<1>{});
    if constexpr (kRows && kCols) {
      begin(TileIndex<3>{});
      MultiplyTile<3, 5, 7>();
    }
    between(s, TileIndex<3>{});
    if constexpr (kRows) end(TileIndex<2>{});
    if constexpr (kRows && kCols) end(TileIndex<3>{});
    pa += a.step;
    pb += b.step;
  };
  constexpr std::true_type kYes;
  constexpr std::false_type kNo;
  if (steps == 1) {
    multiply(0, kYes, kYes);
    return;
  }
  multiply(0, kYes, kNo);
  for (int64_t s = 1; s < steps - 1; ++s) multiply(s, kNo, kNo);
  multiply(steps - 1, kNo, kYes);
}

// The same for a C of which `rows` and `cols` exist, at most 32; copies where `copy` is not null, for
// which all rows exist.
template <Streamed kStreamed, class Between>
TESSERA_INLINE void MultiplyPart(int64_t rows, int64_t cols, int64_t steps, const TileInput& a,
                                 const TileInput& b, const float* from, int64_t from_ld, float* to,
                                 int64_t to_ld, char* copy, const Between& between) {
  const auto multiply = [&](auto row_tiles, auto col_tiles, auto copies) TESSERA_INLINE_LAMBDA {
    MultiplySteps<kStreamed, row_tiles(), col_tiles(), copies()>(steps, a, b, from, from_ld, to, to_ld,
                                                                 copy, between);
  };
  constexpr std::false_type kReads;
  constexpr std::true_type kCopies;
  constexpr TileIndex<1> kOne;
  constexpr TileIndex<2> kTwo;
  if (rows > kTileRows) {
    if constexpr (kStreamed == Streamed::kB) {
      if (copy != nullptr) {
        if (cols > kTileRows) multiply(kTwo, kTwo, kCopies);
        else multiply(kTwo, kOne, kCopies);
        return;
      }
    }
    if (cols > kTileRows) multiply(kTwo, kTwo, kReads);
    else multiply(kTwo, kOne, kReads);
  } else if (cols > kTileRows) {
    multiply(kOne, kTwo, kReads);
  } else {
    multiply(kOne, kOne, kReads);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
