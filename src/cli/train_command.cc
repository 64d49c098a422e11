#include "cli/commands.h"

namespace tessera::cli {

void RegisterTrain(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
