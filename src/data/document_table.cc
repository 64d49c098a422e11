#include "data/document_table.h"

#include <fmt/format.h>

#include <cstring>
#include <numeric>

#include "base/hash.h"

namespace tessera {

namespace {

constexpr char kMagic[9] = "TSDOCIDX";
constexpr uint32_t kVersion = 1;

struct Head {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
  uint64_t documents;
  uint64_t tokens;
  uint64_t bytes;
};
static_assert(sizeof(Head) == 40);

uint64_t Sum(std::span<const uint32_t> values) {
  return std::accumulate(values.begin(), values.end(), uint64_t{0});
}

std::string_view AsText(const void* data, size_t bytes) {
  return {static_cast<const char*>(data), bytes};
}

}  // namespace

Status WriteDocumentTable(const std::filesystem::path& path, std::span<const uint32_t> tokens,
                          std::span<const uint32_t> bytes) {
  TESSERA_CHECK(tokens.size() == bytes.size(), "one count of each kind per document");
  Head head = {};
  std::memcpy(head.magic, kMagic, sizeof(head.magic));
  head.version = kVersion;
  head.documents = tokens.size();
  head.tokens = Sum(tokens);
  head.bytes = Sum(bytes);
  TESSERA_ASSIGN(FileWriter writer, FileWriter::Create(path));
  Xxh3Stream hash;
  for (const std::string_view part : {AsText(&head, sizeof(head)),
                                      AsText(tokens.data(), tokens.size_bytes()),
                                      AsText(bytes.data(), bytes.size_bytes())}) {
    hash.Update(part.data(), static_cast<int64_t>(part.size()));
    TESSERA_TRY(writer.Write(part));
  }
  const uint64_t digest = hash.Digest();
  TESSERA_TRY(writer.Write(AsText(&digest, sizeof(digest))));
  TESSERA_TRY(writer.Sync());
  return writer.Close();
}

Result<DocumentTable> DocumentTable::Parse(const std::filesystem::path& path) {
  TESSERA_ASSIGN(MappedFile file, MappedFile::Open(path));
  TESSERA_ASSIGN(DocumentTable table,
                 FromMemory({reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size())},
                            path.string()));
  table.file_ = std::move(file);
  return table;
}

Result<DocumentTable> DocumentTable::FromMemory(std::string_view content, std::string_view source) {
  const auto corrupt = [&](std::string_view detail) {
    return Corrupt(fmt::format("'{}': {}; delete it to have the shards read instead, or build the "
                               "dataset again",
                               source, detail));
  };
  const char* data = content.data();
  const uint64_t size = content.size();
  Head head = {};
  if (size < sizeof(head) + 8) return corrupt(fmt::format("has only {} bytes", size));
  std::memcpy(&head, data, sizeof(head));
  if (std::memcmp(head.magic, kMagic, sizeof(head.magic)) != 0) {
    return corrupt("does not begin with TSDOCIDX");
  }
  if (head.version != kVersion) {
    return Unsupported(
        fmt::format("'{}': version {}; this build reads {}", source, head.version, kVersion));
  }
  if (head.documents != (size - sizeof(head) - 8) / 8 || (size - sizeof(head)) % 8 != 0) {
    return corrupt(fmt::format("{} documents don't fit {} bytes", head.documents, size));
  }
  uint64_t digest = 0;
  std::memcpy(&digest, data + size - 8, 8);
  if (Xxh3(AsText(data, size - 8)) != digest) return corrupt("its checksum does not match");
  const size_t n = head.documents;
  DocumentTable table;
  const uint32_t* counts = reinterpret_cast<const uint32_t*>(data + sizeof(head));
  table.tokens_ = {counts, n};
  table.bytes_ = {counts + n, n};
  if (Sum(table.tokens_) != head.tokens || Sum(table.bytes_) != head.bytes) {
    return corrupt("its sums do not match");
  }
  table.total_tokens_ = static_cast<int64_t>(head.tokens);
  table.total_bytes_ = static_cast<int64_t>(head.bytes);
  return table;
}

Result<DocumentTable> DocumentTable::Open(MdsReader& reader, std::string_view column) {
  const std::filesystem::path path = reader.folder() / kDocumentTableFile;
  if (PathExists(path)) {
    TESSERA_ASSIGN(DocumentTable table, Parse(path));
    if (table.documents() != reader.samples()) {
      return Corrupt(fmt::format("'{}' lists {} documents, index.json {} samples: they are of "
                                 "different datasets",
                                 path.string(), table.documents(), reader.samples()));
    }
    return table;
  }
  DocumentTable table;
  table.own_tokens_.reserve(static_cast<size_t>(reader.samples()));
  table.own_bytes_.reserve(static_cast<size_t>(reader.samples()));
  std::vector<std::string_view> values;
  int64_t last_shard = -1;
  int64_t token_column = -1;
  int64_t byte_column = -1;
  for (int64_t i = 0; i < reader.samples(); ++i) {
    const int64_t shard_index = reader.index().ShardOf(i);
    const MdsShard& shard = reader.index().shards[static_cast<size_t>(shard_index)];
    if (shard_index != last_shard) {
      last_shard = shard_index;
      token_column = shard.FindColumn(column);
      byte_column = shard.FindColumn("bytes");
      if (byte_column >= 0 && shard.columns[static_cast<size_t>(byte_column)].encoding != "int") {
        byte_column = -1;
      }
      if (token_column < 0) {
        std::string names;
        for (const MdsColumn& each : shard.columns) names += (names.empty() ? "" : ", ") + each.name;
        return InvalidArgument(fmt::format("{}: {} has no column '{}'; it has {}",
                                           reader.folder().string(), shard.raw.basename, column,
                                           names));
      }
    }
    TESSERA_TRY(reader.Columns(i, &values));
    const Result<MdsTokens> tokens =
        ParseMdsTokens(shard.columns[static_cast<size_t>(token_column)].encoding,
                       values[static_cast<size_t>(token_column)]);
    if (!tokens.ok()) return tokens.error().WithContext(reader.Where(i));
    int64_t bytes = 0;
    if (byte_column >= 0) {
      const std::string_view value = values[static_cast<size_t>(byte_column)];
      if (value.size() == sizeof(bytes)) std::memcpy(&bytes, value.data(), sizeof(bytes));
      if (bytes < 0 || bytes > int64_t{UINT32_MAX}) {
        return Corrupt(fmt::format("{}: column 'bytes' is {}", reader.Where(i), bytes));
      }
    }
    table.own_tokens_.push_back(static_cast<uint32_t>(tokens->count));
    table.own_bytes_.push_back(static_cast<uint32_t>(bytes));
    table.total_tokens_ += tokens->count;
    table.total_bytes_ += bytes;
  }
  table.tokens_ = table.own_tokens_;
  table.bytes_ = table.own_bytes_;
  return table;
}

}  // namespace tessera
