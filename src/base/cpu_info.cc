#include "base/cpu_info.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>

#include "base/strings.h"
#include "base/threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tessera {

namespace fs = std::filesystem;

namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf that the processor does not have.
Registers Cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// XCR0: which register states the operating system saves.
uint64_t ReadXcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool Bit(uint32_t word, int bit) { return (word >> bit & 1) != 0; }

// Bits: Intel SDM volume 2, CPUID; XCR0: SDM volume 1, chapter 13.
void ReadProcessor(CpuInfo* cpu) {
  const Registers leaf0 = Cpuid(0);
  char vendor[13] = {};
  std::memcpy(vendor, &leaf0.ebx, 4);
  std::memcpy(vendor + 4, &leaf0.edx, 4);
  std::memcpy(vendor + 8, &leaf0.ecx, 4);
  cpu->vendor = vendor;

  char brand[49] = {};
  for (uint32_t part = 0; part < 3; ++part) {
    const Registers r = Cpuid(0x80000002u + part);
    std::memcpy(brand + 16 * part, &r, 16);
  }
  cpu->brand = std::string(Trim(brand));

  const Registers leaf1 = Cpuid(1);
  const int base_family = static_cast<int>(leaf1.eax >> 8 & 15);
  const int base_model = static_cast<int>(leaf1.eax >> 4 & 15);
  cpu->stepping = static_cast<int>(leaf1.eax & 15);
  cpu->family = base_family;
  if (base_family == 15) cpu->family += static_cast<int>(leaf1.eax >> 20 & 255);
  cpu->model = base_model;
  if (base_family == 6 || base_family == 15) {
    cpu->model += static_cast<int>(leaf1.eax >> 16 & 15) << 4;
  }
  cpu->hypervisor = Bit(leaf1.ecx, 31);

  const bool has_xgetbv = Bit(leaf1.ecx, 27);
  const uint64_t xcr0 = has_xgetbv ? ReadXcr0() : 0;
  constexpr uint64_t kYmmState = 0x6;
  constexpr uint64_t kZmmState = 0xE6;
  constexpr uint64_t kTileState = 0x60000;
  const bool ymm = (xcr0 & kYmmState) == kYmmState;
  const bool zmm = (xcr0 & kZmmState) == kZmmState;
  const bool tiles = (xcr0 & kTileState) == kTileState;
  const Registers leaf7 = Cpuid(7, 0);
  const Registers leaf7_1 = leaf7.eax >= 1 ? Cpuid(7, 1) : Registers{};
  cpu->fma = ymm && Bit(leaf1.ecx, 12);
  cpu->f16c = ymm && Bit(leaf1.ecx, 29);
  cpu->avx2 = ymm && Bit(leaf7.ebx, 5);
  cpu->avx512f = zmm && Bit(leaf7.ebx, 16);
  cpu->avx512dq = zmm && Bit(leaf7.ebx, 17);
  cpu->avx512bw = zmm && Bit(leaf7.ebx, 30);
  cpu->avx512vl = zmm && Bit(leaf7.ebx, 31);
  cpu->avx512_vnni = zmm && Bit(leaf7.ecx, 11);
  cpu->avx512_bf16 = zmm && Bit(leaf7_1.eax, 5);
  cpu->amx_bf16 = tiles && Bit(leaf7.edx, 22);
  cpu->amx_tile = tiles && Bit(leaf7.edx, 24);
  cpu->amx_int8 = tiles && Bit(leaf7.edx, 25);
}

#else

void ReadProcessor(CpuInfo* cpu) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0 || line.rfind("Model", 0) == 0) {
      cpu->brand = std::string(Trim(std::string_view(line).substr(line.find(':') + 1)));
      return;
    }
  }
  cpu->brand = "unknown processor";
}

#endif

std::optional<std::string> FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

// "48K", "2048K", "32M" as sysfs writes them.
int64_t ParseCacheSize(std::string_view text) {
  if (text.empty()) return 0;
  int64_t scale = 1;
  if (text.back() == 'K') scale = 1 << 10;
  if (text.back() == 'M') scale = 1 << 20;
  if (scale != 1) text.remove_suffix(1);
  return ParseInt(text).value_or(0) * scale;
}

void ReadCaches(CpuInfo* cpu) {
  for (int index = 0; index < 8; ++index) {
    const fs::path folder =
        fs::path("/sys/devices/system/cpu/cpu0/cache") / ("index" + std::to_string(index));
    const auto level = FirstLine(folder / "level");
    const auto type = FirstLine(folder / "type");
    const auto size = FirstLine(folder / "size");
    if (!level || !type || !size || *type == "Instruction") continue;
    if (*level == "1") cpu->l1d_bytes = ParseCacheSize(*size);
    if (*level == "2") cpu->l2_bytes = ParseCacheSize(*size);
    if (*level == "3") cpu->l3_bytes = ParseCacheSize(*size);
  }
  const auto fill = [](int64_t* bytes, int name) {
    if (*bytes == 0) *bytes = std::max<int64_t>(0, ::sysconf(name));
  };
  fill(&cpu->l1d_bytes, _SC_LEVEL1_DCACHE_SIZE);
  fill(&cpu->l2_bytes, _SC_LEVEL2_CACHE_SIZE);
  fill(&cpu->l3_bytes, _SC_LEVEL3_CACHE_SIZE);
}

