// Writes an MDS dataset, byte for byte as mosaicml-streaming's MDSWriter would.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/mds.h"

namespace tessera {

struct MdsWriterOptions {
  std::filesystem::path folder;  // Created; must hold no index.json.
  std::vector<MdsColumn> columns;  // Any order; fixed_size is derived from the encoding.
  int64_t size_limit = int64_t{1} << 26;
  std::vector<std::string> hashes = {"sha256", "xxh64"};
};

class MdsWriter {
 public:
  static Result<MdsWriter> Create(MdsWriterOptions options);

  // Adds a sample: the encoded values, in ascending order of the columns' names.
  Status Write(std::span<const std::string_view> values);
  // Writes the last shard, then index.json. Nothing but shards exists before that.
  Status Finish();

  int64_t samples() const { return total_samples_; }
  int64_t shards() const { return static_cast<int64_t>(shards_.size()); }
  int64_t bytes() const { return total_bytes_; }  // Of the shards.

 private:
  Status FlushShard();

  MdsWriterOptions options_;
  Json config_;         // The members that every shard's entry and its embedded config share.
  std::string config_text_;
  std::vector<uint32_t> ends_;  // Ends of the samples in data_.
  std::string data_;
  Json shards_ = Json::array();
  int64_t total_samples_ = 0;
  int64_t total_bytes_ = 0;
};

// Encoders that append a value's bytes.
void AppendMdsInt(int64_t value, std::string* out);                     // int
// ndarray:uint16 for element_bytes 2, ndarray:uint32 for 4. At least one id; ids fit the type.
void AppendMdsTokens(std::span<const int32_t> ids, int element_bytes, std::string* out);

}  // namespace tessera
