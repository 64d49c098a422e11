// Casts, sums and other small passes over memory.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "base/threads.h"
#include "kernels/optimizer.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

// fp32 -> bf16. Stochastic: a uniform 16-bit integer, the high half of word e & 3 of key.Block(e >> 2)
// with e = first_index + i, is added to the low half, then the low half is cut. NaN stays NaN,
// infinities stay.
void CastToBf16(const float* x, bf16* y, int64_t n, Rounding rounding, const RngKey& key,
                int64_t first_index, ThreadPool& pool);
void CastToFloat(const bf16* x, float* y, int64_t n, ThreadPool& pool);

void Fill(float* x, float value, int64_t n, ThreadPool& pool);
void Scale(float* x, float factor, int64_t n, ThreadPool& pool);
// y += a x
void AddScaled(float a, const float* x, float* y, int64_t n, ThreadPool& pool);
// y = a x + b y (weight averages)
void Blend(float a, const float* x, float b, float* y, int64_t n, ThreadPool& pool);
// y += x on activations
void AddActivation(const void* x, void* y, int64_t n, DType dtype, ThreadPool& pool);

// y = keep ? x / (1-p) : 0 with keep = Uniform(first_index + i) >= p; the same call is its own
// backward on gradients. x may alias y.
void Dropout(const void* x, void* y, int64_t n, DType dtype, float p, const RngKey& key,
             int64_t first_index, ThreadPool& pool);

}  // namespace tessera::kernels
