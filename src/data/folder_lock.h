// Locks on numbered places of a folder, shared between processes: who downloads, who still reads.
#pragma once

#include <cstdint>
#include <filesystem>

#include "base/error.h"

namespace tessera {

// Byte ranges of one lock file (Linux open file description locks), so a process that dies leaves no
// lock behind. Two FolderLocks exclude each other within a process too. Where the file system knows no
// locks, every call succeeds: files are renamed into place, so at worst work is done twice.
class FolderLock {
 public:
  enum class Mode { kShared, kExclusive };

  static Result<FolderLock> Open(const std::filesystem::path& folder);
  FolderLock(FolderLock&& other) noexcept;
  FolderLock& operator=(FolderLock&& other) noexcept;
  ~FolderLock();

  // False where another holder is in the way. Taking it again changes the mode.
  bool TryLock(int64_t place, Mode mode);
  // Waits for the others.
  void Lock(int64_t place, Mode mode);
  void Unlock(int64_t place);

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace tessera
