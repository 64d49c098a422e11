// libFuzzer target: any bytes as a tokenizer.json. What is accepted must round-trip its own text
// and survive being saved and loaded.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = tessera::Tokenizer::FromJson(text, "fuzz");
  if (!tokenizer.ok()) return 0;
  std::vector<int32_t> ids;
  tokenizer->Encode(text, &ids);
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
  }
  (void)tokenizer->Decode(ids);
  const auto again = tessera::Tokenizer::FromJson(tokenizer->ToJson(), "again");
  if (!again.ok() || again->fingerprint() != tokenizer->fingerprint()) std::abort();
  return 0;
}
