#include "kernels/reference/optimizer.h"

#include <cmath>

namespace tessera::kernels::reference {

void AdamW(const AdamWOptions& o, int64_t n, const double* g, double* p, double* m, double* v) {
  for (int64_t i = 0; i < n; ++i) {
    const double grad = o.grad_scale * g[i];
    m[i] = o.beta1 * m[i] + (1 - o.beta1) * grad;
    v[i] = o.beta2 * v[i] + (1 - o.beta2) * grad * grad;
    p[i] = p[i] * (1 - o.decay) - o.lr * (m[i] / o.bias_correction1) /
                                      (std::sqrt(v[i] / o.bias_correction2) + o.eps);
  }
}

void Lion(const LionOptions& o, int64_t n, const double* g, double* p, double* m) {
  for (int64_t i = 0; i < n; ++i) {
    const double grad = o.grad_scale * g[i];
    const double c = o.beta1 * m[i] + (1 - o.beta1) * grad;
    p[i] = p[i] * (1 - o.decay) - o.lr * (c > 0 ? 1.0 : c < 0 ? -1.0 : 0.0);
    m[i] = o.beta2 * m[i] + (1 - o.beta2) * grad;
  }
}

}  // namespace tessera::kernels::reference
