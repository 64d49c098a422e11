// The local copy of one stream: brings shards from a store, verifies them, gives their space back.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/folder_lock.h"
#include "data/mds.h"
#include "data/stream_options.h"
#include "store/object_store.h"

namespace tessera {

// Files lie where mosaicml-streaming puts them, so the folder can be shared with it one after the
// other. Several processes may use one folder at the same time. Thread-safe.
class ShardCache {
 public:
  // Fetches index.json, and dataset.json and documents.idx where they exist.
  static Result<std::unique_ptr<ShardCache>> Open(const StreamOptions& options,
                                                  const std::atomic<bool>* cancelled = nullptr);

  const MdsIndex& index() const { return index_; }
  const std::filesystem::path& folder() const { return folder_; }
  const StreamOptions& options() const { return options_; }
  // False where the shards are read in place and never given back.
  bool remote() const { return store_ != nullptr; }
  // The stream and the address of a shard, for messages.
  std::string Where(int64_t shard) const;

  // Bytes on disk that the shard takes while it is present; at most, while it is brought.
  int64_t StoredBytes(int64_t shard) const;
  int64_t FetchBytes(int64_t shard) const;

  // Brings a shard and holds it until Release. A second caller waits for the first. `make_room` is
  // asked for disk space before a download and again when the disk is full; it returns false when it
  // has none left to give. The error names stream, shard and address; kCorrupt and kNotFound are the
  // shard's own fault, others may pass.
  Status Fetch(int64_t shard, const std::function<bool(int64_t bytes)>& make_room = {});
  // Deletes a shard's files unless another process holds it; false where nothing was deleted.
  bool Release(int64_t shard, bool even_if_shared = false);
  // Holds what the folder already has, and returns it. Before other threads use the cache.
  Result<std::vector<int64_t>> AdoptPresent();

  int64_t downloads() const { return downloads_; }
  int64_t downloaded_bytes() const { return downloaded_bytes_; }

 private:
  enum class State : uint8_t { kAbsent, kFetching, kHeld };

  ShardCache() = default;
  Status OpenFolder();
  Status FetchMetadata();
  Result<bool> IsComplete(const MdsShard& shard) const;
  Status FetchLocked(int64_t shard, const std::function<bool(int64_t)>& make_room);
  Status Download(const MdsShard& shard, const std::function<bool(int64_t)>& make_room);
  Status DownloadOnce(const MdsShard& shard);
  Status CheckFile(const MdsFile& file, std::string_view bytes) const;
  std::filesystem::path TemporaryName(const std::string& basename);
  Status Publish(const std::filesystem::path& path, std::string_view content);
  bool cancelled() const { return cancelled_ != nullptr && cancelled_->load(); }

  StreamOptions options_;
  std::string url_;  // Of the split.
  std::filesystem::path folder_;
  MdsIndex index_;
  std::unique_ptr<ObjectStore> store_;  // Of the remote, without the split; null: in place.
  std::optional<FolderLock> lock_;
  const std::atomic<bool>* cancelled_ = nullptr;
  std::atomic<int64_t> downloads_{0};
  std::atomic<int64_t> downloaded_bytes_{0};

  mutable std::mutex mutex_;  // Guards the states.
  std::condition_variable changed_;
  std::vector<State> states_;
};

}  // namespace tessera
