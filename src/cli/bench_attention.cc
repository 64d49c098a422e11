#include "cli/commands.h"

namespace tessera::cli {

void RegisterBenchAttention(CLI::App& /*bench*/, Outcome& /*outcome*/) {}

}  // namespace tessera::cli
