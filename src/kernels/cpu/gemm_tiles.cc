// Products of bf16 on the tiles of AMX; all others are those of the set without them.
//
// A and B are cut into slivers of 32 rows and 32 columns; a tile of C is one of each. One operand is
// shared by all threads (B, or A as it lies in memory), slivers of the other are dealt out: the
// thread that takes some packs them, a chunk of k and as many as fit its L2 at a time, and multiplies
// them with every sliver of the shared operand:
//   blocks of own slivers -> chunks of k -> shared slivers -> blocks of k (the shared sliver's part
//   stays in L1) -> own slivers -> tiles.
// Own slivers stream from L2 past what stays in L1; a shared sliver of A that is read in place gets there
// as a copy in one piece (docs/decisions/0016). Between blocks of k the chains of a tile of C rest
// in a buffer of the thread; what finished tiles need before they are C is done among the products of
// the next one.
#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_mirror.h"
#include "kernels/cpu/gemm_small.h"
#include "kernels/cpu/gemm_tiles_pack.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels {
// The set whose products serve whatever tiles don't.
namespace TESSERA_PLAIN_ISA {
void FillGemm(KernelTable& table);
}
}  // namespace tessera::kernels

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr int64_t kChunkSteps = 48;  // of k, packed at a time; 32 of k each
constexpr int64_t kBlockSteps = 16;
constexpr int64_t kChunkBlocks = kChunkSteps / kBlockSteps;
constexpr int64_t kOwnBytes = int64_t{768} << 10;  // packed own slivers
constexpr int64_t kPackedSteps = 16;  // of the shared B, that a thread packs at a time
constexpr int64_t kEdgeBytes = kChunkSteps * kStepBytes;
constexpr int64_t kCopyBytes = kBlockSteps * kStepBytes;  // a sliver of A over a block
constexpr int64_t kPartialTiles = 256;  // tiles of C whose chains rest
constexpr int64_t kTileFloats = kSliver * kSliver;
constexpr int64_t kThreadBytes =
    kOwnBytes + kEdgeBytes + kCopyBytes + kPartialTiles * kTileFloats * 4;
constexpr int64_t kSharedBytes = int64_t{24} << 20;  // the shared operand, packed

// Multiply-adds a thread that pay for a parallel region.
constexpr double kMinWorkPerThread = 1 << 20;

struct PackedHeader {
  uint64_t magic;
  int64_t k, n;
  int64_t unused[5];
};
static_assert(sizeof(PackedHeader) == 64);
constexpr uint64_t kPackedMagic = 0x31545842'6b636150;  // "PackBXT1"

int64_t StepsOf(int64_t k) { return CeilDiv(k, kTileSteps); }

bool IsPackedForTiles(const void* packed_b) {
  return packed_b != nullptr && static_cast<const PackedHeader*>(packed_b)->magic == kPackedMagic;
}

// Slivers of one operand that tiles can be loaded from, over one block of k; all in bytes.
struct Slivers {
  const char* data = nullptr;
  int64_t sliver = 0;           // from sliver to sliver
  int64_t step = kStepBytes;    // from step to step of k
  int64_t row = 64;             // from row to row of a tile
  int64_t second = kTileBytes;  // from the first to the second tile of a step
  // Sliver `apart_index` lies there instead, packed: the last one, as rows past its end can't be read, or
  // one that was copied.
  const char* apart = nullptr;
  int64_t apart_index = -1;

  TESSERA_INLINE TileInput At(int64_t index) const {
    if (index == apart_index) return {apart, kStepBytes, 64, kTileBytes};
    return {data + index * sliver, step, row, second};
  }
};

// The own slivers that are packed next, those of the next chunk of k or of the next block, asked for into L2 in
// the order of memory while the ones before them are multiplied. Where chains rest, they take up most of what
// that needs of L2 (AsksBetweenChunks).
class NextOwn {
 public:
  // `rows` rows of `bytes`, `stride` bytes apart, in equal shares over `steps` calls of Ask.
  void Begin(const char* data, int64_t stride, int64_t rows, int64_t bytes, int64_t steps) {
    const int64_t skipped = reinterpret_cast<uintptr_t>(data) % 64;
    row_ = data - skipped;
    stride_ = stride;
    rows_ = rows;
    bytes_ = bytes + skipped;
    offset_ = 0;
    lines_ = CeilDiv(rows * CeilDiv(bytes_, 64), Larger(1, steps));
  }

