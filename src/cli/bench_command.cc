// `tessera bench`: what this machine can do, and how close each part comes.
#include "cli/commands.h"

namespace tessera::cli {

void RegisterBench(CLI::App& app, Outcome& outcome) {
  CLI::App* bench = app.add_subcommand(
      "bench", "Measure a part of Tessera beside this machine's limit, in one run");
  bench->require_subcommand(1);
  RegisterBenchGemm(*bench, outcome);
  RegisterBenchAttention(*bench, outcome);
  RegisterBenchTrain(*bench, outcome);
  RegisterBenchLoad(*bench, outcome);
  RegisterBenchTokenize(*bench, outcome);
  RegisterBenchStore(*bench, outcome);
}

}  // namespace tessera::cli
