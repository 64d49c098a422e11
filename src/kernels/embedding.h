// Token (and learned position) embeddings.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

struct EmbeddingForwardArgs {
  int64_t rows = 0, width = 0, length = 0;  // rows = B*T; position of row r is r % length
  const int32_t* tokens = nullptr;          // [rows], each below the table's rows (caller checks)
  const void* table = nullptr;              // [vocab, width]
  const void* positions = nullptr;          // [>= length, width] or null
  DType table_dtype = DType::kF32;          // of table and positions
  int64_t first_position = 0;               // added to every row's position (decoding)
  void* y = nullptr;                        // [rows, width]
  DType dtype = DType::kF32;
};

// dtable[token] += dy and dposition[position] += dy, each element a chain over rows in order.
struct EmbeddingBackwardArgs {
  int64_t rows = 0, width = 0, length = 0;
  const int32_t* tokens = nullptr;
  const void* dy = nullptr;
  DType dtype = DType::kF32;
  float* dtable = nullptr;      // [vocab, width]
  float* dpositions = nullptr;  // [>= length, width] or null
};

void EmbeddingForward(const EmbeddingForwardArgs& args, ThreadPool& pool);
void EmbeddingBackward(const EmbeddingBackwardArgs& args, ThreadPool& pool);

}  // namespace tessera::kernels
