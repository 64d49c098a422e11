#include "data/shard_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/strings.h"
#include "data/dataset.h"
#include "data/document_table.h"
#include "data/shard_codec.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPartPrefix = ".part-";
// Behind the places of all shards: held shared by every process that uses the folder.
constexpr int64_t kUsersPlace = int64_t{1} << 40;
constexpr int64_t kMaxMetadataBytes = int64_t{1} << 36;

std::string Join(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return a + b;
  return a.back() == '/' ? a + b : a + "/" + b;
}

std::string WithoutScheme(const std::string& url) {
  constexpr std::string_view kFile = "file://";
  return url.compare(0, kFile.size(), kFile) == 0 ? url.substr(kFile.size()) : url;
}

bool IsTheShardsFault(const Error& error) {
  return error.code == ErrorCode::kCorrupt || error.code == ErrorCode::kNotFound;
}

// Full jitter, from the clock: nothing that is trained on depends on it.
void PauseBefore(int attempt) {
  const double cap = std::min(10.0, 0.2 * static_cast<double>(1 << std::min(attempt, 10)));
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const double share = static_cast<double>(static_cast<uint64_t>(now) * 0x9E3779B97F4A7C15ull >> 40) *
                       0x1p-24;
  std::this_thread::sleep_for(std::chrono::duration<double>(cap * share));
}

std::string_view TextOf(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size())};
}

}  // namespace

Result<std::unique_ptr<ShardCache>> ShardCache::Open(const StreamOptions& options,
                                                     const std::atomic<bool>* cancelled) {
  std::unique_ptr<ShardCache> cache(new ShardCache());
  cache->options_ = options;
  cache->cancelled_ = cancelled;
  const Status status = cache->OpenFolder();
  if (!status.ok()) return status.error().WithContext(fmt::format("stream '{}'", options.name));
  return cache;
}

Status ShardCache::OpenFolder() {
  if (options_.remote.empty() && options_.local.empty()) {
    return InvalidArgument("it has neither remote nor local; set at least one");
  }
  if (options_.download_retry < 0 || options_.download_retry > 100 ||
      !(options_.download_timeout_s > 0)) {
    return InvalidArgument(fmt::format("download_retry {} must be 0 to 100 and download_timeout {} above 0",
                                       options_.download_retry, options_.download_timeout_s));
  }
  const bool far = IsRemoteUrl(options_.remote);
  const std::string near = WithoutScheme(options_.remote);
  const bool in_place = options_.remote.empty() || (!far && options_.local.empty()) ||
                        (!far && fs::path(near).lexically_normal() ==
                                     fs::path(options_.local).lexically_normal());
  if (in_place) {
    const std::string root = options_.local.empty() ? near : options_.local;
    folder_ = fs::path(root) / options_.split;
    url_ = folder_.string();
  } else {
    std::string local = options_.local;
    if (local.empty()) {
      local = (fs::temp_directory_path() /
               fmt::format("tessera-streams-{}", Sha256Hex(options_.remote).substr(0, 16)))
                  .string();
    }
    folder_ = fs::path(local) / options_.split;
    TESSERA_TRY(MakeDirectories(folder_));
    StoreOptions store;
    store.stall_s = std::min(store.stall_s, options_.download_timeout_s);
    store.retry.total_s = options_.download_timeout_s;
    store.cancelled = cancelled_;
    TESSERA_ASSIGN(store_, OpenObjectStore(options_.remote, store));
    url_ = Join(store_->url(), options_.split);
    TESSERA_ASSIGN(lock_, FolderLock::Open(folder_));
    // Alone in the folder: what is half done was left by processes that are gone.
    if (lock_->TryLock(kUsersPlace, FolderLock::Mode::kExclusive)) {
      std::error_code code;
      for (const fs::directory_entry& entry : fs::directory_iterator(folder_, code)) {
        if (entry.path().filename().string().rfind(kPartPrefix, 0) == 0) {
          (void)RemoveTree(entry.path()).ok();
        }
      }
    }
    // Not before the sweep of another process ended: it would take what is written from here on.
    lock_->Lock(kUsersPlace, FolderLock::Mode::kShared);
    TESSERA_TRY(FetchMetadata());
  }
  TESSERA_ASSIGN(index_, ReadMdsIndex(folder_));
  if (index_.samples() == 0) {
    return InvalidArgument(fmt::format("'{}' lists {} shards and no samples", Join(url_, "index.json"),
                                       index_.shards.size()));
  }
  if (options_.validate_hash != "none" && !options_.validate_hash.empty()) {
    for (const MdsShard& shard : index_.shards) {
      const MdsFile& file = shard.zip ? *shard.zip : shard.raw;
      const bool has = std::any_of(
          file.hashes.begin(), file.hashes.end(),
          [&](const MdsHash& hash) { return hash.algorithm == options_.validate_hash; });
      if (!has || !MdsHashHex(options_.validate_hash, "")) {
        std::vector<std::string> names;
        for (const MdsHash& hash : file.hashes) names.push_back(hash.algorithm);
        return InvalidArgument(fmt::format("validate_hash {}: the index has {} of '{}'",
                                           options_.validate_hash,
                                           names.empty() ? "no hash" : fmt::format("{}", fmt::join(names, ", ")),
                                           file.basename));
      }
    }
  }
  states_.assign(index_.shards.size(), State::kAbsent);
  return {};
}

