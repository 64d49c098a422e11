// What happens between the QKV product and attention: clip, query/key norm, rotary positions.
//
// Order: clamp to [-clip, clip] (q, k and v), norm of q and k, RoPE of q and k.
// RoPE: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin); backward rotates by -theta.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

enum class QkNorm {
  kNone,
  kRmsPerHead,      // over each head's D values; gain [D] or none
  kLayerNormFull,   // MPT's qk_ln: over all H*D (q) and Hkv*D (k) values; gain and optional bias
};

struct QkvArgs {
  int64_t rows = 0, length = 0;  // rows = B*T; position of row r is r % length + first_position
  int64_t first_position = 0;
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  DType dtype = DType::kF32;
  const void* in = nullptr;  // [rows, (H + 2 Hkv) D]: q heads, k heads, v heads
  void* out = nullptr;       // like in; may alias it when norm is kNone and clip is 0
  float clip = 0;            // 0: none
  QkNorm norm = QkNorm::kNone;
  float eps = 1e-5f;
  const float* q_gain = nullptr, *k_gain = nullptr;  // [D] or [H*D] / [Hkv*D]; null: ones
  const float* q_bias = nullptr, *k_bias = nullptr;  // kLayerNormFull only; null: zeros
  int64_t rotary_size = 0;          // 0: no RoPE; else even, <= D: the first values of each head
  bool rotary_interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + rotary_size/2)
  const float* cos = nullptr, *sin = nullptr;  // [>= length + first_position, rotary_size/2]
};

// Reads `in` as the forward pass did (saved), takes the gradient of `out`, writes that of `in`.
// Norm statistics are recomputed. Gains' gradients are chains over rows in order.
struct QkvBackwardArgs {
  QkvArgs forward;
  const void* dout = nullptr;  // like out
  void* din = nullptr;         // like in; may alias dout
  float* dq_gain = nullptr, *dk_gain = nullptr, *dq_bias = nullptr, *dk_bias = nullptr;  // accumulated
};

void QkvForward(const QkvArgs& args, ThreadPool& pool);
void QkvBackward(const QkvBackwardArgs& args, ThreadPool& pool);

// cos and sin tables [positions, rotary_size/2], theta_i = base^(-2i/rotary_size), in double and
// rounded once. Llama-3.1 scaling when factor > 1: wavelengths over original/low_freq are divided
// by factor, under original/high_freq kept, smooth between.
struct RopeTableOptions {
  int64_t positions = 0, rotary_size = 0;
  double base = 10000.0;
  double factor = 1.0, low_freq = 1.0, high_freq = 4.0;
  int64_t original_length = 8192;
};
void FillRopeTable(const RopeTableOptions& options, float* cos, float* sin);

}  // namespace tessera::kernels
