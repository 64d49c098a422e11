#include "cli/commands.h"

namespace tessera::cli {

void RegisterBenchTrain(CLI::App& /*bench*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
