#include "kernels/reference/norm.h"

#include <cmath>
#include <vector>

namespace tessera::kernels::reference {

namespace {

struct Statistics {
  double mean = 0, rstd = 0;
};

Statistics StatisticsOf(const NormShape& shape, const double* x) {
  Statistics s;
  const double width = static_cast<double>(shape.width);
  if (shape.kind == NormKind::kLayerNorm) {
    for (int64_t i = 0; i < shape.width; ++i) s.mean += x[i] / width;
  }
  double square = 0;
  for (int64_t i = 0; i < shape.width; ++i) square += (x[i] - s.mean) * (x[i] - s.mean) / width;
  s.rstd = 1.0 / std::sqrt(square + shape.eps);
  return s;
}

double RoundToBf16(double v) { return ToFloat(ToBf16(static_cast<float>(v))); }

}  // namespace

void NormForward(const NormShape& shape, const double* x, const double* gain, const double* bias,
                 double* y, double* mean, double* rstd) {
  for (int64_t row = 0; row < shape.rows; ++row, x += shape.width, y += shape.width) {
    const Statistics s = StatisticsOf(shape, x);
    if (mean != nullptr) mean[row] = s.mean;
    if (rstd != nullptr) rstd[row] = s.rstd;
    for (int64_t i = 0; i < shape.width; ++i) {
      const double g = gain == nullptr ? 1.0 : gain[i];
      const double b = bias == nullptr ? 0.0 : bias[i];
      y[i] = (x[i] - s.mean) * s.rstd * g + b;
    }
  }
}

void NormForwardLowPrecision(const NormShape& shape, const double* x, const double* gain,
                             const double* bias, double* y) {
  for (int64_t row = 0; row < shape.rows; ++row, x += shape.width, y += shape.width) {
    const Statistics s = StatisticsOf(shape, x);
    for (int64_t i = 0; i < shape.width; ++i) {
      double v = RoundToBf16((x[i] - s.mean) * s.rstd);
      if (gain != nullptr) v = RoundToBf16(v * RoundToBf16(gain[i]));
      if (bias != nullptr) v = RoundToBf16(v + RoundToBf16(bias[i]));
      y[i] = v;
    }
  }
}

void NormBackward(const NormShape& shape, const double* x, const double* dy, const double* gain,
                  double* dx, double* dgain, double* dbias) {
  const double width = static_cast<double>(shape.width);
  std::vector<double> xh(static_cast<size_t>(shape.width)), q(xh);
  for (int64_t row = 0; row < shape.rows; ++row) {
    const Statistics s = StatisticsOf(shape, x);
    double mean_q = 0, mean_qx = 0;
    for (int64_t i = 0; i < shape.width; ++i) {
      const size_t c = static_cast<size_t>(i);
      xh[c] = (x[i] - s.mean) * s.rstd;
      q[c] = dy[i] * (gain == nullptr ? 1.0 : gain[i]);
      mean_q += q[c] / width;
      mean_qx += q[c] * xh[c] / width;
      if (dgain != nullptr) dgain[i] += dy[i] * xh[c];
      if (dbias != nullptr) dbias[i] += dy[i];
    }
    if (shape.kind == NormKind::kRmsNorm) mean_q = 0;
    for (int64_t i = 0; i < shape.width; ++i) {
      const size_t c = static_cast<size_t>(i);
      dx[i] = s.rstd * (q[c] - mean_q - xh[c] * mean_qx);
    }
    x += shape.width;
    dy += shape.width;
    dx += shape.width;
  }
}

}  // namespace tessera::kernels::reference
