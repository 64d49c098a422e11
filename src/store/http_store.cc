#include "store/http_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/strings.h"
#include "base/time.h"
#include "store/atomic_file.h"
#include "store/aws_config.h"
#include "store/http_client.h"
#include "store/parallel_read.h"
#include "store/retry.h"
#include "store/s3_xml.h"
#include "store/worker_pool.h"

namespace tessera {

namespace {


HttpClientOptions ClientOptions(const StoreOptions& options, AtomicCounters* counters) {
  HttpClientOptions http;
  http.connect_timeout_s = options.connect_timeout_s;
  http.stall_bytes_per_s = options.stall_bytes_per_s;
  http.stall_s = options.stall_s;
  http.connections = options.connections;
  http.cancelled = options.cancelled;
  http.counters = counters;
  const Environment environment = ProcessEnvironment();
  http.ca_bundle = environment("SSL_CERT_FILE").value_or(environment("CURL_CA_BUNDLE").value_or(""));
  return http;
}

class HttpStore : public ObjectStore {
 public:
  HttpStore(UrlParts base, const StoreOptions& options)
      : base_(std::move(base)),
        options_(options),
        http_(ClientOptions(options, &counters_)),
        workers_(options.connections) {
    while (base_.path.ends_with('/')) base_.path.pop_back();
    url_ = base_.Origin() + base_.path;
  }

  const std::string& url() const override { return url_; }
  bool writable() const override { return false; }

  Result<ObjectInfo> Head(std::string_view key) override {
    HttpRequest request;
    request.method = "HEAD";
    HttpResponse response = Send(key, request);
    if (response.ok() && response.TotalBytes() >= 0) return InfoOf(key, response);
    const int64_t status = response.status;
    // Servers that do not do HEAD, and those that sign URLs for GET alone.
    if (response.ok() || status == 403 || status == 405 || status == 501) {
      request.method = "GET";
      request.headers = {{"Range", "bytes=0-0"}};
      request.max_body_bytes = 64 << 10;
      response = Send(key, request);
      if (response.status == 416) return InfoOf(key, response);
      // A server that ignores the range begins to send the whole.
      const bool head_known = response.failure == HttpFailure::kTooLarge && response.status == 200;
      if ((response.ok() || head_known) && response.TotalBytes() >= 0) return InfoOf(key, response);
      if (response.ok() || head_known) {
        return Unsupported(fmt::format("{}: the server does not say how long it is", Where(key)));
      }
    }
    return Explain(key, response);
  }

  Status GetRange(std::string_view key, int64_t offset, std::span<std::byte> out,
                  std::string_view etag) override {
    if (offset < 0) return InvalidArgument(fmt::format("a range can't start at byte {}", offset));
    if (out.empty()) return {};
    const int64_t last = offset + static_cast<int64_t>(out.size()) - 1;
    int64_t done = 0;
    std::string version(etag);
    HttpRequest request;
    request.use_sink = true;
    const auto aim = [&] {
      request.headers = {{"Range", fmt::format("bytes={}-{}", offset + done, last)}};
      if (!version.empty()) request.headers.emplace_back("If-Match", fmt::format("\"{}\"", version));
      request.sink = out.subspan(static_cast<size_t>(done));
      request.skip_when_200 = offset + done;
    };
    aim();
    const HttpResponse response = Send(key, request, [&](const HttpResponse& broken) {
      if (broken.status != 206 || broken.sunk == 0) return;
      const std::string now = StrongEtag(broken);
      if (version.empty()) version = now;
      if (version.empty()) return;
      done += broken.sunk;
      aim();
    });
    if (response.status == 412 || (response.ok() && !etag.empty() && StrongEtag(response) != etag)) {
      return Error{ErrorCode::kCorrupt, fmt::format("{} changed while it was read", Where(key)), true};
    }
    if (response.status == 416) {
      return Corrupt(fmt::format("{} ends before byte {}", Where(key), last + 1));
    }
    // A whole object in place of the range: what was asked for is there.
    const bool enough = response.failure == HttpFailure::kTooLarge && response.status == 200 &&
                        done + response.sunk == static_cast<int64_t>(out.size());
    if (!response.ok() && !enough) return Explain(key, response);
    done += response.sunk;
    if (done == static_cast<int64_t>(out.size())) return {};
    return Corrupt(fmt::format("{} ends at byte {}, but bytes up to {} were asked for", Where(key),
                               offset + done, last + 1));
  }

