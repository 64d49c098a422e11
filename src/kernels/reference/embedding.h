// Embeddings in double, the oracle of the tests.
#pragma once

#include <cstdint>

namespace tessera::kernels::reference {

struct EmbeddingShape {
  int64_t rows = 0, width = 0, length = 0, first_position = 0;
};

// tokens [rows]; table [vocab, width]; positions [.., width] or null; y [rows, width].
void EmbeddingForward(const EmbeddingShape& shape, const int32_t* tokens, const double* table,
                      const double* positions, double* y);
// Adds to dtable and, unless null, dpositions. first_position must be 0.
void EmbeddingBackward(const EmbeddingShape& shape, const int32_t* tokens, const double* dy,
                       double* dtable, double* dpositions);

}  // namespace tessera::kernels::reference
