// Large objects read in parallel ranges of one version, and verified.
#pragma once

#include <span>
#include <string>

#include "store/atomic_file.h"
#include "store/object_store.h"
#include "store/worker_pool.h"

namespace tessera {

// What the whole object must hash to; without either nothing is verified.
struct ReadCheck {
  int64_t crc32c = -1;
  std::string md5_hex;

  bool empty() const { return crc32c < 0 && md5_hex.empty(); }
};

// Of what was read, for the caller to compare.
struct ReadDigest {
  int64_t crc32c = -1;
  std::string md5_hex;

  bool Matches(const ReadCheck& check) const;
};

// Fills `out` with the whole object, whose size it has.
Result<ReadDigest> ReadInParts(ObjectStore& store, WorkerPool& workers, const ObjectInfo& object,
                               int64_t part_bytes, const ReadCheck& check,
                               std::span<std::byte> out);

// Commits a downloaded file, or leaves that to the batch.
Status FinishDownload(AtomicFile file, int64_t bytes, const DownloadOptions& options);

// The same into a file.
Result<ReadDigest> ReadInPartsToFile(ObjectStore& store, WorkerPool& workers,
                                     const ObjectInfo& object, int64_t part_bytes,
                                     const ReadCheck& check, AtomicFile& file,
                                     const TransferProgress& progress);

}  // namespace tessera