  TESSERA_INLINE void Ask() {
    for (int64_t i = 0; i < lines_ && rows_ > 0; ++i) {
      __builtin_prefetch(row_ + offset_, 0, 2);
      offset_ += 64;
      if (offset_ < bytes_) continue;
      offset_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  const char* row_ = nullptr;
  int64_t stride_ = 0, rows_ = 0, bytes_ = 0, offset_ = 0;
  int64_t lines_ = 0;  // a step
};

// What is asked for among the steps of a tile: rows of the next shared sliver, the next tile of C, and what
// is packed next. Lines that lie side by side have their turns after different products: two requests in a row
// for neighbours take longer (docs/decisions/0018).
struct Ahead {
  const char* shared = nullptr;  // the first of `shared_rows` rows, or null
  int64_t shared_step = 0, shared_row = 0, shared_rows = 0;
  const char* c = nullptr;  // or null
  int64_t c_row = 0, c_lines = 0, c_rows = 0;  // lines of a row, rows a step
  NextOwn* own = nullptr;

  // After product kProduct of a step.
  template <int kProduct>
  TESSERA_INLINE void Ask(int64_t step) const {
    if constexpr (kProduct == 0) AskShared(step, 0);
    if constexpr (kProduct == 1) AskC(step, 0);
    if constexpr (kProduct == 2) {
      own->Ask();
      AskShared(step, 1);
    }
    if constexpr (kProduct == 3) AskC(step, 1);
  }

 private:
  TESSERA_INLINE void AskShared(int64_t step, int64_t first) const {
    if (shared == nullptr) return;
    const char* line = shared + step * shared_step;
    for (int64_t r = first; r < shared_rows; r += 2) __builtin_prefetch(line + r * shared_row, 0, 2);
  }
  TESSERA_INLINE void AskC(int64_t step, int64_t line) const {
    if (c == nullptr || line >= c_lines) return;
    const char* at = c + step * c_rows * c_row + line * 64;
    for (int64_t r = 0; r < c_rows; ++r, at += c_row) __builtin_prefetch(at, 1);
  }
};

// One product: who owns what.
struct Job {
  const GemmArgs* args = nullptr;
  bool rows_owned = false;  // threads own rows of A and share B; else the other way round
  bool direct_a = false;    // tiles of A are loaded from the matrix itself
  int64_t row_slivers = 0, col_slivers = 0;
  int64_t steps = 0;        // of k
  int64_t chunk_steps = 1;  // even chunks
  int64_t own_slivers = 1;  // of a block

  int64_t owned() const { return rows_owned ? row_slivers : col_slivers; }
  int64_t shared() const { return rows_owned ? col_slivers : row_slivers; }
};

// Tiles are loaded from A itself where its rows lie on lines of the cache and end with whole steps.
bool CanLoadDirectly(const GemmArgs& args) {
  const MatrixRef& a = args.a;
  return !a.transposed && args.row_sums == nullptr &&
         (args.k % kTileSteps == 0 || args.a_padded) && a.ld % kTileSteps == 0 &&
         reinterpret_cast<uintptr_t>(a.data) % 64 == 0;
}

Job MakeJob(const GemmArgs& args, int64_t threads) {
  Job job;
  job.args = &args;
  job.direct_a = CanLoadDirectly(args);
  job.row_slivers = CeilDiv(args.m, kSliver);
  job.col_slivers = CeilDiv(args.n, kSliver);
  job.steps = StepsOf(args.k);
  const int64_t chunks = Larger(1, CeilDiv(job.steps, kChunkSteps));
  job.chunk_steps = Larger(1, CeilDiv(job.steps, chunks));
  if (args.packed_b != nullptr) {
    job.rows_owned = true;
  } else if (job.direct_a) {
    // Nothing has to be packed together where columns are dealt out.
    job.rows_owned = job.col_slivers < 8 * threads && job.row_slivers > job.col_slivers;
  } else {
    job.rows_owned = job.row_slivers >= job.col_slivers;  // the smaller operand is shared
  }
  // Own rows a multiple of 4 KB apart would fall on one set of L1; shared ones are copied (RunStrip).
  if (job.rows_owned && args.a.ld % 2048 == 0) job.direct_a = false;
  job.own_slivers =
      Larger(1, Smaller(kOwnBytes / (job.chunk_steps * kStepBytes), kPartialTiles));
  return job;
}

struct ThreadBuffers {
  char* own;
  char* edge;
  char* copy;
  float* partial;
};

ThreadBuffers BuffersOf(void* workspace, int64_t thread) {
  char* base = static_cast<char*>(workspace) + thread * kThreadBytes;
  char* const edge = base + kOwnBytes;
  char* const copy = edge + kEdgeBytes;
  return {base, edge, copy, reinterpret_cast<float*>(copy + kCopyBytes)};
}

// A tile of C over a block of k.
struct TileTask {
  int64_t row_sliver, col_sliver;
  int64_t steps;
  bool first, last;  // of all k
  float* partial;    // [32][32] where its chains rest
  char* copy;        // where A's tiles are stored as well, or null
  Ahead ahead;
};

// A tile of finished sums on its way to C: some rows at a time among the products of the next tile, so
// that its additions, rounding and stores need no time of their own.
class Finishing {
 public:
  // Where the sums of the next tile go; the tile before may still be on its way.
  float* Buffer() { return buffers_[next_]; }
  // The next tile's sums are there; nothing may be left of the tile before.
  void Begin(const GemmArgs& args, int64_t row, int64_t rows, int64_t col, int64_t cols) {
    args_ = &args;
    tile_ = buffers_[next_];
    next_ ^= 1;
    row_ = row;
    col_ = col;
    cols_ = cols;
    left_ = rows;
    rounds_ = args.c_dtype == DType::kBf16 && args.epilogue == GemmEpilogue::kNone &&
              args.pre_activation == nullptr && cols == kSliver;
  }
  TESSERA_INLINE void Rows(int64_t most) {
    if (left_ == 0) return;
    const int64_t rows = Smaller(most, left_);
    if (rounds_) RoundRows<kSliver / kLanes>(*args_, tile_, row_, rows, col_);
    else FinishTile(*args_, tile_, kSliver, row_, rows, col_, cols_);
    tile_ += rows * kSliver;
    row_ += rows;
    left_ -= rows;
  }
  void All() { Rows(kSliver); }

 private:
  const GemmArgs* args_ = nullptr;
  alignas(64) float buffers_[2][kTileFloats];
  int next_ = 0;
  const float* tile_ = nullptr;
  int64_t row_ = 0, col_ = 0, cols_ = 0, left_ = 0;
  bool rounds_ = false;  // a bias at most, whole rows
};

void RunTile(const Job& job, const Slivers& a, const Slivers& b, const TileTask& task,
             Finishing* finishing) {
  const GemmArgs& args = *job.args;
  const int64_t row = task.row_sliver * kSliver, col = task.col_sliver * kSliver;
  const int64_t rows = Smaller(kSliver, args.m - row), cols = Smaller(kSliver, args.n - col);
  const bool whole = rows == kSliver && cols == kSliver;
  float* const c = args.c_dtype == DType::kF32
                       ? static_cast<float*>(args.c) + row * args.ldc + col
                       : nullptr;
  const float* from = nullptr;
  int64_t from_ld = kSliver;
  if (!task.first) {
    from = task.partial;
  } else if (args.accumulate) {
    from = c;
    from_ld = args.ldc;
    if (!whole) {
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(task.partial + r * kSliver, c + r * args.ldc, static_cast<size_t>(cols) * 4);
      }
      from = task.partial;
      from_ld = kSliver;
    }
  }
  const bool into_c = task.last && whole && c != nullptr && !HasEpilogue(args);
  float* const to = into_c ? c : task.last ? finishing->Buffer() : task.partial;
  const int64_t to_ld = into_c ? args.ldc : kSliver;
  const int64_t finished_rows = RoundUp(CeilDiv(kSliver, task.steps), 2);
  const auto multiply = [&](auto streamed) TESSERA_INLINE_LAMBDA {
    MultiplyPart<streamed()>(rows, cols, task.steps, a.At(task.row_sliver), b.At(task.col_sliver),
                             from, from_ld, to, to_ld, task.copy,
                             [&](int64_t step, auto product) TESSERA_INLINE_LAMBDA {
                               if constexpr (product() == 1) finishing->Rows(finished_rows);
                               task.ahead.Ask<product()>(step);
                             });
  };
  if (job.rows_owned) multiply(std::integral_constant<Streamed, Streamed::kA>{});
  else multiply(std::integral_constant<Streamed, Streamed::kB>{});
  if (task.last && !into_c) finishing->Begin(args, row, rows, col, cols);
}

// What a thread's own slivers are multiplied with: [begin, end) of the shared operand.
struct SharedPart {
  const char* packed = nullptr;  // sliver `begin`, all k; null: A as it lies in memory
  int64_t begin = 0, end = 0;
  bool add_up = false;  // rows of A that are packed meanwhile are added up too
};

// Steps of k: a block of a chunk.
struct Block {
  int64_t chunk, chunk_steps;
  int64_t begin, steps;  // within the chunk
};

// Packs the thread's own slivers [begin, end) over a block, and the last rows of A where it is read in
// place and they are no whole sliver. Blocks lie one after the other, each with all of its slivers.
void PackOwn(const Job& job, const SharedPart& shared, int64_t begin, int64_t end,
             const Block& block, const ThreadBuffers& buffers) {
  const GemmArgs& args = *job.args;
  const int64_t step = block.chunk + block.begin, bytes = block.steps * kStepBytes;
  char* const own = buffers.own + (end - begin) * block.begin * kStepBytes;
  if (!job.rows_owned) {
    PackTilesB(args.b, args.n, args.k, begin, end - begin, step, block.steps, bytes, own);
  } else if (!job.direct_a) {
    PackTilesA(args.a, args.m, args.k, begin, end - begin, step, block.steps,
               shared.add_up ? args.row_sums : nullptr, bytes, own);
  }
  if (job.direct_a && args.m % kSliver != 0) {
    PackTilesA(args.a, args.m, args.k, job.row_slivers - 1, 1, step, block.steps, nullptr, bytes,
               buffers.edge + block.begin * kStepBytes);
  }
}

// Both operands over a block.
void ViewBlock(const Job& job, const SharedPart& shared, int64_t begin, int64_t end,
               const Block& block, const ThreadBuffers& buffers, Slivers* a, Slivers* b) {
  const GemmArgs& args = *job.args;
  const int64_t step = block.chunk + block.begin;
  Slivers own, other;
  own.sliver = block.steps * kStepBytes;
  own.data = buffers.own + (end - begin) * block.begin * kStepBytes - begin * own.sliver;
  other.sliver = job.steps * kStepBytes;
  other.data = shared.packed - shared.begin * other.sliver + step * kStepBytes;
  *a = job.rows_owned ? own : other;
  *b = job.rows_owned ? other : own;
  if (!job.direct_a) return;
  a->data = static_cast<const char*>(args.a.data) + step * 64;
  a->row = args.a.ld * 2;
  a->sliver = kSliver * a->row;
  a->step = 64;
  a->second = kTileRows * a->row;
  if (args.m % kSliver != 0) {
    a->apart = buffers.edge + block.begin * kStepBytes;
    a->apart_index = job.row_slivers - 1;
  }
}

// The tiles of one shared sliver over a block of k.
struct StripTask {
  int64_t begin, end;  // own slivers
  int64_t shared;
  bool first, last;
  bool resumes;    // chains that rested while other shared slivers had their turn
  float* partial;  // of the first own sliver
  TileInput next = {};  // the shared sliver that is wanted next; data is null without one
  NextOwn* next_own = nullptr;
};

void RunStrip(const Job& job, Slivers a, const Slivers& b, int64_t steps, const StripTask& strip,
              char* copy, Finishing* finishing) {
  const GemmArgs& args = *job.args;
  const int64_t own_count = strip.end - strip.begin;
  TileTask task = {};
  // Rows of A itself may fall on few sets of L1: the first own sliver leaves them in one piece.
  const bool copies = job.direct_a && !job.rows_owned && strip.shared != a.apart_index;
  if (copies && own_count > 1) task.copy = copy;
  task.steps = steps;
  task.first = strip.first;
  task.last = strip.last;
  task.partial = strip.partial;
  Ahead& ahead = task.ahead;
  ahead.own = strip.next_own;
  const int64_t element = DTypeBytes(args.c_dtype);
  if ((strip.first && args.accumulate) || strip.last) {
    ahead.c_row = args.ldc * element;
    ahead.c_lines = element / 2;
    ahead.c_rows = CeilDiv(kSliver, Larger(1, steps));
  } else if (strip.resumes) {
    ahead.c_row = kSliver * 4;
    ahead.c_lines = 2;
    ahead.c_rows = CeilDiv(kSliver, Larger(1, steps));
  }
  const int64_t next_rows = CeilDiv(kSliver, own_count);
  ahead.shared_step = strip.next.step;
  ahead.shared_row = strip.next.row;
  for (int64_t own = strip.begin; own < strip.end; ++own, task.partial += kTileFloats) {
    task.row_sliver = job.rows_owned ? own : strip.shared;
    task.col_sliver = job.rows_owned ? strip.shared : own;
    // Of a symmetric C the tiles left of the diagonal are mirrored later.
    if (args.symmetric && task.col_sliver < task.row_sliver) continue;
    const int64_t row = (own - strip.begin) * next_rows;
    ahead.shared_rows = strip.next.data == nullptr ? 0 : Smaller(next_rows, kSliver - row);
    ahead.shared = ahead.shared_rows <= 0 ? nullptr : strip.next.data + row * strip.next.row;
    if (strip.next.row == 64) {  // packed: in the order of memory, which the processor follows
      ahead.shared_step = ahead.shared_rows * 64;
      if (ahead.shared != nullptr) ahead.shared = strip.next.data + row * steps * 64;
    }
    ahead.c = nullptr;
    if (strip.resumes) {
      ahead.c = reinterpret_cast<const char*>(task.partial + kTileFloats);
    } else if (ahead.c_rows > 0 && own + 1 < strip.end) {
      const int64_t next_row = task.row_sliver + (job.rows_owned ? 1 : 0);
      const int64_t next_col = task.col_sliver + (job.rows_owned ? 0 : 1);
      ahead.c = static_cast<const char*>(args.c) +
                (next_row * args.ldc + next_col) * kSliver * element;
    }
    RunTile(job, a, b, task, finishing);
    if (task.copy == nullptr) continue;
    a.apart = task.copy;
    a.apart_index = strip.shared;
    task.copy = nullptr;
  }
}

// Begins to ask for what PackOwn reads of slivers [begin, end) over steps [from, to) of k, in equal shares
// over `calls` calls; not where rows are so far apart (a gradient of logits) that every one needs a
// translation of its address.
void BeginNextOwn(const Job& job, int64_t begin, int64_t end, int64_t from, int64_t to, int64_t calls,
                  NextOwn* next) {
  const GemmArgs& args = *job.args;
  const MatrixRef& x = job.rows_owned ? args.a : args.b;
  const bool along_k = x.transposed != job.rows_owned;
  const int64_t size = DTypeBytes(x.dtype);
  constexpr int64_t kFar = int64_t{64} << 10;
  if (x.ld * size > kFar) return;
  const int64_t first = begin * kSliver, k = from * kTileSteps;
  const int64_t width = Smaller(end * kSliver, job.rows_owned ? args.m : args.n) - first;
  const int64_t depth = Smaller(to * kTileSteps, args.k) - k;
  const int64_t offset = along_k ? first * x.ld + k : k * x.ld + first;
  next->Begin(static_cast<const char*>(x.data) + offset * size, x.ld * size, along_k ? width : depth,
              (along_k ? depth : width) * size, calls);
}

// Whether what is packed next has a place in L2 beside `own` slivers and `tiles` whose chains rest, and is
// asked for often enough: few chunks of k gain nothing by it (docs/decisions/0018).
bool AsksBetweenChunks(const Job& job, int64_t own, int64_t tiles) {
  constexpr int64_t kLeastChunks = 8, kMostBytes = int64_t{2304} << 10;
  return job.steps >= kLeastChunks * job.chunk_steps &&
         2 * own * job.chunk_steps * kStepBytes + tiles * kTileFloats * 4 <= kMostBytes;
}

// Own slivers [begin, end), at most job.own_slivers, times a part of the shared operand; those up to
// next_end come after them.
void RunBlock(const Job& job, const SharedPart& shared, int64_t begin, int64_t end, int64_t next_end,
              const ThreadBuffers& buffers) {
  const bool rests = job.chunk_steps < job.steps;  // every tile's chains, from chunk to chunk
  const int64_t own_count = end - begin;
  Finishing finishing;
  const int64_t most = rests ? Larger(1, kPartialTiles / own_count) : shared.end - shared.begin;
  for (int64_t from = shared.begin; from < shared.end; from += most) {
    const int64_t to = Smaller(shared.end, from + most);
    SharedPart part = shared;
    part.add_up = shared.add_up && from == shared.begin;
    for (int64_t chunk = 0; chunk == 0 || chunk < job.steps; chunk += job.chunk_steps) {
      const int64_t chunk_steps = Smaller(job.chunk_steps, job.steps - chunk);
      const int64_t blocks = Larger(1, CeilDiv(chunk_steps, kBlockSteps));
      Slivers a[kChunkBlocks], b[kChunkBlocks];
      Block block[kChunkBlocks];
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t at = chunk_steps * i / blocks;
        block[i] = {chunk, chunk_steps, at, chunk_steps * (i + 1) / blocks - at};
        PackOwn(job, part, begin, end, block[i], buffers);
        ViewBlock(job, part, begin, end, block[i], buffers, &a[i], &b[i]);
      }
      NextOwn next_own;
      const int64_t tiles = own_count * (to - from);
      if (!rests || AsksBetweenChunks(job, own_count, tiles)) {
        const int64_t next_chunk = chunk + chunk_steps, calls = tiles * chunk_steps;
        if (next_chunk < job.steps) {
          BeginNextOwn(job, begin, end, next_chunk, next_chunk + job.chunk_steps, calls, &next_own);
        } else if (to < shared.end) {
          BeginNextOwn(job, begin, end, 0, job.chunk_steps, calls, &next_own);
        } else if (end < next_end) {
          BeginNextOwn(job, end, next_end, 0, job.chunk_steps, calls, &next_own);
        }
      }
      for (int64_t other = from; other < to; ++other) {
        for (int64_t i = 0; i < blocks; ++i) {
          StripTask strip = {};
          strip.begin = begin;
          strip.end = end;
          strip.shared = other;
          strip.first = chunk == 0 && i == 0;
          strip.last = chunk + chunk_steps >= job.steps && i == blocks - 1;
          strip.resumes = chunk > 0 && i == 0;
          strip.next_own = &next_own;
          strip.partial = buffers.partial + (rests ? (other - from) * own_count * kTileFloats : 0);
          const int64_t next = (i + 1) % blocks, next_other = other + (i + 1) / blocks;
          if (next_other < to) {
            strip.next = (job.rows_owned ? b[next] : a[next]).At(next_other);
          }
          RunStrip(job, a[i], b[i], block[i].steps, strip, buffers.copy, &finishing);
        }
      }
    }
  }
  finishing.All();
}

