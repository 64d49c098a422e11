#include "cli/commands.h"

namespace tessera::cli {

void RegisterBenchGemm(CLI::App& /*bench*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
