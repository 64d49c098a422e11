// Progress for people: one live line on a terminal, plain lines every few seconds otherwise.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>

#include "base/time.h"

namespace tessera {

enum class ProgressMode {
  kAuto,    // Live when the stream is a terminal, plain otherwise.
  kLive,    // Redraws one line in place.
  kPlain,   // Prints a line at most every `plain_interval_s`.
  kSilent,  // Prints nothing.
};

// One line of status that is redrawn in place. Thread-safe.
class LiveLine {
 public:
  explicit LiveLine(ProgressMode mode = ProgressMode::kAuto, double plain_interval_s = 10,
                    std::FILE* stream = stderr);
  // Ends the line so that what follows starts on a new one.
  ~LiveLine();
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;

  // True when Show would draw now (10 times a second live, every interval plain); lets the caller
  // skip the formatting. The first call is due at once when live, after one interval when plain.
  bool Due() const;
  // Draws `text`, cut to the terminal's width, if it is due.
  void Show(std::string_view text);
  // Replaces the live line by a permanent line.
  void Print(std::string_view text);

  bool live() const { return mode_ == ProgressMode::kLive; }

 private:
  ProgressMode mode_;
  double plain_interval_s_;
  std::FILE* stream_;
  std::atomic<double> next_s_;  // When Show draws again, on the monotonic clock.
};

// Writes a whole line to stderr without mixing it into a live line; the live line is drawn again at
// its next Show.
void WriteLineAboveLive(std::string_view line);

enum class ProgressUnit { kCount, kBytes };

struct ProgressOptions {
  int64_t total = -1;  // -1: unknown, so no percentage and no time left.
  ProgressUnit unit = ProgressUnit::kCount;
  std::string noun;  // What is counted: "documents", "tokens". Not used for bytes.
  ProgressMode mode = ProgressMode::kAuto;
  double plain_interval_s = 10;
  std::FILE* stream = stderr;
};

// Rate, percentage and time left of counted work:
//   tokenizing  42% | 8.4 MiB of 20.0 MiB | 5.1 MiB/s | 2.3s left
class ProgressMeter {
 public:
  explicit ProgressMeter(std::string label, ProgressOptions options = {});

  // Adds to the count; may be called from many threads, and costs two atomic operations when
  // nothing is drawn.
  void Add(int64_t delta);
  // Sets the count.
  void Update(int64_t done);
  // Prints the final line with the total time and the mean rate; further calls do nothing. Without
  // it nothing permanent is printed, which is right when the work failed.
  void Finish();

  int64_t done() const { return done_.load(std::memory_order_relaxed); }
  // The line as it would be drawn after `elapsed_s`.
  std::string Line(double elapsed_s) const;

 private:
  std::string Quantity(double value) const;

  std::string label_;
  ProgressOptions options_;
  Stopwatch watch_;
  LiveLine line_;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> finished_{false};
};

}  // namespace tessera
