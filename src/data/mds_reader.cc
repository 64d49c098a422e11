#include "data/mds_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "data/shard_codec.h"

namespace tessera {

namespace {

// The compressed file, decompressed. The index bounds the result.
Result<std::vector<char>> Decompress(const std::filesystem::path& folder, const MdsShard& shard) {
  const std::filesystem::path path = folder / shard.zip->basename;
  TESSERA_ASSIGN(const MappedFile file, MappedFile::Open(path));
  return DecompressShard(
      shard.compression,
      {reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size())},
      shard.raw.bytes, path.string());
}

}  // namespace

Result<MdsShardFile> MdsShardFile::Open(const std::filesystem::path& folder,
                                        const MdsShard& shard) {
  MdsShardFile file;
  file.name_ = (folder / shard.raw.basename).string();
  file.samples_ = shard.samples;
  if (PathExists(file.name_) || !shard.zip) {
    TESSERA_ASSIGN(file.map_, MappedFile::Open(file.name_));
    file.bytes_ = {reinterpret_cast<const char*>(file.map_.data()),
                   static_cast<size_t>(file.map_.size())};
    if (file.map_.size() != shard.raw.bytes) {
      return Corrupt(fmt::format("shard '{}' has {} bytes, its index says {}: it was cut off or "
                                 "changed; build or download it again",
                                 file.name_, file.map_.size(), shard.raw.bytes));
    }
  } else {
    TESSERA_ASSIGN(file.memory_, Decompress(folder, shard));
    file.bytes_ = {file.memory_.data(), file.memory_.size()};
  }
  TESSERA_TRY(file.CheckHead());
  return file;
}

Result<MdsShardFile> MdsShardFile::FromMemory(std::string_view bytes, const MdsShard& shard) {
  MdsShardFile file;
  file.name_ = shard.raw.basename;
  file.samples_ = shard.samples;
  file.bytes_ = bytes;
  TESSERA_TRY(file.CheckHead());
  return file;
}

uint32_t MdsShardFile::Offset(int64_t index) const {
  uint32_t value = 0;
  std::memcpy(&value, bytes_.data() + 4 * (1 + index), sizeof(value));
  return value;
}

Status MdsShardFile::CheckHead() {
  const int64_t size = static_cast<int64_t>(bytes_.size());
  if (size < 8 || samples_ > (size - 8) / 4) {
    return Corrupt(fmt::format("shard '{}' has {} bytes, too few for the offsets of {} samples",
                               name_, size, samples_));
  }
  uint32_t count = 0;
  std::memcpy(&count, bytes_.data(), sizeof(count));
  if (int64_t{count} != samples_) {
    return Corrupt(fmt::format("shard '{}' says at offset 0 that it has {} samples, its index says {}",
                               name_, count, samples_));
  }
  if (int64_t{Offset(0)} < 8 + 4 * samples_ || int64_t{Offset(samples_)} != size) {
    return Corrupt(fmt::format("shard '{}': samples lie from byte {} to {}; they must start at {} or "
                               "later and end at the file's size, {}",
                               name_, Offset(0), Offset(samples_), 8 + 4 * samples_, size));
  }
  return {};
}

