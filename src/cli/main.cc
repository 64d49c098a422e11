// Entry point: registers the commands, reports an error in one line, sets the exit code.
#include <fmt/format.h>

#include <cstdio>
#include <new>

#include "cli/commands.h"

int main(int argc, char** argv) {
  using namespace tessera;
  CLI::App app{"Tessera: train, evaluate and run language models on your own data and machines."};
  app.name("tessera");
  app.require_subcommand(1);
  app.set_version_flag("--version", "tessera 0.1.0");
  app.footer(
      "Start here:\n"
      "  tessera doctor                        what this machine has\n"
      "  tessera train recipes/quickstart.yaml data.sources.mine=PATH\n"
      "Every command has --help with examples.");
  cli::Outcome outcome;
  cli::RegisterDoctor(app, outcome);
  cli::RegisterTokenizer(app, outcome);
  cli::RegisterData(app, outcome);
  cli::RegisterPlan(app, outcome);
  cli::RegisterTrain(app, outcome);
  cli::RegisterEval(app, outcome);
  cli::RegisterGenerate(app, outcome);
  cli::RegisterStore(app, outcome);
  cli::RegisterBench(app, outcome);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
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
