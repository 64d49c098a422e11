#include "store/http_client.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/strings.h"

namespace tessera {

namespace {

// One exchange; the context of curl's callbacks.
struct Exchange {
  const HttpRequest* request;
  HttpResponse* response;
  const std::atomic<bool>* cancelled;
  size_t sent = 0;
  int64_t skip = -1;  // -1: the answer's head has not been looked at.
  bool too_large = false;
};

size_t OnBody(char* data, size_t, size_t bytes, void* context) {
  auto& exchange = *static_cast<Exchange*>(context);
  HttpResponse& response = *exchange.response;
  const HttpRequest& request = *exchange.request;
  if (exchange.skip < 0) {
    const int64_t length = response.ContentBytes();
    exchange.skip = response.status == 200 && request.use_sink ? request.skip_when_200 : 0;
    const bool to_sink = request.use_sink && response.status < 300;
    if (!to_sink && length > request.max_body_bytes) {
      exchange.too_large = true;
      return 0;
    }
    if (!to_sink && length > 0) response.body.reserve(static_cast<size_t>(length));
  }
  if (!request.use_sink || response.status >= 300) {
    if (static_cast<int64_t>(response.body.size() + bytes) > request.max_body_bytes) {
      exchange.too_large = true;
      return 0;
    }
    response.body.append(data, bytes);
    return bytes;
  }
  size_t from = 0;
  if (exchange.skip > 0) {
    from = static_cast<size_t>(std::min<int64_t>(exchange.skip, static_cast<int64_t>(bytes)));
    exchange.skip -= static_cast<int64_t>(from);
  }
  const size_t room = request.sink.size() - static_cast<size_t>(response.sunk);
  const size_t count = std::min(room, bytes - from);
  std::memcpy(request.sink.data() + response.sunk, data + from, count);
  response.sunk += static_cast<int64_t>(count);
  if (from + count < bytes) {
    // The server sends more than was asked for; the rest is not read.
    exchange.too_large = true;
    return 0;
  }
  return bytes;
}

size_t OnHeader(char* data, size_t, size_t bytes, void* context) {
  HttpResponse& response = *static_cast<Exchange*>(context)->response;
  const std::string_view line = Trim(std::string_view(data, bytes));
  if (line.starts_with("HTTP/")) {
    // The head of a further answer: after 100 Continue or a redirect.
    response.headers.clear();
    const size_t space = line.find(' ');
    const auto status = space == line.npos ? std::nullopt : ParseInt(line.substr(space + 1, 3));
    response.status = status.value_or(0);
    return bytes;
  }
  const size_t colon = line.find(':');
  // A server may not fill the memory with headers.
  if (colon != line.npos && response.headers.size() < 256) {
    std::string name(line.substr(0, colon));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    response.headers[std::move(name)] = Trim(line.substr(colon + 1));
  }
  return bytes;
}

size_t OnRead(char* out, size_t, size_t capacity, void* context) {
  auto& exchange = *static_cast<Exchange*>(context);
  const std::string_view rest = exchange.request->body.substr(exchange.sent);
  const size_t count = std::min(capacity, rest.size());
  std::memcpy(out, rest.data(), count);
  exchange.sent += count;
  return count;
}

// curl sends the body anew when a kept connection turns out to be closed.
int OnSeek(void* context, curl_off_t offset, int origin) {
  if (origin != SEEK_SET) return CURL_SEEKFUNC_CANTSEEK;
  static_cast<Exchange*>(context)->sent = static_cast<size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

int OnProgress(void* context, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto* cancelled = static_cast<Exchange*>(context)->cancelled;
  return cancelled != nullptr && cancelled->load(std::memory_order_relaxed) ? 1 : 0;
}

HttpFailure FailureOf(CURLcode code) {
  switch (code) {
    case CURLE_OK: return HttpFailure::kNone;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return HttpFailure::kResolve;
    case CURLE_COULDNT_CONNECT: return HttpFailure::kConnect;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
    case CURLE_SSL_PINNEDPUBKEYNOTMATCH: return HttpFailure::kTls;
    case CURLE_OPERATION_TIMEDOUT: return HttpFailure::kStalled;
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_AGAIN: return HttpFailure::kBroken;
    case CURLE_ABORTED_BY_CALLBACK: return HttpFailure::kCancelled;
    default: return HttpFailure::kOther;
  }
}

struct SlistDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using Slist = std::unique_ptr<curl_slist, SlistDeleter>;

void AppendHeader(Slist& list, const std::string& line) {
  curl_slist* extended = curl_slist_append(list.get(), line.c_str());
  if (extended == nullptr) throw std::bad_alloc();
  (void)list.release();
  list.reset(extended);
}

// A redirect must not lead to a file of this machine.
void RestrictProtocols(CURL* handle) {
#if LIBCURL_VERSION_NUM >= 0x075500
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS, long{CURLPROTO_HTTP | CURLPROTO_HTTPS});
  curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS, long{CURLPROTO_HTTP | CURLPROTO_HTTPS});
#endif
}

void StartCurlOnce() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  TESSERA_CHECK(code == CURLE_OK, "libcurl can't start");
}

}  // namespace