// Runs the regions of one product: on the pool, or on one thread of it.
struct OnPool {
  ThreadPool& pool;
  int64_t threads() const { return pool.num_threads(); }
  template <class Fn>
  void Shares(int64_t n, int64_t least, Fn&& fn) {
    pool.RunShares(n, least, fn);
  }
};
struct OnOneThread {
  int64_t threads() const { return 1; }
  template <class Fn>
  void Shares(int64_t n, int64_t, Fn&& fn) {
    fn(0, int64_t{0}, n);
  }
};

// Into how many parts the shared operand is cut as well, so that threads get equal shares (within a
// twentieth) where there are few own slivers: those are packed again for each part.
int64_t CutsOfShared(int64_t owned, int64_t shared, int64_t threads) {
  constexpr int64_t kMost = 8, kLeastSlivers = 4;
  const int64_t most = Larger(1, Smaller(kMost, shared / kLeastSlivers));
  for (int64_t cuts = 1; cuts < most; ++cuts) {
    if (20 * RoundUp(owned * cuts, threads) <= 21 * owned * cuts) return cuts;
  }
  return most;
}

// `shared_bytes` at `packed` for the operand that threads share.
template <class Regions>
void RunProduct(const GemmArgs& args, void* workspace, char* packed, int64_t shared_bytes,
                Regions&& regions) {
  const Job job = MakeJob(args, regions.threads());
  const int64_t sliver_bytes = Larger(1, job.steps * kStepBytes);
  const char* ready = nullptr;  // packed by the caller
  if (args.packed_b != nullptr) ready = static_cast<const char*>(args.packed_b) + sizeof(PackedHeader);
  const bool in_place = job.direct_a && !job.rows_owned;
  const int64_t group =
      in_place || ready != nullptr ? job.shared() : Larger(1, shared_bytes / sliver_bytes);

  for (int64_t first = 0; first < job.shared(); first += group) {
    SharedPart part;
    part.begin = first;
    part.end = Smaller(job.shared(), first + group);
    part.add_up = first == 0 && job.rows_owned && args.row_sums != nullptr;
    part.packed = ready;
    if (!in_place && ready == nullptr) {
      part.packed = packed;
      const int64_t slivers = part.end - first;
      // All k of a sliver of A at a time, whose rows are added up in order; of B parts of k, each of
      // many slivers, as they lie in memory.
      const int64_t parts = job.rows_owned ? Larger(1, CeilDiv(job.steps, kPackedSteps)) : 1;
      regions.Shares(slivers * parts, 1, [&](int, int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t at = begin / slivers, from = begin % slivers;
          const int64_t count = Smaller(slivers - from, end - begin);
          const int64_t step = job.steps * at / parts, steps = job.steps * (at + 1) / parts - step;
          char* out = packed + from * sliver_bytes + step * kStepBytes;
          if (job.rows_owned) {
            PackTilesB(args.b, args.n, args.k, first + from, count, step, steps, sliver_bytes, out);
          } else {
            PackTilesA(args.a, args.m, args.k, first + from, count, step, steps, args.row_sums,
                       sliver_bytes, out);
          }
          begin += count;
        }
      });
    }
    const int64_t owned = job.owned(), span = part.end - first;
    const int64_t cuts = CutsOfShared(owned, span, regions.threads());
    const int64_t least = Larger(1, Smaller(job.own_slivers, owned / (2 * regions.threads())));
    regions.Shares(owned * cuts, least, [&](int thread, int64_t begin, int64_t end) {
      const TileScope scope;
      const ThreadBuffers buffers = BuffersOf(workspace, thread);
      while (begin < end) {
        const int64_t cut = begin / owned, from = begin % owned;
        const int64_t to = Smaller(owned, from + end - begin), count = to - from;
        SharedPart own = part;
        own.begin = first + span * cut / cuts;
        own.end = first + span * (cut + 1) / cuts;
        if (own.packed != nullptr) own.packed += (own.begin - first) * sliver_bytes;
        own.add_up = part.add_up && cut == 0;
        const int64_t blocks = CeilDiv(count, job.own_slivers);
        const auto block_begin = [&](int64_t i) { return from + count * Smaller(i, blocks) / blocks; };
        for (int64_t i = 0; i < blocks; ++i) {
          RunBlock(job, own, block_begin(i), block_begin(i + 1), block_begin(i + 2), buffers);
        }
        begin += count;
      }
    });
  }
  // Rows that are packed are added up on the way, those of A not transposed where they lie.
  if (args.row_sums != nullptr && !args.a.transposed) {
    regions.Shares(args.m, kSliver, [&](int, int64_t begin, int64_t end) {
      AddRowsAlongK(args.a, args.k, begin, end, args.row_sums);
    });
  }
  if (args.symmetric) {
    regions.Shares(CeilDiv(args.m, kLanes), 1, [&](int, int64_t begin, int64_t end) {
      MirrorRows(args, begin * kLanes, Smaller(args.m, end * kLanes));
    });
  }
}

