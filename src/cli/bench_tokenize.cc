#include "cli/commands.h"

namespace tessera::cli {

void RegisterBenchTokenize(CLI::App& /*bench*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
