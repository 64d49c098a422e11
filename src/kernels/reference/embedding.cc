#include "kernels/reference/embedding.h"

namespace tessera::kernels::reference {

void EmbeddingForward(const EmbeddingShape& shape, const int32_t* tokens, const double* table,
                      const double* positions, double* y) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t position = row % shape.length + shape.first_position;
    for (int64_t i = 0; i < shape.width; ++i) {
      double v = table[int64_t{tokens[row]} * shape.width + i];
      if (positions != nullptr) v += positions[position * shape.width + i];
      y[row * shape.width + i] = v;
    }
  }
}

void EmbeddingBackward(const EmbeddingShape& shape, const int32_t* tokens, const double* dy,
                       double* dtable, double* dpositions) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t position = row % shape.length;
    for (int64_t i = 0; i < shape.width; ++i) {
      const double d = dy[row * shape.width + i];
      dtable[int64_t{tokens[row]} * shape.width + i] += d;
      if (dpositions != nullptr) dpositions[position * shape.width + i] += d;
    }
  }
}

}  // namespace tessera::kernels::reference
