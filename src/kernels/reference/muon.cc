#include "kernels/reference/muon.h"

#include <cmath>

namespace tessera::kernels::reference {

namespace {

struct Dense {
  int64_t rows = 0, cols = 0;
  std::vector<double> x;
  Dense(int64_t r, int64_t c) : rows(r), cols(c), x(static_cast<size_t>(r * c)) {}
  double& At(int64_t i, int64_t j) { return x[static_cast<size_t>(i * cols + j)]; }
  double At(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * cols + j)]; }
};

// Rounds every element to bf16.
void RoundAll(Dense& a) {
  for (double& value : a.x) value = ToFloat(ToBf16(static_cast<float>(value)));
}

Dense Product(const Dense& a, const Dense& b) {
  Dense c(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.cols; ++k) {
      for (int64_t j = 0; j < b.cols; ++j) c.At(i, j) += a.At(i, k) * b.At(k, j);
    }
  }
  return c;
}

Dense Transposed(const Dense& a) {
  Dense t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) t.At(j, i) = a.At(i, j);
  }
  return t;
}

}  // namespace

MuonResult Muon(const std::vector<float>& p, const std::vector<float>& g,
                const std::vector<float>& momentum, int64_t rows, int64_t cols,
                const MuonOptions& options, bool round) {
  MuonResult result;
  Dense u(rows, cols);
  double squares = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double fresh = (1 - static_cast<double>(options.momentum)) * options.grad_scale * g[i];
    const double sum = static_cast<double>(options.momentum) * momentum[i] + fresh;
    result.momentum.push_back(sum);
    u.x[i] = options.nesterov ? fresh + options.momentum * sum : sum;
    squares += u.x[i] * u.x[i];
  }
  for (double& value : u.x) value /= std::sqrt(squares) + 1e-7;
  const bool tall = rows > cols;
  Dense x = tall ? Transposed(u) : u;
  if (round) RoundAll(x);
  for (int step = 0; step < options.steps; ++step) {
    Dense a = Product(x, Transposed(x));
    if (round) RoundAll(a);
    Dense b = Product(a, a);
    for (size_t i = 0; i < b.x.size(); ++i) b.x[i] = -4.7750 * a.x[i] + 2.0315 * b.x[i];
    if (round) RoundAll(b);
    const Dense bx = Product(b, x);
    for (size_t i = 0; i < x.x.size(); ++i) x.x[i] = 3.4445 * x.x[i] + bx.x[i];
    if (round) RoundAll(x);
  }
  u = tall ? Transposed(x) : x;
  for (size_t i = 0; i < p.size(); ++i) {
    result.p.push_back(p[i] * (1 - static_cast<double>(options.decay)) -
                       static_cast<double>(options.lr) * options.scale * u.x[i]);
  }
  return result;
}

}  // namespace tessera::kernels::reference
