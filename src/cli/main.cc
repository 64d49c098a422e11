// Entry point: registers the commands, reports an error in one line, sets the exit code.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <string>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"

namespace tessera::cli {

// What CLI11 says about the arguments, with the command to ask next; a word that is no command is
// named, with the one that was probably meant.
Error UsageError(const CLI::App& app, std::string_view what, const std::string& first) {
  std::vector<std::string> names;
  for (const CLI::App* each : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(each->get_name());
    if (names.back() != first) continue;
    // The innermost subcommand that was recognised has the help that fits.
    std::string command = "tessera " + first;
    for (std::vector<CLI::App*> inner = each->get_subcommands(); !inner.empty();
         inner = inner.front()->get_subcommands()) {
      command += " " + inner.front()->get_name();
    }
    return InvalidArgument(fmt::format("{}; see `{} --help`", what, command));
  }
  if (first.empty() || first.starts_with("-")) {
    return InvalidArgument(fmt::format("{}; the commands are {}; see `tessera --help`",
                                       first.empty() ? "name a command" : what, Join(names, ", ")));
  }
  const auto nearest = NearestKey(first, names);
  return InvalidArgument(fmt::format("'{}' is no command{}; the commands are {}", first,
                                     nearest ? fmt::format(" (did you mean '{}'?)", *nearest) : "",
                                     Join(names, ", ")));
}

}  // namespace tessera::cli

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
  // A file size limit (ulimit -f) then fails the write, which is told and cleaned up after, instead
  // of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
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
    if (error.get_exit_code() == 0) return app.exit(error);
    outcome.status = cli::UsageError(app, error.what(), argc > 1 ? argv[1] : "");
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
