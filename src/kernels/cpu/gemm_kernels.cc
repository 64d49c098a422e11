// Matrix products for one instruction set.
//
// Rectangles of C are computed by one thread each, from its own packed copies of the parts of A and
// B that it needs, and no element's chain of additions depends on the cut. Large products are dealt
// out in shares that a thread which is done takes from (ThreadPool::RunShares); B is then packed
// first, by all threads together, unless it came packed. Others have one rectangle a thread and no
// barrier. Inside a rectangle (Goto and van de Geijn's blocking):
//   rows in blocks of A (last-level cache) -> columns -> k in blocks of BlockSteps -> columns in
//   blocks of which B's part stays in L2 -> slivers of kMR rows -> slivers of kNR columns ->
//   registers.
// Between blocks of k the partial chain rests in C itself, or in an fp32 buffer where C is bf16.
#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/gemm_mirror.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_small.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr int64_t kBlockWords = 384;  // words of a block of k
// Steps of a block of k. Even: blocks cut between pairs.
constexpr int64_t BlockSteps(Word word) { return kBlockWords * (word == Word::kPair ? 2 : 1); }
// Words of packed A, and of the buffer of partial sums, a thread.
constexpr int64_t kWordsA = int64_t{1} << 20;
constexpr int64_t kWordsB = kBlockWords * 256;
constexpr int64_t kWordsPartial = int64_t{1} << 20;
// Rows packed at a time where A is packed next to its use: they stay in L2 beside the block of B.
constexpr int64_t kGroupRows = 4 * kMR;
constexpr int64_t kSlack = 64;  // Whole vectors are stored past the last sliver.
constexpr int64_t kThreadWords = kWordsA + kWordsB + kWordsPartial + 3 * kSlack;
// Words of what all threads pack together, after those of the threads.
constexpr int64_t kWordsShared = int64_t{2} << 20;
static_assert(kSmallWords <= kThreadWords);

// Below this many multiply-adds a thread the start of a parallel region costs more than it brings.
constexpr double kMinWorkPerThread = 65536;

// In front of a packed B: what it holds, so that a product reads it as it was written.
struct PackedHeader {
  uint64_t magic;
  int64_t k, n;
  int64_t sliver_columns;
  int64_t word;  // Word
  int64_t unused[3];
};
static_assert(sizeof(PackedHeader) == 64);
constexpr int64_t kHeaderWords = sizeof(PackedHeader) / 4;
constexpr uint64_t kPackedMagic = 0x3142446b63615054;  // "TPackDB1"

constexpr Word StorageWord(DType storage) {
  return storage == DType::kBf16 ? Word::kPair : Word::kFloat;
}

// -------------------------------------------------------------------------------- one rectangle

struct Rectangle {
  int64_t row = 0, rows = 0, col = 0, cols = 0;
};

constexpr TileTable kFloatTiles = MakeTiles<Multiplier::kFloat>();
constexpr TileTable kWidenTiles = MakeTiles<Multiplier::kWiden>();
constexpr TileTable MakeDotTiles() {
  if constexpr (kHasBf16Dot) return MakeTiles<Multiplier::kDot>();
  return {};
}
constexpr TileTable kDotTiles = MakeDotTiles();

// How one call multiplies: fixed before the threads start.
struct Method {
  Multiplier multiplier = Multiplier::kFloat;
  const TileTable* tiles = &kFloatTiles;
  Word word_a = Word::kFloat;
  Word word_b = Word::kFloat;        // of the slivers that the tiles read
  const uint32_t* packed = nullptr;  // slivers of all k, or null where B is packed on the way
  bool widen_packed = false;         // pairs are widened into the block of B first
};

// The shape of a B that is packed as a whole.
const PackedHeader* HeaderOf(const void* packed_b) {
  return static_cast<const PackedHeader*>(packed_b);
}

Method ChooseMethod(const GemmArgs& args, int64_t rows_per_thread) {
  Method method;
  const PackedHeader* header = HeaderOf(args.packed_b);
  const bool pairs_b = header != nullptr ? static_cast<Word>(header->word) == Word::kPair
                                         : args.b.dtype == DType::kBf16;
  if (header != nullptr) method.packed = reinterpret_cast<const uint32_t*>(header + 1);
  if (kHasBf16Dot && args.compute == Compute::kBf16 && args.a.dtype == DType::kBf16 && pairs_b) {
    method.multiplier = Multiplier::kDot;
    method.tiles = &kDotTiles;
    method.word_a = Word::kPair;
    method.word_b = Word::kPair;
  } else if (header != nullptr && pairs_b) {
    // Widening in registers costs an eighth of the multiplier's ports in every row of tiles;
    // widening into L2 costs about as much as four rows of tiles, once.
    method.widen_packed = rows_per_thread >= 4 * kMR;
    if (!method.widen_packed) {
      method.multiplier = Multiplier::kWiden;
      method.tiles = &kWidenTiles;
      method.word_b = Word::kPair;
    }
  }
  return method;
}

