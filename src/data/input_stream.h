// Bytes of a file or of memory with gzip, zstd and xz looked through, known by their magic bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"

namespace tessera {

enum class Compression { kNone, kGzip, kZstd, kXz };

// By the first bytes of a file (at least 6 to know all of them).
Compression DetectCompression(std::string_view head);

// Reads in constant memory. Several compressed members behind each other count as one text, as the
// tools gzip, zstd and xz have it; input that ends within a member is corrupt, not short.
class InputStream {
 public:
  static Result<std::unique_ptr<InputStream>> OpenFile(const std::filesystem::path& path);
  // `data` must outlive the stream; `name` is for errors.
  static Result<std::unique_ptr<InputStream>> OpenMemory(std::string_view data, std::string name);
  virtual ~InputStream() = default;

  // Fills up to `capacity` bytes; 0 only at the end.
  virtual Result<int64_t> Read(char* out, int64_t capacity) = 0;
  // Of the file as it lies on disk: bytes so far, and XXH3 of them.
  virtual int64_t stored_bytes() const = 0;
  virtual uint64_t stored_hash() const = 0;
};

// The rest of a stream as a string; an error when it has more than `max_bytes`, before more than
// that is kept.
Result<std::string> ReadAll(InputStream& stream, int64_t max_bytes, std::string_view name);

}  // namespace tessera
