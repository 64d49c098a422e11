#include "base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/strings.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

// write(2) until all bytes are out; short writes and EINTR are normal.
Status WriteAll(int fd, const char* data, int64_t bytes, const std::string& path) {
  while (bytes > 0) {
    const ssize_t written = ::write(fd, data, static_cast<size_t>(bytes));
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("cannot write", path, errno);
    }
    data += written;
    bytes -= written;
  }
  return {};
}

}  // namespace

Result<std::string> ReadFile(const fs::path& path, int64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || S_ISDIR(info.st_mode)) {
    const int error_number = S_ISDIR(info.st_mode) ? EISDIR : errno;
    ::close(fd);
    return ErrnoError("cannot read", path.string(), error_number);
  }
  if (info.st_size > max_bytes) {
    ::close(fd);
    return InvalidArgument(fmt::format("'{}' has {}, more than the {} that are read at once",
                                       path.string(), FormatBytes(info.st_size),
                                       FormatBytes(max_bytes)));
  }
  std::string content;
  content.reserve(static_cast<size_t>(info.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got < 0) {
      if (errno == EINTR) continue;
      const int error_number = errno;
      ::close(fd);
      return ErrnoError("cannot read", path.string(), error_number);
    }
    if (got == 0) break;
    content.append(buffer, static_cast<size_t>(got));
  }
  ::close(fd);
  return content;
}

Status WriteFileAtomic(const fs::path& path, std::string_view content) {
  const fs::path temporary = path.string() + fmt::format(".tmp.{}", ::getpid());
  {
    TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(temporary));
    Status status = writer.Write(content);
    if (status.ok()) status = writer.Sync();
    if (status.ok()) status = writer.Close();
    if (!status.ok()) {
      ::unlink(temporary.c_str());
      return status;
    }
  }
  if (Status status = RenamePath(temporary, path); !status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return SyncDirectory(path.parent_path());
}

Status MakeDirectories(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code) return ErrnoError("cannot create folder", path.string(), code.value());
  return {};
}

Status RenamePath(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoError(fmt::format("cannot rename '{}' to", from.string()), to.string(), errno);
  }
  return {};
}

Status SyncDirectory(const fs::path& path) {
  const fs::path folder = path.empty() ? fs::path(".") : path;
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open folder", folder.string(), errno);
  const int result = ::fsync(fd);
  const int error_number = errno;
  ::close(fd);
  // Some file systems refuse fsync on folders; their renames are ordered anyway.
  if (result != 0 && error_number != EINVAL) {
    return ErrnoError("cannot sync folder", folder.string(), error_number);
  }
  return {};
}

Status RemoveTree(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) return ErrnoError("cannot remove", path.string(), code.value());
  return {};
}

bool PathExists(const fs::path& path) {
  std::error_code code;
  return fs::exists(path, code);
}

Result<int64_t> FileBytes(const fs::path& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoError("cannot stat", path.string(), errno);
  return static_cast<int64_t>(info.st_size);
}

