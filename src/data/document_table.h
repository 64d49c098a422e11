// documents.idx: the token and byte count of every document of a split, so that a loader finds any
// token without touching the shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "data/mds_reader.h"

namespace tessera {

inline constexpr const char* kDocumentTableFile = "documents.idx";

// Little-endian: char[8] "TSDOCIDX", u32 version 1, u32 0, u64 documents n, u64 tokens, u64 bytes,
// u32 tokens[n], u32 bytes[n], u64 XXH3 of all before.
Status WriteDocumentTable(const std::filesystem::path& path, std::span<const uint32_t> tokens,
                          std::span<const uint32_t> bytes);

class DocumentTable {
 public:
  // From documents.idx where the folder has one, otherwise by reading every sample's head.
  // `column` names the token ids; "bytes" (int) the raw byte counts, which may be absent.
  static Result<DocumentTable> Open(MdsReader& reader, std::string_view column);
  // Checks magic, version, size, sums and checksum.
  static Result<DocumentTable> Parse(const std::filesystem::path& path);
  // Over bytes at a multiple of 4 that the caller keeps alive; `source` names them in errors.
  static Result<DocumentTable> FromMemory(std::string_view content, std::string_view source);

  int64_t documents() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t tokens(int64_t document) const { return tokens_[static_cast<size_t>(document)]; }
  int64_t bytes(int64_t document) const { return bytes_[static_cast<size_t>(document)]; }
  int64_t total_tokens() const { return total_tokens_; }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  MappedFile file_;
  std::vector<uint32_t> own_tokens_;
  std::vector<uint32_t> own_bytes_;
  std::span<const uint32_t> tokens_;
  std::span<const uint32_t> bytes_;
  int64_t total_tokens_ = 0;
  int64_t total_bytes_ = 0;
};

}  // namespace tessera
