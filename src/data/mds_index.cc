#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/files.h"
#include "data/mds.h"

namespace tessera {

namespace {

constexpr int64_t kMaxColumns = 4096;
constexpr int64_t kMaxIndexBytes = int64_t{1} << 30;

// A basename may have folders (merged datasets) but must stay inside the dataset.
bool IsSafeRelativePath(const std::string& name) {
  if (name.empty() || name.size() > 4096 || name.find('\0') != std::string::npos) return false;
  const std::filesystem::path path(name);
  if (path.is_absolute()) return false;
  return std::none_of(path.begin(), path.end(),
                      [](const std::filesystem::path& part) { return part == ".."; });
}

Result<MdsFile> ParseFile(const Json& object, const std::string& where) {
  MdsFile file;
  TESSERA_ASSIGN(file.basename, JsonString(object, "basename", where));
  if (!IsSafeRelativePath(file.basename)) {
    return Corrupt(fmt::format("{}: basename '{}' is not a path inside the dataset", where,
                               file.basename));
  }
  TESSERA_ASSIGN(file.bytes, JsonInt(object, "bytes", where));
  if (file.bytes < 0 || file.bytes > kMdsMaxShardBytes) {
    return Corrupt(fmt::format("{}: '{}' has {} bytes; a shard has 0 to {}", where, file.basename,
                               file.bytes, kMdsMaxShardBytes));
  }
  const auto hashes = object.find("hashes");
  if (hashes == object.end() || hashes->is_null()) return file;
  if (!hashes->is_object()) return Corrupt(fmt::format("{}: 'hashes' must be an object", where));
  for (const auto& [algorithm, digest] : hashes->items()) {
    if (!digest.is_string()) {
      return Corrupt(fmt::format("{}: the {} hash must be a string", where, algorithm));
    }
    file.hashes.push_back({algorithm, digest.get<std::string>()});
  }
  return file;
}

Result<const Json*> ArrayMember(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array()) {
    return Corrupt(fmt::format("{}: key '{}' must be an array", where, key));
  }
  return &*it;
}

Status ParseColumns(const Json& object, const std::string& where, std::vector<MdsColumn>* out) {
  TESSERA_ASSIGN(const Json* names, ArrayMember(object, "column_names", where));
  TESSERA_ASSIGN(const Json* encodings, ArrayMember(object, "column_encodings", where));
  TESSERA_ASSIGN(const Json* sizes, ArrayMember(object, "column_sizes", where));
  if (names->size() != encodings->size() || names->size() != sizes->size() || names->empty() ||
      names->size() > kMaxColumns) {
    return Corrupt(fmt::format("{}: {} column names, {} encodings, {} sizes; they must agree and be "
                               "1 to {}",
                               where, names->size(), encodings->size(), sizes->size(),
                               kMaxColumns));
  }
  for (size_t i = 0; i < names->size(); ++i) {
    MdsColumn column;
    if (!(*names)[i].is_string() || !(*encodings)[i].is_string()) {
      return Corrupt(fmt::format("{}: column {} has a name or encoding that is no string", where, i));
    }
    column.name = (*names)[i].get<std::string>();
    column.encoding = (*encodings)[i].get<std::string>();
    const Json& size = (*sizes)[i];
    if (size.is_number_integer()) {
      if (size.is_number_unsigned() && size.get<uint64_t>() > uint64_t{kMdsMaxShardBytes}) {
        return Corrupt(
            fmt::format("{}: column '{}' has size {}", where, column.name, JsonText(size)));
      }
      column.fixed_size = size.get<int64_t>();
    } else if (!size.is_null()) {
      return Corrupt(fmt::format("{}: the size of column '{}' must be a number or null", where,
                                 column.name));
    }
    if (column.fixed_size < 0) {
      return Corrupt(fmt::format("{}: column '{}' has size {}", where, column.name,
                                 column.fixed_size));
    }
    if (i > 0 && out->back().name >= column.name) {
      return Corrupt(fmt::format("{}: columns '{}' and '{}' are not in ascending order", where,
                                 out->back().name, column.name));
    }
    out->push_back(std::move(column));
  }
  return {};
}

Result<MdsShard> ParseShard(const Json& object, const std::string& where) {
  MdsShard shard;
  TESSERA_ASSIGN(const std::string format, JsonString(object, "format", where));
  if (format != "mds") {
    return Unsupported(fmt::format("{}: shard format '{}'; only 'mds' is read", where, format));
  }
  TESSERA_ASSIGN(const int64_t version, JsonInt(object, "version", where));
  if (version != 2) {
    return Unsupported(fmt::format("{}: MDS version {}; only 2 is read", where, version));
  }
  TESSERA_TRY(ParseColumns(object, where, &shard.columns));
  TESSERA_ASSIGN(shard.samples, JsonInt(object, "samples", where));
  const auto raw = object.find("raw_data");
  if (raw == object.end()) return Corrupt(fmt::format("{}: key 'raw_data' is missing", where));
  TESSERA_ASSIGN(shard.raw, ParseFile(*raw, where + ".raw_data"));
  // A shard has its count and samples + 1 offsets, each of 4 bytes, before the samples.
  if (shard.samples < 0 || 8 + 4 * std::min(shard.samples, kMdsMaxShardBytes) > shard.raw.bytes) {
    return Corrupt(fmt::format("{}: {} samples don't fit into {} bytes", where, shard.samples,
                               shard.raw.bytes));
  }
  if (const auto compression = object.find("compression");
      compression != object.end() && !compression->is_null()) {
    if (!compression->is_string()) {
      return Corrupt(fmt::format("{}: 'compression' must be a string or null", where));
    }
    shard.compression = compression->get<std::string>();
  }
  if (const auto zip = object.find("zip_data"); zip != object.end() && !zip->is_null()) {
    TESSERA_ASSIGN(shard.zip, ParseFile(*zip, where + ".zip_data"));
  }
  return shard;
}

}  // namespace

