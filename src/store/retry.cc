#include "store/retry.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"

namespace tessera {

namespace {

// Uniform in [0, 1). Processes and threads must not share a sequence, or all would return at once.
double Jitter(uint64_t seed) {
  static std::atomic<uint64_t> counter{0};
  static const uint64_t entropy = [] {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }();
  const RngKey key{.seed = seed != 0 ? seed : entropy, .purpose = RngPurpose::kSampling};
  return key.Uniform(counter.fetch_add(1, std::memory_order_relaxed));
}

}  // namespace

bool IsRetryableStatus(int64_t status) {
  return status == 408 || status == 425 || status == 429 || status == 500 || status == 502 ||
         status == 503 || status == 504 || status == 509;
}

bool IsRetryableFailure(HttpFailure failure) {
  switch (failure) {
    case HttpFailure::kResolve:
    case HttpFailure::kConnect:
    case HttpFailure::kStalled:
    case HttpFailure::kBroken: return true;
    case HttpFailure::kNone:
    case HttpFailure::kTls:
    case HttpFailure::kTooLarge:
    case HttpFailure::kCancelled:
    case HttpFailure::kOther: return false;
  }
  return false;
}

double RetryAfterSeconds(const HttpResponse& response, int64_t now_unix_s) {
  const std::string_view text = response.Header("retry-after");
  if (text.empty()) return 0;
  if (const auto seconds = ParseDouble(text)) {
    return std::isfinite(*seconds) ? std::max(0.0, *seconds) : 0;
  }
  const int64_t date = ParseHttpDate(text);
  return date < 0 ? 0 : static_cast<double>(std::max<int64_t>(0, date - now_unix_s));
}

double BackoffSeconds(const RetryOptions& options, int attempt, double uniform) {
  const double bound = options.base_s * std::exp2(std::min(attempt - 1, 60));
  return uniform * std::min(options.cap_s, bound);
}

bool SleepUnlessCancelled(double seconds, const std::atomic<bool>* cancelled) {
  const double end = MonotonicSeconds() + seconds;
  while (true) {
    if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) return false;
    const double left = end - MonotonicSeconds();
    if (left <= 0) return true;
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(left, 0.05)));
  }
}

RetryLoop::RetryLoop(const RetryOptions& options, const std::atomic<bool>* cancelled)
    : options_(options), cancelled_(cancelled) {}

bool RetryLoop::Again(double retry_after_s, int max_attempts, std::string_view what) {
  const int limit =
      max_attempts > 0 ? std::min(max_attempts, options_.max_attempts) : options_.max_attempts;
  if (attempt_ >= limit) return false;
  const double pause =
      std::max(retry_after_s, BackoffSeconds(options_, attempt_, Jitter(options_.seed)));
  if (watch_.Seconds() + pause > options_.total_s) return false;
  // A single hiccup is nothing that a person has to know.
  if (attempt_ >= 3 && pause >= 0.1) {
    LogWarning("{} (attempt {} of {}; the next in {:.1f} s)", what, attempt_, limit, pause);
  } else {
    LogDebug("{} (attempt {} of {}; the next in {:.1f} s)", what, attempt_, limit, pause);
  }
  if (!SleepUnlessCancelled(pause, cancelled_)) return false;
  ++attempt_;
  return true;
}

}  // namespace tessera