// Whether one sliver of the shared operand, all k, fits `shared_bytes`.
bool SliverFits(const GemmArgs& args, int64_t shared_bytes) {
  return StepsOf(args.k) * kStepBytes <= shared_bytes;
}

// The product on the pool; where a sliver of the shared operand is too long to be packed, a part of k
// after the other, between which the chains rest in a C of fp32.
void RunOnPool(const GemmArgs& args, void* workspace, char* packed, ThreadPool& pool) {
  if (SliverFits(args, kSharedBytes) || args.packed_b != nullptr) {
    RunProduct(args, workspace, packed, kSharedBytes, OnPool{pool});
    return;
  }
  constexpr int64_t kMost = kSharedBytes / kStepBytes * kTileSteps;
  for (int64_t k = 0; k < args.k; k += kMost) {
    GemmArgs part = args;
    part.k = Smaller(kMost, args.k - k);
    const auto skip = [k](MatrixRef& x, bool rows) {
      x.data = static_cast<const char*>(x.data) + (rows ? k * x.ld : k) * DTypeBytes(x.dtype);
    };
    skip(part.a, args.a.transposed);
    skip(part.b, !args.b.transposed);
    part.accumulate = args.accumulate || k > 0;
    if (k + part.k < args.k) {
      part.bias = nullptr;
      part.epilogue = GemmEpilogue::kNone;
      part.pre_activation = nullptr;
    }
    RunProduct(part, workspace, packed, kSharedBytes, OnPool{pool});
  }
}

