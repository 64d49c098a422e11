// Instruction sets of the CPU kernels. One is chosen at start, for the whole process.
#pragma once

#include <string_view>
#include <vector>

namespace tessera::kernels {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

std::string_view IsaName(Isa isa);  // "generic", "avx2", "avx512", "avx512_bf16", "amx"

// Every set that this processor and operating system can run, slowest first. The first call asks Linux
// for the use of tiles (AMX), which it grants to a process, for all of its threads.
std::vector<Isa> SupportedIsas();

// The set in use: the best supported one, or what the environment variable TESSERA_ISA names.
Isa ActiveIsa();

// Tests run every variant: switches the process to a supported set. Not while kernels run.
void SetActiveIsa(Isa isa);

}  // namespace tessera::kernels