// Rows of an operand that will be packed, asked for while others are multiplied.
class RowsToPack {
 public:
  RowsToPack() = default;
  // Rows [row, row + rows) of op(A), steps [k_begin, k_begin + k).
  RowsToPack(const MatrixRef& a, int64_t row, int64_t rows, int64_t k_begin, int64_t k) {
    const int64_t size = DTypeBytes(a.dtype), stride = a.ld * size;
    if (a.transposed) {  // step by step, as far as a pair of lines reaches
      // The line in which they begin came with the rows before.
      at_ = static_cast<const char*>(a.data) + k_begin * stride + row * size + 63;
      Set(stride, k, kPairOfLines, CeilDiv(rows * size, kPairOfLines));
    } else {
      at_ = static_cast<const char*>(a.data) + row * stride + k_begin * size;
      Set(kPairOfLines, CeilDiv(k * size, kPairOfLines), stride, rows);
    }
  }

  // At most `count` more of the lines.
  Lines Next(int64_t count) {
    if (line_ == lines_) {
      line_ = 0;
      at_ += run_stride_;
      --runs_;
    }
    if (runs_ <= 0) return {};
    const Lines next = {at_ + line_ * stride_, stride_, Smaller(count, lines_ - line_)};
    line_ += next.count;
    return next;
  }

 private:
  // `runs` of `lines` pairs.
  void Set(int64_t stride, int64_t lines, int64_t run_stride, int64_t runs) {
    stride_ = stride;
    run_stride_ = run_stride;
    const bool one = run_stride == lines * stride;
    lines_ = one ? lines * runs : lines;
    runs_ = one ? 1 : runs;
  }

  const char* at_ = nullptr;  // the run at hand
  int64_t stride_ = 0, lines_ = 0, run_stride_ = 0, runs_ = 0;
  int64_t line_ = 0;  // of the run at hand
};

// One block of k for rows [row, row + rows) and columns [col, col + cols) of C.
struct BlockArgs {
  const GemmArgs* gemm = nullptr;
  const Method* method = nullptr;
  int64_t row = 0, rows = 0, col = 0, cols = 0;
  int64_t k = 0;
  const uint32_t* a = nullptr;  // packed slivers of this block of k
  const uint32_t* b = nullptr;
  int64_t b_sliver_words = 0;
  float* partial = nullptr;  // where partial chains rest, at (row, col); null: in C
  int64_t partial_ld = 0;
  bool first = false, last = false;  // of the blocks of k
  RowsToPack next;              // of A
  RowsToPack* later = nullptr;  // what has its turn when nothing else is left, or null
};

