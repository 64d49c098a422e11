#include "train/duration.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

#include "base/strings.h"

namespace tessera {

namespace {

struct UnitSpelling {
  std::string_view suffix;
  TimeUnit unit;
  double factor;
};

constexpr std::array<UnitSpelling, 8> kSpellings = {{{"ba", TimeUnit::kBatch, 1},
                                                     {"tok", TimeUnit::kToken, 1},
                                                     {"ep", TimeUnit::kEpoch, 1},
                                                     {"sec", TimeUnit::kSecond, 1},
                                                     {"dur", TimeUnit::kFraction, 1},
                                                     {"min", TimeUnit::kSecond, 60},
                                                     {"s", TimeUnit::kSecond, 1},
                                                     {"h", TimeUnit::kSecond, 3600}}};

constexpr const char* kAllowed =
    "write a number and a unit: ba (batches), tok (tokens), ep (epochs), sec, min, h, or dur "
    "(share "
    "of max_duration), for example 2000ba or 10_000_000tok";

// The largest whole number up to which a double holds every one.
constexpr double kLargestExact = 9007199254740992.0;

bool IsWholeUnit(TimeUnit unit) { return unit == TimeUnit::kBatch || unit == TimeUnit::kToken; }

}  // namespace

std::string_view TimeUnitName(TimeUnit unit) {
  switch (unit) {
    case TimeUnit::kBatch:
      return "ba";
    case TimeUnit::kToken:
      return "tok";
    case TimeUnit::kEpoch:
      return "ep";
    case TimeUnit::kSecond:
      return "sec";
    case TimeUnit::kFraction:
      return "dur";
  }
  return "?";
}

Result<Duration> ParseDuration(std::string_view text) {
  const std::string_view trimmed = Trim(text);
  size_t digits = trimmed.size();
  while (digits > 0 && ((trimmed[digits - 1] >= 'a' && trimmed[digits - 1] <= 'z') ||
                        (trimmed[digits - 1] >= 'A' && trimmed[digits - 1] <= 'Z'))) {
    --digits;
  }
  const std::string_view number = Trim(trimmed.substr(0, digits));
  const std::string_view suffix = trimmed.substr(digits);
  const std::optional<double> value = ParseDouble(number);
  if (!value.has_value() || number.empty()) {
    return InvalidArgument(fmt::format("'{}' is not a length of time; {}", text, kAllowed));
  }
  if (suffix.empty()) {
    return InvalidArgument(fmt::format("'{}' has no unit; {}", text, kAllowed));
  }
  for (const UnitSpelling& spelling : kSpellings) {
    if (suffix != spelling.suffix) continue;
    const Duration duration = {*value * spelling.factor, spelling.unit};
    if (!std::isfinite(duration.value) || duration.value < 0 || duration.value > kLargestExact) {
      return InvalidArgument(fmt::format("'{}' must be between 0 and 2^53", text));
    }
    if (IsWholeUnit(duration.unit) && duration.value != std::floor(duration.value)) {
      return InvalidArgument(
          fmt::format("'{}' must be a whole number of {}", text, spelling.suffix));
    }
    if (duration.unit == TimeUnit::kFraction && duration.value > 1) {
      return InvalidArgument(fmt::format("'{}' is more than the whole run (1dur)", text));
    }
    return duration;
  }
  return InvalidArgument(fmt::format("'{}' has the unknown unit '{}'; {}", text, suffix, kAllowed));
}

std::string FormatDuration(const Duration& duration) {
  if (duration.value == std::floor(duration.value) && duration.value <= kLargestExact) {
    return fmt::format("{}{}", static_cast<int64_t>(duration.value), TimeUnitName(duration.unit));
  }
  return fmt::format("{}{}", duration.value, TimeUnitName(duration.unit));
}

double ProgressIn(const Progress& progress, TimeUnit unit) {
  switch (unit) {
    case TimeUnit::kBatch:
      return static_cast<double>(progress.step);
    case TimeUnit::kToken:
      return static_cast<double>(progress.tokens);
    case TimeUnit::kEpoch:
      return progress.epochs;
    case TimeUnit::kSecond:
      return progress.seconds;
    case TimeUnit::kFraction:
      break;
  }
  TESSERA_CHECK(false, "a fraction must be resolved against max_duration first");
  return 0;
}

Duration ResolveFraction(const Duration& duration, const Duration& total) {
  if (duration.unit != TimeUnit::kFraction) return duration;
  const double value = duration.value * total.value;
  return {IsWholeUnit(total.unit) ? std::round(value) : value, total.unit};
}

bool HasReached(const Progress& progress, const Duration& limit) {
  return ProgressIn(progress, limit.unit) >= limit.value;
}

bool IsDue(const Progress& before, const Progress& after, const Duration& interval) {
  if (interval.value <= 0) return false;
  return std::floor(ProgressIn(after, interval.unit) / interval.value) >
         std::floor(ProgressIn(before, interval.unit) / interval.value);
}

}  // namespace tessera
