#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/time.h"
#include "checkpoint/checkpoint.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLockFile = ".lock";
constexpr const char* kLatestFile = "latest";
constexpr std::string_view kTemporarySuffix = ".tmp";
// Room for the manifest, folders and rounding to blocks.
constexpr int64_t kSlackBytes = 1 << 16;

// A file that is hashed while it is written, and synced at its end.
class HashedFile {
 public:
  explicit HashedFile(FileWriter writer) : writer_(std::move(writer)) {}
  Status Write(const void* data, int64_t bytes) {
    hash_.Update(data, bytes);
    return writer_.Write(data, bytes);
  }
  Result<CheckpointFile> Finish(std::string name) {
    TESSERA_TRY(writer_.Sync());
    TESSERA_TRY(writer_.Close());
    CheckpointFile file;
    file.name = std::move(name);
    file.bytes = writer_.bytes_written();
    file.xxh3 = fmt::format("{:016x}", hash_.Digest());
    return file;
  }

 private:
  FileWriter writer_;
  Xxh3Stream hash_;
};

Json ManifestOf(const CheckpointInfo& checkpoint) {
  Json files = Json::array();
  for (const CheckpointFile& file : checkpoint.files) {
    Json entry = {{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.xxh3}};
    if (file.tensors >= 0) entry["tensors"] = file.tensors;
    files.push_back(std::move(entry));
  }
  Json manifest = {{"format_version", kCheckpointFormatVersion},
                   {"step", checkpoint.step},
                   {"created", checkpoint.created},
                   {"info", checkpoint.info},
                   {"files", std::move(files)}};
  manifest[kManifestChecksum] = fmt::format("{:016x}", Xxh3(JsonText(manifest)));
  return manifest;
}

// Writes all files of a checkpoint into an existing empty folder, the manifest last.
Result<CheckpointInfo> WriteFiles(const fs::path& folder, const CheckpointContents& contents) {
  CheckpointInfo checkpoint;
  checkpoint.step = contents.step;
  checkpoint.created = UtcTimestamp();
  checkpoint.info = contents.info;
  for (const CheckpointTensorFile& tensors : contents.tensors) {
    TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(folder / tensors.name));
    HashedFile file(std::move(writer));
    TESSERA_TRY(StreamSafetensors(
        tensors.tensors, tensors.metadata,
        [&](const void* data, int64_t bytes) { return file.Write(data, bytes); }));
    TESSERA_ASSIGN(CheckpointFile entry, file.Finish(tensors.name));
    entry.tensors = static_cast<int64_t>(tensors.tensors.size());
    checkpoint.files.push_back(std::move(entry));
  }
  for (const CheckpointTextFile& text : contents.texts) {
    TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(folder / text.name));
    HashedFile file(std::move(writer));
    TESSERA_TRY(file.Write(text.content.data(), static_cast<int64_t>(text.content.size())));
    TESSERA_ASSIGN(CheckpointFile entry, file.Finish(text.name));
    checkpoint.files.push_back(std::move(entry));
  }
  TESSERA_TRY(
      WriteFileAtomic(folder / kCheckpointManifest, JsonText(ManifestOf(checkpoint), 2) + "\n"));
  return checkpoint;
}

// A descriptor that holds the lock of `folder`. An owner that ends with nothing in its folder
// removes it, so the file that was locked may be gone by then: the lock counts only if the path
// still leads to it.
Result<int> TakeLock(const fs::path& folder) {
  constexpr int kTries = 100;
  const fs::path path = folder / kLockFile;
  for (int tried = 1;; ++tried) {
    TESSERA_TRY(MakeDirectories(folder));
    const int lock = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (lock < 0 && errno == ENOENT && tried < kTries) continue;
    if (lock < 0) {
      return ErrnoError("cannot write to the save folder: cannot open", path.string(), errno);
    }
    if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
      char holder[32] = {};
      const ssize_t got = ::pread(lock, holder, sizeof(holder) - 1, 0);
      ::close(lock);
      return Error{.code = ErrorCode::kExists,
                   .message = fmt::format(
                       "another process{} trains in '{}': wait for it, stop it, or set another "
                       "save_folder",
                       got > 0 ? fmt::format(" ({})", Trim(holder)) : "", folder.string())};
    }
    struct stat locked = {}, named = {};
    if (::fstat(lock, &locked) == 0 && ::stat(path.c_str(), &named) == 0 &&
        locked.st_ino == named.st_ino && locked.st_dev == named.st_dev) {
      return lock;
    }
    ::close(lock);
  }
}

