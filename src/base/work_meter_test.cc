#include "base/work_meter.h"

#include <gtest/gtest.h>

#include "base/threads.h"

namespace tessera {
namespace {

class ActiveMeter {
 public:
  explicit ActiveMeter(int threads) : meter(threads) { SetWorkMeter(&meter); }
  ~ActiveMeter() { SetWorkMeter(nullptr); }
  WorkMeter meter;
};

TEST(WorkMeter, SeesAnUnevenCut) {
  ThreadPool pool(4);
  ActiveMeter active(4);
  pool.ParallelFor(10, [](int64_t, int64_t) {});  // 2, 3, 2, 3
  EXPECT_EQ(active.meter.busiest(), 3);
  EXPECT_EQ(active.meter.mean(), 2.5);
  EXPECT_EQ(active.meter.regions(), 1);
  active.meter.Reset();
  pool.ParallelForGrain(8, 16, [](int64_t, int64_t) {});  // half a block: the caller alone
  EXPECT_EQ(active.meter.busiest(), 0.5);
  EXPECT_EQ(active.meter.mean(), 0.125);
  pool.ParallelForGrain(64, 16, [](int64_t, int64_t) {});  // in the same unit: a block a thread
  EXPECT_EQ(active.meter.busiest(), 1.5);
  EXPECT_EQ(active.meter.mean(), 1.125);
}

TEST(WorkMeter, DealsItemsOutAsFreeThreadsWouldTakeThem) {
  ThreadPool pool(2);
  ActiveMeter active(2);
  pool.Run([](int thread) {
    if (thread != 0) return;  // however few threads took them
    for (int64_t item = 0; item < 3; ++item) CountItem(item, item == 0 ? 4.0 : 2.0);
  });
  EXPECT_EQ(active.meter.busiest(), 4);  // 4 beside 2 + 2
  EXPECT_EQ(active.meter.mean(), 4);
  pool.Run([](int) {});
  EXPECT_EQ(active.meter.uncounted_regions(), 1);
  EXPECT_EQ(active.meter.regions(), 2);
}

TEST(WorkMeter, OffCountsNothing) {
  WorkMeter meter(2);
  ThreadPool pool(2);
  pool.ParallelFor(10, [](int64_t, int64_t) {});
  EXPECT_EQ(meter.regions(), 0);
}

}  // namespace
}  // namespace tessera
