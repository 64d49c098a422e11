// Fuzz target of the profile files and of the JSON that gives keys. An error never repeats the input.
#include <cstdint>
#include <cstdlib>

#include "store/aws_config.h"
#include "store/aws_credentials.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto file = ParseIni(text, "fuzz");
  if (file.ok()) {
    for (const auto& [section, values] : *file) {
      for (const auto& [key, value] : values) {
        if (key.empty() || value.empty()) std::abort();
      }
    }
  } else if (file.error().message.size() > 100) {
    std::abort();
  }
  const auto keys = ParseCredentialJson(text, "fuzz");
  if (!keys.ok() && keys.error().message.size() > 100) std::abort();
  (void)ParseIsoTime(text);
  return 0;
}
