// LayerNorm and RMSNorm in double, the oracle of the tests. Formulas as in kernels/norm.h.
#pragma once

#include <cstdint>

#include "kernels/norm.h"

namespace tessera::kernels::reference {

struct NormShape {
  NormKind kind = NormKind::kLayerNorm;
  int64_t rows = 0, width = 0;
  double eps = 1e-5;
};

// x, y [rows, width]; gain, bias [width] or null; mean, rstd [rows] or null.
void NormForward(const NormShape& shape, const double* x, const double* gain, const double* bias,
                 double* y, double* mean, double* rstd);

// Each step (normalised value, times gain, plus bias; gain and bias too) rounded to bf16.
void NormForwardLowPrecision(const NormShape& shape, const double* x, const double* gain,
                             const double* bias, double* y);

// Statistics are recomputed from x. dx is written; dgain and dbias (or null) are added to.
void NormBackward(const NormShape& shape, const double* x, const double* dy, const double* gain,
                  double* dx, double* dgain, double* dbias);

}  // namespace tessera::kernels::reference
