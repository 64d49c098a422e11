#include "cli/commands.h"

namespace tessera::cli {

void RegisterGenerate(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
