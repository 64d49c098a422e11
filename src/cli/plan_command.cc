#include "cli/commands.h"

namespace tessera::cli {

void RegisterPlan(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
