// Optimizer updates on flat ranges and matrices, one pass over memory.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "base/threads.h"
#include "kernels/gemm.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

enum class Rounding { kNearest, kStochastic };

// AdamW (Loshchilov and Hutter): g' = grad_scale g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2;
// p = p (1 - decay) - lr (m / bias_correction1) / (sqrt(v / bias_correction2) + eps).
// `decay` is lr * weight_decay (AdamW) or lr/lr0 * weight_decay (Composer's decoupled form).
struct AdamWArgs {
  int64_t n = 0;
  float* p = nullptr;
  const float* g = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  bf16* rounded = nullptr;  // [n]: the new p, rounded to nearest; or null
  float lr = 0, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, decay = 0, grad_scale = 1;
  float bias_correction1 = 1, bias_correction2 = 1;  // 1 - beta^t
};
void AdamW(const AdamWArgs& args, ThreadPool& pool);

// Lion (Chen et al.): u = sign(b1 m + (1-b1) g'); p = p (1 - decay) - lr u; m = b2 m + (1-b2) g'.
struct LionArgs {
  int64_t n = 0;
  float* p = nullptr;
  const float* g = nullptr;
  float* m = nullptr;
  float lr = 0, beta1 = 0.9f, beta2 = 0.99f, decay = 0, grad_scale = 1;
};
void Lion(const LionArgs& args, ThreadPool& pool);

// Muon (Jordan et al.) on matrices of one shape: buf = momentum buf + (1 - momentum) g'; u = nesterov ?
// (1 - momentum) g' + momentum buf : buf; u = NewtonSchulz(u); p = p (1 - decay) - lr scale u.
// Newton-Schulz: X = u / (|u|_F + 1e-7), transposed when rows > cols; `steps` times A = X X^T,
// B = b A + c A A, X = a X + B X with (a, b, c) = (3.4445, -4.7750, 2.0315).
struct MuonArgs {
  int64_t rows = 0, cols = 0;
  float* p = nullptr;
  const float* g = nullptr;
  float* momentum_buffer = nullptr;
};
struct MuonOptions {
  float lr = 0, momentum = 0.95f, decay = 0, grad_scale = 1, scale = 1;
  bool nesterov = true;
  int steps = 5;
  Compute compute = Compute::kF32;  // kBf16 rounds the factors of products to bf16
};
// FLOPs of the products for one matrix (cpu/muon_kernels.cc takes fewer than the formula).
double MuonFlops(int64_t rows, int64_t cols, const MuonOptions& options);
int64_t MuonWorkspaceBytes(int64_t rows, int64_t cols, int64_t count, int num_threads);
// `count` matrices that share (rows, cols).
void Muon(const MuonArgs* matrices, int64_t count, const MuonOptions& options, void* workspace,
          ThreadPool& pool);

// Sum of squares in double over fixed blocks, added in order: the same for any number of threads.
// `partials` has SumSquaresPartials(n) doubles.
int64_t SumSquaresPartials(int64_t n);
double SumSquares(const float* x, int64_t n, double* partials, ThreadPool& pool);

}  // namespace tessera::kernels