Result<int64_t> FreeDiskBytes(const fs::path& path) {
  std::error_code code;
  fs::path existing = fs::absolute(path, code);
  while (!existing.empty() && !fs::exists(existing, code) && existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  const fs::space_info space = fs::space(existing, code);
  if (code) return ErrnoError("cannot read the free space of", existing.string(), code.value());
  return static_cast<int64_t>(space.available);
}

namespace {

bool HasWildcard(std::string_view text) {
  return text.find_first_of("*?[") != std::string_view::npos;
}

// The entries of a folder. One that can't be read is an error: what it holds would be left out of a
// corpus without a word.
Result<std::vector<fs::directory_entry>> ListFolder(const fs::path& folder) {
  std::vector<fs::directory_entry> entries;
  // The folder that each ext file system keeps for repairs, readable for root alone.
  if (folder.filename() == "lost+found") return entries;
  std::error_code code;
  fs::directory_iterator it(folder, code);
  for (const fs::directory_iterator end; !code && it != end; it.increment(code)) {
    entries.push_back(*it);
  }
  if (code) {
    Error error = ErrnoError("cannot list the folder", folder.string(), code.value());
    error.message += "; make it readable, or name only folders that are";
    return error;
  }
  return entries;
}

Status AddFilesBelow(const fs::path& folder, std::vector<std::string>* out) {
  TESSERA_ASSIGN(const std::vector<fs::directory_entry> entries, ListFolder(folder));
  std::error_code code;
  for (const fs::directory_entry& entry : entries) {
    if (entry.is_directory(code) && !entry.is_symlink(code)) {
      TESSERA_TRY(AddFilesBelow(entry.path(), out));
    } else if (entry.is_regular_file(code)) {
      out->push_back(entry.path().string());
    }
  }
  return {};
}

// Matches the remaining components of a pattern below `folder`.
Status Match(const fs::path& folder, const std::vector<std::string>& components, size_t index,
             std::vector<std::string>* out) {
  std::error_code code;
  if (index == components.size()) return {};
  const std::string& component = components[index];
  const bool last = index + 1 == components.size();
  if (component == "**") {
    if (last) return AddFilesBelow(folder, out);
    TESSERA_TRY(Match(folder, components, index + 1, out));
    TESSERA_ASSIGN(const std::vector<fs::directory_entry> entries, ListFolder(folder));
    for (const fs::directory_entry& entry : entries) {
      if (entry.is_directory(code) && !entry.is_symlink(code)) {
        TESSERA_TRY(Match(entry.path(), components, index, out));
      }
    }
    return {};
  }
  if (!HasWildcard(component)) {
    const fs::path next = folder / component;
    if (last && fs::is_regular_file(next, code)) out->push_back(next.string());
    if (!last && fs::is_directory(next, code)) TESSERA_TRY(Match(next, components, index + 1, out));
    if (code == std::errc::permission_denied) {
      return ErrnoError("cannot look up", next.string(), code.value());
    }
    return {};
  }
  TESSERA_ASSIGN(const std::vector<fs::directory_entry> entries, ListFolder(folder));
  for (const fs::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (::fnmatch(component.c_str(), name.c_str(), FNM_PERIOD) != 0) continue;
    if (last && entry.is_regular_file(code)) out->push_back(entry.path().string());
    if (!last && entry.is_directory(code)) {
      TESSERA_TRY(Match(entry.path(), components, index + 1, out));
    }
  }
  return {};
}

}  // namespace

Result<std::vector<std::string>> ExpandFiles(std::string_view pattern) {
  const fs::path path(pattern);
  std::error_code code;
  std::vector<std::string> files;
  const fs::file_status status = fs::status(path, code);
  if (code == std::errc::permission_denied) {
    return ErrnoError("cannot look up", path.string(), code.value());
  }
  if (fs::is_regular_file(status)) {
    files.push_back(path.string());
  } else if (fs::is_directory(status)) {
    TESSERA_TRY(AddFilesBelow(path, &files));
  } else if (HasWildcard(pattern)) {
    std::vector<std::string> components;
    for (const fs::path& part : path.relative_path()) components.push_back(part.string());
    TESSERA_TRY(Match(path.is_absolute() ? path.root_path() : fs::path("."), components, 0, &files));
    if (!path.is_absolute()) {
      for (std::string& file : files) {
        if (file.rfind("./", 0) == 0) file.erase(0, 2);
      }
    }
  }
  if (files.empty()) {
    constexpr std::string_view kAllowed =
        "give a file, a folder or a pattern such as 'docs/**/*.txt'";
    if (fs::is_directory(status)) {
      return NotFound(fmt::format("the folder '{}' is empty: no file lies in or below it", pattern));
    }
    if (HasWildcard(pattern)) {
      return NotFound(fmt::format("no file matches '{}'; {}", pattern, kAllowed));
    }
    return NotFound(fmt::format("'{}' {}; {}", pattern,
                                fs::exists(status) ? "is neither a file nor a folder"
                                                   : "does not exist",
                                kAllowed));
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

Result<FileWriter> FileWriter::Create(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoError("cannot create", path.string(), errno);
  return FileWriter(fd, path.string());
}

Result<FileWriter> FileWriter::Append(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
  return FileWriter(fd, path.string());
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      bytes_written_(other.bytes_written_) {}

FileWriter& FileWriter::operator=(FileWriter&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(bytes_written_, other.bytes_written_);
  return *this;
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

Status FileWriter::Write(const void* data, int64_t bytes) {
  TESSERA_TRY(WriteAll(fd_, static_cast<const char*>(data), bytes, path_));
  bytes_written_ += bytes;
  return {};
}

Status FileWriter::Sync() {
  if (::fsync(fd_) != 0) return ErrnoError("cannot sync", path_, errno);
  return {};
}

Status FileWriter::Close() {
  const int result = ::close(std::exchange(fd_, -1));
  if (result != 0) return ErrnoError("cannot close", path_, errno);
  return {};
}

Result<MappedFile> MappedFile::Open(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
  struct stat info = {};
  if (::fstat(fd, &info) != 0) {
    const int error_number = errno;
    ::close(fd);
    return ErrnoError("cannot stat", path.string(), error_number);
  }
  MappedFile file;
  file.size_ = info.st_size;
  if (file.size_ > 0) {
    void* data = ::mmap(nullptr, static_cast<size_t>(file.size_), PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      const int error_number = errno;
      ::close(fd);
      file.size_ = 0;
      return ErrnoError("cannot map", path.string(), error_number);
    }
    file.data_ = static_cast<const std::byte*>(data);
  }
  ::close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
  }
}

}  // namespace tessera
