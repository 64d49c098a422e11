#include "store/parallel_read.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <vector>

#include "base/crc32c.h"
#include "store/atomic_file.h"
#include "store/digests.h"

namespace tessera {

namespace {

// MD5 has no parts that could be joined, so finished parts are hashed in order by whichever thread
// finds the next one ready, beside the transfers of the others.
class OrderedMd5 {
 public:
  using ReadPart = std::function<Status(int64_t part, Md5Stream& md5)>;

  OrderedMd5(int64_t parts, ReadPart read) : ready_(static_cast<size_t>(parts)), read_(std::move(read)) {}

  Status Finished(int64_t part) {
    {
      const std::lock_guard lock(mutex_);
      ready_[static_cast<size_t>(part)] = true;
      if (hashing_) return {};
      hashing_ = true;
    }
    while (true) {
      int64_t next;
      {
        const std::lock_guard lock(mutex_);
        if (next_ == static_cast<int64_t>(ready_.size()) || !ready_[static_cast<size_t>(next_)]) {
          hashing_ = false;
          return {};
        }
        next = next_++;
      }
      TESSERA_TRY(read_(next, md5_));
    }
  }

  std::string FinishHex() { return md5_.FinishHex(); }

 private:
  std::mutex mutex_;  // Guards ready_, next_ and hashing_; whoever sets hashing_ owns md5_.
  std::vector<bool> ready_;
  int64_t next_ = 0;
  bool hashing_ = false;
  Md5Stream md5_;
  ReadPart read_;
};

struct Cut {
  int64_t bytes, part_bytes, parts;
  Cut(int64_t total, int64_t part)
      : bytes(total), part_bytes(std::max<int64_t>(1, part)), parts((total + part_bytes - 1) / part_bytes) {}
  int64_t Offset(int64_t part) const { return part * part_bytes; }
  int64_t Size(int64_t part) const { return std::min(part_bytes, bytes - Offset(part)); }
};

uint32_t Joined(const Cut& cut, const std::vector<uint32_t>& crcs) {
  uint32_t crc = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    crc = Crc32cCombine(crc, crcs[static_cast<size_t>(part)], cut.Size(part));
  }
  return crc;
}

}  // namespace

bool ReadDigest::Matches(const ReadCheck& check) const {
  if (check.crc32c >= 0) return crc32c == check.crc32c;
  return check.md5_hex.empty() || md5_hex == check.md5_hex;
}

Result<ReadDigest> ReadInParts(ObjectStore& store, WorkerPool& workers, const ObjectInfo& object,
                               int64_t part_bytes, const ReadCheck& check,
                               std::span<std::byte> out) {
  const Cut cut(static_cast<int64_t>(out.size()), part_bytes);
  const bool with_crc = check.crc32c >= 0;
  const bool with_md5 = !with_crc && !check.md5_hex.empty();
  const auto part_of = [&](int64_t part) {
    return out.subspan(static_cast<size_t>(cut.Offset(part)), static_cast<size_t>(cut.Size(part)));
  };
  std::vector<uint32_t> crcs(static_cast<size_t>(cut.parts));
  OrderedMd5 md5(cut.parts, [&](int64_t part, Md5Stream& stream) {
    stream.Update(part_of(part));
    return Status();
  });
  const auto fetch = [&](int64_t part) -> Status {
    TESSERA_TRY(store.GetRange(object.key, cut.Offset(part), part_of(part), object.etag));
    if (with_crc) crcs[static_cast<size_t>(part)] = Crc32c(0, part_of(part));
    return with_md5 ? md5.Finished(part) : Status();
  };
  TESSERA_TRY(workers.ForEach(cut.parts, fetch));
  ReadDigest digest;
  if (with_crc) digest.crc32c = Joined(cut, crcs);
  if (with_md5) digest.md5_hex = md5.FinishHex();
  return digest;
}

Result<ReadDigest> ReadInPartsToFile(ObjectStore& store, WorkerPool& workers,
                                     const ObjectInfo& object, int64_t part_bytes,
                                     const ReadCheck& check, AtomicFile& file,
                                     const TransferProgress& progress) {
  const Cut cut(object.bytes, part_bytes);
  const bool with_crc = check.crc32c >= 0;
  const bool with_md5 = !with_crc && !check.md5_hex.empty();
  std::vector<uint32_t> crcs(static_cast<size_t>(cut.parts));
  std::vector<std::byte> again(with_md5 ? static_cast<size_t>(std::min<int64_t>(cut.part_bytes, 1 << 20)) : 0);
  OrderedMd5 md5(cut.parts, [&](int64_t part, Md5Stream& stream) -> Status {
    // From the page cache.
    for (int64_t done = 0; done < cut.Size(part);) {
      const auto piece = std::span(again).first(static_cast<size_t>(
          std::min(static_cast<int64_t>(again.size()), cut.Size(part) - done)));
      TESSERA_TRY(file.ReadAt(cut.Offset(part) + done, piece));
      stream.Update(piece);
      done += static_cast<int64_t>(piece.size());
    }
    return {};
  });
  const auto fetch = [&](int64_t part) -> Status {
    std::vector<std::byte> buffer(static_cast<size_t>(cut.Size(part)));
    TESSERA_TRY(store.GetRange(object.key, cut.Offset(part), buffer, object.etag));
    TESSERA_TRY(file.WriteAt(cut.Offset(part), buffer));
    if (with_crc) crcs[static_cast<size_t>(part)] = Crc32c(0, buffer);
    if (progress) progress(cut.Size(part));
    return with_md5 ? md5.Finished(part) : Status();
  };
  TESSERA_TRY(workers.ForEach(cut.parts, fetch));
  ReadDigest digest;
  if (with_crc) digest.crc32c = Joined(cut, crcs);
  if (with_md5) digest.md5_hex = md5.FinishHex();
  return digest;
}

Status FinishDownload(AtomicFile file, int64_t bytes, const DownloadOptions& options) {
  return options.batch != nullptr ? options.batch->Add(std::move(file), bytes) : file.Commit();
}

}  // namespace tessera