std::string_view HttpResponse::Header(std::string_view name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? std::string_view{} : std::string_view(it->second);
}

int64_t HttpResponse::ContentBytes() const {
  return std::max<int64_t>(-1, ParseInt(Header("content-length")).value_or(-1));
}

int64_t HttpResponse::TotalBytes() const {
  const std::string_view range = Header("content-range");  // "bytes 0-9/443" or "bytes */443"
  const size_t slash = range.rfind('/');
  if (slash != range.npos) {
    return std::max<int64_t>(-1, ParseInt(range.substr(slash + 1)).value_or(-1));
  }
  return status == 206 ? -1 : ContentBytes();
}

HttpClient::HttpClient(HttpClientOptions options) : options_(std::move(options)) {
  StartCurlOnce();
  options_.connections = std::max(1, options_.connections);
}

HttpClient::~HttpClient() {
  for (void* handle : idle_) curl_easy_cleanup(handle);
}

void* HttpClient::Acquire() {
  std::unique_lock lock(mutex_);
  // Every request ends by its own time limits, so a turn comes.
  freed_.wait(lock, [&] { return running_ < options_.connections; });
  ++running_;
  if (!idle_.empty()) {
    void* handle = idle_.back();
    idle_.pop_back();
    return handle;
  }
  return curl_easy_init();
}

void HttpClient::Release(void* handle) {
  {
    const std::lock_guard lock(mutex_);
    --running_;
    if (handle != nullptr) idle_.push_back(handle);
  }
  freed_.notify_one();
}

