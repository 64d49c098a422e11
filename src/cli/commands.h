// The commands of the program: each file in this folder registers one.
#pragma once

#include <CLI/CLI.hpp>

#include "base/error.h"

namespace tessera::cli {

// What a command's callback found; main prints the error and turns it into the exit code.
struct Outcome {
  Status status;
};

void RegisterDoctor(CLI::App& app, Outcome& outcome);
void RegisterTokenizer(CLI::App& app, Outcome& outcome);
void RegisterData(CLI::App& app, Outcome& outcome);
void RegisterPlan(CLI::App& app, Outcome& outcome);
void RegisterTrain(CLI::App& app, Outcome& outcome);
void RegisterEval(CLI::App& app, Outcome& outcome);
void RegisterGenerate(CLI::App& app, Outcome& outcome);
void RegisterStore(CLI::App& app, Outcome& outcome);

// A subcommand of `data`.
void RegisterDataOrder(CLI::App& data, Outcome& outcome);

// Subcommands of `bench`.
void RegisterBench(CLI::App& app, Outcome& outcome);
void RegisterBenchGemm(CLI::App& bench, Outcome& outcome);
void RegisterBenchAttention(CLI::App& bench, Outcome& outcome);
void RegisterBenchTrain(CLI::App& bench, Outcome& outcome);
void RegisterBenchLoad(CLI::App& bench, Outcome& outcome);
void RegisterBenchTokenize(CLI::App& bench, Outcome& outcome);
void RegisterBenchStore(CLI::App& bench, Outcome& outcome);

}  // namespace tessera::cli
