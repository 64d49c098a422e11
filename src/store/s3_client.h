// Signed requests to one bucket, with retries; what went wrong is explained.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "store/aws_config.h"
#include "store/aws_credentials.h"
#include "store/counters.h"
#include "store/http_client.h"
#include "store/object_store.h"
#include "store/s3_xml.h"

namespace tessera {

// Metadata by which a write that was retried knows its own object.
inline constexpr char kMarkHeader[] = "x-amz-meta-tessera-write";
// Metadata "CRC32C ETAG" of a whole put, for servers that keep no CRC32C of their own: reading checks
// it at a tenth of an MD5's cost. It counts only while the object has that etag.
inline constexpr char kCrc32cHeader[] = "x-amz-meta-tessera-crc32c";

struct S3Request {
  std::string method = "GET";
  std::string key;  // In the bucket; empty: the bucket itself.
  NameValues query;
  NameValues headers;  // Lower-case names; all are signed.
  std::string_view body;
  std::string payload_hash{kEmptySha256};
  std::span<std::byte> sink;
  bool use_sink = false;
  int64_t max_body_bytes = int64_t{16} << 20;
  double stall_s = 0;
  bool clean_up = false;  // Goes on after a cancel, with few attempts.
  std::string_view verb = "read";  // For messages: "cannot read s3://...".
  // Called before another attempt; may change the request, to go on where the answer broke off.
  std::function<void(S3Request&, const HttpResponse&)> before_retry;
};

struct S3Answer {
  HttpResponse response;
  S3ErrorBody error;
  int attempts = 1;
  // An earlier attempt broke off without an answer: the server may have carried it out.
  bool maybe_done = false;

  bool ok() const { return response.ok(); }
  bool Is(int64_t status, std::string_view code) const {
    return response.status == status && (error.code == code || error.code.empty());
  }
};

class S3Client {
 public:
  static Result<std::unique_ptr<S3Client>> Open(const std::string& bucket,
                                                const StoreOptions& options,
                                                const Environment& environment);

  S3Answer Send(S3Request& request);
  // Why a request that is not ok failed, and what to do.
  Error Explain(const S3Request& request, const S3Answer& answer) const;

  // Sets the headers by which the server verifies the body; of a `whole` object also kCrc32cHeader.
  void Protect(std::string_view body, bool whole, S3Request* request) const;
  bool sends_crc32c() const { return settings_.upload_check == UploadCheck::kCrc32c; }

  const std::string& bucket() const { return bucket_; }
  std::string UrlOf(std::string_view key) const { return "s3://" + bucket_ + "/" + std::string(key); }
  AtomicCounters& counters() { return counters_; }

 private:
  enum class Next { kDone, kRetry, kRetryNow };

  S3Client(std::string bucket, const StoreOptions& options) : bucket_(std::move(bucket)), options_(options) {}

  Result<HttpRequest> Sign(const S3Request& request);
  Next Judge(const S3Answer& answer, bool* corrected);
  bool FollowRegion(const S3Answer& answer);
  std::string Endpoint() const;  // For messages.
  std::string ExplainClock(const S3Answer& answer) const;

  std::string bucket_;
  StoreOptions options_;
  S3Settings settings_;
  std::unique_ptr<CredentialChain> credentials_;
  AtomicCounters counters_;
  std::unique_ptr<HttpClient> http_;
  std::atomic<int64_t> clock_offset_s_{0};  // What the server's clock is ahead of this machine's.
  mutable std::mutex mutex_;  // Guards region_, which a redirect may change, and key_source_.
  std::string region_;
  std::string key_source_;
};

}  // namespace tessera