Status ShardCache::FetchMetadata() {
  const auto fetch = [&](const std::string& key, const fs::path& path) -> Status {
    TESSERA_ASSIGN(const std::string content, store_->Get(key, kMaxMetadataBytes));
    return Publish(path, content);
  };
  const fs::path index = folder_ / "index.json";
  if (!PathExists(index)) {
    // The index comes last: a folder that has one has the rest of what exists.
    for (const auto& [key, path] :
         {std::pair(Join(options_.split, kDocumentTableFile), folder_ / kDocumentTableFile),
          std::pair(std::string(kDatasetManifest), fs::path(folder_).parent_path() / kDatasetManifest),
          std::pair(std::string("tokenizer.json"), fs::path(folder_).parent_path() / "tokenizer.json")}) {
      // These lie beside the splits of a dataset.
      const bool beside = path.parent_path() != folder_;
      if (beside && (options_.split.empty() || PathExists(path))) continue;
      const Status status = fetch(key, path);
      if (!status.ok() && status.error().code != ErrorCode::kNotFound) return status;
    }
    const Status status = fetch(Join(options_.split, "index.json"), index);
    if (!status.ok()) {
      if (status.error().code != ErrorCode::kNotFound) return status;
      Error error = status.error();  // The object, or its bucket.
      error.message += "; check remote and split";
      return error;
    }
    return {};
  }
  // A cache that was filled from elsewhere would give other samples without a word.
  const Result<ObjectInfo> remote = store_->Head(Join(options_.split, "index.json"));
  const Result<int64_t> bytes = FileBytes(index);
  if (remote.ok() && bytes.ok() && remote->bytes != *bytes) {
    return InvalidArgument(fmt::format(
        "the cache '{}' was filled from another dataset than '{}' (their index.json differ): delete it "
        "or set another local",
        folder_.string(), url_));
  }
  return {};
}

std::string ShardCache::Where(int64_t shard) const {
  const MdsShard& entry = index_.shards[static_cast<size_t>(shard)];
  return fmt::format("stream '{}', shard '{}'", options_.name,
                     Join(url_, entry.zip && remote() ? entry.zip->basename : entry.raw.basename));
}

int64_t ShardCache::StoredBytes(int64_t shard) const {
  const MdsShard& entry = index_.shards[static_cast<size_t>(shard)];
  return entry.raw.bytes + (entry.zip && options_.keep_zip ? entry.zip->bytes : 0);
}

int64_t ShardCache::FetchBytes(int64_t shard) const {
  const MdsShard& entry = index_.shards[static_cast<size_t>(shard)];
  return entry.raw.bytes + (entry.zip ? entry.zip->bytes : 0);
}

fs::path ShardCache::TemporaryName(const std::string& basename) {
  static std::atomic<int64_t> next{0};  // Of all caches of the process: they may share a folder.
  return folder_ / fmt::format("{}{}-{}-{}", kPartPrefix, ::getpid(), next++,
                               fs::path(basename).filename().string());
}