// The set that serves what tiles don't.
const KernelTable& Plain() {
  static const KernelTable table = [] {
    KernelTable plain = {};
    TESSERA_PLAIN_ISA::FillGemm(plain);
    return plain;
  }();
  return table;
}

bool TakesTiles(const GemmArgs& args) {
  if (IsPackedForTiles(args.packed_b)) return true;
  if (args.c_dtype == DType::kBf16 && !SliverFits(args, kSharedBytes)) return false;
  const bool few_rows = args.m <= kSmallRows && !args.exact_chain && args.row_sums == nullptr;
  return args.compute == Compute::kBf16 && args.packed_b == nullptr && !few_rows &&
         args.a.dtype == DType::kBf16 && args.b.dtype == DType::kBf16;
}

int64_t SharedOffset(int64_t num_threads) { return num_threads * kThreadBytes; }

int64_t WorkspaceBytes(int num_threads) {
  return Larger(SharedOffset(num_threads) + kSharedBytes, Plain().gemm_workspace_bytes(num_threads));
}

void RunGemm(const GemmArgs& args, void* workspace, ThreadPool& pool) {
  if (args.k == 0) {  // nothing to multiply, but C to write
    GemmArgs none = args;
    none.packed_b = nullptr;
    return Plain().gemm(none, workspace, pool);
  }
  if (!TakesTiles(args)) return Plain().gemm(args, workspace, pool);
  char* const packed = static_cast<char*>(workspace) + SharedOffset(pool.num_threads());
  const double work =
      static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k);
  if (work >= 2 * kMinWorkPerThread || !SliverFits(args, kSharedBytes)) {
    RunOnPool(args, workspace, packed, pool);
  } else {
    ThreadPool::RunAlone(
        work, [&] { RunProduct(args, workspace, packed, kSharedBytes, OnOneThread{}); });
  }
}

