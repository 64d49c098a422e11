// LayerNorm and RMSNorm, fused with the residual addition before them.
//
// LayerNorm: xh = (x - mean) rstd, rstd = 1/sqrt(var + eps) (biased variance), y = xh g + b.
// RMSNorm:   xh = x rstd, rstd = 1/sqrt(mean(x^2) + eps), y = xh g.
// Backward with q = dy g: dx = rstd (q - mean(q) - xh mean(q xh)), without mean(q) for RMSNorm;
// dg += dy xh; db += dy.
// Traffic: forward reads x (and residual) and writes y (and sum); backward reads x, dy, dx and
// writes dx. Gains' gradients: the rows of a run of kNormRun add their terms in increasing order from
// zero, then runs' sums are added in increasing order to the values in dgain and dbias. Runs start
// with each sequence, so bits depend neither on threads nor on which sequences share a call.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

inline constexpr int64_t kNormRun = 32;

enum class NormKind { kLayerNorm, kRmsNorm };

struct NormForwardArgs {
  NormKind kind = NormKind::kLayerNorm;
  int64_t rows = 0, width = 0;
  float eps = 1e-5f;
  DType dtype = DType::kF32;       // of x, residual, sum, y
  const void* x = nullptr;         // [rows, width]
  const void* residual = nullptr;  // [rows, width] or null; the norm's input is residual + x
  void* sum = nullptr;             // residual + x, rounded to dtype; may alias residual or x; needed with residual
  const float* gain = nullptr;     // [width], or null for ones
  const float* bias = nullptr;     // [width], or null
  void* y = nullptr;               // [rows, width]
  float* mean = nullptr;           // [rows], LayerNorm only; null when no backward follows
  float* rstd = nullptr;           // [rows]; null when no backward follows
  // With bf16: the normalised value, then it times the gain, then that plus the bias are each rounded
  // to bf16, gain and bias too (MPT's low-precision norms). Statistics stay fp32. No effect on fp32.
  bool low_precision = false;
};

struct NormBackwardArgs {
  NormKind kind = NormKind::kLayerNorm;
  int64_t rows = 0, width = 0;
  int64_t sequence = 0;      // rows of a sequence; 0 where the rows are one
  DType dtype = DType::kF32;
  const void* x = nullptr;   // the norm's input (sum in the fused form)
  const void* dy = nullptr;
  const float* gain = nullptr;
  const float* mean = nullptr, *rstd = nullptr;
  void* dx = nullptr;            // [rows, width]; overlaps neither x nor dy
  bool accumulate_dx = false;    // dx += ..., where dx holds the residual stream's gradient
  float* dgain = nullptr;        // [width], accumulated; null without gain
  float* dbias = nullptr;        // [width], accumulated; null without bias
  // [rows, width]: the forward pass's y again, the same bits, or null; with it its bias and rounding.
  void* y = nullptr;
  const float* bias = nullptr;
  bool low_precision = false;
};

void NormForward(const NormForwardArgs& args, ThreadPool& pool);
// Bytes that NormBackward needs in `workspace` where dgain or dbias is asked for: two rows of fp32 a
// run. `sequence` as in NormBackwardArgs.
int64_t NormBackwardWorkspaceBytes(int64_t rows, int64_t width, int64_t sequence);
void NormBackward(const NormBackwardArgs& args, void* workspace, ThreadPool& pool);

}  // namespace tessera::kernels