// The value of "Key:   123 kB" lines, in bytes.
std::optional<int64_t> KilobyteField(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0 || line.size() <= key.size() || line[key.size()] != ':') continue;
    std::string_view rest = Trim(std::string_view(line).substr(key.size() + 1));
    rest = rest.substr(0, rest.find(' '));
    if (const auto value = ParseInt(rest)) return *value * 1024;
    return std::nullopt;
  }
  return std::nullopt;
}

// A "key value" line of memory.stat.
int64_t StatField(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) == 0 && line.size() > key.size() && line[key.size()] == ' ') {
      return ParseInt(Trim(std::string_view(line).substr(key.size()))).value_or(0);
    }
  }
  return 0;
}

// The names of one cgroup version's files.
struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* active_file;
  const char* inactive_file;
};
constexpr CgroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                   "total_active_file", "total_inactive_file"};
constexpr CgroupFiles kVersion2 = {"memory.max", "memory.current", "active_file", "inactive_file"};

// Lowers `info` to the limit of the group at `root`/`group` and of each parent. Inside a container
// the group's own path may not be visible; its limit then stands at the root.
void ApplyCgroup(const fs::path& root, std::string_view group, const CgroupFiles& files,
                 MemoryInfo* info) {
  fs::path relative = fs::path(group).relative_path();
  while (true) {
    const fs::path folder = root / relative;
    const auto limit_text = FirstLine(folder / files.limit);
    const auto limit = limit_text ? ParseInt(Trim(*limit_text)) : std::nullopt;
    if (limit && *limit > 0 && *limit < info->total_bytes) {
      info->total_bytes = *limit;
      info->limited_by_cgroup = true;
    }
    if (limit && *limit > 0) {
      const auto usage_text = FirstLine(folder / files.usage);
      const int64_t usage = usage_text ? ParseInt(Trim(*usage_text)).value_or(0) : 0;
      // The page cache is counted as usage but given back before anything is killed.
      const int64_t cache = StatField(folder / "memory.stat", files.active_file) +
                            StatField(folder / "memory.stat", files.inactive_file);
      const int64_t used = std::max<int64_t>(0, usage - cache);
      info->available_bytes = std::min(info->available_bytes, std::max<int64_t>(0, *limit - used));
    }
    if (relative.empty()) return;
    relative = relative.parent_path();
  }
}

}  // namespace

std::vector<std::string> CpuInfo::InstructionSets() const {
  std::vector<std::string> names;
  const auto add = [&](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
  add(avx2, "avx2");
  add(fma, "fma");
  add(f16c, "f16c");
  add(avx512f, "avx512f");
  add(avx512bw, "avx512bw");
  add(avx512vl, "avx512vl");
  add(avx512dq, "avx512dq");
  add(avx512_vnni, "avx512_vnni");
  add(avx512_bf16, "avx512_bf16");
  add(amx_tile, "amx_tile");
  add(amx_bf16, "amx_bf16");
  add(amx_int8, "amx_int8");
  return names;
}

const CpuInfo& ThisCpu() {
  static const CpuInfo cpu = [] {
    CpuInfo info;
    ReadProcessor(&info);
    ReadCaches(&info);
    info.online_cores = static_cast<int>(std::max<int64_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN)));
    info.available_cores = AvailableCores();
    return info;
  }();
  return cpu;
}

MemoryInfo ReadMemoryInfoBelow(const fs::path& proc_root, const fs::path& cgroup_root) {
  MemoryInfo info;
  info.total_bytes = KilobyteField(proc_root / "meminfo", "MemTotal").value_or(0);
  info.available_bytes = KilobyteField(proc_root / "meminfo", "MemAvailable").value_or(0);
  std::ifstream groups(proc_root / "self/cgroup");
  // Lines are "hierarchy:controllers:path"; version 2 has hierarchy 0 and no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string_view controllers =
        std::string_view(line).substr(first + 1, second - first - 1);
    const std::string_view group = std::string_view(line).substr(second + 1);
    if (controllers.empty()) {
      ApplyCgroup(cgroup_root, group, kVersion2, &info);
      continue;
    }
    for (const std::string_view controller : Split(controllers, ',')) {
      if (controller == "memory") ApplyCgroup(cgroup_root / "memory", group, kVersion1, &info);
    }
  }
  return info;
}

MemoryInfo ReadMemoryInfo() { return ReadMemoryInfoBelow("/proc", "/sys/fs/cgroup"); }

int64_t ResidentBytes() { return KilobyteField("/proc/self/status", "VmRSS").value_or(0); }
int64_t PeakResidentBytes() { return KilobyteField("/proc/self/status", "VmHWM").value_or(0); }

bool ResetPeakResident() {
  // "5" resets the high-water mark; see proc(5), /proc/pid/clear_refs.
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  file.flush();
  return file.good();
}

}  // namespace tessera
