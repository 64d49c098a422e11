// Sizes and tables that do not depend on the instruction set.
#include <cmath>
#include <numbers>

#include "kernels/optimizer.h"
#include "kernels/qkv.h"

namespace tessera::kernels {

namespace {

// Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended.
double ScaledFrequency(double theta, const RopeTableOptions& options) {
  if (options.factor <= 1.0) return theta;
  const double wavelength = 2.0 * std::numbers::pi / theta;
  const double original = static_cast<double>(options.original_length);
  if (wavelength > original / options.low_freq) return theta / options.factor;
  if (wavelength < original / options.high_freq) return theta;
  const double smooth =
      (original / wavelength - options.low_freq) / (options.high_freq - options.low_freq);
  return (1.0 - smooth) * theta / options.factor + smooth * theta;
}

}  // namespace

void FillRopeTable(const RopeTableOptions& options, float* cos, float* sin) {
  const int64_t half = options.rotary_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double exponent =
        -2.0 * static_cast<double>(i) / static_cast<double>(options.rotary_size);
    const double theta = ScaledFrequency(std::pow(options.base, exponent), options);
    for (int64_t position = 0; position < options.positions; ++position) {
      const double angle = static_cast<double>(position) * theta;
      cos[position * half + i] = static_cast<float>(std::cos(angle));
      sin[position * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

int64_t SumSquaresPartials(int64_t n) { return (n + 4095) / 4096; }

}  // namespace tessera::kernels
