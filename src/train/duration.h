// Lengths of training: "2000ba", "1ep", "10_000_000tok", "180sec", "0.1dur", and how far a run is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace tessera {

enum class TimeUnit {
  kBatch,     // "ba": optimizer steps
  kToken,     // "tok": tokens that went through the model
  kEpoch,     // "ep": passes over the training split
  kSecond,    // "sec": seconds of training, over all resumptions
  kFraction,  // "dur": share of max_duration
};
std::string_view TimeUnitName(TimeUnit unit);

struct Duration {
  double value = 0;  // Not negative. Whole for ba and tok.
  TimeUnit unit = TimeUnit::kBatch;

  bool is_zero() const { return value == 0; }
  bool operator==(const Duration&) const = default;
};

// "<number><unit>" with unit ba, tok, ep, sec (also s, min, h: turned into seconds) or dur; digits
// may be grouped with underscores. Nothing else: the message tells what is wrong and what is
// allowed.
Result<Duration> ParseDuration(std::string_view text);
// The shortest text that parses to the same value: "2000ba", "0.1dur".
std::string FormatDuration(const Duration& duration);

// How far a run is. A resumed run continues all four, so `seconds` counts training alone, not the
// time between a stop and the resumption.
struct Progress {
  int64_t step = 0;
  int64_t tokens = 0;
  double epochs = 0;
  double seconds = 0;
};

// The part of `progress` that `unit` counts. kFraction has none: see ResolveFraction.
double ProgressIn(const Progress& progress, TimeUnit unit);
// `duration` with the unit of `total` when it is a fraction of it, else itself; ba and tok are
// rounded to whole numbers.
Duration ResolveFraction(const Duration& duration, const Duration& total);
// True once the run has come as far as `limit` (which is not a fraction).
bool HasReached(const Progress& progress, const Duration& limit);

// Decides when something that comes back every `interval` is due: true when a multiple of
// `interval` lies in (before, after]. Never for an interval of zero.
bool IsDue(const Progress& before, const Progress& after, const Duration& interval);

}  // namespace tessera