void RunBatch(const GemmArgs* args, int64_t count, void* workspace, ThreadPool& pool) {
  const int64_t threads = pool.num_threads();
  char* const packed = static_cast<char*>(workspace) + SharedOffset(threads);
  const int64_t share = kSharedBytes / threads / 64 * 64;
  bool fit = true;  // a product a thread
  for (int64_t i = 0; i < count; ++i) {
    if (args[i].k == 0 || !TakesTiles(args[i])) return Plain().gemm_batch(args, count, workspace, pool);
    fit &= SliverFits(args[i], share);
  }
  const int64_t whole = !fit ? 0 : threads > 1 ? count / threads * threads : count;
  if (whole > 0) {
    pool.Run([&](int thread) {
      for (int64_t i = whole * thread / threads; i < whole * (thread + 1) / threads; ++i) {
        const GemmArgs& one = args[i];
        if (one.m == 0 || one.n == 0) continue;
        CountPart(thread, static_cast<double>(one.m * one.n * one.k));
        RunProduct(one, static_cast<char*>(workspace) + thread * kThreadBytes,
                   packed + thread * share, share, OnOneThread{});
      }
    });
  }
  // What does not fill all threads is cut inside each product.
  for (int64_t i = whole; i < count; ++i) {
    if (args[i].m > 0 && args[i].n > 0) RunGemm(args[i], workspace, pool);
  }
}

