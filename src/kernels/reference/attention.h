// The slow oracle of attention: double precision, the whole row of scores at once, one element at a
// time. Written from the formulas in kernels/attention.h, independent of the tiled kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention.h"

namespace tessera::kernels::reference {

// Dense double tensors: q, out, dout, dq [B, T, H, D]; k, v, dk, dv [B, S, Hkv, D] with S keys a
// sequence; lse [B, H, T]. `past[b]` (decoding) is the position of a sequence's first query; empty:
// 0 and S = T.
struct AttentionProblem {
  AttentionShape shape;
  int64_t keys = 0;  // S
  std::vector<int64_t> past;
  std::vector<double> q, k, v;
};

struct AttentionOutput {
  std::vector<double> out, lse;
};
AttentionOutput AttentionForward(const AttentionProblem& problem);

struct AttentionGradients {
  std::vector<double> dq, dk, dv;
};
AttentionGradients AttentionBackward(const AttentionProblem& problem,
                                     const std::vector<double>& dout);

}  // namespace tessera::kernels::reference
