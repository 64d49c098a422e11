// Decompresses the whole-file compression of MDS shards.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

// True for zstd, gz, br, bz2 and snappy, with or without a level ("zstd:7").
bool IsShardCompression(std::string_view compression);

// The raw bytes, which must be exactly `raw_bytes`: memory grows with what is decoded, never with
// what the input claims. Corrupt otherwise; unsupported for an unknown compression. `name` is for
// errors.
Result<std::vector<char>> DecompressShard(std::string_view compression, std::string_view data,
                                          int64_t raw_bytes, const std::string& name);

}  // namespace tessera
