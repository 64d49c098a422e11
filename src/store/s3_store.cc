#include "store/s3_store.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/strings.h"
#include "store/atomic_file.h"
#include "store/digests.h"
#include "store/s3_upload.h"

namespace tessera {

namespace {

// The etag of a single unencrypted put is the MD5 of the content; that of a multipart upload has a
// '-', and keys of one's own change it.
bool EtagMayBeMd5(std::string_view etag, const HttpResponse& response) {
  if (etag.size() != 32 || etag.find_first_not_of("0123456789abcdef") != etag.npos) return false;
  return !response.Header("x-amz-server-side-encryption").starts_with("aws:") &&
         response.Header("x-amz-server-side-encryption-customer-algorithm").empty();
}

// Of kCrc32cHeader; -1 where it is missing or belongs to other content.
int64_t OwnCrc32c(const HttpResponse& response, std::string_view etag) {
  const std::string_view own = response.Header(kCrc32cHeader);
  const size_t space = own.find(' ');
  if (space == own.npos || own.substr(space + 1) != etag) return -1;
  const auto crc = DecodeCrc32c(own.substr(0, space));
  return crc ? int64_t{*crc} : -1;
}

std::string RandomMark() {
  uint64_t words[2] = {};
  TESSERA_CHECK(::getrandom(words, sizeof(words), 0) == sizeof(words), "getrandom failed");
  return fmt::format("{:016x}{:016x}", words[0], words[1]);
}

}  // namespace

Result<S3Url> ParseS3Url(std::string_view url) {
  constexpr std::string_view kScheme = "s3://";
  if (!url.starts_with(kScheme)) return InvalidArgument("an S3 URL begins with s3://");
  const std::string_view rest = url.substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  S3Url parts;
  parts.bucket = rest.substr(0, slash);
  parts.key = rest.substr(std::min(slash + 1, rest.size()));
  const bool plain = std::all_of(parts.bucket.begin(), parts.bucket.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
  });
  if (parts.bucket.empty() || !plain) {
    return InvalidArgument(fmt::format("'{}' names no bucket; expected s3://bucket/prefix", url));
  }
  return parts;
}

S3Store::S3Store(std::unique_ptr<S3Client> client, std::string prefix, const StoreOptions& options)
    : client_(std::move(client)),
      prefix_(prefix.empty() ? "" : prefix + "/"),
      url_(client_->UrlOf(prefix)),
      options_(options),
      workers_(options.connections) {
  while (url_.ends_with('/')) url_.pop_back();
}

Result<std::unique_ptr<S3Store>> S3Store::Open(const std::string& bucket, std::string prefix,
                                               const StoreOptions& options,
                                               const Environment& environment) {
  if (options.connections < 1 || options.connections > 1024 || options.part_bytes < 1) {
    return InvalidArgument(fmt::format("an S3 store needs 1 to 1024 connections and parts of at least "
                                       "a byte, not {} and {}",
                                       options.connections, options.part_bytes));
  }
  TESSERA_ASSIGN(auto client, S3Client::Open(bucket, options, environment));
  return std::unique_ptr<S3Store>(new S3Store(std::move(client), std::move(prefix), options));
}

Result<std::string> S3Store::FullKey(std::string_view key) const {
  std::string full = prefix_ + std::string(key);
  if (key.empty() || full.size() > 1024 || full.find('\0') != full.npos) {
    return InvalidArgument(fmt::format("'{}' in {} is no key: it needs 1 to 1024 bytes", key, url_));
  }
  return full;
}

ObjectInfo S3Store::InfoOf(std::string_view key, const HttpResponse& response) const {
  ObjectInfo info;
  info.key = key;
  info.bytes = std::max<int64_t>(0, response.TotalBytes());
  info.etag = Unquoted(response.Header("etag"));
  info.modified_unix_s = ParseHttpDate(response.Header("last-modified"));
  // A checksum of checksums ("...-3") says nothing about the content alone.
  if (response.Header("x-amz-checksum-type") != "COMPOSITE") {
    if (const auto crc = DecodeCrc32c(response.Header("x-amz-checksum-crc32c"))) info.crc32c = *crc;
  }
  if (info.crc32c < 0) info.crc32c = OwnCrc32c(response, info.etag);
  return info;
}

