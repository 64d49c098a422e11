#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/files.h"
#include "base/hash.h"
#include "base/strings.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPrefix = "ckpt-";
constexpr std::string_view kSuffix = "ba";
constexpr int64_t kMaxManifestBytes = int64_t{1} << 24;

// A name that stays inside the checkpoint's folder.
bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name != kCheckpointManifest &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

// Read in pieces rather than mapped, so that the pages don't count as this process's memory.
Result<uint64_t> Xxh3OfFile(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open", path.string(), errno);
  Xxh3Stream hash;
  std::vector<char> buffer(size_t{1} << 20);
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      const int error_number = errno;
      ::close(fd);
      return ErrnoError("cannot read", path.string(), error_number);
    }
    if (got == 0) break;
    hash.Update(buffer.data(), got);
  }
  ::close(fd);
  return hash.Digest();
}

Result<CheckpointFile> ParseFile(const Json& json, const std::string& source) {
  CheckpointFile file;
  TESSERA_ASSIGN(file.name, JsonString(json, "name", source));
  TESSERA_ASSIGN(file.bytes, JsonInt(json, "bytes", source));
  TESSERA_ASSIGN(file.xxh3, JsonString(json, "xxh3", source));
  if (json.contains("tensors")) {
    TESSERA_ASSIGN(file.tensors, JsonInt(json, "tensors", source));
  }
  if (!IsPlainName(file.name) || file.bytes < 0) {
    return Corrupt(fmt::format("{}: file '{}' of {} bytes cannot be part of a checkpoint", source,
                               file.name, file.bytes));
  }
  return file;
}

}  // namespace

bool CheckpointInfo::Has(std::string_view file) const {
  return std::any_of(files.begin(), files.end(),
                     [&](const CheckpointFile& entry) { return entry.name == file; });
}

int64_t CheckpointInfo::bytes() const {
  int64_t total = 0;
  for (const CheckpointFile& file : files) total += file.bytes;
  return total;
}

std::string CheckpointName(int64_t step) {
  return fmt::format("{}{:08}{}", kPrefix, step, kSuffix);
}

std::optional<int64_t> CheckpointStep(std::string_view name) {
  if (name.size() <= kPrefix.size() + kSuffix.size() || !name.starts_with(kPrefix) ||
      !name.ends_with(kSuffix)) {
    return std::nullopt;
  }
  const std::string_view digits =
      name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  if (digits.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  return ParseInt(digits);
}

Result<CheckpointInfo> ParseCheckpointManifest(std::string_view text, std::string_view source) {
  TESSERA_ASSIGN(Json json, ParseJson(text, source));
  TESSERA_ASSIGN(const int64_t version, JsonInt(json, "format_version", source));
  if (version != kCheckpointFormatVersion) {
    return Unsupported(
        fmt::format("{}: the checkpoint has format version {}, this build reads version {}", source,
                    version, kCheckpointFormatVersion));
  }
  TESSERA_ASSIGN(const std::string checksum, JsonString(json, kManifestChecksum, source));
  json.erase(kManifestChecksum);
  if (const std::string found = fmt::format("{:016x}", Xxh3(JsonText(json))); found != checksum) {
    return Corrupt(
        fmt::format("{}: its content has the checksum {}, it says {}", source, found, checksum));
  }
  CheckpointInfo info;
  TESSERA_ASSIGN(info.step, JsonInt(json, "step", source));
  TESSERA_ASSIGN(info.created, JsonString(json, "created", source));
  info.info = json.value("info", Json::object());
  const auto files = json.find("files");
  if (files == json.end() || !files->is_array()) {
    return Corrupt(fmt::format("{}: 'files' is not a list", source));
  }
  for (const Json& element : *files) {
    TESSERA_ASSIGN(CheckpointFile file, ParseFile(element, std::string(source)));
    info.files.push_back(std::move(file));
  }
  return info;
}

Result<CheckpointInfo> OpenCheckpoint(const fs::path& folder) {
  const fs::path path = folder / kCheckpointManifest;
  if (!PathExists(path)) {
    return NotFound(
        fmt::format("'{}' is no checkpoint: it has no {}", folder.string(), kCheckpointManifest));
  }
  TESSERA_ASSIGN(const std::string text, ReadFile(path, kMaxManifestBytes));
  TESSERA_ASSIGN(CheckpointInfo info, ParseCheckpointManifest(text, path.string()));
  info.folder = folder;
  for (const CheckpointFile& file : info.files) {
    const fs::path file_path = folder / file.name;
    if (!PathExists(file_path)) {
      return Corrupt(
          fmt::format("checkpoint '{}' lacks its file '{}', which its manifest lists; take an earlier "
                      "checkpoint, or restore the file from a copy",
                      folder.string(), file.name));
    }
    TESSERA_ASSIGN(const int64_t bytes, FileBytes(file_path));
    if (bytes != file.bytes) {
      return Corrupt(fmt::format("'{}' has {} bytes, the manifest says {}: it was cut off or changed "
                                 "after it was saved; take an earlier checkpoint, or restore the file "
                                 "from a copy",
                                 file_path.string(), bytes, file.bytes));
    }
  }
  return info;
}

Status VerifyCheckpoint(const CheckpointInfo& checkpoint) {
  for (const CheckpointFile& file : checkpoint.files) {
    const fs::path path = checkpoint.folder / file.name;
    TESSERA_ASSIGN(const uint64_t digest, Xxh3OfFile(path));
    if (const std::string found = fmt::format("{:016x}", digest); found != file.xxh3) {
      return Corrupt(
          fmt::format("'{}' has the checksum {}, the manifest says {}: the file was "
                      "changed or damaged after it was saved; take an earlier checkpoint, or restore "
                      "the file from a copy",
                      path.string(), found, file.xxh3));
    }
  }
  return {};
}

Result<CheckpointInfo> FindCheckpoint(const fs::path& path) {
  if (!PathExists(path)) return NotFound(fmt::format("'{}' does not exist", path.string()));
  if (PathExists(path / kCheckpointManifest)) return OpenCheckpoint(path);
  if (PathExists(path / "latest")) {
    TESSERA_ASSIGN(const std::string text, ReadFile(path / "latest", 4096));
    const std::string name(Trim(text));
    if (!CheckpointStep(name)) {
      return Corrupt(
          fmt::format("'{}' names '{}', which is no checkpoint", (path / "latest").string(), name));
    }
    return OpenCheckpoint(path / name);
  }
  return NotFound(
      fmt::format("'{}' is neither a checkpoint (no {}) nor a save folder (no file "
                  "named latest)",
                  path.string(), kCheckpointManifest));
}

}  // namespace tessera
