#include "track/console.h"

#include <fmt/format.h>

#include "base/strings.h"
#include "base/time.h"

namespace tessera {

std::string FormatStepLine(const StepView& view) {
  std::string line = view.total_steps >= 0 ? fmt::format("step {}/{}", view.step, view.total_steps)
                                           : fmt::format("step {}", view.step);
  line +=
      fmt::format(" {:3.0f}% | loss {:.4f} | lr {:.2e}", 100 * view.fraction, view.loss, view.lr);
  if (view.tokens_per_s >= 0) line += fmt::format(" | {} tok/s", FormatCount(view.tokens_per_s));
  if (view.mfu >= 0) line += fmt::format(" | {:.0f}% mfu", 100 * view.mfu);
  if (view.resident_bytes >= 0) line += fmt::format(" | {}", FormatBytes(view.resident_bytes));
  if (view.skipped_steps > 0) line += fmt::format(" | {} skipped", view.skipped_steps);
  if (view.seconds_left >= 0) line += fmt::format(" | {} left", FormatDuration(view.seconds_left));
  return line;
}

RunConsole::RunConsole(bool enabled, ProgressMode mode, std::FILE* stream)
    : enabled_(enabled), line_(enabled ? mode : ProgressMode::kSilent, 10, stream) {}

void RunConsole::Step(const StepView& view, bool due, bool force) {
  if (!enabled_) return;
  if (line_.live()) {
    if (line_.Due()) line_.Show(FormatStepLine(view));
    return;
  }
  const double now = MonotonicSeconds();
  if (!force && (!due || now - last_plain_s_ < 1.0)) return;
  last_plain_s_ = now;
  line_.Print(FormatStepLine(view));
}

void RunConsole::Status(std::string_view text) {
  if (enabled_ && line_.live() && line_.Due()) line_.Show(text);
}

void RunConsole::Print(std::string_view text) {
  if (enabled_) line_.Print(text);
}

}  // namespace tessera
