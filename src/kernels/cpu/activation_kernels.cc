#include "kernels/cpu/simd.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

void FillActivation(KernelTable& /*table*/) {}

}  // namespace tessera::kernels::TESSERA_ISA