// By a name of its own, so that any number of threads and processes may publish the same file.
Status ShardCache::Publish(const fs::path& path, std::string_view content) {
  const fs::path part = TemporaryName(path.filename().string());
  TESSERA_TRY(WriteFileAtomic(part, content));
  return RenamePath(part, path);
}

Status ShardCache::CheckFile(const MdsFile& file, std::string_view bytes) const {
  if (static_cast<int64_t>(bytes.size()) != file.bytes) {
    return Corrupt(fmt::format("it has {} bytes, the index says {}: it was cut off or changed",
                               bytes.size(), file.bytes));
  }
  if (options_.validate_hash == "none") return {};
  // Any hash shows damage; the quickest of those that the index has.
  const MdsHash* chosen = nullptr;
  for (const MdsHash& hash : file.hashes) {
    if (!options_.validate_hash.empty() && hash.algorithm != options_.validate_hash) continue;
    const bool quick = hash.algorithm.rfind("xxh", 0) == 0;
    if (MdsHashHex(hash.algorithm, "") && (chosen == nullptr || quick)) chosen = &hash;
  }
  if (chosen == nullptr) return {};
  const std::string actual = MdsHashHex(chosen->algorithm, bytes).value();
  if (actual == chosen->hex) return {};
  return Corrupt(fmt::format("its {} is {}, the index says {}: it was damaged or changed",
                             chosen->algorithm, actual, chosen->hex));
}

// Files get their name only after they were verified, so one of the right size is taken as it is,
// unless a hash was asked for.
Result<bool> ShardCache::IsComplete(const MdsShard& shard) const {
  const fs::path path = folder_ / shard.raw.basename;
  std::error_code code;
  const auto size = fs::file_size(path, code);
  if (code || static_cast<int64_t>(size) != shard.raw.bytes) return false;
  if (options_.validate_hash.empty() || options_.validate_hash == "none") return true;
  TESSERA_ASSIGN(const MappedFile file, MappedFile::Open(path));
  return CheckFile(shard.raw, TextOf(file)).ok();
}

Status ShardCache::DownloadOnce(const MdsShard& shard) {
  const MdsFile& wanted = shard.zip ? *shard.zip : shard.raw;
  const fs::path part = TemporaryName(wanted.basename);
  struct Remover {
    const fs::path& path;
    ~Remover() { (void)RemoveTree(path).ok(); }
  } remover{part};
  TESSERA_TRY(store_->Download(Join(options_.split, wanted.basename), part.string(),
                               {.expected_bytes = wanted.bytes}));
  ++downloads_;
  downloaded_bytes_ += wanted.bytes;
  const fs::path raw = folder_ / shard.raw.basename;
  TESSERA_TRY(MakeDirectories(raw.parent_path()));
  {
    TESSERA_ASSIGN(const MappedFile file, MappedFile::Open(part));
    TESSERA_TRY(CheckFile(wanted, TextOf(file)));
    if (shard.zip) {
      TESSERA_ASSIGN(const std::vector<char> content,
                     DecompressShard(shard.compression, TextOf(file), shard.raw.bytes,
                                     Join(url_, wanted.basename)));
      const std::string_view bytes(content.data(), content.size());
      TESSERA_TRY(CheckFile(shard.raw, bytes));
      TESSERA_TRY(Publish(raw, bytes));
    }
  }
  if (!shard.zip) return RenamePath(part, raw);
  if (options_.keep_zip) return RenamePath(part, folder_ / wanted.basename);
  return {};
}

Status ShardCache::Download(const MdsShard& shard, const std::function<bool(int64_t)>& make_room) {
  const int64_t needed = shard.raw.bytes + (shard.zip ? shard.zip->bytes : 0);
  Status status;
  for (int attempt = 0; attempt <= options_.download_retry;) {
    if (cancelled()) return Error{.code = ErrorCode::kCancelled, .message = "stopped"};
    const Result<int64_t> free = FreeDiskBytes(folder_);
    if (free.ok() && *free < needed) {
      if (make_room && make_room(needed - *free)) continue;
      return IoError(fmt::format("the disk of the cache '{}' is full: {} are free, {} needed; free some, "
                                 "set cache_limit, or point local at another disk",
                                 folder_.string(), FormatBytes(*free), FormatBytes(needed)));
    }
    status = DownloadOnce(shard);
    if (status.ok() || status.error().code == ErrorCode::kUnsupported ||
        status.error().code == ErrorCode::kCancelled) {
      return status;
    }
    // A disk that filled up meanwhile is not the download's fault.
    const Result<int64_t> left = FreeDiskBytes(folder_);
    const bool disk_full = left.ok() && *left < needed && status.error().code == ErrorCode::kIo;
    if (!disk_full && ++attempt <= options_.download_retry) {
      LogWarning("stream '{}': {}; trying again ({} of {})", options_.name, status.error().message,
                 attempt, options_.download_retry);
      PauseBefore(attempt);
    }
  }
  return status;
}

