#include "base/log.h"

#include <atomic>
#include <cstdlib>

#include "base/progress.h"
#include "base/time.h"

namespace tessera {

namespace {

LogLevel LevelFromEnvironment() {
  const char* name = std::getenv("TESSERA_LOG");
  if (name == nullptr) return LogLevel::kInfo;
  return ParseLogLevel(name).value_or(LogLevel::kInfo);
}

std::atomic<LogLevel>& Level() {
  static std::atomic<LogLevel> level{LevelFromEnvironment()};
  return level;
}

std::atomic<int64_t> log_rank{-1};
std::atomic<int64_t> log_step{-1};

}  // namespace

std::optional<LogLevel> ParseLogLevel(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  return std::nullopt;
}

void SetLogLevel(LogLevel level) { Level().store(level); }
LogLevel CurrentLogLevel() { return Level().load(std::memory_order_relaxed); }
void SetLogRank(int64_t rank) { log_rank.store(rank); }
void SetLogStep(int64_t step) { log_step.store(step); }

std::string FormatLogLine(LogLevel level, std::string_view text, int64_t unix_seconds) {
  static constexpr char kLetters[] = {'D', 'I', 'W', 'E', '-'};
  // Time of day only: the files of a run carry full timestamps.
  const std::string time_of_day = UtcTimestamp(unix_seconds).substr(11, 8);
  const int64_t rank = log_rank.load();
  const int64_t step = log_step.load();
  std::string fields;
  if (rank >= 0 && step >= 0) {
    fields = fmt::format(" [rank {} step {}]", rank, step);
  } else if (rank >= 0) {
    fields = fmt::format(" [rank {}]", rank);
  } else if (step >= 0) {
    fields = fmt::format(" [step {}]", step);
  }
  return fmt::format("{} {}{} {}", time_of_day, kLetters[static_cast<int>(level)], fields, text);
}

void WriteLog(LogLevel level, std::string_view text) {
  if (level < CurrentLogLevel() || level == LogLevel::kOff) return;
  WriteLineAboveLive(FormatLogLine(level, text, UnixSeconds()));
}

}  // namespace tessera
