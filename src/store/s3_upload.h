// Multipart uploads: parts in parallel, each retried on its own; what is not completed is aborted.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "store/object_store.h"
#include "store/s3_store.h"

namespace tessera {

// One upload that has been started on the server. Thread-safe but for Complete, which comes last.
class S3Upload {
 public:
  // Bytes of a part, for an object of `total` bytes (-1: not known): at least S3's 5 MiB, and so large
  // that 10,000 parts are enough.
  static int64_t PartBytes(const StoreOptions& options, int64_t total);

  static Result<std::unique_ptr<S3Upload>> Start(S3Store& store, std::string_view key,
                                                 const PutOptions& options);
  // Aborts what was not completed.
  ~S3Upload();
  S3Upload(const S3Upload&) = delete;
  S3Upload& operator=(const S3Upload&) = delete;

  // `number` counts from 1.
  Status Put(int number, std::string_view data);
  Result<ObjectInfo> Complete();

  // A whole upload of known size; `read` fills a buffer from an offset, called from several threads.
  using Reader = std::function<Status(int64_t offset, std::span<std::byte> out)>;
  static Result<ObjectInfo> Run(S3Store& store, std::string_view key, const PutOptions& options,
                                int64_t bytes, const TransferProgress& progress, const Reader& read);

 private:
  S3Upload(S3Store& store, std::string_view key, PutOptions options)
      : store_(store), key_(key), options_(std::move(options)) {}

  std::string ExpectedEtag() const;
  void Abort();

  S3Store& store_;
  std::string key_;
  std::string full_key_;
  PutOptions options_;
  std::string mark_;
  std::string id_;
  bool finished_ = false;
  std::mutex mutex_;  // Guards parts_ and bytes_.
  std::vector<UploadedPart> parts_;
  int64_t bytes_ = 0;
};

// An object of unknown size: whole when it stays small, in parts otherwise.
class S3Writer : public ObjectWriter {
 public:
  S3Writer(S3Store& store, WorkerPool& workers, const StoreOptions& options, std::string key,
           PutOptions put);
  ~S3Writer() override;
  Status Write(std::string_view data) override;
  Result<ObjectInfo> Finish() override;

 private:
  Status SendPart();

  S3Store& store_;
  WorkerPool& workers_;
  std::string key_;
  PutOptions put_;
  int64_t part_bytes_;
  int max_in_flight_;
  std::string buffer_;
  std::unique_ptr<S3Upload> upload_;
  int number_ = 0;
  bool finished_ = false;
  std::mutex mutex_;  // Guards in_flight_ and error_.
  std::condition_variable landed_;
  int in_flight_ = 0;
  std::optional<Error> error_;
};

}  // namespace tessera