bool HoldsOnlyTheLock(const fs::path& folder) {
  std::error_code code;
  fs::directory_iterator it(folder, code);
  return !code && it != fs::directory_iterator() && it->path().filename() == kLockFile &&
         ++it == fs::directory_iterator();
}

}  // namespace

Result<CheckpointStore> CheckpointStore::Open(const fs::path& folder) {
  std::error_code unreadable;
  const bool existed = fs::exists(folder, unreadable);
  TESSERA_ASSIGN(const int lock, TakeLock(folder));
  const fs::path lock_path = folder / kLockFile;
  CheckpointStore store(folder, lock, !existed);
  const std::string text = fmt::format("pid {}\n", ::getpid());
  if (::ftruncate(lock, 0) != 0 ||
      ::pwrite(lock, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return ErrnoError("cannot write to the save folder: cannot write", lock_path.string(), errno);
  }
  TESSERA_TRY(store.RemoveLeftovers());
  return store;
}

CheckpointStore::CheckpointStore(CheckpointStore&& other) noexcept
    : folder_(std::move(other.folder_)),
      lock_(std::exchange(other.lock_, -1)),
      made_folder_(other.made_folder_) {}

CheckpointStore& CheckpointStore::operator=(CheckpointStore&& other) noexcept {
  std::swap(folder_, other.folder_);
  std::swap(lock_, other.lock_);
  std::swap(made_folder_, other.made_folder_);
  return *this;
}

CheckpointStore::~CheckpointStore() {
  if (lock_ < 0) return;
  // A run that was refused leaves nothing behind.
  if (HoldsOnlyTheLock(folder_) && ::unlink((folder_ / kLockFile).c_str()) == 0 && made_folder_) {
    ::rmdir(folder_.c_str());
  }
  ::close(lock_);
}

Status CheckpointStore::RemoveLeftovers() {
  std::error_code code;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(folder_, code), end; !code && it != end; it.increment(code)) {
    const std::string name = it->path().filename().string();
    const bool temporary_checkpoint = name.starts_with("ckpt-") && name.ends_with(kTemporarySuffix);
    const bool temporary_pointer = name.starts_with(std::string(kLatestFile) + ".tmp.");
    if (temporary_checkpoint || temporary_pointer) leftovers.push_back(it->path());
  }
  if (code) return ErrnoError("cannot list", folder_.string(), code.value());
  for (const fs::path& path : leftovers) TESSERA_TRY(RemoveTree(path));
  return {};
}

std::vector<fs::path> CheckpointStore::List() const {
  std::error_code code;
  std::vector<std::pair<int64_t, fs::path>> found;
  for (fs::directory_iterator it(folder_, code), end; !code && it != end; it.increment(code)) {
    const auto step = CheckpointStep(it->path().filename().string());
    if (step && PathExists(it->path() / kCheckpointManifest)) found.emplace_back(*step, it->path());
  }
  std::sort(found.begin(), found.end());
  std::vector<fs::path> folders;
  for (auto& [step, path] : found) folders.push_back(std::move(path));
  return folders;
}

Result<std::optional<CheckpointInfo>> CheckpointStore::LatestValid(
    std::vector<std::string>* skipped) const {
  std::vector<fs::path> candidates = List();
  std::reverse(candidates.begin(), candidates.end());
  if (PathExists(folder_ / kLatestFile)) {
    TESSERA_ASSIGN(const std::string text, ReadFile(folder_ / kLatestFile, 4096));
    const std::string name(Trim(text));
    const auto at = std::find_if(candidates.begin(), candidates.end(),
                                 [&](const fs::path& path) { return path.filename() == name; });
    // What lies behind `latest` was committed by a save that did not get to move the pointer, or
    // belongs to a run that this one replaces; the pointer decides.
    if (at != candidates.end()) {
      candidates.erase(candidates.begin(), at);
    } else {
      skipped->push_back(fmt::format("'{}' names '{}', which is not there",
                                     (folder_ / kLatestFile).string(), name));
    }
  }
  for (const fs::path& folder : candidates) {
    Result<CheckpointInfo> opened = OpenCheckpoint(folder);
    if (opened.ok()) {
      const Status verified = VerifyCheckpoint(*opened);
      if (verified.ok()) return std::optional<CheckpointInfo>(std::move(*opened));
      skipped->push_back(verified.error().message);
    } else {
      skipped->push_back(opened.error().message);
    }
  }
  if (!candidates.empty()) {
    return Corrupt(fmt::format("none of the {} checkpoints in '{}' is whole: {}", candidates.size(),
                               folder_.string(), Join(*skipped, "; ")));
  }
  return std::optional<CheckpointInfo>();
}

