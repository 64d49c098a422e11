#include "base/time.h"

#include <fmt/format.h>

#include <ctime>

namespace tessera {

namespace {

std::tm UtcFields(int64_t unix_seconds) {
  const std::time_t seconds = unix_seconds;
  std::tm fields = {};
  gmtime_r(&seconds, &fields);
  return fields;
}

}  // namespace

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string UtcTimestamp(int64_t unix_seconds) {
  const std::tm t = UtcFields(unix_seconds);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", t.tm_year + 1900, t.tm_mon + 1,
                     t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec);
}

std::string UtcTimestamp() { return UtcTimestamp(UnixSeconds()); }

std::string UtcCompactTimestamp(int64_t unix_seconds) {
  const std::tm t = UtcFields(unix_seconds);
  return fmt::format("{:04}{:02}{:02}-{:02}{:02}{:02}", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday,
                     t.tm_hour, t.tm_min, t.tm_sec);
}

}  // namespace tessera