void RunBlock(const BlockArgs& block) {
  const GemmArgs& args = *block.gemm;
  const TileTable& tiles = *block.method->tiles;
  const int64_t a_steps = WordSteps(block.method->word_a, block.k);
  const bool c_is_float = args.c_dtype == DType::kF32;
  const bool finish = block.last && (!c_is_float || HasEpilogue(args));
  const bool plain = args.epilogue == GemmEpilogue::kNone && args.pre_activation == nullptr;
  const bool in_c = block.partial == nullptr;
  float* const c = c_is_float ? static_cast<float*>(args.c) : nullptr;
  alignas(64) float tile[kMR * kNR];
  const int64_t requests = RequestsOfTile(a_steps);
  RowsToPack next = block.next;

  // Which rows of memory the next tile loads or stores.
  const bool touches_c = in_c || block.last;
  const int64_t c_bytes = touches_c ? DTypeBytes(args.c_dtype) : 4;
  const char* const c_start =
      touches_c ? static_cast<const char*>(args.c) + (block.row * args.ldc + block.col) * c_bytes
                : reinterpret_cast<const char*>(block.partial);
  const int64_t c_stride = (touches_c ? args.ldc : block.partial_ld) * c_bytes;

  for (int64_t i = 0; i < block.rows; i += kMR) {
    const int64_t rows = Smaller(kMR, block.rows - i);
    const uint32_t* a = block.a + i * a_steps;
    const char* const next_a = reinterpret_cast<const char*>(a + rows * a_steps);
    const int64_t a_bytes = rows * a_steps * 4;
    const int64_t row = block.row + i;
    // Of a symmetric C the tiles left of the diagonal are mirrored later.
    const int64_t start =
        args.symmetric && row > block.col ? (row - block.col) / kNR * kNR : int64_t{0};
    for (int64_t j = start; j < block.cols; j += kNR) {
      const int64_t cols = Smaller(kNR, block.cols - j);
      const int64_t col = block.col + j;
      const uint32_t* b = block.b + j / kNR * block.b_sliver_words;
      const TileFunction run = tiles.tiles[rows][cols > kLanes ? 2 : 1];
      Ahead ahead;
      const bool last_col = j + kNR >= block.cols;
      ahead.c.at =
          c_start + (last_col ? i + kMR : i) * c_stride + (last_col ? 0 : j + kNR) * c_bytes;
      ahead.c.stride = c_stride;
      const int64_t asked = (j - start) / kNR * requests * kPairOfLines;  // bytes
      if (asked < a_bytes) ahead.a = {next_a + asked, kPairOfLines, requests};
      else ahead.a = next.Next(requests);
      if (ahead.a.count == 0 && block.later != nullptr) ahead.a = block.later->Next(requests);
      if (ahead.a.count == 0) ahead.a.at = reinterpret_cast<const char*>(a);
      // The chain continues from C (in `accumulate`, or where it rests there) or from `partial`.
      float* rest = in_c ? (c == nullptr ? nullptr : c + row * args.ldc + col)
                         : block.partial + i * block.partial_ld + j;
      const int64_t rest_ld = in_c ? args.ldc : block.partial_ld;
      const bool load = !block.first || args.accumulate;
      const bool whole = cols == kNR || cols == kLanes;
      TileEnds ends = {load ? rest : nullptr, rest_ld, rest, rest_ld, nullptr};
      if (!finish && (whole || !in_c)) {
        run(block.k, a, b, ends, ahead);
        continue;
      }
      if (finish && plain && cols == kNR) {
        const int64_t at = row * args.ldc + col;
        ends.to = static_cast<char*>(args.c) + at * DTypeBytes(args.c_dtype);
        ends.to_ld = args.ldc;
        if (args.bias != nullptr) ends.bias = args.bias + col;
        (c_is_float ? run : tiles.rounded[rows])(block.k, a, b, ends, ahead);
        continue;
      }
      if (load) {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t x = 0; x < cols; ++x) tile[r * kNR + x] = rest[r * rest_ld + x];
          for (int64_t x = cols; x < kNR; ++x) tile[r * kNR + x] = 0;
        }
        ends.from = tile;
        ends.from_ld = kNR;
      }
      ends.to = tile;
      ends.to_ld = kNR;
      run(block.k, a, b, ends, ahead);
      if (finish) {
        FinishTile(args, tile, kNR, row, rows, col, cols);
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t x = 0; x < cols; ++x) rest[r * rest_ld + x] = tile[r * kNR + x];
        }
      }
    }
  }
}

// Fills the block of B for columns [col, col + cols) and k steps from k_begin, or points into the
// packed operand; returns where it lies and the words from sliver to sliver.
const uint32_t* PrepareB(const GemmArgs& args, const Method& method, int64_t col, int64_t cols,
                         int64_t k_begin, int64_t k, uint32_t* buffer, int64_t* sliver_words) {
  if (method.packed == nullptr) {
    *sliver_words = WordSteps(method.word_b, k) * kNR;
    PackBBlock(args.b, args.n, col, cols, k_begin, k, method.word_b, *sliver_words, buffer);
    return buffer;
  }
  const PackedHeader* header = HeaderOf(args.packed_b);
  const Word stored = static_cast<Word>(header->word);
  const int64_t stored_words = WordSteps(stored, args.k) * kNR;
  const uint32_t* slivers =
      method.packed + col / kNR * stored_words + WordSteps(stored, k_begin) * kNR;
  if (!method.widen_packed) {
    *sliver_words = stored_words;
    return slivers;
  }
  *sliver_words = k * kNR;
  for (int64_t j = 0; j < cols; j += kNR) {
    WidenSliver(slivers + j / kNR * stored_words, k, buffer + j / kNR * *sliver_words);
  }
  return buffer;
}

// How a rectangle is walked.
struct Blocking {
  int64_t blocks_k = 1, block_k = 2;
  int64_t block_m = 0;  // rows for which B is packed once
  int64_t block_n = 0;  // columns between two packings of A
  int64_t cache_n = 0;  // columns of B in L2
  // A is packed for all k of block_m rows, or for one block of k, or in groups of rows next to
  // their use (again for each block of columns, so only where there are few).
  enum { kAllK, kOneK, kGroups } packing = kAllK;
};

