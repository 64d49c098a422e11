// A file that appears at its path whole or not at all: temporary name, sync, rename.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

// Temporary names begin with this; listings leave them out.
inline constexpr std::string_view kTemporaryPrefix = ".tessera-tmp-";

// Destroyed without Commit, the temporary file is removed. WriteAt may be called from several
// threads.
class AtomicFile {
 public:
  // The folder of `path` must exist.
  static Result<AtomicFile> Create(std::string path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  // Reserves the space, so that a full disk is an error before the work and not after it.
  Status Reserve(int64_t bytes);
  Status WriteAt(int64_t offset, std::span<const std::byte> data);
  Status ReadAt(int64_t offset, std::span<std::byte> out) const;

  // Syncs and renames; the folder is synced too. With `only_if_absent` the name must not be taken,
  // kExists otherwise.
  Status Commit(bool only_if_absent = false);
  // Syncs and gives the file its time, so that Commit has little left to do under a lock.
  Status Sync();
  // Begins to write what is in memory to disk, so that Sync waits less.
  void StartWriting() const;

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }

 private:
  friend class FileBatch;
  AtomicFile() = default;
  void Discard();
  Status Rename();  // Without its folder's sync.

  int fd_ = -1;
  bool synced_ = false;
  std::string path_;
  std::string temporary_;
};

// Many files that get their names together: the disk writes them at the same time and a folder is synced
// once for all. Each is synced before it is renamed, as with Commit alone. Thread-safe.
class FileBatch {
 public:
  FileBatch() = default;
  FileBatch(const FileBatch&) = delete;
  FileBatch& operator=(const FileBatch&) = delete;

  // Takes a file whose content is complete. When enough have come together they are committed here.
  Status Add(AtomicFile file, int64_t bytes);
  // The rest. Files that were added and not committed leave nothing.
  Status Commit();

 private:
  static Status CommitAll(std::vector<AtomicFile> files);

  std::mutex mutex_;  // Guards what follows.
  std::vector<AtomicFile> files_;
  int64_t bytes_ = 0;
};

}  // namespace tessera
