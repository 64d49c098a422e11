// Object stores behind one interface: a folder, S3 and what speaks its protocol, read-only HTTP.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

// What a store says about one object.
struct ObjectInfo {
  std::string key;  // Relative to the store's URL.
  int64_t bytes = 0;
  // Names this content of the object: for `PutOptions::if_match` and to see that it changed. Opaque;
  // empty where the store gives none.
  std::string etag;
  int64_t modified_unix_s = -1;  // -1: not known.
  // CRC32C of the whole object, -1 where the store does not know it.
  int64_t crc32c = -1;
};

// At most one condition. Where it does not hold the put changes nothing and fails with kExists:
// somebody else has written.
struct PutOptions {
  bool if_absent = false;
  std::string if_match;  // The etag that the object must have.
  std::string content_type;
};

struct ListOptions {
  std::string prefix;  // Keys that start with it; need not end at a '/'.
  // True: keys with a '/' behind the prefix are not listed but gathered in `ListPage::folders`.
  bool one_level = false;
  std::string page;  // ListPage::next_page of the page before.
  int64_t max_keys = 1000;  // 1 to 1000.
};

struct ListPage {
  std::vector<ObjectInfo> objects;   // By key, bytewise.
  std::vector<std::string> folders;  // "a/b/", relative to the store.
  std::string next_page;             // Empty at the end.
};

// A write that was started and neither finished nor abandoned: that of another process, or of one
// that was killed.
struct PendingWrite {
  std::string key;  // Of a folder: the name of the temporary file.
  std::string id;
  int64_t started_unix_s = -1;
};

struct RetryOptions {
  int max_attempts = 10;
  // Full jitter: the pause before attempt n+1 is uniform in [0, min(cap, base * 2^n)].
  double base_s = 0.1;
  double cap_s = 20;
  // No further attempt starts later than this after the first.
  double total_s = 300;
  // Jitter of tests; 0 takes one from the system.
  uint64_t seed = 0;
};

// How an upload is protected on its way.
enum class UploadCheck {
  kAuto,    // CRC32C for Amazon over TLS (stored, so that reads verify it), MD5 otherwise.
  kMd5,     // Content-MD5: every S3 server verifies it.
  kCrc32c,  // x-amz-checksum-crc32c: newer servers verify and keep it.
  kSha256,  // The payload's SHA-256 in the signature: for servers that refuse unsigned payloads.
};

struct StoreOptions {
  RetryOptions retry;
  double connect_timeout_s = 10;
  // A transfer slower than this many bytes a second for `stall_s` counts as broken and is tried anew.
  int64_t stall_bytes_per_s = 1024;
  double stall_s = 30;
  // Requests in flight, at most; each has a connection that is kept open.
  int connections = 16;
  // Objects and writes larger than this are moved in parts of this size in parallel.
  int64_t part_bytes = int64_t{8} << 20;
  // Compare what was read with the checksum that the server gives, where it gives one.
  bool verify_reads = true;
  UploadCheck upload_check = UploadCheck::kAuto;
  // When it becomes true, requests and pauses end with kCancelled. Must outlive the store.
  const std::atomic<bool>* cancelled = nullptr;

  // S3 only. Empty: from the environment and the profile files, see docs/object-store.md.
  std::string endpoint;
  std::string region;
  std::string profile;
  bool anonymous = false;  // Requests without signature, for public buckets.
};

// Counts of the requests that a store made; for reports and tests.
struct StoreCounters {
  int64_t requests = 0;
  int64_t retries = 0;
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t connections_opened = 0;
};

// Bytes moved since the last call; called from several threads.
using TransferProgress = std::function<void(int64_t bytes)>;

class FileBatch;
class ObjectWriter;

struct DownloadOptions {
  TransferProgress progress = {};
  // The object's size where it is known, from a listing: a small one then takes a single request.
  int64_t expected_bytes = -1;
  // The file gets its name when the batch is committed; null: at once.
  FileBatch* batch = nullptr;
  // Memory that a thread uses again for its next download; null: the download's own.
  std::vector<std::byte>* scratch = nullptr;
};

// All functions may be called from many threads; each blocks until it is done or has failed for
// good (retries happen inside, `Error::retryable` says whether a later try may succeed). Keys are
// relative to the URL with which the store was opened, without a leading '/'.
class ObjectStore {
 public:
  virtual ~ObjectStore() = default;
  ObjectStore(const ObjectStore&) = delete;
  ObjectStore& operator=(const ObjectStore&) = delete;