int64_t MdsShard::FindColumn(std::string_view name) const {
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].name == name) return static_cast<int64_t>(i);
  }
  return -1;
}

int64_t MdsIndex::ShardOf(int64_t sample) const {
  return std::upper_bound(first_sample.begin(), first_sample.end(), sample) -
         first_sample.begin() - 1;
}

Result<MdsIndex> ParseMdsIndex(std::string_view text, std::string_view source) {
  TESSERA_ASSIGN(const Json json, ParseJson(text, source));
  TESSERA_ASSIGN(const int64_t version, JsonInt(json, "version", source));
  if (version != 2) {
    return Unsupported(fmt::format("{}: MDS index version {}; only 2 is read", source, version));
  }
  TESSERA_ASSIGN(const Json* shards, ArrayMember(json, "shards", std::string(source)));
  MdsIndex index;
  index.first_sample.push_back(0);
  for (size_t i = 0; i < shards->size(); ++i) {
    TESSERA_ASSIGN(MdsShard shard, ParseShard((*shards)[i], fmt::format("{}: shard {}", source, i)));
    index.first_sample.push_back(index.first_sample.back() + shard.samples);
    index.shards.push_back(std::move(shard));
  }
  return index;
}

Result<MdsIndex> ReadMdsIndex(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "index.json";
  if (!PathExists(path)) {
    if (PathExists(folder / "dataset.json")) {
      return NotFound(fmt::format("'{}' holds no index.json: this is a dataset; name one of its "
                                  "splits, for instance '{}'",
                                  folder.string(), (folder / "train").string()));
    }
    return NotFound(fmt::format("'{}' holds no index.json, so it is no MDS dataset (or its build was "
                                "interrupted)",
                                folder.string()));
  }
  TESSERA_ASSIGN(const std::string text, ReadFile(path, kMaxIndexBytes));
  return ParseMdsIndex(text, path.string());
}

}  // namespace tessera
