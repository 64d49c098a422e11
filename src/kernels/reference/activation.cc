#include "kernels/reference/activation.h"

#include <cmath>
#include <numbers>

namespace tessera::kernels::reference {

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kGeluTanh: {
      const double u = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1.0 + std::tanh(u));
    }
    case Activation::kGeluErf: return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::kRelu: return x > 0 ? x : 0.0;
    case Activation::kReluSquared: return x > 0 ? x * x : 0.0;
    case Activation::kSilu: return x / (1.0 + std::exp(-x));
  }
  return 0;
}

double ActivationSlope(Activation activation, double x) {
  switch (activation) {
    case Activation::kGeluTanh: {
      const double c = std::sqrt(2.0 / std::numbers::pi);
      const double t = std::tanh(c * (x + 0.044715 * x * x * x));
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 0.134145 * x * x);
    }
    case Activation::kGeluErf:
      return 0.5 * std::erfc(-x / std::numbers::sqrt2) +
             x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
    case Activation::kRelu: return x > 0 ? 1.0 : 0.0;
    case Activation::kReluSquared: return x > 0 ? 2.0 * x : 0.0;
    case Activation::kSilu: {
      const double s = 1.0 / (1.0 + std::exp(-x));
      return s * (1.0 + x * (1.0 - s));
    }
  }
  return 0;
}

void ActivationForward(Activation activation, bool gated, int64_t rows, int64_t width,
                       const double* x, double* y) {
  for (int64_t row = 0; row < rows; ++row) {
    const double* in = x + row * width * (gated ? 2 : 1);
    for (int64_t i = 0; i < width; ++i) {
      y[row * width + i] = Activate(activation, in[i]) * (gated ? in[width + i] : 1.0);
    }
  }
}

void ActivationBackward(Activation activation, bool gated, int64_t rows, int64_t width,
                        const double* x, const double* dy, double* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t offset = row * width * (gated ? 2 : 1);
    for (int64_t i = 0; i < width; ++i) {
      const double d = dy[row * width + i];
      const double value = x[offset + i];
      dx[offset + i] = d * ActivationSlope(activation, value) * (gated ? x[offset + width + i] : 1.0);
      if (gated) dx[offset + width + i] = d * Activate(activation, value);
    }
  }
}

}  // namespace tessera::kernels::reference
