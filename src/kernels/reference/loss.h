// Softmax cross entropy in double, the oracle of the tests. Formulas as in kernels/loss.h.
#pragma once

#include <cstdint>

namespace tessera::kernels::reference {

struct CrossEntropyOptions {
  double softcap = 0, z_loss = 0, label_smoothing = 0, weight = 1;
};

struct CrossEntropyRow {
  double loss = 0, nll = 0, lse = 0;
  int64_t argmax = 0;
};

// One row of logits [vocab]; gradient [vocab] or null. A negative target is ignored.
CrossEntropyRow CrossEntropy(const CrossEntropyOptions& options, const double* logits,
                             int64_t vocab, int64_t target, double* gradient);

}  // namespace tessera::kernels::reference
