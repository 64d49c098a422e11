// Flash attention: softmax(scale Q K^T + bias) V without the T x T matrix, forward and backward,
// and the decode step over a key/value cache.
//
// Row i, key tile J: S = scale Q K^T, soft-capped c tanh(S/c), + ALiBi, masked;
// m' = max(m, rowmax S); P = exp(S - m'); l' = e^(m-m') l + rowsum P; O' = e^(m-m') O + P V.
// End: O / l and LSE = m + ln l (Dao et al., FlashAttention). Backward: Delta_i = sum_d dO O;
// dV += P^T dO; dP = dO V^T; dS = P (dP - Delta) (times the derivative of the soft cap);
// dQ += scale dS K; dK += scale dS^T Q.
// FLOPs (causal): forward 2 H D T^2 per sequence, backward 2.5 times that.
// Bits do not depend on the number of threads nor on how sequences are grouped into calls.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "base/threads.h"
#include "kernels/gemm.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

struct AttentionShape {
  int64_t batch = 0;      // B sequences
  int64_t length = 0;     // T
  int64_t heads = 0;      // H query heads
  int64_t kv_heads = 0;   // Hkv, divides H; query head h uses kv head h / (H / Hkv)
  int64_t head_size = 0;  // D, a multiple of 8 up to 256
  float scale = 0;        // usually 1/sqrt(D)
  bool causal = true;
  int64_t window = 0;                      // 0: none; else keys i-window+1 .. i only
  float softcap = 0;                       // 0: none
  const float* alibi_slopes = nullptr;     // [H]: bias -slope * abs(i - j)
  const int32_t* segment_start = nullptr;  // [B, T]: first position that token i may see, or null
  float dropout = 0;                       // on the probabilities, scaled by 1/(1-p)
  RngKey dropout_key;                      // element ((first_sequence + b) H + h) T T + i T + j
  int64_t first_sequence = 0;
};

// Token strides let Q, K and V lie in one packed [B*T, (H + 2 Hkv) D] buffer: element (b, t, h, d)
// of q is q[(b*T + t) * q_stride + h*D + d].
struct AttentionForwardArgs {
  AttentionShape shape;
  DType dtype = DType::kF32;  // of q, k, v, out
  // kBf16 with inputs in bf16 and a processor with the dot: products in pairs of bf16, for which the
  // probabilities and the gradients of the scores are rounded; all sums are fp32.
  Compute compute = Compute::kF32;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t q_stride = 0, kv_stride = 0;
  void* out = nullptr;  // [B*T, H*D] with out_stride
  int64_t out_stride = 0;
  float* lse = nullptr;  // [B, H, T]; may be null when no backward follows
};

struct AttentionBackwardArgs {
  AttentionForwardArgs forward;  // the same inputs; out and lse as forward left them
  const void* dout = nullptr;    // [B*T, H*D] with forward.out_stride
  void* dq = nullptr;            // written, not accumulated; strides as q, k, v
  void* dk = nullptr;
  void* dv = nullptr;
};

int64_t AttentionWorkspaceBytes(const AttentionShape& shape, int num_threads);
void AttentionForward(const AttentionForwardArgs& args, void* workspace, ThreadPool& pool);
void AttentionBackward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool);

// New tokens against a cache: query token i of sequence b is at position past[b] + i and sees cache
// positions 0 .. past[b]+i (its own key and value are already in the cache).
struct AttentionDecodeArgs {
  AttentionShape shape;  // batch = sequences, length = new tokens each; segment_start unused
  DType dtype = DType::kF32;
  // kBf16 as in AttentionForwardArgs, for prompts on processors with tiles (more than 64 rows of a kv
  // head); fewer rows wait for memory.
  Compute compute = Compute::kF32;
  const void* q = nullptr;  // [B*new, H*D] with q_stride
  int64_t q_stride = 0;
  const void* k_cache = nullptr;  // [B, capacity, Hkv, D]
  const void* v_cache = nullptr;
  int64_t capacity = 0;
  const int64_t* past = nullptr;  // [B]
  void* out = nullptr;
  int64_t out_stride = 0;
};
int64_t AttentionDecodeWorkspaceBytes(const AttentionDecodeArgs& args, int num_threads);
void AttentionDecode(const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool);

// ALiBi slopes for H heads (Press et al.; the order of MPT when H is no power of two).
void FillAlibiSlopes(int64_t heads, float bias_max, float* slopes);

}  // namespace tessera::kernels
