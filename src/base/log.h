// Log lines on stderr: "12:34:56 W [rank 3 step 120] text". Level from $TESSERA_LOG.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace tessera {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// The name of a level ("debug", "info", "warning", "error", "off"), nullopt on anything else.
std::optional<LogLevel> ParseLogLevel(std::string_view name);
// The default is $TESSERA_LOG, or info where that is unset or not a level.
void SetLogLevel(LogLevel level);
LogLevel CurrentLogLevel();

// Fields of every later line; -1 leaves the field out. A single process shows no rank.
void SetLogRank(int64_t rank);
void SetLogStep(int64_t step);

// The line without its end, as it is written at `unix_seconds`.
std::string FormatLogLine(LogLevel level, std::string_view text, int64_t unix_seconds);
// Writes one line if the level is on. Thread-safe.
void WriteLog(LogLevel level, std::string_view text);

template <class... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (level < CurrentLogLevel()) return;
  WriteLog(level, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kWarning, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace tessera
