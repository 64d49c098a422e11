// Entry point: registers the commands, reports an error in one line, sets the exit code.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "cli/commands.h"

int main(int argc, char** argv) {
  using namespace tessera;
  // A file size limit (ulimit -f) then fails the write, which is told and cleaned up after, instead
  // of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
  cli::Outcome outcome;
  const auto declare = [&outcome](cli::Command app) {
    app.RequireCommand();
    app.SetFooter(
        "Start here:\n"
        "  tessera doctor                        what this machine has\n"
        "  tessera train recipes/quickstart.yaml data.sources.mine=PATH\n"
        "Every command has --help with examples.");
    cli::RegisterDoctor(app, outcome);
    cli::RegisterTokenizer(app, outcome);
    cli::RegisterData(app, outcome);
    cli::RegisterPlan(app, outcome);
    cli::RegisterTrain(app, outcome);
    cli::RegisterEval(app, outcome);
    cli::RegisterGenerate(app, outcome);
    cli::RegisterStore(app, outcome);
    cli::RegisterBench(app, outcome);
  };
  try {
    const Status usage = cli::RunCommandLine(
        argc, argv,
        "Tessera: train, evaluate and run language models on your own data and machines.",
        "tessera 0.1.0", declare);
    if (!usage.ok()) outcome.status = usage;
  } catch (const ErrorException& exception) {
    outcome.status = exception.error();
  } catch (const std::bad_alloc&) {
    outcome.status = OutOfMemory("the operating system gave no more memory; see `tessera plan`");
  }
  if (!outcome.status.ok()) {
    std::fflush(stdout);
    const Error& error = outcome.status.error();
    fmt::print(stderr, "tessera: error: {}\n", error.message);
    return ExitCodeFor(error.code);
  }
  return 0;
}
