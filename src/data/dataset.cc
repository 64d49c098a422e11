#include "data/dataset.h"

#include <fmt/format.h>

#include "base/files.h"

namespace tessera {

namespace {

Json SplitToJson(const SplitInfo& split) {
  return {{"documents", split.documents},
          {"tokens", split.tokens},
          {"bytes", split.bytes},
          {"shards", split.shards},
          {"shard_bytes", split.shard_bytes}};
}

Status CountFrom(const Json& json, const char* key, const std::string& where, int64_t* out) {
  TESSERA_ASSIGN(*out, JsonInt(json, key, where));
  if (*out < 0) return Corrupt(fmt::format("{}: '{}' is {}", where, key, *out));
  return {};
}

Status SplitFrom(const Json& json, const char* key, const std::string& source, SplitInfo* split) {
  const std::string where = fmt::format("{}: {}", source, key);
  const auto it = json.find(key);
  if (it == json.end()) return Corrupt(fmt::format("{} is missing", where));
  TESSERA_TRY(CountFrom(*it, "documents", where, &split->documents));
  TESSERA_TRY(CountFrom(*it, "tokens", where, &split->tokens));
  TESSERA_TRY(CountFrom(*it, "bytes", where, &split->bytes));
  TESSERA_TRY(CountFrom(*it, "shards", where, &split->shards));
  return CountFrom(*it, "shard_bytes", where, &split->shard_bytes);
}

Result<SourceInfo> SourceFrom(const Json& json, const std::string& where) {
  SourceInfo source;
  TESSERA_ASSIGN(source.name, JsonString(json, "name", where));
  TESSERA_ASSIGN(source.license, JsonString(json, "license", where));
  TESSERA_ASSIGN(source.weight, JsonNumber(json, "weight", where));
  if (const auto paths = json.find("paths"); paths != json.end() && paths->is_array()) {
    for (const Json& path : *paths) {
      if (path.is_string()) source.paths.push_back(path.get<std::string>());
    }
  }
  TESSERA_TRY(CountFrom(json, "files", where, &source.files));
  TESSERA_TRY(CountFrom(json, "documents", where, &source.documents));
  TESSERA_TRY(CountFrom(json, "bytes", where, &source.bytes));
  TESSERA_TRY(CountFrom(json, "empty_documents", where, &source.empty_documents));
  TESSERA_TRY(SplitFrom(json, "train", where, &source.train));
  TESSERA_TRY(SplitFrom(json, "validation", where, &source.validation));
  return source;
}

}  // namespace

Json DatasetInfoToJson(const DatasetInfo& info) {
  Json sources = Json::array();
  for (const SourceInfo& source : info.sources) {
    sources.push_back({{"name", source.name},
                       {"license", source.license},
                       {"weight", source.weight},
                       {"paths", source.paths},
                       {"files", source.files},
                       {"documents", source.documents},
                       {"bytes", source.bytes},
                       {"empty_documents", source.empty_documents},
                       {"train", SplitToJson(source.train)},
                       {"validation", SplitToJson(source.validation)}});
  }
  return {{"format", "tessera-dataset"},
          {"version", kDatasetVersion},
          {"fingerprint", info.fingerprint},
          {"files_stat", info.files_stat},
          {"options_fingerprint", info.options_fingerprint},
          {"tokenizer", {{"fingerprint", info.tokenizer_fingerprint},
                         {"vocab_size", info.vocab_size},
                         {"eos_id", info.eos_id}}},
          {"token_encoding", info.token_encoding},
          {"split", {{"rule", "XXH3-64(identity, seed) / 2^64 < validation_fraction"},
                     {"validation_fraction", info.validation_fraction},
                     {"seed", info.split_seed}}},
          {"train", SplitToJson(info.train)},
          {"validation", SplitToJson(info.validation)},
          {"sources", sources}};
}

Status WriteDatasetInfo(const DatasetInfo& info) {
  // Paths and names may hold bytes that are no UTF-8.
  return WriteFileAtomic(info.folder / kDatasetManifest,
                         JsonText(DatasetInfoToJson(info), 2) + "\n");
}

Result<DatasetInfo> ParseDatasetInfo(std::string_view text, const std::string& where) {
  TESSERA_ASSIGN(const Json json, ParseJson(text, where));
  TESSERA_ASSIGN(const int64_t version, JsonInt(json, "version", where));
  if (version != kDatasetVersion) {
    return Unsupported(fmt::format("{}: dataset version {}; this build reads {}", where, version,
                                   kDatasetVersion));
  }
  DatasetInfo info;
  TESSERA_ASSIGN(info.fingerprint, JsonString(json, "fingerprint", where));
  TESSERA_ASSIGN(info.files_stat, JsonString(json, "files_stat", where));
  TESSERA_ASSIGN(info.options_fingerprint, JsonString(json, "options_fingerprint", where));
  TESSERA_ASSIGN(info.token_encoding, JsonString(json, "token_encoding", where));
  const Json tokenizer = json.value("tokenizer", Json());
  const std::string tokenizer_where = where + ": tokenizer";
  TESSERA_ASSIGN(info.tokenizer_fingerprint, JsonString(tokenizer, "fingerprint", tokenizer_where));
  TESSERA_ASSIGN(info.vocab_size, JsonInt(tokenizer, "vocab_size", tokenizer_where));
  TESSERA_ASSIGN(const int64_t eos_id, JsonInt(tokenizer, "eos_id", tokenizer_where));
  if (info.vocab_size < 1 || info.vocab_size > int64_t{INT32_MAX} || eos_id < 0 ||
      eos_id >= info.vocab_size) {
    return Corrupt(fmt::format("{}: vocabulary size {} and end-of-text id {} don't fit each other",
                               where, info.vocab_size, eos_id));
  }
  info.eos_id = static_cast<int32_t>(eos_id);
  const Json split = json.value("split", Json());
  TESSERA_ASSIGN(info.validation_fraction,
                 JsonNumber(split, "validation_fraction", where + ": split"));
  if (split.contains("seed") && split["seed"].is_number_unsigned()) {
    info.split_seed = split["seed"].get<uint64_t>();
  }
  TESSERA_TRY(SplitFrom(json, "train", where, &info.train));
  TESSERA_TRY(SplitFrom(json, "validation", where, &info.validation));
  if (const auto sources = json.find("sources"); sources != json.end() && sources->is_array()) {
    for (const Json& each : *sources) {
      TESSERA_ASSIGN(SourceInfo source, SourceFrom(each, where + ": sources"));
      info.sources.push_back(std::move(source));
    }
  }
  return info;
}

Result<DatasetInfo> ReadDatasetInfo(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kDatasetManifest;
  if (!PathExists(path)) {
    return NotFound(fmt::format("'{}' holds no {}: it is no dataset of `tessera data build`, or its "
                                "build was interrupted",
                                folder.string(), kDatasetManifest));
  }
  TESSERA_ASSIGN(const std::string text, ReadFile(path, int64_t{1} << 28));
  TESSERA_ASSIGN(DatasetInfo info, ParseDatasetInfo(text, path.string()));
  info.folder = folder;
  return info;
}

}  // namespace tessera
