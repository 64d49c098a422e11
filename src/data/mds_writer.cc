#include "data/mds_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/files.h"

namespace tessera {

namespace {

void AppendRaw(const void* data, size_t bytes, std::string* out) {
  out->append(static_cast<const char*>(data), bytes);
}

void AppendU32(uint32_t value, std::string* out) { AppendRaw(&value, sizeof(value), out); }

}  // namespace

Result<MdsWriter> MdsWriter::Create(MdsWriterOptions options) {
  if (options.columns.empty()) return InvalidArgument("an MDS dataset needs at least one column");
  if (options.size_limit < 1 || options.size_limit > kMdsMaxShardBytes) {
    return InvalidArgument(fmt::format("shard size limit {} is not between 1 and {}",
                                       options.size_limit, kMdsMaxShardBytes));
  }
  std::sort(options.columns.begin(), options.columns.end(),
            [](const MdsColumn& a, const MdsColumn& b) { return a.name < b.name; });
  std::sort(options.hashes.begin(), options.hashes.end());
  for (const std::string& hash : options.hashes) {
    if (!MdsHashHex(hash, "")) return InvalidArgument(fmt::format("unknown hash '{}'", hash));
  }
  MdsWriter writer;
  Json names = Json::array();
  Json encodings = Json::array();
  Json sizes = Json::array();
  for (MdsColumn& column : options.columns) {
    const std::optional<int64_t> size = MdsFixedSize(column.encoding);
    if (!size) {
      return InvalidArgument(fmt::format("column '{}' has unknown encoding '{}'", column.name,
                                         column.encoding));
    }
    if (!names.empty() && names.back() == column.name) {
      return InvalidArgument(fmt::format("column '{}' is given twice", column.name));
    }
    column.fixed_size = *size;
    names.push_back(column.name);
    encodings.push_back(column.encoding);
    sizes.push_back(*size == 0 ? Json(nullptr) : Json(*size));
  }
  writer.config_ = {{"column_encodings", encodings}, {"column_names", names},
                    {"column_sizes", sizes},         {"compression", nullptr},
                    {"format", "mds"},               {"hashes", options.hashes},
                    {"size_limit", options.size_limit}, {"version", 2}};
  writer.config_text_ = PythonJson(writer.config_);
  TESSERA_TRY(MakeDirectories(options.folder));
  if (PathExists(options.folder / "index.json")) {
    return Error{ErrorCode::kExists,
                 fmt::format("'{}' already holds an MDS dataset", options.folder.string())};
  }
  writer.options_ = std::move(options);
  return writer;
}

Status MdsWriter::Write(std::span<const std::string_view> values) {
  const std::vector<MdsColumn>& columns = options_.columns;
  TESSERA_CHECK(values.size() == columns.size(), "one value per column");
  int64_t sample_bytes = 0;
  for (size_t i = 0; i < columns.size(); ++i) {
    const int64_t bytes = static_cast<int64_t>(values[i].size());
    TESSERA_CHECK(columns[i].fixed_size == 0 || columns[i].fixed_size == bytes, columns[i].name);
    sample_bytes += bytes + (columns[i].fixed_size == 0 ? 4 : 0);
  }
  const int64_t empty_bytes = 8 + static_cast<int64_t>(config_text_.size());
  if (empty_bytes + 4 + sample_bytes > kMdsMaxShardBytes) {
    return InvalidArgument(fmt::format("a sample of {} bytes is too large for a shard (4 GiB)",
                                       sample_bytes));
  }
  const int64_t shard_bytes = empty_bytes + 4 * static_cast<int64_t>(ends_.size()) +
                              static_cast<int64_t>(data_.size());
  // A first sample above the limit gets a shard of its own, without an empty one before it.
  if (!ends_.empty() && shard_bytes + 4 + sample_bytes > options_.size_limit) {
    TESSERA_TRY(FlushShard());
  }
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].fixed_size == 0) AppendU32(static_cast<uint32_t>(values[i].size()), &data_);
  }
  for (const std::string_view value : values) data_.append(value);
  ends_.push_back(static_cast<uint32_t>(data_.size()));
  ++total_samples_;
  return {};
}

Status MdsWriter::FlushShard() {
  const std::string name = fmt::format("shard.{:05d}.mds", shards_.size());
  const uint32_t count = static_cast<uint32_t>(ends_.size());
  const uint32_t first = static_cast<uint32_t>(4 + 4 * (ends_.size() + 1) + config_text_.size());
  std::string content;
  content.reserve(first + data_.size());
  AppendU32(count, &content);
  AppendU32(first, &content);
  for (const uint32_t end : ends_) AppendU32(first + end, &content);
  content += config_text_;
  content += data_;
  Json hashes = Json::object();
  for (const std::string& algorithm : options_.hashes) {
    hashes[algorithm] = *MdsHashHex(algorithm, content);
  }
  TESSERA_TRY(WriteFileAtomic(options_.folder / name, content));
  Json entry = config_;
  entry["raw_data"] = {{"basename", name}, {"bytes", content.size()}, {"hashes", hashes}};
  entry["samples"] = count;
  entry["zip_data"] = nullptr;
  shards_.push_back(std::move(entry));
  total_bytes_ += static_cast<int64_t>(content.size());
  ends_.clear();
  data_.clear();
  return {};
}

Status MdsWriter::Finish() {
  if (!ends_.empty()) TESSERA_TRY(FlushShard());
  return WriteFileAtomic(options_.folder / "index.json",
                         PythonJson(Json{{"shards", shards_}, {"version", 2}}));
}

void AppendMdsInt(int64_t value, std::string* out) { AppendRaw(&value, sizeof(value), out); }

void AppendMdsTokens(std::span<const int32_t> ids, int element_bytes, std::string* out) {
  TESSERA_CHECK(!ids.empty(), "an MDS array has at least one value");
  const uint64_t count = ids.size();
  // Shape byte: number of dimensions << 2 | log2 of the bytes in which a dimension is stored.
  const int width = count < 256 ? 0 : count < 65536 ? 1 : 2;
  out->push_back(static_cast<char>(1 << 2 | width));
  AppendRaw(&count, size_t{1} << width, out);
  if (element_bytes == 4) {
    AppendRaw(ids.data(), ids.size() * 4, out);
    return;
  }
  const size_t start = out->size();
  out->resize(start + ids.size() * 2);
  for (size_t i = 0; i < ids.size(); ++i) {
    const uint16_t id = static_cast<uint16_t>(ids[i]);
    std::memcpy(out->data() + start + 2 * i, &id, 2);
  }
}

}  // namespace tessera