Blocking ChooseBlocking(const GemmArgs& args, const Method& method, const Rectangle& part) {
  Blocking blocking;
  blocking.blocks_k = Larger(1, CeilDiv(args.k, BlockSteps(method.word_b)));
  blocking.block_k = Larger(2, RoundUp(CeilDiv(args.k, blocking.blocks_k), 2));
  const int64_t block_words = WordSteps(method.word_b, blocking.block_k);
  blocking.cache_n = Smaller(kWordsB / block_words / kNR * kNR, RoundUp(part.cols, kNR));
  const bool partial = args.c_dtype != DType::kF32 && blocking.blocks_k > 1;
  const int64_t rows_all_k =
      kWordsA / (blocking.block_k * blocking.blocks_k) / kMR * kMR;  // that fit the buffer
  const int64_t cache_blocks = CeilDiv(part.cols, blocking.cache_n);
  if (cache_blocks <= (args.a.transposed ? 1 : 2)) {
    blocking.packing = Blocking::kGroups;
    blocking.block_m = part.rows;
    blocking.block_n = part.cols;
  } else if (rows_all_k >= Smaller(part.rows, 1024)) {
    blocking.packing = Blocking::kAllK;
    blocking.block_m = Smaller(part.rows, rows_all_k);
    blocking.block_n = blocking.cache_n;
  } else {
    blocking.packing = Blocking::kOneK;
    blocking.block_m = Smaller(part.rows, kWordsA / blocking.block_k / kMR * kMR);
    blocking.block_n = part.cols;
    if (partial) blocking.block_n = Smaller(blocking.block_n, 1024);
  }
  if (partial) {
    const int64_t fit = kWordsPartial / RoundUp(blocking.block_n, kNR) / kMR * kMR;
    blocking.block_m = Smaller(blocking.block_m, fit);
  }
  if (blocking.block_m < part.rows) {  // even blocks
    const int64_t blocks = CeilDiv(part.rows, blocking.block_m);
    blocking.block_m = RoundUp(CeilDiv(part.rows, blocks), kMR);
  }
  return blocking;
}

// Asks for `later`, which may be null, on the way.
void RunRectangle(const GemmArgs& args, const Method& method, const Rectangle& part,
                  void* workspace, RowsToPack* later = nullptr) {
  uint32_t* const buffer_a = static_cast<uint32_t*>(workspace);
  uint32_t* const buffer_b = buffer_a + kWordsA + kSlack;
  float* const partial = reinterpret_cast<float*>(buffer_b + kWordsB + kSlack);
  const Blocking blocking = ChooseBlocking(args, method, part);
  const bool use_partial = args.c_dtype != DType::kF32 && blocking.blocks_k > 1;

  for (int64_t i = 0; i < part.rows; i += blocking.block_m) {
    const int64_t rows = Smaller(blocking.block_m, part.rows - i);
    for (int64_t j = 0; j < part.cols; j += blocking.block_n) {
      const int64_t cols = Smaller(blocking.block_n, part.cols - j);
      const int64_t partial_ld = RoundUp(cols, kNR);
      for (int64_t b = 0; b < blocking.blocks_k; ++b) {
        const int64_t k_begin = Smaller(args.k, b * blocking.block_k);
        BlockArgs block;
        block.later = later;
        block.gemm = &args;
        block.method = &method;
        block.k = Smaller(blocking.block_k, args.k - k_begin);
        block.first = b == 0;
        block.last = b == blocking.blocks_k - 1;
        uint32_t* a = buffer_a;
        // Rows are added up where they are packed for the first columns.
        const auto pack_a = [&](int64_t row, int64_t count, bool add_up, uint32_t* out) {
          PackA(args.a, args.m, row, count, k_begin, block.k, method.word_a, out);
          if (args.row_sums == nullptr || !add_up || part.col > 0 || j > 0) return;
          if (method.word_a == Word::kPair) {
            AddRows<Word::kPair>(out, count, block.k, args.row_sums + row);
          } else {
            AddRows<Word::kFloat>(out, count, block.k, args.row_sums + row);
          }
        };
        if (blocking.packing == Blocking::kAllK) a += rows * WordSteps(method.word_a, k_begin);
        if (blocking.packing == Blocking::kOneK ||
            (blocking.packing == Blocking::kAllK && j == 0)) {
          pack_a(part.row + i, rows, true, a);
        }
        for (int64_t jj = 0; jj < cols; jj += blocking.cache_n) {
          block.col = part.col + j + jj;
          block.cols = Smaller(blocking.cache_n, cols - jj);
          if (args.symmetric && block.col + block.cols <= part.row + i) continue;
          block.b = PrepareB(args, method, block.col, block.cols, k_begin, block.k, buffer_b,
                             &block.b_sliver_words);
          block.partial_ld = partial_ld;
          const int64_t group = blocking.packing == Blocking::kGroups ? kGroupRows : rows;
          for (int64_t g = 0; g < rows; g += group) {
            block.row = part.row + i + g;
            block.rows = Smaller(group, rows - g);
            if (blocking.packing == Blocking::kGroups) {
              pack_a(block.row, block.rows, jj == 0, a);
            }
            block.a = a;
            if (use_partial) block.partial = partial + g * partial_ld + jj;
            if (blocking.packing == Blocking::kGroups) {
              const int64_t next = block.row + block.rows;
              block.next = RowsToPack(args.a, next, Smaller(group, args.m - next), k_begin, block.k);
            }
            RunBlock(block);
          }
        }
      }
    }
  }
}

