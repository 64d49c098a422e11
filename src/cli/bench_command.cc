// `tessera bench`: what this machine can do, and how close each part comes.
#include "cli/commands.h"

namespace tessera::cli {

void RegisterBench(Command app, Outcome& outcome) {
  Command bench =
      app.AddCommand("bench", "Measure a part of Tessera beside this machine's limit, in one run");
  bench.RequireCommand();
  RegisterBenchGemm(bench, outcome);
  RegisterBenchAttention(bench, outcome);
  RegisterBenchTrain(bench, outcome);
  RegisterBenchGenerate(bench, outcome);
  RegisterBenchBalance(bench, outcome);
  RegisterBenchLoad(bench, outcome);
  RegisterBenchTokenize(bench, outcome);
  RegisterBenchStore(bench, outcome);
}

}  // namespace tessera::cli
