#include "store/file_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <optional>

#include "base/files.h"
#include "base/strings.h"
#include "store/atomic_file.h"
#include "store/counters.h"
#include "store/parallel_read.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kCopyBytes = int64_t{4} << 20;

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

std::string EtagOf(const struct stat& info) {
  return fmt::format("{:x}-{:x}-{:x}.{:x}", info.st_ino, info.st_size, info.st_mtim.tv_sec,
                     info.st_mtim.tv_nsec);
}

ObjectInfo InfoOf(std::string_view key, const struct stat& info) {
  ObjectInfo object;
  object.key = key;
  object.bytes = info.st_size;
  object.etag = EtagOf(info);
  object.modified_unix_s = info.st_mtim.tv_sec;
  return object;
}

// One page of keys in bytewise order. A folder sorts as its name with '/', so that the order is that
// of the whole keys.
class Lister {
 public:
  Lister(const fs::path& root, const ListOptions& options) : root_(root), options_(options) {}

  Result<ListPage> Run() {
    std::error_code code;
    if (!fs::is_directory(root_, code)) {
      return NotFound(fmt::format("folder '{}' does not exist", root_.string()));
    }
    const size_t slash = options_.prefix.rfind('/');
    const std::string base = slash == std::string::npos ? "" : options_.prefix.substr(0, slash + 1);
    if (base.empty() || fs::is_directory(root_ / base, code)) TESSERA_TRY(Walk(base));
    return std::move(page_);
  }

 private:
  struct Entry {
    std::string key;  // With '/' at the end for a folder.
    bool folder = false;
    bool operator<(const Entry& other) const { return key < other.key; }
  };

  bool full() const {
    return static_cast<int64_t>(page_.objects.size() + page_.folders.size()) >= options_.max_keys;
  }

  // True when nothing more fits; remembers that there is more.
  bool StopAt(std::string_view) {
    if (!full()) return false;
    page_.next_page = last_;
    return true;
  }

  Status Walk(const std::string& base) {
    std::vector<Entry> entries;
    std::error_code code;
    for (fs::directory_iterator it(root_ / base, code), end; !code && it != end; it.increment(code)) {
      const std::string name = it->path().filename().string();
      if (name.starts_with(kTemporaryPrefix)) continue;
      std::error_code ignored;  // A name that vanished meanwhile, or a dangling link.
      const bool folder = it->is_directory(ignored);
      if (!folder && !it->is_regular_file(ignored)) continue;
      entries.push_back({base + name + (folder ? "/" : ""), folder});
    }
    if (code == std::errc::no_such_file_or_directory) return {};
    if (code) return ErrnoError("cannot list", (root_ / base).string(), code.value());
    std::sort(entries.begin(), entries.end());
    for (const Entry& entry : entries) {
      if (!page_.next_page.empty()) return {};
      TESSERA_TRY(entry.folder ? VisitFolder(entry.key) : VisitFile(entry.key));
    }
    return {};
  }

  Status VisitFolder(const std::string& key) {
    const bool below = key.starts_with(options_.prefix);
    if (!below && !options_.prefix.starts_with(key)) return {};
    if (options_.page > key && !options_.page.starts_with(key)) return {};
    if (!options_.one_level || !below) return Walk(key);
    if (key <= options_.page || StopAt(key)) return {};
    page_.folders.push_back(key);
    last_ = key;
    return {};
  }

  Status VisitFile(const std::string& key) {
    if (!key.starts_with(options_.prefix) || key <= options_.page) return {};
    struct stat info = {};
    if (::stat((root_ / key).c_str(), &info) != 0) return {};  // Removed meanwhile.
    if (StopAt(key)) return {};
    page_.objects.push_back(InfoOf(key, info));
    last_ = key;
    return {};
  }

  fs::path root_;
  const ListOptions& options_;
  ListPage page_;
  std::string last_;  // The last key or folder of the page.
};

class FileStore;

class FileWriterObject : public ObjectWriter {
 public:
  FileWriterObject(FileStore& store, std::string key, PutOptions options, AtomicFile file)
      : store_(store), key_(std::move(key)), options_(std::move(options)), file_(std::move(file)) {}

  Status Write(std::string_view data) override;
  Result<ObjectInfo> Finish() override;

 private:
  FileStore& store_;
  std::string key_;
  PutOptions options_;
  AtomicFile file_;
  int64_t bytes_ = 0;
};

class FileStore : public ObjectStore {
 public:
  FileStore(std::string root, const StoreOptions& options)
      : root_(std::move(root)), cancelled_(options.cancelled) {}

  const std::string& url() const override { return root_; }
  bool writable() const override { return true; }

