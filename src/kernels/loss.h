// Softmax cross entropy on a chunk of logits, with gradient in place.
//
// l_j = softcap tanh(x_j / softcap) (or x_j); lse = log sum exp l;
// loss = (1-e) (lse - l_t) + e (lse - mean_j l_j) + (z/2) lse^2, e = label_smoothing;
// dl_j = w [ p_j - (1-e) [j=t] - e/V + z lse p_j ], dx_j = dl_j (1 - (l_j/softcap)^2).
// Rows whose target is negative (ignored) have loss 0 and gradient 0.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

struct CrossEntropyArgs {
  int64_t rows = 0, vocab = 0;
  float* logits = nullptr;  // [rows, vocab] with `ld`; overwritten when the gradient aliases it
  int64_t ld = 0;
  const int32_t* targets = nullptr;  // [rows]
  float softcap = 0, z_loss = 0, label_smoothing = 0;
  float weight = 1;          // w: 1 / (targets of the whole step)
  float* loss = nullptr;     // [rows]: loss of each row, not weighted, with z-loss and smoothing
  float* nll = nullptr;      // [rows] or null: lse - l_t alone, for perplexity
  float* lse = nullptr;      // [rows] or null
  int32_t* argmax = nullptr;  // [rows] or null
  void* dlogits = nullptr;   // null: no gradient; fp32 may alias logits; bf16 may start at each
                             // row of logits (dlogits == logits, dld == 2 ld)
  DType dlogits_dtype = DType::kF32;
  int64_t dld = 0;
  int64_t dlogits_columns = 0;  // those of dlogits from vocab up to it, if any, are set to zero
};

void CrossEntropy(const CrossEntropyArgs& args, ThreadPool& pool);

}  // namespace tessera::kernels
