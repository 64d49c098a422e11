// Arbitrary bytes as a run file; up to the first NUL byte they are an override instead.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/run_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  std::vector<std::string> overrides;
  if (end != std::string_view::npos) overrides.emplace_back(text.substr(0, end));
  const std::string_view file = end == std::string_view::npos ? text : text.substr(end + 1);
  const tessera::Result<tessera::RunConfig> config = tessera::ParseRunFile(file, "fuzz", overrides);
  if (config.ok()) {
    // What was read must be readable again.
    const std::string yaml = tessera::RunConfigToYaml(*config);
    if (!tessera::ParseRunFile(yaml, "fuzz").ok()) __builtin_trap();
  }
  return 0;
}