ReadCheck S3Store::CheckOf(const HttpResponse& response) const {
  ReadCheck check;
  if (!options_.verify_reads) return check;
  const ObjectInfo info = InfoOf("", response);
  check.crc32c = info.crc32c;
  if (check.crc32c < 0 && EtagMayBeMd5(info.etag, response) && !etag_not_md5_.load()) {
    check.md5_hex = info.etag;
  }
  return check;
}

Status S3Store::Verify(std::string_view key, const ReadCheck& check, const ReadDigest& digest,
                       const ReadDigest& former) {
  if (digest.Matches(check)) {
    if (check.crc32c < 0 && !check.md5_hex.empty()) etag_was_md5_.store(true);
    return {};
  }
  // Damage on the way differs from one reading to the next. Two equal readings from a server whose
  // etags have never been an MD5 mean that they are something else there.
  if (check.crc32c < 0 && digest.md5_hex == former.md5_hex && !etag_was_md5_.load()) {
    if (!etag_not_md5_.exchange(true)) {
      LogWarning("{}: this server's etags are no MD5, so what is read can't be compared with them", url_);
    }
    return {};
  }
  return Error{ErrorCode::kCorrupt,
               fmt::format("{}{}{} was read {} times and never had the checksum that the server gives: "
                           "{} is {}, expected {}",
                           url_, "/", key, kReadAttempts, check.crc32c >= 0 ? "CRC32C" : "MD5",
                           check.crc32c >= 0 ? fmt::format("{:08x}", digest.crc32c) : digest.md5_hex,
                           check.crc32c >= 0 ? fmt::format("{:08x}", check.crc32c) : check.md5_hex),
               true};
}

Result<ObjectInfo> S3Store::Head(std::string_view key) {
  S3Request request;
  request.method = "HEAD";
  TESSERA_ASSIGN(request.key, FullKey(key));
  request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
  S3Answer answer = client_->Send(request);
  if (answer.ok()) return InfoOf(key, answer.response);
  if (answer.response.status < 400) return client_->Explain(request, answer);
  // The answer to HEAD has no body, so it does not say whether the key, the bucket or the signature
  // is wrong; that to a GET of one byte does.
  request.method = "GET";
  request.headers = {{"range", "bytes=0-0"}};
  answer = client_->Send(request);
  if (answer.ok()) return InfoOf(key, answer.response);
  if (answer.response.status == 416) {  // Written meanwhile, empty.
    ObjectInfo info = InfoOf(key, answer.response);
    info.bytes = 0;
    return info;
  }
  return client_->Explain(request, answer);
}

