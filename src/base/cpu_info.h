// What this machine has: processor, caches, instruction sets, memory under its cgroup limits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera {

// An instruction set counts only where the operating system also saves its registers.
struct CpuInfo {
  std::string brand;   // "Intel(R) Xeon(R) Processor @ 2.50GHz"
  std::string vendor;  // "GenuineIntel", "AuthenticAMD"
  int family = 0;      // Display family and model, as in /proc/cpuinfo.
  int model = 0;
  int stepping = 0;
  int online_cores = 1;     // Logical processors of the machine.
  int available_cores = 1;  // Those that this process may use (affinity and cgroup quota).

  // Data or unified cache of the first core, 0 where unknown; L3 is shared between cores.
  int64_t l1d_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t l3_bytes = 0;

  bool hypervisor = false;
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512dq = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;

  // The names of those that are present: "avx2", "fma", ...
  std::vector<std::string> InstructionSets() const;
};

// Read once at the first call.
const CpuInfo& ThisCpu();

struct MemoryInfo {
  int64_t total_bytes = 0;      // Physical memory, or the cgroup limit where that is lower.
  int64_t available_bytes = 0;  // What can still be allocated without swapping or being killed.
  bool limited_by_cgroup = false;
};

// Reads /proc/meminfo and the memory cgroups (v1 and v2) of this process and their parents.
MemoryInfo ReadMemoryInfo();
// The same below other roots, for tests.
MemoryInfo ReadMemoryInfoBelow(const std::filesystem::path& proc_root,
                               const std::filesystem::path& cgroup_root);

// Resident memory of this process now, and the most it ever had; 0 where /proc is missing.
int64_t ResidentBytes();
int64_t PeakResidentBytes();
// Lets the peak start again from the present; false where the kernel does not allow it.
bool ResetPeakResident();

}  // namespace tessera
