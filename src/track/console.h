// What a person sees of a training run: a live line on a terminal, plain lines otherwise.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/progress.h"

namespace tessera {

// What is known after a step. Negative: unknown, not shown.
struct StepView {
  int64_t step = 0;
  int64_t total_steps = -1;
  double fraction = 0;  // of the run, 0 to 1
  double loss = 0;
  double lr = 0;
  double tokens_per_s = -1;
  double mfu = -1;  // 0 to 1
  int64_t resident_bytes = -1;
  double seconds_left = -1;
  int64_t skipped_steps = 0;
};

// "step 120/2000   6% | loss 3.214 | lr 6.0e-04 | 12.3k tok/s | 61% mfu | 1.2 GiB | 3m07s left"
std::string FormatStepLine(const StepView& view);

class RunConsole {
 public:
  // Silent when not `enabled`, except for Print.
  RunConsole(bool enabled, ProgressMode mode = ProgressMode::kAuto, std::FILE* stream = stderr);

  // Shows a step: drawn in place on a terminal; as a line of its own otherwise, where `due` says
  // that the run's interval has passed, and at most one a second unless `force`.
  void Step(const StepView& view, bool due, bool force);
  // A transient state: "evaluating 12 of 40 batches". Terminal only.
  void Status(std::string_view text);
  // A permanent line.
  void Print(std::string_view text);

 private:
  bool enabled_;
  LiveLine line_;
  double last_plain_s_ = -1e9;
};

}  // namespace tessera
