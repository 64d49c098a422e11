#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/strings.h"

namespace tessera {

namespace {

constexpr double kLiveInterval_s = 0.1;
constexpr std::string_view kClearLine = "\r\x1b[K";

// Guards the terminal and `open_line`.
std::mutex terminal_mutex;
// The stream on which an unfinished live line stands, or null.
std::FILE* open_line = nullptr;

ProgressMode Resolve(ProgressMode mode, std::FILE* stream) {
  if (mode != ProgressMode::kAuto) return mode;
  return ::isatty(::fileno(stream)) ? ProgressMode::kLive : ProgressMode::kPlain;
}

int64_t TerminalColumns(std::FILE* stream) {
  struct winsize size = {};
  if (::ioctl(::fileno(stream), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

// The longest prefix of at most `columns` code points. Wide characters are counted as one.
std::string_view CutToColumns(std::string_view text, int64_t columns) {
  int64_t used = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool continuation = (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80;
    if (continuation) continue;
    if (used == columns) return text.substr(0, i);
    ++used;
  }
  return text;
}

void Put(std::string_view text, std::FILE* stream) {
  std::fwrite(text.data(), 1, text.size(), stream);
}

// The terminal mutex must be held.
void ClearOpenLine() {
  if (open_line == nullptr) return;
  Put(kClearLine, open_line);
  std::fflush(open_line);
  open_line = nullptr;
}

}  // namespace

LiveLine::LiveLine(ProgressMode mode, double plain_interval_s, std::FILE* stream)
    : mode_(Resolve(mode, stream)),
      plain_interval_s_(plain_interval_s),
      stream_(stream),
      next_s_(mode_ == ProgressMode::kLive ? 0.0 : MonotonicSeconds() + plain_interval_s) {}

LiveLine::~LiveLine() {
  std::lock_guard<std::mutex> lock(terminal_mutex);
  if (open_line != stream_ || mode_ != ProgressMode::kLive) return;
  Put("\n", stream_);
  std::fflush(stream_);
  open_line = nullptr;
}

bool LiveLine::Due() const {
  return mode_ != ProgressMode::kSilent &&
         MonotonicSeconds() >= next_s_.load(std::memory_order_relaxed);
}

void LiveLine::Show(std::string_view text) {
  if (!Due()) return;
  std::lock_guard<std::mutex> lock(terminal_mutex);
  const double now = MonotonicSeconds();
  if (now < next_s_.load(std::memory_order_relaxed)) return;  // Another thread has just drawn.
  const bool live = mode_ == ProgressMode::kLive;
  next_s_.store(now + (live ? kLiveInterval_s : plain_interval_s_), std::memory_order_relaxed);
  if (live) {
    Put(kClearLine, stream_);
    // The last column stays free: some terminals wrap when it is written.
    Put(CutToColumns(text, TerminalColumns(stream_) - 1), stream_);
    open_line = stream_;
  } else {
    Put(text, stream_);
    Put("\n", stream_);
  }
  std::fflush(stream_);
}

void LiveLine::Print(std::string_view text) {
  if (mode_ == ProgressMode::kSilent) return;
  std::lock_guard<std::mutex> lock(terminal_mutex);
  ClearOpenLine();
  Put(text, stream_);
  Put("\n", stream_);
  std::fflush(stream_);
}

void WriteLineAboveLive(std::string_view line) {
  std::lock_guard<std::mutex> lock(terminal_mutex);
  ClearOpenLine();
  Put(line, stderr);
  Put("\n", stderr);
  std::fflush(stderr);
}

ProgressMeter::ProgressMeter(std::string label, ProgressOptions options)
    : label_(std::move(label)),
      options_(std::move(options)),
      line_(options_.mode, options_.plain_interval_s, options_.stream) {}

std::string ProgressMeter::Quantity(double value) const {
  if (options_.unit == ProgressUnit::kBytes) return FormatBytes(static_cast<int64_t>(value));
  return FormatCount(value);
}

std::string ProgressMeter::Line(double elapsed_s) const {
  const int64_t done = this->done();
  const double rate = elapsed_s > 0 ? static_cast<double>(done) / elapsed_s : 0;
  const std::string noun = options_.noun.empty() ? "" : " " + options_.noun;
  std::string line = label_;
  if (options_.total > 0) {
    const double share =
        std::min(1.0, static_cast<double>(done) / static_cast<double>(options_.total));
    // Rounded down: 100% is shown when it is done, not before.
    line += fmt::format(" {:3}% | {} of {}{}", static_cast<int>(share * 100),
                        Quantity(static_cast<double>(done)),
                        Quantity(static_cast<double>(options_.total)), noun);
  } else {
    line += fmt::format(" | {}{}", Quantity(static_cast<double>(done)), noun);
  }
  line += fmt::format(" | {}/s", Quantity(rate));
  if (options_.total > 0 && rate > 0) {
    const int64_t left = std::max<int64_t>(0, options_.total - done);
    line += fmt::format(" | {} left", FormatDuration(static_cast<double>(left) / rate));
  }
  return line;
}

void ProgressMeter::Add(int64_t delta) {
  done_.fetch_add(delta, std::memory_order_relaxed);
  if (line_.Due() && !finished_.load(std::memory_order_relaxed)) line_.Show(Line(watch_.Seconds()));
}

void ProgressMeter::Update(int64_t done) {
  done_.store(done, std::memory_order_relaxed);
  if (line_.Due() && !finished_.load(std::memory_order_relaxed)) line_.Show(Line(watch_.Seconds()));
}

void ProgressMeter::Finish() {
  if (finished_.exchange(true)) return;
  const double elapsed_s = watch_.Seconds();
  const double done = static_cast<double>(this->done());
  const std::string noun = options_.noun.empty() ? "" : " " + options_.noun;
  line_.Print(fmt::format("{} | {}{} in {} | {}/s", label_, Quantity(done), noun,
                          FormatDuration(elapsed_s),
                          Quantity(elapsed_s > 0 ? done / elapsed_s : 0)));
}

}  // namespace tessera