bool PacksForTiles(DType storage, Compute compute) {
  return storage == DType::kBf16 && compute == Compute::kBf16;
}

int64_t PackedBytes(int64_t k, int64_t n, DType storage, Compute compute) {
  if (!PacksForTiles(storage, compute)) return Plain().packed_b_bytes(k, n, storage, compute);
  return static_cast<int64_t>(sizeof(PackedHeader)) +
         CeilDiv(n, kSliver) * StepsOf(k) * kStepBytes;
}

void PackWhole(const MatrixRef& b, int64_t k, int64_t n, DType storage, Compute compute,
               void* packed, ThreadPool& pool) {
  if (!PacksForTiles(storage, compute)) {
    return Plain().pack_b(b, k, n, storage, compute, packed, pool);
  }
  PackedHeader* header = static_cast<PackedHeader*>(packed);
  *header = PackedHeader{kPackedMagic, k, n, {}};
  char* const slivers = reinterpret_cast<char*>(header + 1);
  const int64_t steps = StepsOf(k), sliver_bytes = steps * kStepBytes;
  pool.ParallelFor(CeilDiv(n, kSliver), [&](int64_t begin, int64_t end) {
    PackTilesB(b, n, k, begin, end - begin, 0, steps, sliver_bytes, slivers + begin * sliver_bytes);
  });
}