// ------------------------------------------------------------------------------------- the cuts

struct Cut {
  int64_t row_parts = 1, col_parts = 1;
};

// The grid of rectangles with the least time for the slowest thread, packing included: each of A's
// elements is packed once for every column part and B's once for every row part. In units of one
// multiply-add, about 14 for a packed element.
Cut ChooseCut(const GemmArgs& args, int threads) {
  constexpr double kPackCost = 14;
  const double work = static_cast<double>(args.m) * static_cast<double>(args.n) *
                      static_cast<double>(args.k < 1 ? 1 : args.k);
  const int64_t useful = static_cast<int64_t>(work / kMinWorkPerThread);
  const int64_t limit = Larger(1, Smaller(threads, useful));
  const int64_t row_slivers = CeilDiv(args.m, kMR), col_slivers = CeilDiv(args.n, kNR);
  Cut best;
  double best_cost = -1;
  for (int64_t row_parts = 1; row_parts <= limit && row_parts <= row_slivers; ++row_parts) {
    const int64_t col_parts = Smaller(limit / row_parts, col_slivers);
    const double rows = static_cast<double>(CeilDiv(row_slivers, row_parts) * kMR);
    const double cols = static_cast<double>(CeilDiv(col_slivers, col_parts) * kNR);
    const double cost = rows * cols + kPackCost * (rows + (args.packed_b == nullptr ? cols : 0.0));
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = Cut{row_parts, col_parts};
    }
  }
  return best;
}

Rectangle PartOf(const GemmArgs& args, const Cut& cut, int64_t index) {
  const int64_t row_slivers = CeilDiv(args.m, kMR), col_slivers = CeilDiv(args.n, kNR);
  const int64_t i = index / cut.col_parts, j = index % cut.col_parts;
  const int64_t row = row_slivers * i / cut.row_parts * kMR;
  const int64_t row_end = Smaller(args.m, row_slivers * (i + 1) / cut.row_parts * kMR);
  const int64_t col = col_slivers * j / cut.col_parts * kNR;
  const int64_t col_end = Smaller(args.n, col_slivers * (j + 1) / cut.col_parts * kNR);
  return Rectangle{row, row_end - row, col, col_end - col};
}

// The row at which part `index` of `parts` begins when a triangle of n rows is cut into equal
// areas.
int64_t TriangleRow(int64_t n, int64_t index, int64_t parts) {
  if (index >= parts) return n;
  const double rest = 1.0 - static_cast<double>(index) / static_cast<double>(parts);
  const double row = static_cast<double>(n) * (1.0 - __builtin_sqrt(rest));
  return static_cast<int64_t>(row) / kMR * kMR;
}

Rectangle TrianglePart(int64_t n, int64_t index, int64_t parts) {
  const int64_t row = TriangleRow(n, index, parts);
  const int64_t col = row / kNR * kNR;
  return Rectangle{row, TriangleRow(n, index + 1, parts) - row, col, n - col};
}

void* ThreadWorkspace(void* workspace, int64_t thread) {
  return static_cast<uint32_t*>(workspace) + thread * kThreadWords;
}

// ---------------------------------------------------------------------------- shares of a product

// How a product is dealt out: items are slivers of kMR rows within one of `groups` of columns.
struct Deal {
  int64_t row_slivers = 0, col_slivers = 0, groups = 1;
  int64_t least = 1;    // items that are worth taking at a time
  int64_t phase_k = 0;  // steps of k whose B is packed together; all where B came packed
};

// Multiply-adds that a thread needs to gain from shares, and those of the least part.
constexpr double kSharedWork = 4e6, kLeastWork = 4e6;
constexpr int64_t kLeastSlivers = 2;
constexpr int64_t kGroupSlivers = 256 / kNR;  // columns of a group, at least
// Elements of B that are packed in a phase, or one block of k where that is more: what is packed, of
// A and of B, is multiplied while it is in a cache.
constexpr int64_t kPhaseElements = int64_t{1} << 18;
constexpr int64_t kPhaseGrain = 32;  // steps: phases are equal but for so many

