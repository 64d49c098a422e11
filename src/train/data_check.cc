#include <fmt/format.h>

#include <memory>

#include "base/files.h"
#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "data/mds_reader.h"
#include "train/run_data.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

// Hashed in about a tenth of a second from memory, a second or two from a slow disk.
constexpr int64_t kAutoBytes = int64_t{1} << 30;

// The digest that costs least to check; null where the index has none that is known.
const MdsHash* CheapestHash(const MdsFile& file) {
  const MdsHash* known = nullptr;
  for (const MdsHash& hash : file.hashes) {
    if (!MdsHashHex(hash.algorithm, "")) continue;
    if (known == nullptr || hash.algorithm.starts_with("xxh")) known = &hash;
  }
  return known;
}

// The file of a shard that lies in the folder; shards that are still to be fetched have none.
const MdsFile* PresentFile(const fs::path& folder, const MdsShard& shard) {
  if (shard.zip && !PathExists(folder / shard.raw.basename)) {
    return PathExists(folder / shard.zip->basename) ? &*shard.zip : nullptr;
  }
  return &shard.raw;
}

}  // namespace

Status CheckDataFiles(const RunConfig& config, const RunData& data, const PrepareOptions& options) {
  struct Entry {
    fs::path path;
    MdsFile file;
  };
  std::vector<Entry> entries;
  int64_t total = 0;
  const std::string advice =
      config.data.dataset.empty()
          ? fmt::format("remove '{}' to have it built again from the sources",
                        data.dataset.folder.string())
          : "restore the file from a copy, or build or download the dataset again";
  for (const fs::path& folder : {data.train_folder, data.validation_folder}) {
    if (folder.empty()) continue;
    TESSERA_ASSIGN(const MdsIndex index, ReadMdsIndex(folder));
    for (const MdsShard& shard : index.shards) {
      const MdsFile* file = PresentFile(folder, shard);
      if (file == nullptr) continue;
      const fs::path path = folder / file->basename;
      const Result<int64_t> bytes = FileBytes(path);
      if (!bytes.ok()) {
        Error error = bytes.error().WithContext("dataset");
        error.message += "; " + advice;
        return error;
      }
      if (*bytes != file->bytes) {
        return Corrupt(fmt::format("'{}' has {} bytes, its index says {}: it was cut off or changed; {}",
                                   path.string(), *bytes, file->bytes, advice));
      }
      total += *bytes;
      entries.push_back({path, *file});
    }
  }
  const DataVerify verify = config.data.verify;
  if (verify == DataVerify::kNever || (verify == DataVerify::kAuto && total > kAutoBytes)) return {};
  std::unique_ptr<ProgressMeter> meter;
  int64_t done = 0;
  for (const Entry& entry : entries) {
    if (StopRequested()) {
      return Error{.code = ErrorCode::kCancelled, .message = "stopped while verifying the dataset"};
    }
    if (const MdsHash* hash = CheapestHash(entry.file)) {
      TESSERA_ASSIGN(const MappedFile map, MappedFile::Open(entry.path));
      const auto found =
          MdsHashHex(hash->algorithm, {reinterpret_cast<const char*>(map.data()),
                                       static_cast<size_t>(map.size())});
      if (found != hash->hex) {
        return Corrupt(fmt::format("'{}': its {} is {}, its index says {}: the file was changed or "
                                   "damaged; {}",
                                   entry.path.string(), hash->algorithm, found.value_or(""),
                                   hash->hex, advice));
      }
    }
    done += entry.file.bytes;
    if (options.show_progress && total > kAutoBytes) {
      if (!meter) {
        meter = std::make_unique<ProgressMeter>(
            "verifying",
            ProgressOptions{.total = total, .unit = ProgressUnit::kBytes, .noun = ""});
      }
      meter->Update(done);
    }
  }
  return {};
}

}  // namespace tessera
