#include "data/folder_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace tessera {

namespace {

constexpr const char* kLockFile = ".tessera-lock";

// `command`: F_OFD_SETLK to try, F_OFD_SETLKW to wait.
bool SetLock(int fd, int command, int64_t place, short type) {
  struct flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = place;
  range.l_len = 1;
  int rc = 0;
  do {
    rc = ::fcntl(fd, command, &range);
  } while (rc != 0 && errno == EINTR);
  return rc == 0 || (errno != EAGAIN && errno != EACCES);
}

short TypeOf(FolderLock::Mode mode) { return mode == FolderLock::Mode::kShared ? F_RDLCK : F_WRLCK; }

}  // namespace

Result<FolderLock> FolderLock::Open(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kLockFile;
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoError("cannot open the cache's lock file", path.string(), errno);
  return FolderLock(fd);
}

FolderLock::FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FolderLock& FolderLock::operator=(FolderLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

bool FolderLock::TryLock(int64_t place, Mode mode) {
  return SetLock(fd_, F_OFD_SETLK, place, TypeOf(mode));
}

void FolderLock::Lock(int64_t place, Mode mode) {
  (void)SetLock(fd_, F_OFD_SETLKW, place, TypeOf(mode));
}

void FolderLock::Unlock(int64_t place) { (void)SetLock(fd_, F_OFD_SETLK, place, F_UNLCK); }

}  // namespace tessera
