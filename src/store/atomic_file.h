// A file that appears at its path whole or not at all: temporary name, sync, rename.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

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

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }

 private:
  AtomicFile() = default;
  void Discard();

  int fd_ = -1;
  bool synced_ = false;
  std::string path_;
  std::string temporary_;
};

}  // namespace tessera
