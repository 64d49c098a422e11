#include "cli/commands.h"

namespace tessera::cli {

void RegisterTokenizer(CLI::App& /*app*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
