// Clip, query/key norm and rotary positions in double, the oracle of the tests.
#pragma once

#include <cstdint>

#include "kernels/qkv.h"

namespace tessera::kernels::reference {

// As QkvArgs, with values in double. Layouts are those of kernels/qkv.h.
struct QkvInputs {
  int64_t rows = 0, length = 0, first_position = 0;
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  const double* in = nullptr;
  double clip = 0;
  QkNorm norm = QkNorm::kNone;
  double eps = 1e-5;
  const double* q_gain = nullptr, *k_gain = nullptr;
  const double* q_bias = nullptr, *k_bias = nullptr;
  int64_t rotary_size = 0;
  bool rotary_interleaved = false;
  const double* cos = nullptr, *sin = nullptr;
};

struct QkvGainGradients {
  double* q_gain = nullptr, *k_gain = nullptr, *q_bias = nullptr, *k_bias = nullptr;  // added to
};

void QkvForward(const QkvInputs& inputs, double* out);
void QkvBackward(const QkvInputs& inputs, const double* dout, double* din,
                 const QkvGainGradients& gradients);

}  // namespace tessera::kernels::reference