// Whether shares pay, and how they are cut: a part costs a packing of its rows of A for each group
// of columns, so there is one group unless that leaves too few parts.
bool ChooseDeal(const GemmArgs& args, int threads, Deal* deal) {
  const double work = static_cast<double>(args.m) * static_cast<double>(args.n) *
                      static_cast<double>(args.k);
  if (threads == 1 || args.symmetric || work < kSharedWork * threads) return false;
  deal->row_slivers = CeilDiv(args.m, kMR);
  deal->col_slivers = CeilDiv(args.n, kNR);
  const int64_t wanted = int64_t{8} * kLeastSlivers * threads;  // items
  const int64_t most = Larger(1, deal->col_slivers / kGroupSlivers);
  deal->groups = Smaller(most, CeilDiv(wanted, deal->row_slivers));
  // Where B is the larger operand each thread has columns of its own, as long as that makes wide groups.
  if (args.n > args.m) deal->groups = Larger(deal->groups, Smaller(most / 2, threads));
  const int64_t items = deal->row_slivers * deal->groups;
  if (items < 2 * kLeastSlivers * threads) return false;
  deal->phase_k = args.k;
  if (args.packed_b == nullptr) {
    const int64_t columns = deal->col_slivers * kNR;
    // Between phases the chains rest in C, which takes all of them in fp32 alone.
    if (args.c_dtype == DType::kF32) {
      // Of a transposed A a part reads short runs of many rows, a page each: few enough are known.
      const int64_t block = BlockSteps(ChooseMethod(args, args.m).word_b);
      const int64_t fit = args.a.transposed ? block : Larger(block, kPhaseElements / columns);
      deal->phase_k = RoundUp(CeilDiv(args.k, CeilDiv(args.k, fit)), kPhaseGrain);
    }
    if (deal->phase_k * columns > kWordsShared - kHeaderWords) return false;
  }
  const double item_work = static_cast<double>(args.m) * static_cast<double>(args.n) *
                           static_cast<double>(deal->phase_k) / static_cast<double>(items);
  deal->least = Larger(kLeastSlivers, static_cast<int64_t>(kLeastWork / item_work));
  return true;
}

// The least part of a product that is dealt out in slivers of columns, or 0 where it is not: B is too
// wide to be packed as a whole, so each part packs its own columns, and its rows of A again.
int64_t ColumnShare(const GemmArgs& args, int threads) {
  constexpr int64_t kLeastColumns = 512;
  if (threads == 1 || args.symmetric || args.packed_b != nullptr) return 0;
  return args.n >= 8 * kLeastColumns * threads ? kLeastColumns / kNR : 0;
}

// The items [begin, end) of a deal: ranges of rows in one or several groups of columns.
void RunItems(const GemmArgs& args, const Method& method, const Deal& deal, int64_t begin,
              int64_t end, RowsToPack later, void* workspace) {
  while (begin < end) {
    const int64_t group = begin / deal.row_slivers, first = begin % deal.row_slivers;
    const int64_t last = Smaller(deal.row_slivers, first + end - begin);
    const int64_t col = deal.col_slivers * group / deal.groups * kNR;
    const int64_t col_end =
        Smaller(args.n, deal.col_slivers * (group + 1) / deal.groups * kNR);
    const int64_t row_end = Smaller(args.m, last * kMR);
    RunRectangle(args, method,
                 Rectangle{first * kMR, row_end - first * kMR, col, col_end - col}, workspace, &later);
    begin += last - first;
  }
}

int64_t PackedBytes(int64_t k, int64_t n, DType storage, Compute compute);
void PackWhole(const MatrixRef& b, int64_t k, int64_t n, DType storage, Compute compute,
               void* packed, ThreadPool& pool);

