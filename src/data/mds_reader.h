// Reads MDS datasets: shards are mapped when first used; each failure names shard, offset, sample.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "data/mds.h"

namespace tessera {

// One open shard. Its size, sample count and table of offsets are checked against the index when it
// is opened, each sample's bounds when it is read.
class MdsShardFile {
 public:
  // Maps the raw file; where only the compressed one exists, decompresses it into memory.
  static Result<MdsShardFile> Open(const std::filesystem::path& folder, const MdsShard& shard);
  // Over bytes that the caller keeps alive.
  static Result<MdsShardFile> FromMemory(std::string_view bytes, const MdsShard& shard);

  Result<std::string_view> Sample(int64_t index) const;
  std::string_view bytes() const { return bytes_; }
  bool decompressed() const { return !memory_.empty(); }

 private:
  Status CheckHead();
  uint32_t Offset(int64_t index) const;

  std::string name_;
  int64_t samples_ = 0;
  MappedFile map_;
  std::vector<char> memory_;  // A vector, whose elements stay in place when it is moved.
  std::string_view bytes_;
};

// Random access to a dataset's samples. Not thread-safe.
class MdsReader {
 public:
  static Result<MdsReader> Open(const std::filesystem::path& folder);

  const MdsIndex& index() const { return index_; }
  const std::filesystem::path& folder() const { return folder_; }
  int64_t samples() const { return index_.samples(); }

  // The sample's bytes, valid until a sample of another shard is asked for (mapped shards stay
  // open, decompressed ones don't).
  Result<std::string_view> Sample(int64_t sample);
  // The sample's columns, in the order of its shard's columns.
  Status Columns(int64_t sample, std::vector<std::string_view>* columns);
  const MdsShard& ShardOf(int64_t sample) const {
    return index_.shards[static_cast<size_t>(index_.ShardOf(sample))];
  }
  // Called before a shard's file is opened, to bring it here; must be set before the first sample.
  void set_before_open(std::function<Status(int64_t shard)> before_open) {
    before_open_ = std::move(before_open);
  }
  // Unmaps a shard; it is opened again when a sample of it is asked for.
  void CloseShard(int64_t shard);
  // "<folder>: shard <name>, sample <i> (<j> in the shard)", the context of errors.
  std::string Where(int64_t sample) const;

 private:
  Result<const MdsShardFile*> OpenShard(int64_t shard);

  std::filesystem::path folder_;
  MdsIndex index_;
  std::vector<MdsShardFile> open_;
  std::vector<int64_t> slot_;  // [shards]: index into open_ or -1.
  std::vector<int64_t> free_;  // Slots of shards that were closed.
  int64_t decompressed_shard_ = -1;
  std::function<Status(int64_t)> before_open_;
};

// Writes the raw files of shards that exist only compressed, since random access needs them.
Status ExpandMdsShards(const std::filesystem::path& folder, const MdsIndex& index);

struct MdsVerifyReport {
  int64_t shards = 0;
  int64_t samples = 0;
  int64_t bytes = 0;
  int64_t tokens = 0;
  int64_t hashes_checked = 0;
  int64_t hashes_unknown = 0;  // Of algorithms that are not known here.
  std::vector<std::string> problems;  // At most 100, then one that counts the rest.
  int64_t problem_count = 0;
};
struct MdsVerifyOptions {
  std::string token_column = "tokens";  // Checked where a shard has it.
  int64_t vocab_size = 0;               // 0: any id.
  std::function<void(int64_t bytes)> progress = {};
};
// Reads everything: sizes, hashes, offsets, columns, token ids. Problems are collected; the error
// is for an index that can't be read at all.
Result<MdsVerifyReport> VerifyMds(const std::filesystem::path& folder,
                                  const MdsVerifyOptions& options);

}  // namespace tessera
