#include "kernels/cpu/simd.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

void FillOptimizer(KernelTable& /*table*/) {}

}  // namespace tessera::kernels::TESSERA_ISA
