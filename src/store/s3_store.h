// The object store of S3's protocol: Amazon's, Ceph, MinIO, R2, Google's and Oracle's interoperable
// endpoints.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "store/aws_config.h"
#include "store/object_store.h"
#include "store/parallel_read.h"
#include "store/s3_client.h"
#include "store/worker_pool.h"

namespace tessera {

class S3Store : public ObjectStore {
 public:
  // `prefix` has no '/' at its ends.
  static Result<std::unique_ptr<S3Store>> Open(const std::string& bucket, std::string prefix,
                                               const StoreOptions& options,
                                               const Environment& environment);

  const std::string& url() const override { return url_; }
  bool writable() const override { return true; }
  Result<ObjectInfo> Head(std::string_view key) override;
  Status GetRange(std::string_view key, int64_t offset, std::span<std::byte> out,
                  std::string_view etag) override;
  Result<std::string> Get(std::string_view key, int64_t max_bytes) override;
  Result<ObjectInfo> Put(std::string_view key, std::string_view data,
                         const PutOptions& options) override;
  Result<ListPage> List(const ListOptions& options) override;
  Status Remove(std::string_view key) override;
  Result<ObjectInfo> Download(std::string_view key, const std::string& path,
                              const DownloadOptions& options) override;
  Result<ObjectInfo> Upload(const std::string& path, std::string_view key,
                            const PutOptions& options, const TransferProgress& progress) override;
  Result<std::unique_ptr<ObjectWriter>> StartWrite(std::string_view key,
                                                   const PutOptions& options) override;
  Result<std::vector<PendingWrite>> PendingWrites() override;
  Status AbandonWrite(const PendingWrite& upload) override;
  StoreCounters counters() const override { return client_->counters().Read(); }

 private:
  friend class S3Upload;

  S3Store(std::unique_ptr<S3Client> client, std::string prefix, const StoreOptions& options);

  Result<std::string> FullKey(std::string_view key) const;
  Result<ObjectInfo> PutWhole(std::string_view key, std::string_view data,
                              const PutOptions& options);
  // Download of an object of the expected size by one request; retryable kCorrupt where it has another.
  Result<ObjectInfo> DownloadWhole(std::string_view key, const std::string& path,
                                   const DownloadOptions& options);
  // Get of an object that is larger than one part, in parallel.
  Result<std::string> GetLarge(const ObjectInfo& info, const ReadCheck& check);
  ObjectInfo InfoOf(std::string_view key, const HttpResponse& response) const;
  ReadCheck CheckOf(const HttpResponse& response) const;
  // Ok, or kCorrupt: `digest` is of the attempt `attempt`; `former` what the attempt before read.
  Status Verify(std::string_view key, const ReadCheck& check, const ReadDigest& digest,
                const ReadDigest& former);
  // Adds the condition and a mark by which a write of unknown outcome is recognised.
  std::string Condition(const PutOptions& options, S3Request* request) const;
  // After a condition that did not hold: true when it was this writer's own lost answer.
  bool WasOwnWrite(const std::string& full_key, const std::string& mark);

  std::unique_ptr<S3Client> client_;
  std::string prefix_;  // "" or "a/b/".
  std::string url_;
  StoreOptions options_;
  WorkerPool workers_;
  std::atomic<bool> etag_was_md5_{false};   // At least one object's etag was its MD5.
  std::atomic<bool> etag_not_md5_{false};   // This server's etags are something else.
  std::atomic<bool> bare_if_match_{false};  // It compares the etag of a put without quotes.
};

// "s3://bucket/a/b" -> bucket, "a/b".
struct S3Url {
  std::string bucket, key;
};
Result<S3Url> ParseS3Url(std::string_view url);

}  // namespace tessera
