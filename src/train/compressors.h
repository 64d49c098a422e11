// What general compressors make of the held-out text: the yardstick beside bits per byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace tessera {

struct CompressorResult {
  int64_t bytes = 0;  // of the text
  int64_t gzip_bytes = 0;
  int64_t xz_bytes = 0;
  double gzip_bits_per_byte() const {
    return 8.0 * static_cast<double>(gzip_bytes) / static_cast<double>(bytes);
  }
  double xz_bits_per_byte() const {
    return 8.0 * static_cast<double>(xz_bytes) / static_cast<double>(bytes);
  }
};

// The sizes of `cat documents | gzip -9` and `| xz -9e` by zlib and liblzma at those levels, in one
// stream over all documents: every document but the first profits from those before it, which a
// language model is denied. Cancelled when a stop is requested.
Result<CompressorResult> CompressText(std::string_view text);

// The documents of a split one after the other, decoded from their tokens.
Result<std::string> DecodeSplit(const std::filesystem::path& split, const Tokenizer& tokenizer,
                                const std::string& column);

}  // namespace tessera
