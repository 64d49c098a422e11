// Activations in double, the oracle of the tests. Formulas as in kernels/activation.h.
#pragma once

#include <cstdint>

#include "kernels/activation.h"

namespace tessera::kernels::reference {

double Activate(Activation activation, double x);
double ActivationSlope(Activation activation, double x);

// x [rows, width], gated [rows, 2 width]; y, dy [rows, width]; dx like x.
void ActivationForward(Activation activation, bool gated, int64_t rows, int64_t width,
                       const double* x, double* y);
void ActivationBackward(Activation activation, bool gated, int64_t rows, int64_t width,
                        const double* x, const double* dy, double* dx);

}  // namespace tessera::kernels::reference