HttpResponse HttpClient::Send(const HttpRequest& request) {
  HttpResponse response;
  void* handle = Acquire();
  if (handle == nullptr) {
    Release(nullptr);
    response.failure = HttpFailure::kOther;
    response.failure_text = "libcurl gave no handle";
    return response;
  }
  Exchange exchange = {.request = &request,
                       .response = &response,
                       .cancelled = request.ignore_cancel ? nullptr : options_.cancelled};
  char error_text[CURL_ERROR_SIZE] = "";
  curl_easy_reset(handle);  // Keeps the open connection.
  const auto set = [&](CURLoption option, auto value) {
    curl_easy_setopt(handle, option, value);
  };
  set(CURLOPT_URL, request.url.c_str());
  set(CURLOPT_PATH_AS_IS, 1L);  // Keys may hold "..".
  set(CURLOPT_NOSIGNAL, 1L);
  RestrictProtocols(handle);
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(CURLOPT_USERAGENT, "tessera/0.1");
  set(CURLOPT_ERRORBUFFER, error_text);
  set(CURLOPT_BUFFERSIZE, 512L << 10);
  set(CURLOPT_UPLOAD_BUFFERSIZE, 512L << 10);
  set(CURLOPT_TCP_KEEPALIVE, 1L);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout_s * 1000));
  const double stall_s = request.stall_s > 0 ? request.stall_s : options_.stall_s;
  set(CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(options_.stall_bytes_per_s));
  set(CURLOPT_LOW_SPEED_TIME, std::max(1L, static_cast<long>(stall_s)));
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, OnProgress);
  set(CURLOPT_XFERINFODATA, static_cast<void*>(&exchange));
  set(CURLOPT_WRITEFUNCTION, OnBody);
  set(CURLOPT_WRITEDATA, static_cast<void*>(&exchange));
  set(CURLOPT_HEADERFUNCTION, OnHeader);
  set(CURLOPT_HEADERDATA, static_cast<void*>(&exchange));
  if (request.follow_redirects) {
    set(CURLOPT_FOLLOWLOCATION, 1L);
    set(CURLOPT_MAXREDIRS, 5L);
  }
  if (!request.user.empty() || !request.password.empty()) {
    set(CURLOPT_USERNAME, request.user.c_str());
    set(CURLOPT_PASSWORD, request.password.c_str());
  }
  if (!options_.ca_bundle.empty()) set(CURLOPT_CAINFO, options_.ca_bundle.c_str());
  if (request.method == "HEAD") {
    set(CURLOPT_NOBODY, 1L);
  } else if (request.method == "PUT" || request.method == "POST") {
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
    set(CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    set(CURLOPT_READFUNCTION, OnRead);
    set(CURLOPT_READDATA, static_cast<void*>(&exchange));
    set(CURLOPT_SEEKFUNCTION, OnSeek);
    set(CURLOPT_SEEKDATA, static_cast<void*>(&exchange));
  } else if (request.method != "GET") {
    set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  Slist headers;
  AppendHeader(headers, "Expect:");  // No pause before the body.
  for (const auto& [name, value] : request.headers) {
    // curl leaves a header with an empty value out, unless it ends with ';'.
    AppendHeader(headers, value.empty() ? name + ";" : name + ": " + value);
  }
  set(CURLOPT_HTTPHEADER, headers.get());

  const CURLcode code = curl_easy_perform(handle);

  long connects = 0;
  curl_easy_getinfo(handle, CURLINFO_NUM_CONNECTS, &connects);
  if (options_.counters != nullptr) {
    options_.counters->AddRequest();
    options_.counters->AddConnections(connects);
  }
  response.failure = exchange.too_large ? HttpFailure::kTooLarge : FailureOf(code);
  if (response.failure == HttpFailure::kNone && response.status == 0) {
    response.failure = HttpFailure::kBroken;
  }
  if (response.status != 0) reached_.store(true, std::memory_order_relaxed);
  if (code != CURLE_OK) {
    response.failure_text = error_text[0] != '\0' ? error_text : curl_easy_strerror(code);
  }
  // The handle must not keep pointers into this call.
  curl_easy_reset(handle);
  Release(handle);
  return response;
}

std::string UrlParts::HostHeader() const { return port.empty() ? host : host + ":" + port; }
std::string UrlParts::Origin() const { return scheme + "://" + HostHeader(); }

Result<UrlParts> ParseUrl(const std::string& url, std::string_view name) {
  StartCurlOnce();
  const std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(), curl_url_cleanup);
  if (parsed == nullptr) throw std::bad_alloc();
  const CURLUcode code = curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), CURLU_PATH_AS_IS);
  const auto part = [&](CURLUPart which, unsigned int flags = CURLU_NO_DEFAULT_PORT) {
    char* text = nullptr;
    std::string value;
    if (curl_url_get(parsed.get(), which, &text, flags) == CURLUE_OK) value = text;
    curl_free(text);
    return value;
  };
  UrlParts parts;
  if (code == CURLUE_OK) {
    parts.scheme = part(CURLUPART_SCHEME);
    parts.host = part(CURLUPART_HOST);
    parts.port = part(CURLUPART_PORT);
    parts.path = part(CURLUPART_PATH);
    parts.query = part(CURLUPART_QUERY);
    parts.user = Secret(part(CURLUPART_USER, CURLU_URLDECODE));
    parts.password = Secret(part(CURLUPART_PASSWORD, CURLU_URLDECODE));
  }
  if (code != CURLUE_OK || (parts.scheme != "http" && parts.scheme != "https") ||
      parts.host.empty()) {
    return InvalidArgument(
        fmt::format("{} is no URL of the form http://host:port or https://host", name));
  }
  return parts;
}

int64_t ParseHttpDate(std::string_view text) {
  return std::max<int64_t>(-1, curl_getdate(std::string(text).c_str(), nullptr));
}

}  // namespace tessera
