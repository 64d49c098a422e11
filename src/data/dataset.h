// A tokenized dataset: the folder with train/ and validation/ (MDS) and its manifest dataset.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace tessera {

inline constexpr int64_t kDatasetVersion = 1;
inline constexpr const char* kDatasetManifest = "dataset.json";
inline constexpr const char* kTrainFolder = "train";
inline constexpr const char* kValidationFolder = "validation";

struct SplitInfo {
  int64_t documents = 0;  // Copies made by weights count.
  int64_t tokens = 0;     // Without end-of-text ids.
  int64_t bytes = 0;      // Raw bytes of the texts.
  int64_t shards = 0;
  int64_t shard_bytes = 0;
};

struct SourceInfo {
  std::string name;
  std::string license;
  double weight = 1.0;
  std::vector<std::string> paths;
  int64_t files = 0;
  int64_t documents = 0;        // Read, each once.
  int64_t bytes = 0;            // Of their texts.
  int64_t empty_documents = 0;  // Left out.
  SplitInfo train = {};
  SplitInfo validation = {};
};

struct DatasetInfo {
  std::filesystem::path folder;
  std::string fingerprint;  // SHA-256 over tokenizer, options and the content of every file.
  std::string files_stat;   // SHA-256 over names, sizes and times of the files: a quick look.
  std::string options_fingerprint;
  std::string tokenizer_fingerprint;
  int64_t vocab_size = 0;
  int32_t eos_id = 0;
  std::string token_encoding;  // "ndarray:uint16" or "ndarray:uint32".
  double validation_fraction = 0;
  uint64_t split_seed = 0;
  SplitInfo train = {};
  SplitInfo validation = {};
  std::vector<SourceInfo> sources;
  // Not stored: true when BuildDataset found the dataset already built from the same inputs.
  bool up_to_date = false;

  std::filesystem::path train_folder() const { return folder / kTrainFolder; }
  std::filesystem::path validation_folder() const { return folder / kValidationFolder; }
  std::filesystem::path tokenizer_file() const { return folder / "tokenizer.json"; }
};

// A manifest's text; `where` names it in errors. The folder is left empty.
Result<DatasetInfo> ParseDatasetInfo(std::string_view text, const std::string& where);
// Not found when the folder holds no manifest; corrupt when a member is missing or impossible.
Result<DatasetInfo> ReadDatasetInfo(const std::filesystem::path& folder);
Status WriteDatasetInfo(const DatasetInfo& info);
Json DatasetInfoToJson(const DatasetInfo& info);

}  // namespace tessera
