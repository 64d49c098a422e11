#include "base/cpu_info.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>

#include "base/strings.h"
#include "base/test_folder.h"

namespace tessera {
namespace {

constexpr int64_t kMiB = 1 << 20;
// 1000 MiB in all, 800 MiB available.
constexpr const char* kMeminfo =
    "MemTotal:        1024000 kB\nMemFree:  1 kB\nMemAvailable:     819200 kB\n";

TEST(CpuInfoTest, AgreesWithTheKernel) {
  std::ifstream file("/proc/cpuinfo");
  std::string brand;
  std::set<std::string> flags;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string value(Trim(std::string_view(line).substr(colon + 1)));
    if (line.rfind("model name", 0) == 0 && brand.empty()) brand = value;
    if (line.rfind("flags", 0) == 0 && flags.empty()) {
      std::istringstream words(value);
      for (std::string word; words >> word;) flags.insert(word);
    }
  }
  const CpuInfo& cpu = ThisCpu();
  EXPECT_GE(cpu.online_cores, cpu.available_cores);
  EXPECT_GE(cpu.available_cores, 1);
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo of this processor has no flags";
  EXPECT_EQ(cpu.brand, brand);
  EXPECT_EQ(cpu.avx2, flags.count("avx2") == 1);
  EXPECT_EQ(cpu.fma, flags.count("fma") == 1);
  EXPECT_EQ(cpu.avx512f, flags.count("avx512f") == 1);
  EXPECT_EQ(cpu.avx512bw, flags.count("avx512bw") == 1);
  EXPECT_EQ(cpu.avx512vl, flags.count("avx512vl") == 1);
  EXPECT_EQ(cpu.avx512dq, flags.count("avx512dq") == 1);
  EXPECT_EQ(cpu.avx512_vnni, flags.count("avx512_vnni") == 1);
  EXPECT_EQ(cpu.avx512_bf16, flags.count("avx512_bf16") == 1);
  EXPECT_EQ(cpu.amx_tile, flags.count("amx_tile") == 1);
  EXPECT_EQ(cpu.hypervisor, flags.count("hypervisor") == 1);
  for (const std::string& name : cpu.InstructionSets()) EXPECT_EQ(flags.count(name), 1u) << name;
}

TEST(MemoryInfoTest, WithoutGroupsItIsTheMachine) {
  const TestFolder folder;
  folder.Write("proc/meminfo", kMeminfo);
  const MemoryInfo info = ReadMemoryInfoBelow(folder / "proc", folder / "cgroup");
  EXPECT_EQ(info.total_bytes, 1000 * kMiB);
  EXPECT_EQ(info.available_bytes, 800 * kMiB);
  EXPECT_FALSE(info.limited_by_cgroup);
}

TEST(MemoryInfoTest, TheLowestLimitOfAllParentsCounts) {
  const TestFolder folder;
  folder.Write("proc/meminfo", kMeminfo);
  folder.Write("proc/self/cgroup", "0::/pod/box\n");
  folder.Write("cgroup/pod/memory.max", std::to_string(300 * kMiB));
  folder.Write("cgroup/pod/memory.current", std::to_string(250 * kMiB));
  folder.Write("cgroup/pod/memory.stat",
               "anon 1\nfile 9\ninactive_file 104857600\nactive_file 52428800\n");
  folder.Write("cgroup/pod/box/memory.max", "max\n");
  const MemoryInfo info = ReadMemoryInfoBelow(folder / "proc", folder / "cgroup");
  EXPECT_EQ(info.total_bytes, 300 * kMiB);
  // 250 MiB used, of which 150 are page cache.
  EXPECT_EQ(info.available_bytes, 200 * kMiB);
  EXPECT_TRUE(info.limited_by_cgroup);
}

TEST(MemoryInfoTest, VersionOneSeenFromInsideAContainer) {
  const TestFolder folder;
  folder.Write("proc/meminfo", kMeminfo);
  // The path is the host's; inside, the group's files lie at the root.
  folder.Write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n");
  folder.Write("cgroup/memory/memory.limit_in_bytes", std::to_string(400 * kMiB));
  folder.Write("cgroup/memory/memory.usage_in_bytes", std::to_string(100 * kMiB));
  const MemoryInfo info = ReadMemoryInfoBelow(folder / "proc", folder / "cgroup");
  EXPECT_EQ(info.total_bytes, 400 * kMiB);
  EXPECT_EQ(info.available_bytes, 300 * kMiB);
}

TEST(MemoryInfoTest, BrokenFilesChangeNothing) {
  const TestFolder folder;
  folder.Write("proc/meminfo", kMeminfo);
  folder.Write("proc/self/cgroup", "nonsense\n4\n4:memory\n0::\n0::/../..\n");
  folder.Write("cgroup/memory.max", "-7\n");
  folder.Write("cgroup/memory.current", "x\n");
  const MemoryInfo info = ReadMemoryInfoBelow(folder / "proc", folder / "cgroup");
  EXPECT_EQ(info.total_bytes, 1000 * kMiB);
  EXPECT_EQ(info.available_bytes, 800 * kMiB);
  EXPECT_EQ(ReadMemoryInfoBelow(folder / "none", folder / "none").total_bytes, 0);
}

TEST(MemoryInfoTest, ResidentMemoryFollowsWhatIsTouched) {
  constexpr int64_t kBlock = 64 * kMiB;
  const int64_t before = ResidentBytes();
  ASSERT_GT(before, 0);
  {
    const std::unique_ptr<char[]> block(new char[kBlock]);
    std::memset(block.get(), 1, kBlock);
    EXPECT_GE(ResidentBytes(), before + kBlock * 9 / 10);
  }
  EXPECT_GE(PeakResidentBytes(), before + kBlock * 9 / 10);
  EXPECT_GT(ReadMemoryInfo().total_bytes, kBlock);
}

}  // namespace
}  // namespace tessera
