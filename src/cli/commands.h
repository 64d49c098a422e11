// The commands of the program: each file in this folder registers one.
#pragma once

#include "base/error.h"
#include "cli/command_line.h"

namespace tessera::cli {

// What a command's callback found; main prints the error and turns it into the exit code.
struct Outcome {
  Status status;
};

void RegisterDoctor(Command app, Outcome& outcome);
void RegisterTokenizer(Command app, Outcome& outcome);
void RegisterData(Command app, Outcome& outcome);
void RegisterPlan(Command app, Outcome& outcome);
void RegisterTrain(Command app, Outcome& outcome);
void RegisterEval(Command app, Outcome& outcome);
void RegisterGenerate(Command app, Outcome& outcome);
void RegisterStore(Command app, Outcome& outcome);

// A subcommand of `data`.
void RegisterDataOrder(Command data, Outcome& outcome);

// Subcommands of `bench`.
void RegisterBench(Command app, Outcome& outcome);
void RegisterBenchGemm(Command bench, Outcome& outcome);
void RegisterBenchAttention(Command bench, Outcome& outcome);
void RegisterBenchTrain(Command bench, Outcome& outcome);
void RegisterBenchBalance(Command bench, Outcome& outcome);
void RegisterBenchGenerate(Command bench, Outcome& outcome);
void RegisterBenchLoad(Command bench, Outcome& outcome);
void RegisterBenchTokenize(Command bench, Outcome& outcome);
void RegisterBenchStore(Command bench, Outcome& outcome);

}  // namespace tessera::cli