  Result<ObjectInfo> Head(std::string_view key) override {
    TESSERA_ASSIGN(const std::string path, PathOf(key));
    counters_.AddRequest();
    struct stat info = {};
    if (::stat(path.c_str(), &info) != 0) return ErrnoError("cannot read", path, errno);
    if (!S_ISREG(info.st_mode)) return NotFound(fmt::format("'{}' is not a file", path));
    return InfoOf(key, info);
  }

  Status GetRange(std::string_view key, int64_t offset, std::span<std::byte> out,
                  std::string_view etag) override {
    TESSERA_ASSIGN(const std::string path, PathOf(key));
    counters_.AddRequest();
    const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd() < 0) return ErrnoError("cannot open", path, errno);
    if (!etag.empty()) {
      struct stat info = {};
      if (::fstat(file.fd(), &info) != 0) return ErrnoError("cannot stat", path, errno);
      if (EtagOf(info) != etag) {
        return Error{ErrorCode::kCorrupt, fmt::format("'{}' changed while it was read", path), true};
      }
    }
    return ReadFully(file.fd(), path, offset, out);
  }

  Result<std::string> Get(std::string_view key, int64_t max_bytes) override {
    TESSERA_ASSIGN(const std::string path, PathOf(key));
    counters_.AddRequest();
    TESSERA_ASSIGN(std::string content, ReadFile(path, max_bytes));
    counters_.AddRead(static_cast<int64_t>(content.size()));
    return content;
  }

  Result<ObjectInfo> Put(std::string_view key, std::string_view data,
                         const PutOptions& options) override {
    TESSERA_ASSIGN(AtomicFile file, NewFile(key));
    TESSERA_TRY(file.WriteAt(0, std::as_bytes(std::span(data))));
    return Finish(key, file, options);
  }

  Result<ListPage> List(const ListOptions& options) override {
    if (options.max_keys < 1 || options.max_keys > 1000) {
      return InvalidArgument(fmt::format("a page has 1 to 1000 keys, not {}", options.max_keys));
    }
    counters_.AddRequest();
    return Lister(root_, options).Run();
  }

  Status Remove(std::string_view key) override {
    TESSERA_ASSIGN(const std::string path, PathOf(key));
    counters_.AddRequest();
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoError("cannot remove", path, errno);
    }
    return {};
  }

  Result<ObjectInfo> Download(std::string_view key, const std::string& path,
                              const DownloadOptions& options) override {
    TESSERA_ASSIGN(const std::string source, PathOf(key));
    counters_.AddRequest();
    const File in(::open(source.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info = {};
    if (in.fd() < 0 || ::fstat(in.fd(), &info) != 0) {
      return ErrnoError("cannot open", source, errno);
    }
    TESSERA_ASSIGN(AtomicFile out, AtomicFile::Create(path));
    TESSERA_TRY(out.Reserve(info.st_size));
    TESSERA_TRY(Copy(in.fd(), source, info.st_size, out, options.progress));
    TESSERA_TRY(FinishDownload(std::move(out), info.st_size, options));
    return InfoOf(key, info);
  }

  Result<ObjectInfo> Upload(const std::string& path, std::string_view key, const PutOptions& options,
                            const TransferProgress& progress) override {
    const File in(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info = {};
    if (in.fd() < 0 || ::fstat(in.fd(), &info) != 0) return ErrnoError("cannot open", path, errno);
    TESSERA_ASSIGN(AtomicFile out, NewFile(key));
    TESSERA_TRY(out.Reserve(info.st_size));
    TESSERA_TRY(Copy(in.fd(), path, info.st_size, out, progress));
    return Finish(key, out, options);
  }

  Result<std::unique_ptr<ObjectWriter>> StartWrite(std::string_view key,
                                                   const PutOptions& options) override {
    TESSERA_ASSIGN(AtomicFile file, NewFile(key));
    return std::unique_ptr<ObjectWriter>(
        new FileWriterObject(*this, std::string(key), options, std::move(file)));
  }

  Result<std::vector<PendingWrite>> PendingWrites() override {
    std::vector<PendingWrite> writes;
    std::error_code code;
    const fs::path root(root_);
    for (fs::recursive_directory_iterator it(root, code), end; !code && it != end; it.increment(code)) {
      const std::string name = it->path().filename().string();
      struct stat info = {};
      if (!name.starts_with(kTemporaryPrefix) || ::stat(it->path().c_str(), &info) != 0) continue;
      writes.push_back({.key = it->path().lexically_relative(root).string(),
                        .id = name,
                        .started_unix_s = info.st_mtim.tv_sec});
    }
    if (code) return ErrnoError("cannot list", root_, code.value());
    return writes;
  }

  Status AbandonWrite(const PendingWrite& write) override {
    const fs::path path = fs::path(root_) / write.key;
    if (!path.filename().string().starts_with(kTemporaryPrefix)) {
      return InvalidArgument(fmt::format("'{}' is not a pending write", write.key));
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoError("cannot remove", path.string(), errno);
    }
    return {};
  }

  StoreCounters counters() const override { return counters_.Read(); }

  // Gives the finished file its name, under the options' condition.
  Result<ObjectInfo> Finish(std::string_view key, AtomicFile& file, const PutOptions& options) {
    counters_.AddRequest();
    TESSERA_TRY(file.Sync());
    struct stat info = {};
    if (::fstat(file.fd(), &info) != 0) return ErrnoError("cannot stat", file.path(), errno);
    if (options.if_match.empty()) {
      TESSERA_TRY(file.Commit(options.if_absent));
    } else {
      // Compare and swap: all writers of one folder take turns. The lock belongs to the open folder,
      // so it also holds between the threads of a process, and ends with it.
      const std::string folder = fs::path(file.path()).parent_path().string();
      const File lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (lock.fd() < 0 || ::flock(lock.fd(), LOCK_EX) != 0) {
        return ErrnoError("cannot lock", folder, errno);
      }
      TESSERA_ASSIGN(const ObjectInfo present, Head(key));
      if (present.etag != options.if_match) {
        return Error{ErrorCode::kExists,
                     fmt::format("'{}' was written by somebody else meanwhile", file.path())};
      }
      TESSERA_TRY(file.Commit());
    }
    counters_.AddWritten(info.st_size);
    return InfoOf(key, info);
  }

 private:
  Result<std::string> PathOf(std::string_view key) const {
    for (const std::string_view part : Split(key, '/')) {
      if (part.empty() || part == "." || part == ".." || part.find('\0') != part.npos ||
          part.starts_with(kTemporaryPrefix)) {
        return InvalidArgument(
            fmt::format("'{}' in '{}' is no key: it needs plain names between single '/'", key, root_));
      }
    }
    return (fs::path(root_) / key).string();
  }

  Result<AtomicFile> NewFile(std::string_view key) {
    TESSERA_ASSIGN(const std::string path, PathOf(key));
    TESSERA_TRY(MakeDirectories(fs::path(path).parent_path()));
    return AtomicFile::Create(path);
  }

  Status ReadFully(int fd, const std::string& path, int64_t offset, std::span<std::byte> out) {
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t got = ::pread(fd, out.data() + done, out.size() - done,
                                  offset + static_cast<int64_t>(done));
      if (got < 0) {
        if (errno == EINTR) continue;
        return ErrnoError("cannot read", path, errno);
      }
      if (got == 0) {
        return Corrupt(fmt::format("'{}' ends at byte {}, but bytes {} to {} were asked for", path,
                                   offset + static_cast<int64_t>(done), offset,
                                   offset + static_cast<int64_t>(out.size())));
      }
      done += static_cast<size_t>(got);
    }
    counters_.AddRead(static_cast<int64_t>(done));
    return {};
  }

  Status Copy(int in, const std::string& source, int64_t bytes, AtomicFile& out,
              const TransferProgress& progress) {
    std::vector<std::byte> buffer(static_cast<size_t>(std::min(bytes, kCopyBytes)));
    for (int64_t offset = 0; offset < bytes;) {
      if (cancelled_ != nullptr && cancelled_->load(std::memory_order_relaxed)) {
        return Error{ErrorCode::kCancelled, fmt::format("copying '{}' was cancelled", source)};
      }
      const auto part = std::span(buffer).first(
          static_cast<size_t>(std::min<int64_t>(bytes - offset, kCopyBytes)));
      TESSERA_TRY(ReadFully(in, source, offset, part));
      TESSERA_TRY(out.WriteAt(offset, part));
      offset += static_cast<int64_t>(part.size());
      if (progress) progress(static_cast<int64_t>(part.size()));
    }
    return {};
  }

  std::string root_;
  const std::atomic<bool>* cancelled_;
  AtomicCounters counters_;
};

Status FileWriterObject::Write(std::string_view data) {
  TESSERA_TRY(file_.WriteAt(bytes_, std::as_bytes(std::span(data))));
  bytes_ += static_cast<int64_t>(data.size());
  return {};
}

Result<ObjectInfo> FileWriterObject::Finish() { return store_.Finish(key_, file_, options_); }

}  // namespace

std::unique_ptr<ObjectStore> OpenFileStore(std::string root, const StoreOptions& options) {
  return std::make_unique<FileStore>(std::move(root), options);
}

}  // namespace tessera