Result<std::string_view> MdsShardFile::Sample(int64_t index) const {
  TESSERA_CHECK(index >= 0 && index < samples_, "sample index");
  const int64_t begin = Offset(index);
  const int64_t end = Offset(index + 1);
  if (begin > end || end > static_cast<int64_t>(bytes_.size()) || begin < 8 + 4 * samples_) {
    return Corrupt(fmt::format("shard '{}', sample {}: the offsets at byte {} give [{}, {}) in a file "
                               "of {} bytes",
                               name_, index, 4 * (1 + index), begin, end, bytes_.size()));
  }
  return bytes_.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

Result<MdsReader> MdsReader::Open(const std::filesystem::path& folder) {
  MdsReader reader;
  reader.folder_ = folder;
  TESSERA_ASSIGN(reader.index_, ReadMdsIndex(folder));
  reader.slot_.assign(reader.index_.shards.size(), -1);
  return reader;
}

std::string MdsReader::Where(int64_t sample) const {
  const int64_t shard = index_.ShardOf(sample);
  return fmt::format("{}: sample {} ({} in {})", folder_.string(), sample,
                     sample - index_.first_sample[static_cast<size_t>(shard)],
                     index_.shards[static_cast<size_t>(shard)].raw.basename);
}

Result<const MdsShardFile*> MdsReader::OpenShard(int64_t shard) {
  int64_t& slot = slot_[static_cast<size_t>(shard)];
  if (slot >= 0) return &open_[static_cast<size_t>(slot)];
  if (before_open_) TESSERA_TRY(before_open_(shard));
  TESSERA_ASSIGN(MdsShardFile file,
                 MdsShardFile::Open(folder_, index_.shards[static_cast<size_t>(shard)]));
  if (file.decompressed() && decompressed_shard_ >= 0) {
    // Keeps one decompressed shard in memory: the new one takes the place of the last.
    slot = std::exchange(slot_[static_cast<size_t>(decompressed_shard_)], -1);
    open_[static_cast<size_t>(slot)] = std::move(file);
    decompressed_shard_ = shard;
  } else {
    if (file.decompressed()) decompressed_shard_ = shard;
    if (free_.empty()) {
      free_.push_back(static_cast<int64_t>(open_.size()));
      open_.emplace_back();
    }
    slot = free_.back();
    free_.pop_back();
    open_[static_cast<size_t>(slot)] = std::move(file);
  }
  return &open_[static_cast<size_t>(slot)];
}

void MdsReader::CloseShard(int64_t shard) {
  int64_t& slot = slot_[static_cast<size_t>(shard)];
  if (slot < 0) return;
  open_[static_cast<size_t>(slot)] = MdsShardFile();
  free_.push_back(std::exchange(slot, -1));
  if (decompressed_shard_ == shard) decompressed_shard_ = -1;
}

Result<std::string_view> MdsReader::Sample(int64_t sample) {
  TESSERA_CHECK(sample >= 0 && sample < samples(), "sample index");
  const int64_t shard = index_.ShardOf(sample);
  TESSERA_ASSIGN(const MdsShardFile* file, OpenShard(shard));
  return file->Sample(sample - index_.first_sample[static_cast<size_t>(shard)]);
}

Status MdsReader::Columns(int64_t sample, std::vector<std::string_view>* columns) {
  TESSERA_ASSIGN(const std::string_view bytes, Sample(sample));
  const Status status = SplitMdsSample(ShardOf(sample), bytes, columns);
  if (!status.ok()) return status.error().WithContext(Where(sample));
  return {};
}

Status ExpandMdsShards(const std::filesystem::path& folder, const MdsIndex& index) {
  for (const MdsShard& shard : index.shards) {
    const std::filesystem::path raw = folder / shard.raw.basename;
    if (!shard.zip || PathExists(raw)) continue;
    TESSERA_ASSIGN(const std::vector<char> content, Decompress(folder, shard));
    const Status status = WriteFileAtomic(raw, std::string_view(content.data(), content.size()));
    if (!status.ok()) {
      return status.error().WithContext(
          "compressed shards are decompressed beside themselves for random access; copy the dataset "
          "to a folder that can be written");
    }
  }
  return {};
}

namespace {

class Verifier {
 public:
  Verifier(const std::filesystem::path& folder, const MdsVerifyOptions& options)
      : folder_(folder), options_(options) {}

  void Problem(std::string text) {
    constexpr size_t kShown = 100;
    if (report_.problems.size() < kShown) report_.problems.push_back(std::move(text));
    ++report_.problem_count;
  }

  void CheckHashes(const MdsFile& file, std::string_view bytes) {
    for (const MdsHash& hash : file.hashes) {
      const std::optional<std::string> actual = MdsHashHex(hash.algorithm, bytes);
      if (!actual) {
        ++report_.hashes_unknown;
      } else if (*actual != hash.hex) {
        Problem(fmt::format("{}: its {} is {}, the index says {}: the file was changed or damaged",
                            (folder_ / file.basename).string(), hash.algorithm, *actual, hash.hex));
      } else {
        ++report_.hashes_checked;
      }
    }
  }

  void CheckSample(const MdsShard& shard, int64_t token_column, int64_t i, std::string_view sample) {
    const std::string where = fmt::format("{}, sample {}", (folder_ / shard.raw.basename).string(), i);
    if (const Status status = SplitMdsSample(shard, sample, &columns_); !status.ok()) {
      Problem(status.error().WithContext(where).message);
      return;
    }
    if (token_column < 0) return;
    const MdsColumn& column = shard.columns[static_cast<size_t>(token_column)];
    const Result<MdsTokens> tokens =
        ParseMdsTokens(column.encoding, columns_[static_cast<size_t>(token_column)]);
    if (!tokens.ok()) {
      Problem(tokens.error().WithContext(where).message);
      return;
    }
    report_.tokens += tokens->count;
    ids_.resize(4096);
    for (int64_t begin = 0; begin < tokens->count; begin += 4096) {
      const int64_t count = std::min<int64_t>(4096, tokens->count - begin);
      const int64_t largest = CopyMdsTokens(*tokens, begin, count, ids_.data());
      if (largest < 0 || (options_.vocab_size > 0 && largest >= options_.vocab_size)) {
        Problem(largest < 0 ? fmt::format("{}: a token id is negative or above 2^31", where)
                            : fmt::format("{}: token id {} is not below the vocabulary size {}", where,
                                          largest, options_.vocab_size));
        return;
      }
    }
  }

  void CheckShard(const MdsShard& shard) {
    ++report_.shards;
    if (shard.zip && PathExists(folder_ / shard.zip->basename)) {
      const Result<MappedFile> zip = MappedFile::Open(folder_ / shard.zip->basename);
      if (!zip.ok()) {
        Problem(zip.error().message);
      } else {
        CheckHashes(*shard.zip, {reinterpret_cast<const char*>(zip->data()),
                                 static_cast<size_t>(zip->size())});
      }
    }
    const Result<MdsShardFile> file = MdsShardFile::Open(folder_, shard);
    if (!file.ok()) {
      Problem(file.error().message);
      return;
    }
    CheckHashes(shard.raw, file->bytes());
    const int64_t token_column = shard.FindColumn(options_.token_column);
    for (int64_t i = 0; i < shard.samples; ++i) {
      const Result<std::string_view> sample = file->Sample(i);
      if (!sample.ok()) {
        Problem(sample.error().message);
      } else {
        CheckSample(shard, token_column, i, *sample);
      }
    }
    report_.samples += shard.samples;
    report_.bytes += shard.raw.bytes;
    if (options_.progress) options_.progress(report_.bytes);
  }

  MdsVerifyReport Finish() && {
    const int64_t hidden = report_.problem_count - static_cast<int64_t>(report_.problems.size());
    if (hidden > 0) report_.problems.push_back(fmt::format("and {} more", hidden));
    return std::move(report_);
  }

 private:
  std::filesystem::path folder_;
  const MdsVerifyOptions& options_;
  MdsVerifyReport report_;
  std::vector<std::string_view> columns_;
  std::vector<int32_t> ids_;
};

}  // namespace

Result<MdsVerifyReport> VerifyMds(const std::filesystem::path& folder,
                                  const MdsVerifyOptions& options) {
  TESSERA_ASSIGN(const MdsIndex index, ReadMdsIndex(folder));
  Verifier verifier(folder, options);
  for (const MdsShard& shard : index.shards) verifier.CheckShard(shard);
  return std::move(verifier).Finish();
}

}  // namespace tessera