void RunDeal(const GemmArgs& args, const Deal& deal, void* workspace, ThreadPool& pool) {
  const int64_t items = deal.row_slivers * deal.groups;
  void* const shared = ThreadWorkspace(workspace, pool.num_threads());
  for (int64_t k = 0; k == 0 || k < args.k; k += deal.phase_k) {
    GemmArgs phase = args;
    phase.k = Smaller(deal.phase_k, args.k - k);
    if (args.packed_b == nullptr) {
      const auto skip = [k](MatrixRef& x, bool rows) {
        const int64_t elements = rows ? k * x.ld : k;
        x.data = static_cast<const char*>(x.data) + elements * DTypeBytes(x.dtype);
      };
      skip(phase.a, args.a.transposed);
      skip(phase.b, !args.b.transposed);
      // Pairs only where they are multiplied as such; else bf16 is widened on the way.
      const bool pairs = ChooseMethod(args, args.m).word_b == Word::kPair;
      PackWhole(phase.b, phase.k, args.n, pairs ? DType::kBf16 : DType::kF32, args.compute, shared,
                pool);
      phase.packed_b = shared;
      phase.accumulate = args.accumulate || k > 0;
      if (k + phase.k < args.k) {
        phase.bias = nullptr;
        phase.epilogue = GemmEpilogue::kNone;
        phase.pre_activation = nullptr;
      }
    }
    const Method method = ChooseMethod(phase, args.m / pool.num_threads());
    const int64_t rest = Smaller(args.k - k - phase.k, deal.phase_k);
    // The thread that packed a group of columns has them in its caches.
    const int64_t least_moved = deal.groups > 1 ? 2 * deal.least : 1;
    const auto run = [&](int thread, int64_t begin, int64_t end) {
      // Each part asks for its columns of the B that is packed next, where B is most of the operands.
      RowsToPack later;
      if (args.packed_b == nullptr && rest > 0 && args.n > args.m) {
        MatrixRef columns = args.b;
        columns.transposed = !args.b.transposed;
        const int64_t col = args.n * begin / items, col_end = args.n * end / items;
        later = RowsToPack(columns, col, col_end - col, k + phase.k, rest);
      }
      RunItems(phase, method, deal, begin, end, later, ThreadWorkspace(workspace, thread));
    };
    pool.RunShares(items, deal.least, run, least_moved);
  }
}

// ------------------------------------------------------------------------------------ the table

int64_t WorkspaceBytes(int num_threads) {
  return (num_threads * kThreadWords + (num_threads > 1 ? kWordsShared + kSlack : 0)) * 4;
}

void RunGemm(const GemmArgs& args, void* workspace, ThreadPool& pool) {
  if (TakesSmallPath(args)) {
    const int64_t grain = SmallGrain(args);
    const double work =
        static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k);
    if (work < 2 * kMinWorkPerThread) {
      RunSmall(args, 0, args.n, static_cast<float*>(workspace));
      return;
    }
    // Parts of B that are long beside the latency of memory: cores do not read equally fast.
    constexpr int64_t kLeastElements = int64_t{1} << 15;
    pool.RunShares(CeilDiv(args.n, grain), CeilDiv(kLeastElements, args.k * grain),
                   [&](int thread, int64_t begin, int64_t end) {
                     RunSmall(args, begin * grain, Smaller(args.n, end * grain),
                              static_cast<float*>(ThreadWorkspace(workspace, thread)));
                   });
    return;
  }
  Deal deal;
  if (ChooseDeal(args, pool.num_threads(), &deal)) {
    RunDeal(args, deal, workspace, pool);
    return;
  }
  if (const int64_t least = ColumnShare(args, pool.num_threads()); least > 0) {
    const Method method = ChooseMethod(args, args.m);
    pool.RunShares(CeilDiv(args.n, kNR), least, [&](int thread, int64_t begin, int64_t end) {
      const int64_t col = begin * kNR;
      RunRectangle(args, method, Rectangle{0, args.m, col, Smaller(args.n, end * kNR) - col},
                   ThreadWorkspace(workspace, thread));
    });
    return;
  }
  const Cut cut = ChooseCut(args, pool.num_threads());
  const int64_t parts = cut.row_parts * cut.col_parts;
  const Method method = ChooseMethod(args, args.m / cut.row_parts);
  if (parts == 1) {
    ThreadPool::RunAlone(static_cast<double>(args.m * args.n * args.k), [&] {
      RunRectangle(args, method, Rectangle{0, args.m, 0, args.n}, workspace);
      if (args.symmetric) MirrorRows(args, 0, args.m);
    });
    return;
  }
  if (args.symmetric) {
    pool.Run([&](int thread) {
      if (thread >= parts) return;
      const Rectangle part = TrianglePart(args.m, thread, parts);
      CountPart(thread, 0.5 * static_cast<double>(part.rows * (2 * part.cols - part.rows) * args.k));
      if (part.rows > 0) RunRectangle(args, method, part, ThreadWorkspace(workspace, thread));
    });
    pool.ParallelForGrain(args.m, kLanes,
                          [&](int64_t begin, int64_t end) { MirrorRows(args, begin, end); });
    return;
  }
  pool.Run([&](int thread) {
    if (thread >= parts) return;
    const Rectangle part = PartOf(args, cut, thread);
    CountPart(thread, static_cast<double>(part.rows * part.cols * args.k));
    RunRectangle(args, method, part, ThreadWorkspace(workspace, thread));
  });
}

