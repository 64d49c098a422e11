#include "store/s3_upload.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/crc32c.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/strings.h"
#include "store/digests.h"

namespace tessera {

namespace {

constexpr int64_t kMinPartBytes = int64_t{5} << 20;
constexpr int64_t kUnknownSizePartBytes = int64_t{16} << 20;
constexpr int64_t kMaxParts = 10'000;
// A server that joins many parts may be silent for minutes.
constexpr double kCompleteStall_s = 600;

bool IsMd5(std::string_view etag) {
  return etag.size() == 32 && etag.find_first_not_of("0123456789abcdef") == etag.npos;
}

int HexValue(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

}  // namespace

int64_t S3Upload::PartBytes(const StoreOptions& options, int64_t total) {
  const int64_t wanted = std::max(kMinPartBytes, options.part_bytes);
  if (total < 0) return wanted;
  const int64_t needed = (total + kMaxParts - 1) / kMaxParts;
  constexpr int64_t kMiB = int64_t{1} << 20;
  return std::max(wanted, (needed + kMiB - 1) / kMiB * kMiB);
}

Result<std::unique_ptr<S3Upload>> S3Upload::Start(S3Store& store, std::string_view key,
                                                  const PutOptions& options) {
  std::unique_ptr<S3Upload> upload(new S3Upload(store, key, options));
  TESSERA_ASSIGN(upload->full_key_, store.FullKey(key));
  S3Request request;
  request.method = "POST";
  request.verb = "start the upload of";
  request.key = upload->full_key_;
  request.query = {{"uploads", ""}};
  if (!options.content_type.empty()) request.headers.emplace_back("content-type", options.content_type);
  if (store.client_->sends_crc32c()) request.headers.emplace_back("x-amz-checksum-algorithm", "CRC32C");
  if (options.if_absent || !options.if_match.empty()) {
    S3Request unused;
    upload->mark_ = store.Condition(options, &unused);
    request.headers.emplace_back(kMarkHeader, upload->mark_);
  }
  // A start whose answer was lost leaves an upload without parts, which costs nothing and which the
  // server's own rules remove.
  const S3Answer answer = store.client_->Send(request);
  if (!answer.ok()) return store.client_->Explain(request, answer);
  Result<std::string> id = ParseUploadId(answer.response.body);
  if (!id.ok()) return id.error().WithContext(store.client_->UrlOf(upload->full_key_));
  upload->id_ = *std::move(id);
  return upload;
}

S3Upload::~S3Upload() {
  if (!finished_ && !id_.empty()) Abort();
}

void S3Upload::Abort() {
  finished_ = true;
  S3Request request;
  request.method = "DELETE";
  request.verb = "abort the upload of";
  request.key = full_key_;
  request.query = {{"uploadId", id_}};
  request.clean_up = true;
  const S3Answer answer = store_.client_->Send(request);
  if (answer.ok() || answer.Is(404, "NoSuchUpload")) return;
  LogWarning("{}; its parts stay on the server until `tessera store pending --abandon`",
             store_.client_->Explain(request, answer).message);
}

Status S3Upload::Put(int number, std::string_view data) {
  S3Request request;
  request.method = "PUT";
  request.verb = "write";
  request.key = full_key_;
  request.query = {{"partNumber", std::to_string(number)}, {"uploadId", id_}};
  store_.client_->Protect(data, false, &request);
  const S3Answer answer = store_.client_->Send(request);
  if (!answer.ok()) {
    return store_.client_->Explain(request, answer).WithContext(fmt::format("part {}", number));
  }
  UploadedPart part;
  part.number = number;
  part.etag = Unquoted(answer.response.Header("etag"));
  if (part.etag.empty()) {
    return Corrupt(fmt::format("{}: the server gave no etag for part {}",
                               store_.client_->UrlOf(full_key_), number));
  }
  if (store_.client_->sends_crc32c()) part.crc32c = EncodeCrc32c(Crc32c(data));
  const std::lock_guard lock(mutex_);
  parts_.push_back(std::move(part));
  bytes_ += static_cast<int64_t>(data.size());
  return {};
}

// The usual etag of a multipart object: the MD5 of the parts' MD5s. Empty where the parts' etags are
// no MD5s.
std::string S3Upload::ExpectedEtag() const {
  std::string digests;
  for (const UploadedPart& part : parts_) {
    if (!IsMd5(part.etag)) return "";
    for (size_t i = 0; i < 32; i += 2) {
      digests += static_cast<char>(HexValue(part.etag[i]) * 16 + HexValue(part.etag[i + 1]));
    }
  }
  return fmt::format("{}-{}", Hex(Md5(digests)), parts_.size());
}

Result<ObjectInfo> S3Upload::Complete() {
  std::sort(parts_.begin(), parts_.end(),
            [](const UploadedPart& a, const UploadedPart& b) { return a.number < b.number; });
  const std::string body = CompleteUploadXml(parts_);
  const std::string where = store_.client_->UrlOf(full_key_);
  S3Request request;
  request.method = "POST";
  request.verb = "complete the upload of";
  request.key = full_key_;
  request.query = {{"uploadId", id_}};
  request.headers = {{"content-type", "application/xml"}};
  request.stall_s = kCompleteStall_s;
  request.body = body;
  request.payload_hash = Sha256Hex(body);
  (void)store_.Condition(options_, &request);
  bool maybe_done = false;
  for (int attempt = 1;; ++attempt) {
    S3Answer answer = store_.client_->Send(request);
    maybe_done |= answer.maybe_done;
    if (answer.ok()) {
      // The server may have begun its answer before the work failed.
      TESSERA_ASSIGN(const CompletedUpload completed, ParseCompletedUpload(answer.response.body));
      if (completed.error.code.empty()) {
        finished_ = true;
        ObjectInfo info;
        info.key = key_;
        info.bytes = bytes_;
        info.etag = completed.etag;
        return info;
      }
      answer.error = completed.error;
      answer.response.status = 500;
      maybe_done = true;
      if (attempt < 5) continue;
      return store_.client_->Explain(request, answer);
    }
    // The upload is gone, or the condition does not hold, because an earlier attempt had worked and
    // its answer was lost.
    const int64_t status = answer.response.status;
    if (maybe_done && (status == 404 || status == 412 || status == 409)) {
      const Result<ObjectInfo> present = store_.Head(key_);
      const bool own = present.ok() && present->bytes == bytes_ &&
                       (mark_.empty() ? present->etag == ExpectedEtag()
                                      : store_.WasOwnWrite(full_key_, mark_));
      if (own) {
        finished_ = true;
        return present;
      }
    }
    return store_.client_->Explain(request, answer);
  }
}

Result<ObjectInfo> S3Upload::Run(S3Store& store, std::string_view key, const PutOptions& options,
                                 int64_t bytes, const TransferProgress& progress,
                                 const Reader& read) {
  TESSERA_ASSIGN(const std::unique_ptr<S3Upload> upload, Start(store, key, options));
  const int64_t part_bytes = PartBytes(store.options_, bytes);
  const int64_t parts = std::max<int64_t>(1, (bytes + part_bytes - 1) / part_bytes);
  const auto send = [&](int64_t part) -> Status {
    const int64_t offset = part * part_bytes;
    const auto size = static_cast<size_t>(std::min(part_bytes, bytes - offset));
    const auto buffer = std::make_unique_for_overwrite<char[]>(size);
    TESSERA_TRY(read(offset, std::as_writable_bytes(std::span(buffer.get(), size))));
    TESSERA_TRY(upload->Put(static_cast<int>(part + 1), {buffer.get(), size}));
    if (progress) progress(static_cast<int64_t>(size));
    return {};
  };
  TESSERA_TRY(store.workers_.ForEach(parts, send));
  return upload->Complete();
}

Result<ObjectInfo> S3Store::Upload(const std::string& path, std::string_view key,
                                   const PutOptions& options, const TransferProgress& progress) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError("cannot open", path, errno);
  const std::shared_ptr<void> closer(nullptr, [fd](void*) { ::close(fd); });
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return ErrnoError("cannot stat", path, errno);
  if (!S_ISREG(info.st_mode)) return InvalidArgument(fmt::format("'{}' is not a file", path));
  const auto read = [&](int64_t offset, std::span<std::byte> out) -> Status {
    while (!out.empty()) {
      const ssize_t got = ::pread(fd, out.data(), out.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoError("cannot read", path, errno);
      if (got == 0) {
        return Corrupt(fmt::format("'{}' became shorter while it was uploaded", path));
      }
      out = out.subspan(static_cast<size_t>(got));
      offset += got;
    }
    return {};
  };
  if (info.st_size > 2 * S3Upload::PartBytes(options_, -1)) {
    return S3Upload::Run(*this, key, options, info.st_size, progress, read);
  }
  const auto size = static_cast<size_t>(info.st_size);
  const auto content = std::make_unique_for_overwrite<char[]>(size);
  TESSERA_TRY(read(0, std::as_writable_bytes(std::span(content.get(), size))));
  Result<ObjectInfo> put = PutWhole(key, {content.get(), size}, options);
  if (put.ok() && progress) progress(info.st_size);
  return put;
}

Result<std::unique_ptr<ObjectWriter>> S3Store::StartWrite(std::string_view key,
                                                          const PutOptions& options) {
  TESSERA_TRY(FullKey(key));
  return std::unique_ptr<ObjectWriter>(
      new S3Writer(*this, workers_, options_, std::string(key), options));
}

Result<std::vector<PendingWrite>> S3Store::PendingWrites() {
  std::vector<PendingWrite> uploads;
  S3Request request;
  request.verb = "list the uploads of";
  PendingUploadPage page;
  do {
    // Without encoding-type: some servers encode these names and do not say so.
    request.query = {{"uploads", ""}, {"prefix", prefix_}};
    if (!page.next_key.empty()) {
      request.query.emplace_back("key-marker", page.next_key);
      request.query.emplace_back("upload-id-marker", page.next_id);
    }
    const S3Answer answer = client_->Send(request);
    if (!answer.ok()) return client_->Explain(request, answer);
    TESSERA_ASSIGN(page, ParsePendingUploads(answer.response.body));
    if (page.truncated && page.next_key.empty()) {
      return Corrupt("the server's list of uploads goes on without saying where");
    }
    for (PendingWrite& upload : page.uploads) {
      if (!upload.key.starts_with(prefix_)) continue;
      upload.key = upload.key.substr(prefix_.size());
      uploads.push_back(std::move(upload));
    }
  } while (page.truncated);
  return uploads;
}

Status S3Store::AbandonWrite(const PendingWrite& upload) {
  S3Request request;
  request.method = "DELETE";
  request.verb = "abort the upload of";
  TESSERA_ASSIGN(request.key, FullKey(upload.key));
  request.query = {{"uploadId", upload.id}};
  const S3Answer answer = client_->Send(request);
  if (answer.ok() || answer.Is(404, "NoSuchUpload")) return {};
  return client_->Explain(request, answer);
}

S3Writer::S3Writer(S3Store& store, WorkerPool& workers, const StoreOptions& options, std::string key,
                   PutOptions put)
    : store_(store),
      workers_(workers),
      key_(std::move(key)),
      put_(std::move(put)),
      part_bytes_(std::max(kUnknownSizePartBytes, options.part_bytes)),
      max_in_flight_(options.connections) {}

S3Writer::~S3Writer() {
  std::unique_lock lock(mutex_);
  landed_.wait(lock, [&] { return in_flight_ == 0; });
}

Status S3Writer::SendPart() {
  if (upload_ == nullptr) {
    TESSERA_ASSIGN(upload_, S3Upload::Start(store_, key_, put_));
  }
  if (number_ == kMaxParts) {
    return InvalidArgument(fmt::format(
        "{}/{} needs more than {} parts of {}: raise StoreOptions::part_bytes", store_.url(), key_,
        kMaxParts, FormatBytes(part_bytes_)));
  }
  const int number = ++number_;
  {
    std::unique_lock lock(mutex_);
    landed_.wait(lock, [&] { return in_flight_ < max_in_flight_ || error_; });
    if (error_) return *error_;
    ++in_flight_;
  }
  const auto part = std::make_shared<std::string>(std::move(buffer_));
  buffer_ = {};
  workers_.Submit([this, number, part] {
    Status status = upload_->Put(number, *part);
    const std::lock_guard lock(mutex_);
    if (!status.ok() && !error_) error_ = status.error();
    --in_flight_;
    landed_.notify_all();  // Under the lock: the writer may be gone right after it.
  });
  return {};
}

Status S3Writer::Write(std::string_view data) {
  TESSERA_CHECK(!finished_, "Write after Finish");
  while (!data.empty()) {
    if (buffer_.empty()) buffer_.reserve(static_cast<size_t>(part_bytes_));
    const size_t room = static_cast<size_t>(part_bytes_) - buffer_.size();
    buffer_.append(data.substr(0, room));
    data.remove_prefix(std::min(room, data.size()));
    if (static_cast<int64_t>(buffer_.size()) == part_bytes_) TESSERA_TRY(SendPart());
  }
  return {};
}

Result<ObjectInfo> S3Writer::Finish() {
  TESSERA_CHECK(!finished_, "Finish twice");
  finished_ = true;
  if (upload_ == nullptr) return store_.Put(key_, buffer_, put_);
  if (!buffer_.empty()) TESSERA_TRY(SendPart());
  {
    std::unique_lock lock(mutex_);
    landed_.wait(lock, [&] { return in_flight_ == 0; });
    if (error_) return *error_;
  }
  return upload_->Complete();
}

}  // namespace tessera
