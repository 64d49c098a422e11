// HTTP requests over libcurl: a pool of handles whose connections stay open, failures as a value.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "store/counters.h"
#include "store/sigv4.h"

namespace tessera {

// Of the first request to a server: one that is not there is told of soon.
inline constexpr int kFirstContactAttempts = 4;
// Of an object that changes, or whose checksum does not fit, while it is read.
inline constexpr int kReadAttempts = 3;

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  NameValues headers;
  std::string_view body;  // Sent with PUT and POST; must stay until the answer.
  // Where the body of a 2xx answer goes; without it into HttpResponse::body.
  std::span<std::byte> sink;
  bool use_sink = false;
  // For servers that answer a range with the whole object: what lies before the range.
  int64_t skip_when_200 = 0;
  // An answer with a longer body is cut off with failure kTooLarge.
  int64_t max_body_bytes = int64_t{64} << 20;
  double stall_s = 0;  // 0: the client's.
  bool follow_redirects = false;
  bool ignore_cancel = false;  // For clean-up after a cancel.
  std::string user, password;  // Basic authentication.
};

enum class HttpFailure {
  kNone,
  kResolve,    // The host name has no address.
  kConnect,    // Refused, unreachable or no answer to the connect.
  kTls,        // The certificate or the handshake.
  kStalled,    // Slower than the limit, or no answer.
  kBroken,     // Reset or closed within the exchange.
  kTooLarge,   // HttpRequest::max_body_bytes.
  kCancelled,
  kOther,
};

struct HttpResponse {
  int64_t status = 0;  // 0: no answer.
  std::map<std::string, std::string, std::less<>> headers;  // Lower-case names.
  std::string body;
  int64_t sunk = 0;  // Bytes in the sink, also of an answer that broke off.
  HttpFailure failure = HttpFailure::kNone;
  std::string failure_text;

  bool ok() const { return failure == HttpFailure::kNone && status >= 200 && status < 300; }
  // Empty where there is no such header.
  std::string_view Header(std::string_view name) const;
  // From Content-Length or the total of Content-Range; -1 where neither says it.
  int64_t ContentBytes() const;
  int64_t TotalBytes() const;
};

struct HttpClientOptions {
  double connect_timeout_s = 10;
  int64_t stall_bytes_per_s = 1024;
  double stall_s = 30;
  int connections = 16;
  std::string ca_bundle;  // A file of certificates; empty: the system's.
  const std::atomic<bool>* cancelled = nullptr;
  AtomicCounters* counters = nullptr;
};

// Thread-safe. At most `connections` requests run at once; others wait for their turn.
class HttpClient {
 public:
  explicit HttpClient(HttpClientOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  HttpResponse Send(const HttpRequest& request);
  // True once a server has answered: a later failure to connect may pass by itself.
  bool reached() const { return reached_.load(std::memory_order_relaxed); }

 private:
  void* Acquire();
  void Release(void* handle);

  HttpClientOptions options_;
  std::atomic<bool> reached_{false};
  std::mutex mutex_;  // Guards idle_ and running_.
  std::condition_variable freed_;
  std::vector<void*> idle_;  // CURL handles; the last used is taken first, its connection is warm.
  int running_ = 0;
};

// The parts of "http://user:secret@host:8080/path?query".
struct UrlParts {
  std::string scheme, host, port, path, query;  // `port` is empty where it is the scheme's.
  Secret user, password;
  // "http://host:8080" without user, path and query.
  std::string Origin() const;
  // What the header Host says: "host:8080".
  std::string HostHeader() const;
};
// `name` says in the error what the URL is for; the URL itself may hold a secret and is not shown.
Result<UrlParts> ParseUrl(const std::string& url, std::string_view name);

// Seconds since 1970 of an HTTP date, -1 where it is none.
int64_t ParseHttpDate(std::string_view text);

}  // namespace tessera
