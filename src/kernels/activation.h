// Element-wise activations of the MLP, plain and gated.
//
// GELU tanh: u = sqrt(2/pi)(x + 0.044715 x^3), y = x/2 (1 + tanh u). GELU erf: y = x/2 (1 + erf(x/sqrt 2)).
// SiLU: y = x sigmoid(x). ReLU^2: y = max(x, 0)^2. Gated: x = [gate, up], y = act(gate) up.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

enum class Activation { kGeluTanh, kGeluErf, kRelu, kReluSquared, kSilu };

struct ActivationArgs {
  Activation activation = Activation::kGeluTanh;
  bool gated = false;
  int64_t rows = 0, width = 0;  // width of y
  DType dtype = DType::kF32;
  const void* x = nullptr;   // [rows, width], gated [rows, 2 width] = gate then up
  // [rows, width]. Forward: may alias x when not gated and no backward follows. Backward: y again, the
  // same bits, or null.
  void* y = nullptr;
  const void* dy = nullptr;  // backward: [rows, width]
  void* dx = nullptr;        // backward: like x; may alias dy when not gated
};

void ActivationForward(const ActivationArgs& args, ThreadPool& pool);
void ActivationBackward(const ActivationArgs& args, ThreadPool& pool);

}  // namespace tessera::kernels