Status S3Store::GetRange(std::string_view key, int64_t offset, std::span<std::byte> out,
                         std::string_view etag) {
  S3Request request;
  TESSERA_ASSIGN(request.key, FullKey(key));
  if (offset < 0) return InvalidArgument(fmt::format("a range can't start at byte {}", offset));
  if (out.empty()) return {};
  const int64_t last = offset + static_cast<int64_t>(out.size()) - 1;
  const auto aim = [&](S3Request& target, int64_t done, std::string_view version) {
    target.headers = {{"range", fmt::format("bytes={}-{}", offset + done, last)}};
    if (!version.empty()) target.headers.emplace_back("if-match", fmt::format("\"{}\"", version));
    target.sink = out.subspan(static_cast<size_t>(done));
  };
  int64_t done = 0;  // Of attempts that broke off.
  std::string version(etag);
  request.use_sink = true;
  aim(request, 0, version);
  request.before_retry = [&](S3Request& target, const HttpResponse& broken) {
    if (broken.status != 206 || broken.sunk == 0) return;
    // What has arrived is kept, so the rest must be of the same version.
    if (version.empty()) version = Unquoted(broken.Header("etag"));
    if (version.empty()) return;
    done += broken.sunk;
    client_->counters().AddRead(broken.sunk);
    aim(target, done, version);
  };
  while (true) {
    const S3Answer answer = client_->Send(request);
    const std::string where = fmt::format("{} from byte {}", client_->UrlOf(request.key), offset);
    if (answer.response.status == 412) {
      return Error{ErrorCode::kCorrupt, fmt::format("{} changed while it was read", where), true};
    }
    if (answer.response.status == 416) {
      return Corrupt(fmt::format("{} ends before byte {}", client_->UrlOf(request.key), last + 1));
    }
    if (!answer.ok()) return client_->Explain(request, answer);
    if (answer.response.status != 206 && offset + done != 0) {
      return Unsupported(fmt::format("{}: the server ignores ranges", where));
    }
    done += answer.response.sunk;
    if (done == static_cast<int64_t>(out.size())) return {};
    return Corrupt(fmt::format("{} ends at byte {}, but bytes up to {} were asked for",
                               client_->UrlOf(request.key), offset + done, last + 1));
  }
}

Result<std::string> S3Store::Get(std::string_view key, int64_t max_bytes) {
  const int64_t whole = std::min(max_bytes, options_.part_bytes);
  ReadDigest former;
  for (int attempt = 1;; ++attempt) {
    S3Request request;
    TESSERA_ASSIGN(request.key, FullKey(key));
    request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
    request.max_body_bytes = std::max<int64_t>(whole, 64 << 10);  // Room for an error's text.
    S3Answer answer = client_->Send(request);
    const HttpResponse& response = answer.response;
    const ReadCheck check = CheckOf(response);
    if (response.failure == HttpFailure::kTooLarge && response.status == 200) {
      const ObjectInfo info = InfoOf(key, response);
      if (info.bytes <= max_bytes) return GetLarge(info, check);
    }
    const int64_t bytes = response.failure == HttpFailure::kTooLarge
                              ? InfoOf(key, response).bytes
                              : static_cast<int64_t>(response.body.size());
    if ((answer.ok() || response.failure == HttpFailure::kTooLarge) && bytes > max_bytes) {
      return InvalidArgument(fmt::format("{} has {}, more than the {} that are read at once",
                                         client_->UrlOf(request.key), FormatBytes(bytes),
                                         FormatBytes(max_bytes)));
    }
    if (!answer.ok()) return client_->Explain(request, answer);
    ReadDigest digest;
    if (check.crc32c >= 0) {
      digest.crc32c = Crc32c(response.body);
    } else if (!check.md5_hex.empty()) {
      digest.md5_hex = Hex(Md5(response.body));
    }
    const Status verified = Verify(key, check, digest, former);
    if (verified.ok()) return std::move(answer.response.body);
    if (attempt == kReadAttempts) return verified.error();
    former = digest;
  }
}

Result<std::string> S3Store::GetLarge(const ObjectInfo& info, const ReadCheck& check) {
  std::string content(static_cast<size_t>(info.bytes), '\0');
  ReadDigest former;
  for (int attempt = 1;; ++attempt) {
    TESSERA_ASSIGN(const ReadDigest digest,
                   ReadInParts(*this, workers_, info, options_.part_bytes, check,
                               std::as_writable_bytes(std::span(content))));
    const Status verified = Verify(info.key, check, digest, former);
    if (verified.ok()) return content;
    if (attempt == kReadAttempts) return verified.error();
    former = digest;
  }
}

