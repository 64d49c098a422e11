#include "cli/commands.h"

namespace tessera::cli {

void RegisterBenchLoad(CLI::App& /*bench*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
