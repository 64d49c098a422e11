// Element-wise activations of the MLP, plain and gated.
//
// GELU tanh: u = sqrt(2/pi)(x + 0.044715 x^3), y = x/2 (1 + tanh u). GELU erf: y = x/2 (1 + erf(x/sqrt 2)).
// SiLU: y = x sigmoid(x). ReLU^2: y = max(x, 0)^2. Gated: x = [gate, up], y = act(gate) up.
#pragma once

#include <cstdint>
#include <optional>

#include "base/threads.h"
#include "kernels/gemm.h"
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

// What makes a product's C the activation's y, with the bits of a pass over a stored x; nothing where products
// have no such epilogue.
inline std::optional<GemmEpilogue> EpilogueOf(Activation activation) {
  switch (activation) {
    case Activation::kGeluTanh:
      return GemmEpilogue::kGeluTanh;
    case Activation::kGeluErf:
      return GemmEpilogue::kGeluErf;
    case Activation::kReluSquared:
      return GemmEpilogue::kReluSquared;
    case Activation::kRelu:
    case Activation::kSilu:
      break;
  }
  return {};
}

void ActivationForward(const ActivationArgs& args, ThreadPool& pool);
void ActivationBackward(const ActivationArgs& args, ThreadPool& pool);

}  // namespace tessera::kernels
