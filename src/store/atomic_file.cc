#include "store/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace tessera {

namespace {

// Open files and bytes in memory of a batch, at most.
constexpr size_t kBatchFiles = 64;
constexpr int64_t kBatchBytes = int64_t{256} << 20;

// Names of two processes, also on two machines that share the folder, must differ.
Result<uint64_t> RandomWord() {
  uint64_t word = 0;
  if (::getrandom(&word, sizeof(word), 0) != sizeof(word)) {
    return ErrnoError("cannot read random numbers from", "getrandom", errno);
  }
  return word;
}

}  // namespace

Result<AtomicFile> AtomicFile::Create(std::string path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  TESSERA_ASSIGN(const uint64_t word, RandomWord());
  AtomicFile file;
  file.temporary_ = (folder / fmt::format("{}{:016x}", kTemporaryPrefix, word)).string();
  file.path_ = std::move(path);
  file.fd_ = ::open(file.temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return ErrnoError("cannot create a file for", file.path_, errno);
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      synced_(other.synced_),
      path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(synced_, other.synced_);
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  return *this;
}

AtomicFile::~AtomicFile() { Discard(); }

void AtomicFile::Discard() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

Status AtomicFile::Reserve(int64_t bytes) {
  if (bytes == 0) return {};
  const int error_number = ::posix_fallocate(fd_, 0, bytes);
  // A file system without reservation still takes writes.
  if (error_number == 0 || error_number == EOPNOTSUPP || error_number == EINVAL) return {};
  return ErrnoError(fmt::format("cannot reserve {} for", FormatBytes(bytes)), path_, error_number);
}

Status AtomicFile::WriteAt(int64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t written = ::pwrite(fd_, data.data(), data.size(), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("cannot write", path_, errno);
    }
    data = data.subspan(static_cast<size_t>(written));
    offset += written;
  }
  return {};
}

Status AtomicFile::ReadAt(int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_, out.data(), out.size(), offset);
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("cannot read back", path_, errno);
    }
    if (got == 0) return Corrupt(fmt::format("'{}' became shorter while it was written", path_));
    out = out.subspan(static_cast<size_t>(got));
    offset += got;
  }
  return {};
}

Status AtomicFile::Sync() {
  // The kernel stamps files in ticks of some milliseconds; with the full clock two contents of one
  // name never share a time, which etags rely on.
  timespec times[2] = {};
  ::clock_gettime(CLOCK_REALTIME, &times[1]);
  times[0] = times[1];
  if (::futimens(fd_, times) != 0) return ErrnoError("cannot set the time of", path_, errno);
  if (::fsync(fd_) != 0) return ErrnoError("cannot sync", path_, errno);
  synced_ = true;
  return {};
}

Status AtomicFile::Commit(bool only_if_absent) {
  if (!synced_) TESSERA_TRY(Sync());
  if (only_if_absent) {
    // link(2) fails where the name exists, on network file systems too.
    if (::link(temporary_.c_str(), path_.c_str()) != 0) {
      return ErrnoError("cannot create", path_, errno);
    }
    ::unlink(temporary_.c_str());
    temporary_.clear();
  }
  TESSERA_TRY(Rename());
  return SyncDirectory(std::filesystem::path(path_).parent_path());
}

Status AtomicFile::Rename() {
  if (!temporary_.empty()) TESSERA_TRY(RenamePath(temporary_, path_));
  temporary_.clear();
  if (::close(std::exchange(fd_, -1)) != 0) return ErrnoError("cannot close", path_, errno);
  return {};
}

void AtomicFile::StartWriting() const {
  // A file system that can't is as well off without.
  (void)::sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);
}

Status FileBatch::Add(AtomicFile file, int64_t bytes) {
  file.StartWriting();
  std::vector<AtomicFile> full;
  {
    const std::lock_guard lock(mutex_);
    files_.push_back(std::move(file));
    bytes_ += bytes;
    if (files_.size() < kBatchFiles && bytes_ < kBatchBytes) return {};
    full.swap(files_);
    bytes_ = 0;
  }
  return CommitAll(std::move(full));
}

Status FileBatch::Commit() {
  std::vector<AtomicFile> rest;
  {
    const std::lock_guard lock(mutex_);
    rest.swap(files_);
    bytes_ = 0;
  }
  return CommitAll(std::move(rest));
}

Status FileBatch::CommitAll(std::vector<AtomicFile> files) {
  // The first sync commits the file system's journal for all; the others find little left to do.
  for (AtomicFile& file : files) TESSERA_TRY(file.Sync());
  std::set<std::filesystem::path> folders;
  for (AtomicFile& file : files) {
    folders.insert(std::filesystem::path(file.path()).parent_path());
    TESSERA_TRY(file.Rename());
  }
  for (const std::filesystem::path& folder : folders) TESSERA_TRY(SyncDirectory(folder));
  return {};
}

}  // namespace tessera
