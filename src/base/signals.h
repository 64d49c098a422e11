// Stop requests: SIGINT and SIGTERM set a flag that long work polls; a second Ctrl-C ends at once.
#pragma once

namespace tessera {

// Handles SIGINT and SIGTERM for the life of the object and restores the former handlers after it.
// Only commands that poll StopRequested() should have one; all others keep the default, which ends
// the process. The first signal asks for a stop. A SIGINT after it ends the process at once with
// exit code 130; a further SIGTERM changes nothing, because schedulers repeat it.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
};

// True after a signal or RequestStop(): finish the step, save, return kCancelled. One relaxed load.
bool StopRequested();
// The signal that asked (SIGINT, SIGTERM), 0 when none did.
int StopSignal();
// Asks for a stop from within the program.
void RequestStop();
// Forgets a request, so that the next piece of work starts clean.
void ClearStopRequest();

}  // namespace tessera