double PeakBf16(int64_t iterations) {
  alignas(64) static const char zeros[kTileBytes] = {};
  const TileScope scope;
  LoadTile<4>(zeros, 64);
  LoadTile<5>(zeros, 64);
  LoadTile<6>(zeros, 64);
  LoadTile<7>(zeros, 64);
  ZeroTile<0>();
  ZeroTile<1>();
  ZeroTile<2>();
  ZeroTile<3>();
  for (int64_t i = 0; i < iterations; ++i) {
    MultiplyTile<0, 4, 6>();
    MultiplyTile<1, 4, 7>();
    MultiplyTile<2, 5, 6>();
    MultiplyTile<3, 5, 7>();
  }
  return 4.0 * 2 * kTileRows * kTileRows * kTileSteps * static_cast<double>(iterations);
}

}  // namespace

void FillGemm(KernelTable& table) {
  const KernelTable& plain = Plain();
  table.gemm = RunGemm;
  table.gemm_batch = RunBatch;
  table.gemm_workspace_bytes = WorkspaceBytes;
  table.packed_b_bytes = PackedBytes;
  table.pack_b = PackWhole;
  table.bf16_chain_grain = kTileSteps;
  table.peak_f32 = plain.peak_f32;
  table.peak_bf16 = PeakBf16;
}

}  // namespace tessera::kernels::TESSERA_ISA
