// The ops of one pass over a micro-batch and the buffers between them. Built symbolically: no
// memory is touched. The engine binds it to addresses once and then runs a flat array of calls.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/plan.h"

namespace tessera {

using BufferId = int32_t;
using ParamId = int32_t;
inline constexpr int32_t kNone = -1;

enum class OpKind {
  kEmbedding,           // y = table[tokens] (+ positions); `second`: bigram table added into y
  kDropout,             // y = dropout(x)
  kNorm,                // y2 = x + x2 (when x2), y = norm(that); stats
  kLinear,              // y = x W^T + b
  kQkv,                 // y = clip, norm, rotate (x)
  kAttention,           // y = attention(x), stat0 = LSE
  kActivation,          // y = act(x)
  kLoss,                // chunked head and cross entropy on x; with backward y = dx
  kAttentionBackward,   // x = qkv, x2 = out, dy -> y = dqkv
  kQkvBackward,         // x = saved input, dy -> y
  kActivationBackward,  // x = saved input, dy -> y; y2 = act(x) again
  kNormBackward,        // x = saved input, dy -> y (accumulate); y2 = norm(x) again
  kLinearBackwardInput,   // y = dy W
  kLinearBackwardWeight,  // dW += dy^T x, db += column sums
  kEmbeddingBackward,   // tables += dy
};
std::string_view OpKindName(OpKind kind);

struct Op {
  OpKind kind;
  int64_t layer = -1;
  BufferId x = kNone, x2 = kNone, dy = kNone, y = kNone, y2 = kNone;
  BufferId stat0 = kNone, stat1 = kNone;  // mean and rstd, or LSE
  ParamId weight = kNone, bias = kNone;   // matrix or gain; positions for embeddings
  ParamId k_gain = kNone, q_bias = kNone, k_bias = kNone;  // query/key norm (weight = q gain)
  bool accumulate = false;                // y +=
  bool second = false;                    // embedding: the bigram table
  int64_t width_in = 0, width_out = 0;    // of linear layers
  // The first op of a pass that adds to its weight's gradient, and to all of it: a product that can
  // overwrite what stood there.
  bool first_gradient = false;
  int dropout_site = 0;                   // embedding 0, attention 1, out_proj 2, down_proj 3
  double flops = 0;                       // arithmetic of products, 0 for element-wise ops
  double bytes = 0;                       // memory traffic of element-wise ops
};

struct Buffer {
  std::string name;
  int64_t bytes = 0;
  int64_t first = -1, last = -1;  // the ops that use it
  int64_t offset = 0;             // in the arena
};

// A pass over `microbatch` sequences: forward, or forward and backward.
class Program {
 public:
  std::vector<Op> ops;
  std::vector<Buffer> buffers;
  std::vector<ParameterSpec> params;
  int64_t arena_bytes = 0;
  int64_t tokens = 0;           // rows: microbatch * T
  int64_t loss_chunk = 0;       // rows of one chunk of the head
  BufferId final_hidden = kNone;  // input of the head

  // Of each parameter, whether some op is the first to add to its gradient (Op::first_gradient).
  std::vector<bool> OverwrittenGradients() const;
};

// The same blocks serve training (forward and backward) and evaluation (forward alone).
Program BuildProgram(const ModelConfig& config, const PlanOptions& options, bool with_backward);

}  // namespace tessera
