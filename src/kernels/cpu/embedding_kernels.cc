// Embedding rows: gather forward, scatter-add backward over blocks of columns.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

// Rows of a table lie anywhere: loops over them ask for the row this many ahead.
constexpr int64_t kTableAhead = 4;
template <int kToWrite = 0, class T>
TESSERA_INLINE void PrefetchColumns(const T* row, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + i, kToWrite);
}

template <class Table, class T>
void ForwardAll(const EmbeddingForwardArgs& args, ThreadPool& pool) {
  const Table* table = static_cast<const Table*>(args.table);
  const Table* positions = static_cast<const Table*>(args.positions);
  const int64_t width = args.width;
  ParallelRows(pool, args.rows, width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (row + kTableAhead < end) {
        PrefetchColumns(table + int64_t{args.tokens[row + kTableAhead]} * width, 0, width);
        PrefetchColumns<1>(static_cast<T*>(args.y) + (row + kTableAhead) * width, 0, width);
      }
      const Table* source = table + int64_t{args.tokens[row]} * width;
      T* y = static_cast<T*>(args.y) + row * width;
      if (positions == nullptr) {
        ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
          Store(y + i, Load(source + i, part), part);
        });
        continue;
      }
      const Table* position = positions + (row % args.length + args.first_position) * width;
      ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(y + i, Load(source + i, part) + Load(position + i, part), part);
      });
    }
  });
}

void Forward(const EmbeddingForwardArgs& args, ThreadPool& pool) {
  const bool half_out = args.dtype == DType::kBf16;
  if (args.table_dtype == DType::kBf16) {
    half_out ? ForwardAll<bf16, bf16>(args, pool) : ForwardAll<bf16, float>(args, pool);
  } else {
    half_out ? ForwardAll<float, bf16>(args, pool) : ForwardAll<float, float>(args, pool);
  }
}

template <class T>
TESSERA_INLINE void AddRow(const T* d, float* to, int64_t width) {
  ForVectors(0, width, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
    Store(to + i, Load(to + i, part) + Load(d + i, part), part);
  });
}

// A thread owns whole rows of the gradients: positions in one range, and the tokens that leave its
// number as the remainder. Columns would be cut evenly, but a core's own prefetching then keeps
// asking for lines that another core is writing.
template <class T>
void BackwardAll(const EmbeddingBackwardArgs& args, ThreadPool& pool) {
  const T* dy = static_cast<const T*>(args.dy);
  const int64_t width = args.width;
  ParallelParts(pool, args.rows * width, [=](int part, int parts) {
    if (args.dpositions != nullptr) {
      const int64_t length = args.length < args.rows ? args.length : args.rows;
      const Range positions = PartOf(length, 1, part, parts);
      for (int64_t position = positions.begin; position < positions.end; ++position) {
        for (int64_t row = position; row < args.rows; row += args.length) {
          AddRow(dy + row * width, args.dpositions + position * width, width);
        }
      }
    }
    int64_t rows = 0, requested = 0, ahead = 0;
    for (int64_t row = 0; row < args.rows; ++row) {
      if (args.tokens[row] % parts != part) continue;
      for (; ahead < args.rows && requested <= rows + kTableAhead; ++ahead) {
        if (args.tokens[ahead] % parts != part) continue;
        PrefetchColumns(dy + ahead * width, 0, width);
        PrefetchColumns(args.dtable + int64_t{args.tokens[ahead]} * width, 0, width);
        ++requested;
      }
      AddRow(dy + row * width, args.dtable + int64_t{args.tokens[row]} * width, width);
      ++rows;
    }
    CountPart(part, static_cast<double>(rows));
  });
}

void Backward(const EmbeddingBackwardArgs& args, ThreadPool& pool) {
  args.dtype == DType::kBf16 ? BackwardAll<bf16>(args, pool) : BackwardAll<float>(args, pool);
}

}  // namespace

void FillEmbedding(KernelTable& table) {
  table.embedding_forward = Forward;
  table.embedding_backward = Backward;
}

}  // namespace tessera::kernels::TESSERA_ISA