void RunBatch(const GemmArgs* args, int64_t count, void* workspace, ThreadPool& pool) {
  const int64_t threads = pool.num_threads();
  const int64_t whole = threads > 1 ? count / threads * threads : count;
  if (whole > 0) {
    pool.Run([&](int thread) {
      void* own = ThreadWorkspace(workspace, thread);
      for (int64_t i = whole * thread / threads; i < whole * (thread + 1) / threads; ++i) {
        const GemmArgs& one = args[i];
        if (one.m == 0 || one.n == 0) continue;
        CountPart(thread, static_cast<double>(one.m * one.n * one.k));
        if (TakesSmallPath(one)) {
          RunSmall(one, 0, one.n, static_cast<float*>(own));
        } else {
          RunRectangle(one, ChooseMethod(one, one.m), Rectangle{0, one.m, 0, one.n}, own);
          if (one.symmetric) MirrorRows(one, 0, one.m);
        }
      }
    });
  }
  // What does not fill all threads is cut inside each product.
  for (int64_t i = whole; i < count; ++i) {
    if (args[i].m > 0 && args[i].n > 0) RunGemm(args[i], workspace, pool);
  }
}

int64_t PackedBytes(int64_t k, int64_t n, DType storage, Compute /*compute*/) {
  const int64_t words = CeilDiv(n, kNR) * kNR * WordSteps(StorageWord(storage), k);
  return static_cast<int64_t>(sizeof(PackedHeader)) + words * 4;
}

void PackWhole(const MatrixRef& b, int64_t k, int64_t n, DType storage, Compute /*compute*/,
               void* packed, ThreadPool& pool) {
  const Word word = StorageWord(storage);
  PackedHeader* header = static_cast<PackedHeader*>(packed);
  *header = PackedHeader{kPackedMagic, k, n, kNR, static_cast<int64_t>(word), {}};
  uint32_t* words = reinterpret_cast<uint32_t*>(header + 1);
  const int64_t sliver_words = WordSteps(word, k) * kNR;
  const int64_t col_slivers = CeilDiv(n, kNR), blocks_k = Larger(1, CeilDiv(k, kBlockWords));
  // Column by column, so that a thread packs those that it multiplies where a deal has groups of them.
  const int64_t together =
      Smaller(kSliversTogether, Larger(1, col_slivers / (4 * pool.num_threads())));
  pool.ParallelFor(CeilDiv(col_slivers, together) * blocks_k, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / blocks_k * together, step = item % blocks_k * kBlockWords;
      const int64_t last = Smaller(col_slivers, first + together), col = first * kNR;
      PackBBlock(b, n, col, Smaller(n, last * kNR) - col, step, Smaller(kBlockWords, k - step), word,
                 sliver_words, words + first * sliver_words + WordSteps(word, step) * kNR);
    }
  });
}

// Enough independent chains to hide the latency of the multiplier on every processor known.
#if defined(__AVX512F__)
constexpr int kPeakChains = 24;
#else
constexpr int kPeakChains = 12;
#endif

double PeakF32(int64_t iterations) {
  F32 acc[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) acc[i] = Set(static_cast<float>(i));
  F32 factor = Set(0.5f), term = Set(1.0f);
#if defined(__GNUC__) && defined(__x86_64__)
  asm volatile("" : "+v"(factor), "+v"(term));
#endif
  for (int64_t step = 0; step < iterations; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < kPeakChains; ++i) acc[i] = Fma(acc[i], factor, term);
  }
  F32 total = Zero();
  for (int i = 0; i < kPeakChains; ++i) total = total + acc[i];
  volatile float sink = Sum(total);
  static_cast<void>(sink);
  return 2.0 * static_cast<double>(kLanes) * kPeakChains * static_cast<double>(iterations);
}

#if defined(__AVX512BF16__)
double PeakBf16(int64_t iterations) {
  F32 acc[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) acc[i] = Set(static_cast<float>(i));
  U32 a = Bits(Set(0.5f)), b = Bits(Set(0.25f));
  asm volatile("" : "+v"(a), "+v"(b));
  for (int64_t step = 0; step < iterations; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < kPeakChains; ++i) acc[i] = DotPairs(acc[i], a, b);
  }
  F32 total = Zero();
  for (int i = 0; i < kPeakChains; ++i) total = total + acc[i];
  volatile float sink = Sum(total);
  static_cast<void>(sink);
  return 4.0 * static_cast<double>(kLanes) * kPeakChains * static_cast<double>(iterations);
}
#endif

}  // namespace

void FillGemm(KernelTable& table) {
  table.gemm = RunGemm;
  table.gemm_batch = RunBatch;
  table.gemm_workspace_bytes = WorkspaceBytes;
  table.packed_b_bytes = PackedBytes;
  table.pack_b = PackWhole;
  table.bf16_chain_grain = kHasBf16Dot ? 2 : 1;
  table.peak_f32 = PeakF32;
#if defined(__AVX512BF16__)
  table.peak_bf16 = PeakBf16;
#endif
}

}  // namespace tessera::kernels::TESSERA_ISA