  Result<std::string> Get(std::string_view key, int64_t max_bytes) override {
    HttpRequest request;
    request.max_body_bytes = std::max<int64_t>(std::min(max_bytes, options_.part_bytes), 64 << 10);
    HttpResponse response = Send(key, request);
    const bool large = response.failure == HttpFailure::kTooLarge && response.status == 200;
    const int64_t bytes =
        large ? response.TotalBytes() : static_cast<int64_t>(response.body.size());
    if (response.ok() && bytes <= max_bytes) return std::move(response.body);
    if (!response.ok() && !large) return Explain(key, response);
    if (bytes < 0 && request.max_body_bytes < max_bytes) {
      // No length given: as much as may be.
      request.max_body_bytes = max_bytes;
      response = Send(key, request);
      if (response.ok()) return std::move(response.body);
      if (response.failure != HttpFailure::kTooLarge) return Explain(key, response);
    }
    if (bytes < 0 || bytes > max_bytes) {
      return InvalidArgument(fmt::format("{} has {}, more than the {} that are read at once", Where(key),
                                         bytes < 0 ? "too much" : FormatBytes(bytes),
                                         FormatBytes(max_bytes)));
    }
    std::string content(static_cast<size_t>(bytes), '\0');
    TESSERA_TRY(ReadInParts(*this, workers_, InfoOf(key, response), options_.part_bytes, {},
                            std::as_writable_bytes(std::span(content))));
    return content;
  }

  Result<ObjectInfo> Download(std::string_view key, const std::string& path,
                              const DownloadOptions& options) override {
    for (int attempt = 1;; ++attempt) {
      TESSERA_ASSIGN(const ObjectInfo info, Head(key));
      TESSERA_ASSIGN(AtomicFile file, AtomicFile::Create(path));
      TESSERA_TRY(file.Reserve(info.bytes));
      const auto read =
          ReadInPartsToFile(*this, workers_, info, options_.part_bytes, {}, file, options.progress);
      if (read.ok()) {
        TESSERA_TRY(FinishDownload(std::move(file), info.bytes, options));
        return info;
      }
      // Another version of the object: from the beginning.
      const bool changed = read.error().code == ErrorCode::kCorrupt && read.error().retryable;
      if (!changed || attempt == kReadAttempts) return read.error();
    }
  }

  Result<ObjectInfo> Put(std::string_view key, std::string_view, const PutOptions&) override {
    return ReadOnly(key);
  }
  Result<ObjectInfo> Upload(const std::string&, std::string_view key, const PutOptions&,
                            const TransferProgress&) override {
    return ReadOnly(key);
  }
  Result<std::unique_ptr<ObjectWriter>> StartWrite(std::string_view key, const PutOptions&) override {
    return ReadOnly(key);
  }
  Status Remove(std::string_view key) override { return ReadOnly(key); }
  Result<ListPage> List(const ListOptions&) override {
    return Unsupported(fmt::format(
        "{}: a web server can't list its objects; name the object, or use s3://", url_));
  }
  Result<std::vector<PendingWrite>> PendingWrites() override { return std::vector<PendingWrite>(); }
  Status AbandonWrite(const PendingWrite& write) override { return ReadOnly(write.key); }
  StoreCounters counters() const override { return counters_.Read(); }

 private:
  std::string Where(std::string_view key) const {
    return fmt::format("{}/{}", url_, UriEncode(key, true));
  }

  // A weak etag may stand for two contents, so it pins nothing.
  static std::string StrongEtag(const HttpResponse& response) {
    const std::string_view etag = response.Header("etag");
    return etag.starts_with("W/") ? "" : Unquoted(etag);
  }

