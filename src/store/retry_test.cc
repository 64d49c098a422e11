#include "store/retry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "store/worker_pool.h"

namespace tessera {
namespace {

TEST(RetryTest, KnowsWhatPassesByItself) {
  for (const int64_t status : {408, 429, 500, 502, 503, 504}) EXPECT_TRUE(IsRetryableStatus(status)) << status;
  for (const int64_t status : {200, 301, 400, 401, 403, 404, 409, 412, 416, 501}) {
    EXPECT_FALSE(IsRetryableStatus(status)) << status;
  }
  EXPECT_TRUE(IsRetryableFailure(HttpFailure::kBroken));
  EXPECT_FALSE(IsRetryableFailure(HttpFailure::kTls));
  EXPECT_FALSE(IsRetryableFailure(HttpFailure::kCancelled));
}

TEST(RetryTest, BackoffHasFullJitterUnderACap) {
  const RetryOptions options;  // Base 0.1 s, cap 20 s.
  EXPECT_EQ(BackoffSeconds(options, 1, 0), 0);
  EXPECT_DOUBLE_EQ(BackoffSeconds(options, 1, 1), 0.1);
  EXPECT_DOUBLE_EQ(BackoffSeconds(options, 4, 0.5), 0.4);
  EXPECT_DOUBLE_EQ(BackoffSeconds(options, 9, 1), 20);
  EXPECT_DOUBLE_EQ(BackoffSeconds(options, 100'000, 1), 20);
}

TEST(RetryTest, ReadsRetryAfter) {
  HttpResponse response;
  EXPECT_EQ(RetryAfterSeconds(response, 0), 0);
  response.headers["retry-after"] = "7";
  EXPECT_EQ(RetryAfterSeconds(response, 0), 7);
  response.headers["retry-after"] = "Fri, 24 May 2013 00:00:30 GMT";
  EXPECT_EQ(RetryAfterSeconds(response, 1369353600), 30);
  EXPECT_EQ(RetryAfterSeconds(response, 1369353700), 0);
  for (const char* text : {"-5", "soon", "inf", "nan"}) {
    response.headers["retry-after"] = text;
    EXPECT_EQ(RetryAfterSeconds(response, 0), 0) << text;
  }
}

TEST(WorkerPoolTest, RunsEachIndexOnce) {
  WorkerPool pool(4);
  std::vector<std::atomic<int>> seen(1000);
  ASSERT_TRUE(pool.ForEach(1000, [&](int64_t i) {
    ++seen[static_cast<size_t>(i)];
    return Status();
  }).ok());
  for (const auto& count : seen) EXPECT_EQ(count, 1);
  EXPECT_TRUE(pool.ForEach(0, [](int64_t) { return Status(Internal("never")); }).ok());
}

TEST(WorkerPoolTest, StopsAtTheFirstError) {
  WorkerPool pool(2);
  std::atomic<int> calls{0};
  const Status status = pool.ForEach(10'000, [&](int64_t i) {
    ++calls;
    return i == 5 ? Status(IoError("five")) : Status();
  });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message, "five");
  EXPECT_LT(calls, 10'000);
}

TEST(WorkerPoolTest, CallersOfABusyPoolStillProceed) {
  WorkerPool pool(1);
  std::atomic<bool> release{false};
  pool.Submit([&] {
    while (!release) std::this_thread::yield();
  });
  EXPECT_TRUE(pool.ForEach(10, [](int64_t) { return Status(); }).ok());
  release = true;
}

}  // namespace
}  // namespace tessera
