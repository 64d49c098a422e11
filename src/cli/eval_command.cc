#include "cli/commands.h"

namespace tessera::cli {

void RegisterEval(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
