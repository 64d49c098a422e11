// Arbitrary bytes as a compressed shard of each kind, with a size that the index might claim.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "data/shard_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  if (size < 3) return 0;
  const char* const kinds[] = {"zstd", "gz:9", "br", "bz2", "snappy"};
  const int64_t claimed = data[1] + 256 * int64_t{data[2]};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 3, size - 3);
  (void)DecompressShard(kinds[data[0] % std::size(kinds)], bytes, claimed, "fuzz").ok();
  return 0;
}
