#include "kernels/reference/qkv.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tessera::kernels::reference {

namespace {

// Turns one head's pairs in place; direction -1 is the backward turn.
void Turn(const QkvInputs& in, int64_t row, double direction, double* head) {
  const int64_t half = in.rotary_size / 2;
  const int64_t position = row % in.length + in.first_position;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = in.rotary_interleaved ? 2 * i : i;
    const int64_t second = in.rotary_interleaved ? 2 * i + 1 : i + half;
    const double c = in.cos[position * half + i];
    const double s = in.sin[position * half + i] * direction;
    const double a = head[first], b = head[second];
    head[first] = a * c - b * s;
    head[second] = b * c + a * s;
  }
}

struct Statistics {
  double mean = 0, rstd = 1;
};

Statistics StatisticsOf(const QkvInputs& in, const double* x, int64_t n) {
  Statistics s;
  const double size = static_cast<double>(n);
  if (in.norm == QkNorm::kLayerNormFull) {
    for (int64_t i = 0; i < n; ++i) s.mean += x[i] / size;
  }
  double square = 0;
  for (int64_t i = 0; i < n; ++i) square += (x[i] - s.mean) * (x[i] - s.mean) / size;
  s.rstd = 1.0 / std::sqrt(square + in.eps);
  return s;
}

double Clip(const QkvInputs& in, double x) {
  return in.clip > 0 ? std::clamp(x, -in.clip, in.clip) : x;
}

// Calls fn(first value in the row, values, gain, bias, is_key) for every unit that is normed as one.
template <class Fn>
void ForUnits(const QkvInputs& in, Fn&& fn) {
  const int64_t d = in.head_size;
  const int64_t q_size = in.heads * d, k_size = in.kv_heads * d;
  if (in.norm == QkNorm::kLayerNormFull) {
    fn(int64_t{0}, q_size, in.q_gain, in.q_bias, false);
    fn(q_size, k_size, in.k_gain, in.k_bias, true);
    return;
  }
  for (int64_t h = 0; h < in.heads + in.kv_heads; ++h) {
    const bool is_key = h >= in.heads;
    fn(h * d, d, is_key ? in.k_gain : in.q_gain, static_cast<const double*>(nullptr), is_key);
  }
}

}  // namespace

void QkvForward(const QkvInputs& in, double* out) {
  const int64_t d = in.head_size, row_size = (in.heads + 2 * in.kv_heads) * d;
  for (int64_t row = 0; row < in.rows; ++row) {
    double* y = out + row * row_size;
    for (int64_t i = 0; i < row_size; ++i) y[i] = Clip(in, in.in[row * row_size + i]);
    if (in.norm != QkNorm::kNone) {
      ForUnits(in, [&](int64_t first, int64_t n, const double* gain, const double* bias, bool) {
        const Statistics s = StatisticsOf(in, y + first, n);
        for (int64_t i = 0; i < n; ++i) {
          double v = (y[first + i] - s.mean) * s.rstd;
          if (gain != nullptr) v *= gain[i];
          if (bias != nullptr) v += bias[i];
          y[first + i] = v;
        }
      });
    }
    for (int64_t h = 0; h < in.heads + in.kv_heads; ++h) Turn(in, row, 1.0, y + h * d);
  }
}

void QkvBackward(const QkvInputs& in, const double* dout, double* din,
                 const QkvGainGradients& gradients) {
  const int64_t d = in.head_size, row_size = (in.heads + 2 * in.kv_heads) * d;
  std::vector<double> clipped(static_cast<size_t>(row_size));
  for (int64_t row = 0; row < in.rows; ++row) {
    const double* x = in.in + row * row_size;
    double* dx = din + row * row_size;
    for (int64_t i = 0; i < row_size; ++i) {
      clipped[static_cast<size_t>(i)] = Clip(in, x[i]);
      dx[i] = dout[row * row_size + i];
    }
    for (int64_t h = 0; h < in.heads + in.kv_heads; ++h) Turn(in, row, -1.0, dx + h * d);
    if (in.norm != QkNorm::kNone) {
      ForUnits(in, [&](int64_t first, int64_t n, const double* gain, const double*, bool is_key) {
        const double* v = clipped.data() + first;
        double* dz = dx + first;
        double* dgain = is_key ? gradients.k_gain : gradients.q_gain;
        double* dbias = is_key ? gradients.k_bias : gradients.q_bias;
        const Statistics s = StatisticsOf(in, v, n);
        double mean_q = 0, mean_qx = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double xh = (v[i] - s.mean) * s.rstd;
          if (dgain != nullptr) dgain[i] += dz[i] * xh;
          if (dbias != nullptr) dbias[i] += dz[i];
          if (gain != nullptr) dz[i] *= gain[i];
          mean_q += dz[i] / static_cast<double>(n);
          mean_qx += dz[i] * xh / static_cast<double>(n);
        }
        if (in.norm == QkNorm::kRmsPerHead) mean_q = 0;
        for (int64_t i = 0; i < n; ++i) {
          dz[i] = s.rstd * (dz[i] - mean_q - (v[i] - s.mean) * s.rstd * mean_qx);
        }
      });
    }
    for (int64_t i = 0; i < row_size; ++i) {
      if (in.clip > 0 && std::abs(x[i]) > in.clip) dx[i] = 0;
    }
  }
}

}  // namespace tessera::kernels::reference
