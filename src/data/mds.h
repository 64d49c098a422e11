// MDS, the shard format of mosaicml-streaming: index.json, shard files, sample and value encodings.
// docs/formats.md gives it byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace tessera {

// Offsets in a shard are 32 bits wide.
inline constexpr int64_t kMdsMaxShardBytes = (int64_t{1} << 32) - 1;

struct MdsHash {
  std::string algorithm;
  std::string hex;
};

struct MdsFile {
  std::string basename;  // Relative to the dataset's folder; checked to stay inside it.
  int64_t bytes = 0;
  std::vector<MdsHash> hashes;
};

struct MdsColumn {
  std::string name;
  std::string encoding;    // "str", "int", "ndarray:uint16", ...
  int64_t fixed_size = 0;  // Bytes; 0 where values tell their length.
};

struct MdsShard {
  std::vector<MdsColumn> columns;  // Ascending by name.
  std::string compression;         // "zstd:7"; empty where there is none.
  MdsFile raw;
  std::optional<MdsFile> zip;
  int64_t samples = 0;

  // Index of a column or -1.
  int64_t FindColumn(std::string_view name) const;
};

struct MdsIndex {
  std::vector<MdsShard> shards;
  std::vector<int64_t> first_sample;  // [shards + 1]: prefix sums of samples.
  int64_t samples() const { return first_sample.back(); }
  // The shard that holds a sample of the dataset.
  int64_t ShardOf(int64_t sample) const;
};

// `source` names the file in errors. Bounds every number: hostile input gives an error.
Result<MdsIndex> ParseMdsIndex(std::string_view text, std::string_view source);
// Not found with a hint when the folder holds no index.json.
Result<MdsIndex> ReadMdsIndex(const std::filesystem::path& folder);

// Lower-case hex digest by the names that MDS uses (blake2b, sha256, xxh64, xxh3_128, ...);
// nullopt for a name that is not known.
std::optional<std::string> MdsHashHex(std::string_view algorithm, std::string_view data);

// The bytes of a value's columns within one sample. `columns` gets one view per column of the
// shard. Errors say which column; the caller adds shard and sample.
Status SplitMdsSample(const MdsShard& shard, std::string_view sample,
                      std::vector<std::string_view>* columns);

// Token ids of one value of an integer column, as they lie in the file (not aligned).
struct MdsTokens {
  enum class Type { kUint16, kInt32, kUint32, kInt64 };
  Type type = Type::kUint16;
  const char* data = nullptr;
  int64_t count = 0;
};
// Understands ndarray, ndarray:DT and ndarray:DT:shape with uint16, int32, uint32, int64, and
// `bytes` as int64 values (old llm-foundry datasets). Any shape counts as flat; values are little-
// endian.
Result<MdsTokens> ParseMdsTokens(std::string_view encoding, std::string_view value);
// Widens ids [begin, begin + count) to int32. Returns the largest id as it was stored, or -1 where
// one is negative or above INT32_MAX, so that the caller can refuse it.
int64_t CopyMdsTokens(const MdsTokens& tokens, int64_t begin, int64_t count, int32_t* out);

// A value as JSON for people: text, numbers, arrays; bytes that are no text as their length and the
// first bytes in hex. Arrays longer than `max_elements` are cut.
Result<Json> MdsValueToJson(std::string_view encoding, std::string_view value,
                            int64_t max_elements = 64);

// Bytes of a fixed-size encoding, 0 for a variable one, nullopt for one that is not known.
std::optional<int64_t> MdsFixedSize(std::string_view encoding);

// JSON text exactly as Python's json.dumps(value, sort_keys=True) gives it.
std::string PythonJson(const Json& value);

}  // namespace tessera
