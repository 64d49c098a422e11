// Arbitrary bytes as an MDS index.json.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "data/mds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const tessera::Result<tessera::MdsIndex> index = tessera::ParseMdsIndex(text, "fuzz");
  if (index.ok()) {
    for (int64_t i = 0; i < index->samples() && i < 100; ++i) (void)index->ShardOf(i);
  }
  return 0;
}