Result<ObjectInfo> S3Store::Download(std::string_view key, const std::string& path,
                                     const DownloadOptions& options) {
  if (options.expected_bytes > 0 && options.expected_bytes <= options_.part_bytes) {
    Result<ObjectInfo> whole = DownloadWhole(key, path, options);
    const bool changed =
        !whole.ok() && whole.error().code == ErrorCode::kCorrupt && whole.error().retryable;
    if (!changed) return whole;
  }
  ReadDigest former;
  for (int attempt = 1;; ++attempt) {
    S3Request request;
    request.method = "HEAD";
    TESSERA_ASSIGN(request.key, FullKey(key));
    request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
    const S3Answer answer = client_->Send(request);
    if (!answer.ok()) {
      const Result<ObjectInfo> head = Head(key);  // Says why.
      if (head.ok() && attempt < kReadAttempts) continue;
      return head.ok() ? client_->Explain(request, answer) : head.error();
    }
    const ObjectInfo info = InfoOf(key, answer.response);
    const ReadCheck check = CheckOf(answer.response);
    TESSERA_ASSIGN(AtomicFile file, AtomicFile::Create(path));
    TESSERA_TRY(file.Reserve(info.bytes));
    const Result<ReadDigest> digest = ReadInPartsToFile(*this, workers_, info, options_.part_bytes,
                                                        check, file, options.progress);
    if (!digest.ok()) {
      // Another version of the object: from the beginning.
      if (digest.error().code == ErrorCode::kCorrupt && digest.error().retryable &&
          attempt < kReadAttempts) {
        continue;
      }
      return digest.error();
    }
    const Status verified = Verify(key, check, *digest, former);
    if (verified.ok()) {
      TESSERA_TRY(FinishDownload(std::move(file), info.bytes, options));
      return info;
    }
    if (attempt == kReadAttempts) return verified.error();
    former = *digest;
  }
}

Result<ObjectInfo> S3Store::DownloadWhole(std::string_view key, const std::string& path,
                                          const DownloadOptions& options) {
  std::vector<std::byte> own;
  std::vector<std::byte>& buffer = options.scratch != nullptr ? *options.scratch : own;
  if (static_cast<int64_t>(buffer.size()) < options.expected_bytes) {
    buffer.resize(static_cast<size_t>(options.expected_bytes));
  }
  const auto content = std::span(buffer).first(static_cast<size_t>(options.expected_bytes));
  ReadDigest former;
  for (int attempt = 1;; ++attempt) {
    S3Request request;
    TESSERA_ASSIGN(request.key, FullKey(key));
    request.headers = {{"x-amz-checksum-mode", "ENABLED"}};
    request.use_sink = true;
    request.sink = content;
    const S3Answer answer = client_->Send(request);
    const HttpResponse& response = answer.response;
    if ((response.failure == HttpFailure::kTooLarge && response.status == 200) ||
        (answer.ok() && response.sunk != options.expected_bytes)) {
      return Error{ErrorCode::kCorrupt, fmt::format("{} has another size by now", client_->UrlOf(request.key)),
                   true};
    }
    if (!answer.ok()) return client_->Explain(request, answer);
    const ReadCheck check = CheckOf(response);
    ReadDigest digest;
    if (check.crc32c >= 0) {
      digest.crc32c = Crc32c(0, content);
    } else if (!check.md5_hex.empty()) {
      Md5Stream md5;
      md5.Update(content);
      digest.md5_hex = md5.FinishHex();
    }
    const Status verified = Verify(key, check, digest, former);
    if (verified.ok()) {
      ObjectInfo info = InfoOf(key, response);
      info.bytes = options.expected_bytes;
      TESSERA_ASSIGN(AtomicFile file, AtomicFile::Create(path));
      TESSERA_TRY(file.WriteAt(0, content));
      if (options.progress) options.progress(info.bytes);
      TESSERA_TRY(FinishDownload(std::move(file), info.bytes, options));
      return info;
    }
    if (attempt == kReadAttempts) return verified.error();
    former = digest;
  }
}

std::string S3Store::Condition(const PutOptions& options, S3Request* request) const {
  if (!options.if_absent && options.if_match.empty()) return "";
  if (options.if_absent) {
    request->headers.emplace_back("if-none-match", "*");
  } else {
    request->headers.emplace_back(
        "if-match", bare_if_match_ ? options.if_match : fmt::format("\"{}\"", options.if_match));
  }
  return RandomMark();
}

