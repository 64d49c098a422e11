#include "base/time.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace tessera {
namespace {

TEST(TimeTest, TimestampsAreIso8601InUtc) {
  EXPECT_EQ(UtcTimestamp(0), "1970-01-01T00:00:00Z");
  EXPECT_EQ(UtcTimestamp(951'782'399), "2000-02-28T23:59:59Z");
  EXPECT_EQ(UtcTimestamp(951'782'400), "2000-02-29T00:00:00Z");
  EXPECT_EQ(UtcTimestamp(4'102'444'799), "2099-12-31T23:59:59Z");
  EXPECT_EQ(UtcCompactTimestamp(951'782'400), "20000229-000000");
  EXPECT_EQ(UtcTimestamp().size(), 20u);
}

TEST(TimeTest, StopwatchMeasuresAndLapsStartAnew) {
  Stopwatch watch;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double first = watch.Lap();
  EXPECT_GE(first, 0.02);
  EXPECT_LT(watch.Seconds(), MonotonicSeconds());
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_GE(watch.Seconds(), 0.005);
}

}  // namespace
}  // namespace tessera