  ObjectInfo InfoOf(std::string_view key, const HttpResponse& response) const {
    ObjectInfo info;
    info.key = key;
    info.bytes = response.TotalBytes();
    info.etag = StrongEtag(response);
    info.modified_unix_s = ParseHttpDate(response.Header("last-modified"));
    return info;
  }

  HttpResponse Send(std::string_view key, HttpRequest& request,
                    const std::function<void(const HttpResponse&)>& before_retry = {}) {
    request.url = Where(key) + (base_.query.empty() ? "" : "?" + base_.query);
    request.follow_redirects = true;
    request.user = base_.user.Reveal();
    request.password = base_.password.Reveal();
    RetryLoop loop(options_.retry, options_.cancelled);
    while (true) {
      HttpResponse response = http_.Send(request);
      if (response.ok()) {
        counters_.AddRead(response.sunk + static_cast<int64_t>(response.body.size()));
        return response;
      }
      const bool again = response.failure == HttpFailure::kNone
                             ? IsRetryableStatus(response.status)
                             : IsRetryableFailure(response.failure);
      if (!again || !loop.Again(RetryAfterSeconds(response, UnixSeconds()),
                                http_.reached() ? 0 : kFirstContactAttempts,
                                fmt::format("cannot read {}: {}", Where(key), Describe(response)))) {
        return response;
      }
      counters_.AddRetry();
      if (before_retry) before_retry(response);
    }
  }

  static std::string Describe(const HttpResponse& response) {
    if (response.failure == HttpFailure::kNone) return fmt::format("HTTP {}", response.status);
    return response.failure_text;
  }

  Error Explain(std::string_view key, const HttpResponse& response) const {
    const auto error = [&](ErrorCode code, std::string text, bool retryable = false) {
      return Error{code, fmt::format("cannot read {}: {}", Where(key), text), retryable};
    };
    switch (response.failure) {
      case HttpFailure::kNone: break;
      case HttpFailure::kResolve:
        return error(ErrorCode::kUnavailable,
                     response.failure_text + "; check the host's name and the network", true);
      case HttpFailure::kConnect:
        return error(ErrorCode::kUnavailable,
                     response.failure_text + "; check host and port, and that the server runs", true);
      case HttpFailure::kTls:
        return error(ErrorCode::kInvalidArgument,
                     "the TLS connection failed: " + response.failure_text +
                         "; for a certificate of your own authority set SSL_CERT_FILE to its file");
      case HttpFailure::kStalled:
        return error(ErrorCode::kTimeout, "no answer: " + response.failure_text, true);
      case HttpFailure::kBroken:
        return error(ErrorCode::kUnavailable, "the connection broke: " + response.failure_text, true);
      case HttpFailure::kCancelled: return error(ErrorCode::kCancelled, "cancelled");
      case HttpFailure::kTooLarge:
        return error(ErrorCode::kCorrupt, "the answer is larger than what was asked for");
      case HttpFailure::kOther: return error(ErrorCode::kIo, response.failure_text);
    }
    const std::string said = Describe(response);
    if (response.status == 404 || response.status == 410) {
      return error(ErrorCode::kNotFound, "it does not exist (" + said + ")");
    }
    if (response.status == 401 || response.status == 403) {
      return error(ErrorCode::kIo,
                   said + ": the server does not allow it; put user and password, or the signature, "
                          "into the URL");
    }
    if (IsRetryableStatus(response.status)) return error(ErrorCode::kUnavailable, said, true);
    return error(ErrorCode::kIo, said);
  }

  Error ReadOnly(std::string_view key) const {
    return Unsupported(fmt::format("cannot write {}: web servers are read-only; use s3:// or a path",
                                   Where(key)));
  }

  UrlParts base_;
  std::string url_;
  StoreOptions options_;
  AtomicCounters counters_;
  HttpClient http_;
  WorkerPool workers_;
};

}  // namespace

Result<std::unique_ptr<ObjectStore>> OpenHttpStore(const std::string& url,
                                                   const StoreOptions& options) {
  TESSERA_ASSIGN(UrlParts base, ParseUrl(url, "the store's URL"));
  return std::unique_ptr<ObjectStore>(new HttpStore(std::move(base), options));
}

}  // namespace tessera
