#include "cli/machine_probe.h"

#include <gtest/gtest.h>

#include "base/cpu_info.h"

namespace tessera::cli {
namespace {

TEST(MachineProbeTest, ReadsTheToolkitsRelease) {
  EXPECT_EQ(ParseNvccRelease("Cuda compilation tools, release 13.0, V13.0.88\n"), "13.0");
  EXPECT_EQ(ParseNvccRelease("release 12"), "12");
  EXPECT_EQ(ParseNvccRelease("release x"), std::nullopt);
  EXPECT_EQ(ParseNvccRelease(""), std::nullopt);
}

TEST(MachineProbeTest, ReadsTheListOfGpusAndIgnoresOtherLines) {
  const auto gpus = ParseGpuList("NVIDIA H200, 143771 MiB, 570.1\n\nNo devices were found\n");
  ASSERT_EQ(gpus.size(), 1u);
  EXPECT_EQ(gpus[0].name, "NVIDIA H200");
  EXPECT_EQ(gpus[0].memory, "143771 MiB");
  EXPECT_EQ(gpus[0].driver, "570.1");
}

TEST(MachineProbeTest, FindsProgramsOnThePath) {
  EXPECT_TRUE(FindProgram("sh").has_value());
  EXPECT_FALSE(FindProgram("no-such-program-anywhere").has_value());
}

TEST(MachineProbeTest, MemoryRatesArePlausibleAndScarceMemoryIsLeftAlone) {
  ThreadPool pool(2);
  const MemoryRates rates = MeasureMemoryRates(int64_t{256} << 20, 0, pool);
  EXPECT_GT(rates.array_bytes, 0);
  EXPECT_LE(rates.array_bytes * 3 * 8, int64_t{256} << 20);
  // No machine that runs this moves less than 50 MB/s or more than 100 TB/s.
  for (const double rate : {rates.read_gb_per_s, rates.triad_gb_per_s}) {
    EXPECT_GT(rate, 0.05);
    EXPECT_LT(rate, 1e5);
  }
  EXPECT_EQ(MeasureMemoryRates(1 << 20, 0, pool).array_bytes, 0);
}

}  // namespace
}  // namespace tessera::cli
