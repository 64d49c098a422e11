#include "store/s3_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/crc32c.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/strings.h"
#include "base/time.h"
#include "store/digests.h"
#include "store/retry.h"

namespace tessera {

namespace {

// Attempts on a server that has never answered: a wrong name is likelier than an outage.
constexpr int kCleanUpAttempts = 3;
// Signatures are refused when the clocks differ by 15 minutes; a smaller difference is no reason.
constexpr int64_t kSkew_s = 300;

bool IsRetryableCode(std::string_view code) {
  static constexpr std::string_view kCodes[] = {
      "InternalError", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
      "RequestThrottled", "RequestLimitExceeded", "BandwidthLimitExceeded", "RequestTimeout",
      "OperationAborted", "ConditionalRequestConflict", "ConcurrentModification", "IncompleteBody",
      "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"};
  return std::find(std::begin(kCodes), std::end(kCodes), code) != std::end(kCodes);
}

// "503 SlowDown: Please reduce your request rate (request tx0001)".
std::string Describe(const S3Answer& answer) {
  const HttpResponse& response = answer.response;
  if (response.failure != HttpFailure::kNone) {
    return response.status != 0 ? fmt::format("{} within the answer {}", response.failure_text, response.status)
                                : response.failure_text;
  }
  std::string text = fmt::format("HTTP {}", response.status);
  if (!answer.error.code.empty()) text += " " + answer.error.code;
  if (!answer.error.message.empty()) text += ": " + answer.error.message;
  const std::string request_id = !answer.error.request_id.empty()
                                     ? answer.error.request_id
                                     : std::string(response.Header("x-amz-request-id"));
  if (!request_id.empty()) text += fmt::format(" (request {})", request_id);
  return text;
}

int64_t ServerTime(const S3Answer& answer) {
  const int64_t date = ParseHttpDate(answer.response.Header("date"));
  return date >= 0 ? date : ParseIsoTime(answer.error.server_time);
}

// Servers must not, but some put what they were sent into their message.
bool RepeatsCredentials(const HttpRequest& request, std::string_view message) {
  const auto repeats = [message](std::string_view secret) {
    return !secret.empty() && message.find(secret) != message.npos;
  };
  for (const auto& [name, value] : request.headers) {
    if (name == "x-amz-security-token" && repeats(value)) return true;
    if (name != "authorization") continue;
    constexpr std::string_view kCredential = "Credential=";
    const std::string_view rest = std::string_view(value).substr(
        std::min(value.find(kCredential), value.size() - kCredential.size()) + kCredential.size());
    if (repeats(rest.substr(0, rest.find('/'))) || repeats("Signature=")) return true;
  }
  return false;
}

std::string ClockDifference(int64_t local, int64_t server) {
  return fmt::format("{} {}", FormatDuration(static_cast<double>(std::abs(server - local))),
                     server > local ? "ahead" : "behind");
}

}  // namespace

Result<std::unique_ptr<S3Client>> S3Client::Open(const std::string& bucket,
                                                 const StoreOptions& options,
                                                 const Environment& environment) {
  std::unique_ptr<S3Client> client(new S3Client(bucket, options));
  TESSERA_ASSIGN(AwsProfile profile, ReadAwsProfile(environment, options.profile));
  TESSERA_ASSIGN(client->settings_, ReadS3Settings(options, environment, profile, bucket));
  client->region_ = client->settings_.region;
  HttpClientOptions http;
  http.connect_timeout_s = options.connect_timeout_s;
  http.stall_bytes_per_s = options.stall_bytes_per_s;
  http.stall_s = options.stall_s;
  http.connections = options.connections;
  http.ca_bundle = client->settings_.ca_bundle;
  http.cancelled = options.cancelled;
  http.counters = &client->counters_;
  const bool named_profile = !options.profile.empty() || environment("AWS_PROFILE");
  client->credentials_ =
      std::make_unique<CredentialChain>(environment, std::move(profile), named_profile,
                                        client->settings_.endpoint.has_value(), http);
  client->http_ = std::make_unique<HttpClient>(std::move(http));
  return client;
}

void S3Client::Protect(std::string_view body, bool whole, S3Request* request) const {
  request->body = body;
  request->payload_hash = kUnsignedPayload;
  switch (settings_.upload_check) {
    case UploadCheck::kSha256: request->payload_hash = Sha256Hex(body); break;
    case UploadCheck::kCrc32c:
      request->headers.emplace_back("x-amz-checksum-crc32c", EncodeCrc32c(Crc32c(body)));
      break;
    case UploadCheck::kAuto:
    case UploadCheck::kMd5: {
      const std::string md5 = Md5(body);
      request->headers.emplace_back("content-md5", Base64(md5));
      if (whole) {
        request->headers.emplace_back(kCrc32cHeader,
                                      fmt::format("{} {}", EncodeCrc32c(Crc32c(body)), Hex(md5)));
      }
      break;
    }
  }
}

std::string S3Client::Endpoint() const {
  if (settings_.endpoint) return settings_.endpoint->Origin() + settings_.endpoint->path;
  const std::lock_guard lock(mutex_);
  return fmt::format("https://s3.{}.amazonaws.com", region_);
}

Result<HttpRequest> S3Client::Sign(const S3Request& request) {
  std::string region;
  {
    const std::lock_guard lock(mutex_);
    region = region_;
  }
  std::string scheme = "https", host, path;
  if (settings_.endpoint) {
    scheme = settings_.endpoint->scheme;
    host = settings_.endpoint->HostHeader();
    path = settings_.endpoint->path;
  } else {
    host = fmt::format("s3.{}.amazonaws.com{}", region, region.starts_with("cn-") ? ".cn" : "");
  }
  if (settings_.path_style) {
    path += "/" + UriEncode(bucket_, false);
  } else {
    host = bucket_ + "." + host;
  }
  path += "/" + UriEncode(request.key, true);
  const std::string query = CanonicalQuery(request.query);
  HttpRequest http;
  http.method = request.method;
  http.url = scheme + "://" + host + path + (query.empty() ? "" : "?" + query);
  http.headers = request.headers;
  http.body = request.body;
  http.sink = request.sink;
  http.use_sink = request.use_sink;
  http.max_body_bytes = request.max_body_bytes;
  http.stall_s = request.stall_s;
  http.ignore_cancel = request.clean_up;
  if (settings_.anonymous) return http;
  TESSERA_ASSIGN(const Credentials credentials, credentials_->Get());
  {
    const std::lock_guard lock(mutex_);
    key_source_ = credentials.source;
  }
  const std::string date = AmzDate(UnixSeconds() + clock_offset_s_.load(std::memory_order_relaxed));
  http.headers.emplace_back("x-amz-date", date);
  http.headers.emplace_back("x-amz-content-sha256", request.payload_hash);
  if (!credentials.session_token.empty()) {
    http.headers.emplace_back("x-amz-security-token", credentials.session_token.Reveal());
  }
  NameValues to_sign = http.headers;
  to_sign.emplace_back("host", host);
  const SigningInput input = {.method = request.method,
                              .encoded_path = path,
                              .canonical_query = query,
                              .headers = &to_sign,
                              .payload_hash = request.payload_hash,
                              .amz_date = date,
                              .region = region};
  http.headers.emplace_back("authorization", Authorization(input, credentials));
  return http;
}

// A bucket in another region: Amazon says which.
bool S3Client::FollowRegion(const S3Answer& answer) {
  const int64_t status = answer.response.status;
  if (status != 301 && status != 307 && status != 308 && status != 400) return false;
  if (settings_.endpoint) return false;
  std::string region(answer.response.Header("x-amz-bucket-region"));
  if (region.empty()) region = answer.error.region;
  const bool plausible = !region.empty() && region.size() < 64 &&
                         std::all_of(region.begin(), region.end(), [](char c) {
                           return std::isalnum(static_cast<unsigned char>(c)) || c == '-';
                         });
  if (!plausible) return false;
  const std::lock_guard lock(mutex_);
  if (region_ == region) return false;
  LogInfo("bucket '{}' is in region {}, not {}: set AWS_REGION to save a request", bucket_, region,
          region_);
  region_ = region;
  return true;
}

S3Client::Next S3Client::Judge(const S3Answer& answer, bool* corrected) {
  const HttpResponse& response = answer.response;
  if (answer.ok()) return Next::kDone;
  if (response.failure != HttpFailure::kNone) {
    return IsRetryableFailure(response.failure) ? Next::kRetry : Next::kDone;
  }
  if (!*corrected) {
    // Things that one correction sets right; a second time they are an error.
    *corrected = true;
    if (FollowRegion(answer)) return Next::kRetryNow;
    if (answer.error.code == "ExpiredToken" || answer.error.code == "TokenRefreshRequired") {
      credentials_->Expire();
      return Next::kRetryNow;
    }
    const int64_t server = ServerTime(answer);
    if ((answer.error.code == "RequestTimeTooSkewed" ||
         (response.status == 403 && answer.error.code.empty())) &&
        server >= 0) {
      const int64_t local = UnixSeconds();
      const int64_t offset = server - local;
      if (std::abs(offset - clock_offset_s_.load()) > kSkew_s) {
        clock_offset_s_.store(offset);
        LogWarning(
            "this machine's clock says {} but {} says {}, {}: requests are signed with the server's "
            "time; set the clock (for instance with chrony or systemd-timesyncd)",
            UtcTimestamp(local), Endpoint(), UtcTimestamp(server), ClockDifference(local, server));
        return Next::kRetryNow;
      }
    }
    *corrected = false;
  }
  return IsRetryableStatus(response.status) || IsRetryableCode(answer.error.code) ? Next::kRetry
                                                                                  : Next::kDone;
}

S3Answer S3Client::Send(S3Request& request) {
  RetryLoop loop(options_.retry, request.clean_up ? nullptr : options_.cancelled);
  S3Answer answer;
  bool corrected = false;
  while (true) {
    const Result<HttpRequest> http = Sign(request);
    if (!http.ok()) {
      answer.response.failure = HttpFailure::kOther;
      answer.response.failure_text = http.error().message;
      return answer;
    }
    answer.response = http_->Send(*http);
    answer.attempts = loop.attempt();
    answer.error = answer.ok() ? S3ErrorBody{} : ParseS3Error(answer.response.body);
    if (RepeatsCredentials(*http, answer.error.message)) answer.error.message = "(a message that is not shown)";
    if (answer.ok()) {
      counters_.AddRead(answer.response.sunk + static_cast<int64_t>(answer.response.body.size()));
      counters_.AddWritten(static_cast<int64_t>(request.body.size()));
      return answer;
    }
    const Next next = Judge(answer, &corrected);
    if (next == Next::kDone) return answer;
    // Without an answer, or with one from a broken server, the work may have been done.
    answer.maybe_done |= answer.response.failure != HttpFailure::kNone || answer.response.status >= 500;
    if (next == Next::kRetry) {
      const int limit = request.clean_up ? kCleanUpAttempts
                        : http_->reached() ? 0
                                           : kFirstContactAttempts;
      if (!loop.Again(RetryAfterSeconds(answer.response, UnixSeconds()), limit,
                      fmt::format("cannot {} {}: {}", request.verb, UrlOf(request.key), Describe(answer)))) {
        return answer;
      }
    }
    counters_.AddRetry();
    if (request.before_retry) request.before_retry(request, answer.response);
  }
}

std::string S3Client::ExplainClock(const S3Answer& answer) const {
  const int64_t local = UnixSeconds();
  const int64_t server = ServerTime(answer);
  return fmt::format("this machine's clock says {}, the server's {}: set the clock (for instance with "
                     "chrony or systemd-timesyncd)",
                     UtcTimestamp(local),
                     server >= 0 ? fmt::format("{}, {}", UtcTimestamp(server), ClockDifference(local, server))
                                 : "another time");
}

Error S3Client::Explain(const S3Request& request, const S3Answer& answer) const {
  const HttpResponse& response = answer.response;
  const std::string& code = answer.error.code;
  const std::string where = fmt::format("cannot {} {}", request.verb, UrlOf(request.key));
  const std::string endpoint = Endpoint();
  const std::string set_by =
      settings_.endpoint ? fmt::format(" (from {})", settings_.endpoint_source) : "";
  std::string source;
  {
    const std::lock_guard lock(mutex_);
    source = key_source_;
  }
  const std::string tries =
      answer.attempts > 1 ? fmt::format(" after {} attempts", answer.attempts) : "";
  const auto error = [&](ErrorCode kind, std::string text, bool retryable = false) {
    return Error{kind, fmt::format("{}{}: {}", where, tries, text), retryable};
  };
  switch (response.failure) {
    case HttpFailure::kNone: break;
    case HttpFailure::kResolve:
      return error(ErrorCode::kUnavailable,
                   fmt::format("the endpoint {}{} has no address: {}; check its name and the network",
                               endpoint, set_by, response.failure_text),
                   true);
    case HttpFailure::kConnect:
      return error(ErrorCode::kUnavailable,
                   fmt::format("no connection to the endpoint {}{}: {}; check its name and port, and "
                               "that the service runs",
                               endpoint, set_by, response.failure_text),
                   true);
    case HttpFailure::kTls:
      return error(ErrorCode::kInvalidArgument,
                   fmt::format("the TLS connection to {}{} failed: {}; for a certificate of your own "
                               "authority set AWS_CA_BUNDLE to its file",
                               endpoint, set_by, response.failure_text));
    case HttpFailure::kCancelled: return error(ErrorCode::kCancelled, "cancelled");
    case HttpFailure::kTooLarge:
      return error(ErrorCode::kCorrupt, "the answer is larger than what was asked for");
    case HttpFailure::kStalled:
      return error(ErrorCode::kTimeout,
                   fmt::format("{} does not answer or is slower than {} B/s: {}", endpoint,
                               options_.stall_bytes_per_s, response.failure_text),
                   true);
    case HttpFailure::kBroken:
      return error(ErrorCode::kUnavailable,
                   fmt::format("the connection to {} broke: {}", endpoint, Describe(answer)), true);
    case HttpFailure::kOther: return error(ErrorCode::kInvalidArgument, response.failure_text);
  }
  const std::string said = Describe(answer);
  if (code == "NoSuchBucket") {
    return error(ErrorCode::kNotFound,
                 fmt::format("bucket '{}' does not exist at {}{}; check the name, the region and the "
                             "endpoint. {}",
                             bucket_, endpoint, set_by, said));
  }
  if (code == "RequestTimeTooSkewed") {
    return error(ErrorCode::kInvalidArgument, ExplainClock(answer) + ". " + said);
  }
  if (code == "InvalidAccessKeyId" || code == "InvalidClientTokenId") {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{} does not know the access key of {}; check which belongs to this "
                             "endpoint. {}",
                             endpoint, source, said));
  }
  if (code == "SignatureDoesNotMatch") {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("the secret key of {} is wrong for its access key at {}. {}", source,
                             endpoint, said));
  }
  if (code == "ExpiredToken" || code == "TokenRefreshRequired" || code == "InvalidToken") {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("the session token of {} has expired or is wrong: get a new one. {}",
                             source, said));
  }
  if (response.status == 401 || response.status == 403) {
    return error(ErrorCode::kIo, fmt::format("{} does not allow this {}; ask for the right to {} in "
                                             "bucket '{}'. {}",
                                             endpoint,
                                             source.empty() ? "without keys" : "with the keys of " + source,
                                             request.verb, bucket_, said));
  }
  if (response.status == 404) return error(ErrorCode::kNotFound, "it does not exist. " + said);
  if (response.status == 412 || response.status == 409) {
    return error(ErrorCode::kExists, "somebody else has written it meanwhile. " + said);
  }
  if (response.status == 301 || response.status == 307 || response.status == 308 ||
      code == "AuthorizationHeaderMalformed") {
    const std::string region = !answer.error.region.empty()
                                   ? answer.error.region
                                   : std::string(response.Header("x-amz-bucket-region"));
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("bucket '{}' is not at {} in region {}{}. {}", bucket_, endpoint,
                             settings_.region,
                             region.empty() ? "" : fmt::format(": set AWS_REGION={}", region), said));
  }
  if (response.status == 501) {
    return error(ErrorCode::kUnsupported, fmt::format("{} can't do this. {}", endpoint, said));
  }
  if (IsRetryableStatus(response.status) || IsRetryableCode(code)) {
    return error(ErrorCode::kUnavailable, said, true);
  }
  if (response.status == 400 || response.status == 405) {
    return error(ErrorCode::kInvalidArgument, said);
  }
  return error(ErrorCode::kIo, said);
}

}  // namespace tessera
