#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace tessera {
namespace {

TEST(ThreadPoolTest, EveryThreadRunsOnceARegion) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    // Plain integers: ThreadSanitizer shows a missing order between region and caller.
    std::vector<int> calls(static_cast<size_t>(threads), 0);
    for (int region = 0; region < 200; ++region) {
      pool.Run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
    }
    for (const int count : calls) EXPECT_EQ(count, 200);
  }
}

TEST(ThreadPoolTest, WorkersThatFellAsleepWakeUp) {
  ThreadPool pool(3);
  std::vector<int> calls(3, 0);
  for (int region = 0; region < 5; ++region) {
    // Longer than a worker spins before it sleeps.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.Run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
  }
  EXPECT_EQ(calls, (std::vector<int>{5, 5, 5}));
}

TEST(ThreadPoolTest, RangesCoverEveryIndexOnceAndKeepTheGrain) {
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (const int64_t n : {0, 1, 2, 7, 64, 65, 1000}) {
      for (const int64_t grain : {1, 16, 100}) {
        std::vector<int> seen(static_cast<size_t>(n), 0);
        std::atomic<int> bad_cuts{0};
        pool.ParallelForGrain(n, grain, [&](int64_t begin, int64_t end) {
          if (begin % grain != 0 || (end % grain != 0 && end != n)) bad_cuts.fetch_add(1);
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        EXPECT_EQ(bad_cuts.load(), 0) << "n=" << n << " grain=" << grain;
        EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(n), 1)) << "n=" << n;
      }
    }
  }
}

TEST(ThreadPoolTest, SharesCoverEveryItemOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t n : {0, 1, 3, 10, 1000}) {
      for (const int64_t least : {1, 4, 2000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<int> bad{0};
        pool.RunShares(n, least, [&](int thread, int64_t begin, int64_t end) {
          if (thread < 0 || thread >= threads || begin >= end) bad.fetch_add(1);
          for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)].fetch_add(1);
        });
        EXPECT_EQ(bad.load(), 0);
        for (const std::atomic<int>& count : seen) ASSERT_EQ(count.load(), 1) << "n=" << n;
      }
    }
  }
}

TEST(ThreadPoolTest, AThreadThatIsDoneTakesFromTheOthers) {
  ThreadPool pool(2);
  constexpr int64_t kItems = 64;
  std::atomic<int64_t> taken_by[2] = {};
  pool.RunShares(kItems, 1, [&](int thread, int64_t begin, int64_t end) {
    // Thread 0 stops in its first part until nothing but that part is left; thread 1 waits for it.
    taken_by[thread].fetch_add(end - begin);
    while (thread == 1 && taken_by[0].load() == 0) std::this_thread::yield();
    while (thread == 0 && taken_by[0].load() + taken_by[1].load() < kItems) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(taken_by[0].load(), kItems / 2 / 4);
  EXPECT_EQ(taken_by[1].load(), kItems - kItems / 2 / 4);
}

TEST(ThreadPoolTest, WhatIsTooLittleToMoveStaysWithItsThread) {
  ThreadPool pool(2);
  constexpr int64_t kItems = 64, kLeast = 2, kLeastMoved = 8;
  // Of thread 1's 32 items 8 are its first part; 6, 4, 3, 2 and 2 of the others may be taken.
  constexpr int64_t kMoved = 17;
  std::atomic<int64_t> taken_by[2] = {}, moved{0};
  const auto run = [&](int thread, int64_t begin, int64_t end) {
    taken_by[thread].fetch_add(end - begin);
    if (thread == 0) {
      while (taken_by[1].load() == 0) std::this_thread::yield();
      if (begin >= kItems / 2) moved.fetch_add(end - begin);
    } else if (begin == kItems / 2) {
      while (moved.load() < kMoved) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // in which no more is taken
    }
  };
  pool.RunShares(kItems, kLeast, run, kLeastMoved);
  EXPECT_EQ(moved.load(), kMoved);
  EXPECT_EQ(taken_by[0].load() + taken_by[1].load(), kItems);
}

TEST(ThreadPoolTest, WhatOneRegionWritesTheNextReads) {
  ThreadPool pool(3);
  constexpr int64_t kSize = 999;
  std::vector<int64_t> a(kSize);
  std::vector<int64_t> b(kSize);
  for (int64_t round = 0; round < 20; ++round) {
    pool.ParallelFor(kSize, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) a[static_cast<size_t>(i)] = i + round;
    });
    // Reads across the former cuts.
    pool.ParallelFor(kSize, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        b[static_cast<size_t>(i)] = a[static_cast<size_t>(kSize - 1 - i)];
      }
    });
    EXPECT_EQ(b[0], kSize - 1 + round);
    EXPECT_EQ(b[kSize - 1], round);
  }
}

TEST(ThreadPoolTest, PoolsOfSeveralThreadsWorkBesideEachOther) {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> owners;
  for (int owner = 0; owner < 3; ++owner) {
    owners.emplace_back([&] {
      ThreadPool pool(2);
      for (int region = 0; region < 50; ++region) pool.Run([&](int) { sum.fetch_add(1); });
    });
  }
  for (std::thread& owner : owners) owner.join();
  EXPECT_EQ(sum.load(), 3 * 2 * 50);
}

TEST(CoresTest, QuotaIsRoundedUpAndMalformedTextIsNoQuota) {
  EXPECT_EQ(CoresWithinQuota("150000 100000\n", 8), 2);
  EXPECT_EQ(CoresWithinQuota("400000 100000", 8), 4);
  EXPECT_EQ(CoresWithinQuota("1000 100000", 8), 1);
  EXPECT_EQ(CoresWithinQuota("900000 100000", 8), 8);
  EXPECT_EQ(CoresWithinQuota("9223372036854775807 1", 8), 8);
  for (const char* text : {"", "max", "max 100000", "x 100000", "100000", "100000 x", "100000 0",
                           "0 100000", "-5 100000", "99999999999999999999 100000", "1 2 3", "1e5 1e5"}) {
    EXPECT_EQ(CoresWithinQuota(text, 8), 8) << text;
  }
  EXPECT_EQ(CoresWithinQuota("", 0), 1);
}

TEST(ThreadPoolTest, DefaultTakesTheAvailableCores) {
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_EQ(ThreadPool().num_threads(), AvailableCores());
}

}  // namespace
}  // namespace tessera