int64_t CheckpointStore::BytesOf(const CheckpointContents& contents) {
  int64_t bytes = kSlackBytes;
  for (const CheckpointTensorFile& file : contents.tensors) {
    bytes += SafetensorsBytes(file.tensors, file.metadata);
  }
  for (const CheckpointTextFile& file : contents.texts) {
    bytes += static_cast<int64_t>(file.content.size());
  }
  return bytes;
}

Result<CheckpointInfo> CheckpointStore::Save(const CheckpointContents& contents) {
  const std::string name = CheckpointName(contents.step);
  const fs::path final_path = folder_ / name;
  const fs::path temporary = folder_ / (name + std::string(kTemporarySuffix));
  const int64_t needed = BytesOf(contents);
  TESSERA_ASSIGN(const int64_t free, FreeDiskBytes(folder_));
  if (free < needed) {
    return IoError(
        fmt::format("checkpoint {} needs {} ({} bytes) but '{}' has {} ({} bytes) free; "
                    "earlier checkpoints are untouched: free space, or set "
                    "save_num_checkpoints_to_keep or another save_folder",
                    name, FormatBytes(needed), needed, folder_.string(), FormatBytes(free), free));
  }
  const auto write = [&]() -> Result<CheckpointInfo> {
    TESSERA_TRY(RemoveTree(temporary));
    TESSERA_TRY(MakeDirectories(temporary));
    TESSERA_ASSIGN(CheckpointInfo checkpoint, WriteFiles(temporary, contents));
    if (PathExists(final_path)) TESSERA_TRY(Remove(final_path));
    TESSERA_TRY(RenamePath(temporary, final_path));
    TESSERA_TRY(SyncDirectory(folder_));
    checkpoint.folder = final_path;
    TESSERA_TRY(WriteFileAtomic(folder_ / kLatestFile, name + "\n"));
    return checkpoint;
  };
  Result<CheckpointInfo> written = write();
  if (written.ok()) return written;
  // Best effort: what can't be removed now is removed at the next start.
  if (const Status removed = RemoveTree(temporary); !removed.ok()) {
    LogWarning("{}", removed.error().message);
  }
  const Result<int64_t> free_now = FreeDiskBytes(folder_);
  Error error = written.error().WithContext(fmt::format("checkpoint {} was not saved", name));
  error.message +=
      fmt::format(" (it needs {}, {} free; earlier checkpoints are untouched)", FormatBytes(needed),
                  free_now.ok() ? FormatBytes(*free_now) : std::string("unknown"));
  return error;
}

Status CheckpointStore::Remove(const fs::path& checkpoint) {
  const fs::path trash = folder_ / (checkpoint.filename().string() + ".old.tmp");
  TESSERA_TRY(RemoveTree(trash));
  TESSERA_TRY(RenamePath(checkpoint, trash));
  return RemoveTree(trash);
}

Status CheckpointStore::Retain(int64_t keep) {
  if (keep < 0) return {};
  std::vector<fs::path> folders = List();
  std::string latest;
  if (PathExists(folder_ / kLatestFile)) {
    TESSERA_ASSIGN(const std::string text, ReadFile(folder_ / kLatestFile, 4096));
    latest = std::string(Trim(text));
  }
  int64_t excess = static_cast<int64_t>(folders.size()) - std::max<int64_t>(keep, 1);
  for (const fs::path& folder : folders) {
    if (excess <= 0) break;
    if (folder.filename() == latest) continue;
    TESSERA_TRY(Remove(folder));
    --excess;
  }
  return {};
}

}  // namespace tessera
