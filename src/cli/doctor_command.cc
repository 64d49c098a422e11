#include "cli/commands.h"

namespace tessera::cli {

void RegisterDoctor(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