  // For messages: never holds a credential.
  virtual const std::string& url() const = 0;
  virtual bool writable() const = 0;

  virtual Result<ObjectInfo> Head(std::string_view key) = 0;
  // Fills `out` with the bytes from `offset`; kCorrupt where the object ends before. Not empty
  // `etag`: fails with a retryable kCorrupt where the object is another one by now.
  virtual Status GetRange(std::string_view key, int64_t offset, std::span<std::byte> out,
                          std::string_view etag = {}) = 0;
  // The whole object; kInvalidArgument where it has more than `max_bytes`, before it is read.
  virtual Result<std::string> Get(std::string_view key,
                                  int64_t max_bytes = int64_t{1} << 40) = 0;
  // Atomic: readers see the former object or this one. Large data goes in parallel parts.
  virtual Result<ObjectInfo> Put(std::string_view key, std::string_view data,
                                 const PutOptions& options) = 0;
  Result<ObjectInfo> Put(std::string_view key, std::string_view data) {
    return Put(key, data, PutOptions{});
  }
  virtual Result<ListPage> List(const ListOptions& options) = 0;
  // No error where there is no such object.
  virtual Status Remove(std::string_view key) = 0;

  // A file from an object, in parallel ranges of one and the same version, verified, then renamed to
  // `path`; its folder must exist. Safe against other writers of the same path.
  virtual Result<ObjectInfo> Download(std::string_view key, const std::string& path,
                                      const DownloadOptions& options) = 0;
  Result<ObjectInfo> Download(std::string_view key, const std::string& path) {
    return Download(key, path, DownloadOptions{});
  }
  // An object from a file, in parallel parts.
  virtual Result<ObjectInfo> Upload(const std::string& path, std::string_view key,
                                    const PutOptions& options,
                                    const TransferProgress& progress) = 0;
  Result<ObjectInfo> Upload(const std::string& path, std::string_view key) {
    return Upload(path, key, PutOptions{}, {});
  }
  // An object whose bytes come one after the other, of unknown number; nothing is visible before
  // ObjectWriter::Finish.
  virtual Result<std::unique_ptr<ObjectWriter>> StartWrite(std::string_view key,
                                                           const PutOptions& options) = 0;

  // What killed writers left. Nothing but age tells them from writers at work.
  virtual Result<std::vector<PendingWrite>> PendingWrites() = 0;
  virtual Status AbandonWrite(const PendingWrite& write) = 0;

  virtual StoreCounters counters() const = 0;

 protected:
  ObjectStore() = default;
};

// Destroyed without Finish, the write is abandoned: what was sent is removed from the server.
class ObjectWriter {
 public:
  virtual ~ObjectWriter() = default;
  // Copies the data; blocks while as many parts are on their way as the store has connections.
  virtual Status Write(std::string_view data) = 0;
  virtual Result<ObjectInfo> Finish() = 0;
};

// Opens "/folder", "folder", "file:///folder", "s3://bucket/prefix", "http(s)://host/path". No
// request is made, so a wrong bucket shows at the first use.
Result<std::unique_ptr<ObjectStore>> OpenObjectStore(std::string_view url,
                                                     const StoreOptions& options = {});

// A store and a key in it, from the URL of one object: "s3://bucket/a/b" opens "s3://bucket" with
// key "a/b".
struct ObjectLocation {
  std::unique_ptr<ObjectStore> store;
  std::string key;  // Empty for the URL of a bucket or of the root folder.
};
Result<ObjectLocation> OpenObjectLocation(std::string_view url, const StoreOptions& options = {});

// True for "s3://", "http://", "https://": what is not a path of this machine.
bool IsRemoteUrl(std::string_view url);

// A text with every http(s) URL in it as it may be shown and written to files: without user, password,
// query and fragment. A URL ends at a blank, a quotation mark, a comma or a closing bracket.
std::string WithoutCredentials(std::string_view text);

// Calls `visit` for every object with the prefix, page by page, until it returns an error.
Status ForEachObject(ObjectStore& store, std::string_view prefix,
                     const std::function<Status(const ObjectInfo&)>& visit);

}  // namespace tessera