Status ShardCache::FetchLocked(int64_t shard, const std::function<bool(int64_t)>& make_room) {
  const MdsShard& entry = index_.shards[static_cast<size_t>(shard)];
  // Waits for another process that brings the same shard, but not forever: it may hang.
  const auto deadline = std::chrono::steady_clock::now() +
                        std::chrono::duration<double>(2 * options_.download_timeout_s);
  while (!lock_->TryLock(shard, FolderLock::Mode::kExclusive)) {
    // Held by others: either they read it, and then it stays while this lock is shared, or they bring
    // or delete it.
    if (lock_->TryLock(shard, FolderLock::Mode::kShared)) {
      TESSERA_ASSIGN(const bool complete, IsComplete(entry));
      if (complete) return {};
      lock_->Unlock(shard);
    }
    if (std::chrono::steady_clock::now() > deadline || cancelled()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  TESSERA_ASSIGN(const bool complete, IsComplete(entry));
  const Status status = complete ? Status() : Download(entry, make_room);
  // From here on others may read it but not delete it.
  if (status.ok()) {
    (void)lock_->TryLock(shard, FolderLock::Mode::kShared);
  } else {
    lock_->Unlock(shard);
  }
  return status;
}

Status ShardCache::Fetch(int64_t shard, const std::function<bool(int64_t)>& make_room) {
  if (!remote()) return {};
  {
    std::unique_lock<std::mutex> lock(mutex_);
    State& state = states_[static_cast<size_t>(shard)];
    // Another thread's fetch ends in a shard or an error: its downloads have deadlines.
    changed_.wait(lock, [&] { return state != State::kFetching; });
    if (state == State::kHeld) return {};
    state = State::kFetching;
  }
  const Status status = FetchLocked(shard, make_room);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    states_[static_cast<size_t>(shard)] = status.ok() ? State::kHeld : State::kAbsent;
  }
  changed_.notify_all();
  if (status.ok()) return {};
  Error error = status.error().WithContext(Where(shard));
  error.retryable = !IsTheShardsFault(error);
  return error;
}

bool ShardCache::Release(int64_t shard, bool even_if_shared) {
  if (!remote()) return false;
  const std::lock_guard<std::mutex> lock(mutex_);
  State& state = states_[static_cast<size_t>(shard)];
  if (state != State::kHeld) return false;
  const bool alone = lock_->TryLock(shard, FolderLock::Mode::kExclusive);
  if (!alone && !even_if_shared) return false;
  const MdsShard& entry = index_.shards[static_cast<size_t>(shard)];
  (void)RemoveTree(folder_ / entry.raw.basename).ok();
  if (entry.zip) (void)RemoveTree(folder_ / entry.zip->basename).ok();
  state = State::kAbsent;
  lock_->Unlock(shard);
  return true;
}

Result<std::vector<int64_t>> ShardCache::AdoptPresent() {
  std::vector<int64_t> present;
  for (size_t i = 0; remote() && i < states_.size(); ++i) {
    // Locked before it is looked at, so that nobody deletes it in between.
    if (!lock_->TryLock(static_cast<int64_t>(i), FolderLock::Mode::kShared)) continue;
    TESSERA_ASSIGN(const bool complete, IsComplete(index_.shards[i]));
    if (!complete) {
      lock_->Unlock(static_cast<int64_t>(i));
      continue;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    states_[i] = State::kHeld;
    present.push_back(static_cast<int64_t>(i));
  }
  return present;
}

}  // namespace tessera
