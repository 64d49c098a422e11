// AdamW and Lion in double, the oracle of the tests. Formulas as in kernels/optimizer.h.
#pragma once

#include <cstdint>

namespace tessera::kernels::reference {

struct AdamWOptions {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0, grad_scale = 1;
  double bias_correction1 = 1, bias_correction2 = 1;
};
void AdamW(const AdamWOptions& options, int64_t n, const double* g, double* p, double* m,
           double* v);

struct LionOptions {
  double lr = 0, beta1 = 0.9, beta2 = 0.99, decay = 0, grad_scale = 1;
};
void Lion(const LionOptions& options, int64_t n, const double* g, double* p, double* m);

}  // namespace tessera::kernels::reference