bool S3Store::WasOwnWrite(const std::string& full_key, const std::string& mark) {
  S3Request request;
  request.method = "HEAD";
  request.key = full_key;
  const S3Answer answer = client_->Send(request);
  return answer.ok() && answer.response.Header(kMarkHeader) == mark;
}

Result<ObjectInfo> S3Store::PutWhole(std::string_view key, std::string_view data,
                                     const PutOptions& options) {
  S3Request request;
  request.method = "PUT";
  request.verb = "write";
  TESSERA_ASSIGN(request.key, FullKey(key));
  if (!options.content_type.empty()) request.headers.emplace_back("content-type", options.content_type);
  const std::string mark = Condition(options, &request);
  if (!mark.empty()) request.headers.emplace_back(kMarkHeader, mark);
  client_->Protect(data, true, &request);
  S3Answer answer = client_->Send(request);
  if (answer.response.status == 412 && !options.if_match.empty() && !answer.maybe_done && !bare_if_match_) {
    // Ceph compares a put's etag with the header's text as it is. The refusal changed nothing, so the
    // other form may be tried; where the object really is another one it is refused again.
    for (auto& [name, value] : request.headers) {
      if (name == "if-match") value = options.if_match;
    }
    S3Answer bare = client_->Send(request);
    if (bare.ok()) bare_if_match_.store(true);
    answer = std::move(bare);
  }
  if (!answer.ok()) {
    const bool refused = answer.response.status == 412 || answer.response.status == 409;
    if (!(refused && answer.maybe_done && !mark.empty() && WasOwnWrite(request.key, mark))) {
      return client_->Explain(request, answer);
    }
    return Head(key);
  }
  ObjectInfo info;
  info.key = key;
  info.bytes = static_cast<int64_t>(data.size());
  info.etag = Unquoted(answer.response.Header("etag"));
  return info;
}

Result<ObjectInfo> S3Store::Put(std::string_view key, std::string_view data,
                                const PutOptions& options) {
  // Up to two parts a single request is quicker than start, parts and completion.
  if (static_cast<int64_t>(data.size()) <= 2 * S3Upload::PartBytes(options_, -1)) {
    return PutWhole(key, data, options);
  }
  return S3Upload::Run(
      *this, key, options, static_cast<int64_t>(data.size()), {},
      [&](int64_t offset, std::span<std::byte> out) {
        std::memcpy(out.data(), data.data() + offset, out.size());
        return Status();
      });
}

Result<ListPage> S3Store::List(const ListOptions& options) {
  if (options.max_keys < 1 || options.max_keys > 1000) {
    return InvalidArgument(fmt::format("a page has 1 to 1000 keys, not {}", options.max_keys));
  }
  S3Request request;
  request.verb = "list";
  request.query = {{"list-type", "2"},
                   {"encoding-type", "url"},
                   {"max-keys", std::to_string(options.max_keys)},
                   {"prefix", prefix_ + options.prefix}};
  if (options.one_level) request.query.emplace_back("delimiter", "/");
  if (!options.page.empty()) request.query.emplace_back("continuation-token", options.page);
  const S3Answer answer = client_->Send(request);
  if (!answer.ok()) return client_->Explain(request, answer);
  Result<ListPage> page = ParseListPage(answer.response.body, prefix_);
  if (!page.ok()) return page.error().WithContext(url_);
  return page;
}

Status S3Store::Remove(std::string_view key) {
  S3Request request;
  request.method = "DELETE";
  request.verb = "remove";
  TESSERA_ASSIGN(request.key, FullKey(key));
  const S3Answer answer = client_->Send(request);
  if (answer.ok() || answer.Is(404, "NoSuchKey")) return {};
  return client_->Explain(request, answer);
}

}  // namespace tessera
