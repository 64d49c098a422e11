// Files: whole reads, atomic writes, memory maps, globs. Every error names the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

// Reads a whole file; refuses one that is larger than `max_bytes` before allocating.
Result<std::string> ReadFile(const std::filesystem::path& path,
                             int64_t max_bytes = int64_t{1} << 40);

// Writes to a temporary name beside `path`, syncs, renames, syncs the folder: a crash leaves the
// old file or the new one, never a part.
Status WriteFileAtomic(const std::filesystem::path& path, std::string_view content);

Status MakeDirectories(const std::filesystem::path& path);
Status RenamePath(const std::filesystem::path& from, const std::filesystem::path& to);
Status SyncDirectory(const std::filesystem::path& path);
// Removes a file or a whole folder; no error when it is not there.
Status RemoveTree(const std::filesystem::path& path);
bool PathExists(const std::filesystem::path& path);
Result<int64_t> FileBytes(const std::filesystem::path& path);
// Free bytes of the file system that holds `path` (or its nearest existing parent).
Result<int64_t> FreeDiskBytes(const std::filesystem::path& path);

// Files that a pattern names, sorted bytewise: a file is itself, a folder is every file below it,
// otherwise *, ?, [..] match within a path component and ** matches any number of folders.
// Not found when nothing matches; a folder on the way that can't be read is an error.
Result<std::vector<std::string>> ExpandFiles(std::string_view pattern);

// A file opened for appending writes, with explicit sync. Closes (without sync) when destroyed.
class FileWriter {
 public:
  static Result<FileWriter> Create(const std::filesystem::path& path);   // truncates
  static Result<FileWriter> Append(const std::filesystem::path& path);   // creates or extends
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&& other) noexcept;
  ~FileWriter();

  Status Write(const void* data, int64_t bytes);
  Status Write(std::string_view text) {
    return Write(text.data(), static_cast<int64_t>(text.size()));
  }
  Status Sync();
  Status Close();
  int64_t bytes_written() const { return bytes_written_; }

 private:
  FileWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
  int64_t bytes_written_ = 0;
};

// A read-only memory map. An empty file maps to an empty span.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace tessera
