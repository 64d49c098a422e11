#include "cli/commands.h"

namespace tessera::cli {

void RegisterData(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
