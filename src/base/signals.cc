#include "base/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/error.h"

namespace tessera {

namespace {

std::atomic<bool> stop_requested{false};
std::atomic<int> stop_signal{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "only lock-free atomics may be used in a signal handler");

struct sigaction former_interrupt;
struct sigaction former_terminate;

void WriteText(const char* text) {
  // Nothing can be done in a handler when the terminal is gone.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

void Handle(int signal_number) {
  if (stop_requested.exchange(true)) {
    if (signal_number == SIGINT) {
      WriteText("\nstopped at once; what was not saved is lost\n");
      ::_exit(ExitCodeFor(ErrorCode::kCancelled));
    }
    return;
  }
  stop_signal.store(signal_number);
  if (signal_number == SIGINT && ::isatty(STDERR_FILENO)) {
    WriteText("\nstopping after this step (Ctrl-C again ends at once)\n");
  }
}

}  // namespace

StopSignals::StopSignals() {
  struct sigaction action = {};
  action.sa_handler = Handle;
  // Reads and writes in progress go on: the flag is polled between pieces of work.
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &former_interrupt);
  ::sigaction(SIGTERM, &action, &former_terminate);
}

StopSignals::~StopSignals() {
  ::sigaction(SIGINT, &former_interrupt, nullptr);
  ::sigaction(SIGTERM, &former_terminate, nullptr);
}

bool StopRequested() { return stop_requested.load(std::memory_order_relaxed); }
int StopSignal() { return stop_signal.load(); }
void RequestStop() { stop_requested.store(true); }

void ClearStopRequest() {
  stop_requested.store(false);
  stop_signal.store(0);
}

}  // namespace tessera
