// Clocks: a stopwatch on the monotonic clock and UTC timestamps for files and logs.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tessera {

// Seconds on the monotonic clock; only differences mean something.
inline double MonotonicSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Stopwatch {
 public:
  double Seconds() const { return MonotonicSeconds() - start_; }
  // Seconds since the start or the last Lap, and starts anew.
  double Lap() {
    const double now = MonotonicSeconds();
    const double seconds = now - start_;
    start_ = now;
    return seconds;
  }

 private:
  double start_ = MonotonicSeconds();
};

// Seconds since 1970-01-01 UTC.
int64_t UnixSeconds();
// ISO 8601 in UTC: "2025-01-31T12:34:56Z".
std::string UtcTimestamp(int64_t unix_seconds);
std::string UtcTimestamp();
// For the names of files and folders: "20250131-123456".
std::string UtcCompactTimestamp(int64_t unix_seconds);

}  // namespace tessera
