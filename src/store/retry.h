// Which failures pass by themselves, and how long to wait before the next attempt.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/time.h"
#include "store/http_client.h"
#include "store/object_store.h"

namespace tessera {

// 408, 429 and the 5xx that servers send when busy, broken or behind a broken proxy.
bool IsRetryableStatus(int64_t status);
// Whether the same request may succeed later. `reached`: this server has answered before; otherwise
// a wrong name or port is more likely than an outage.
bool IsRetryableFailure(HttpFailure failure);
// Seconds of a Retry-After header, as a number or as a date; 0 where there is none.
double RetryAfterSeconds(const HttpResponse& response, int64_t now_unix_s);

// Full jitter of attempt n (from 1): uniform in [0, min(cap, base * 2^(n-1))].
double BackoffSeconds(const RetryOptions& options, int attempt, double uniform);

// Sleeps in short pieces; false when `cancelled` became true before the end.
bool SleepUnlessCancelled(double seconds, const std::atomic<bool>* cancelled);

// The attempts of one operation.
class RetryLoop {
 public:
  RetryLoop(const RetryOptions& options, const std::atomic<bool>* cancelled);

  int attempt() const { return attempt_; }
  double seconds() const { return watch_.Seconds(); }
  // After a failed attempt: waits and returns true, or returns false when the attempts or the time
  // are used up, or on cancel. `max_attempts` bounds the attempts further where it is above 0; `what`
  // is the operation and its failure, for the log.
  bool Again(double retry_after_s, int max_attempts, std::string_view what);

 private:
  RetryOptions options_;
  const std::atomic<bool>* cancelled_;
  Stopwatch watch_;
  int attempt_ = 1;
};

}  // namespace tessera
