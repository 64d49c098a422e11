// Checkpoints: a folder of safetensors and text files that its manifest, written last, commits.
//
//   SAVE_FOLDER/ckpt-00000040ba/{*.safetensors, *.json, run.yaml, manifest.json}
//   SAVE_FOLDER/latest                 the name of the newest checkpoint
//   SAVE_FOLDER/ckpt-*.tmp             unfinished or being removed; deleted at the next start
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "tensor/safetensors.h"

namespace tessera {

inline constexpr int64_t kCheckpointFormatVersion = 1;
inline constexpr const char* kCheckpointManifest = "manifest.json";
inline constexpr const char* kManifestChecksum = "manifest_xxh3";  // a key of it
inline constexpr const char* kWeightsFile = "weights.safetensors";
inline constexpr const char* kOptimizerFile = "optimizer.safetensors";
inline constexpr const char* kStateFile = "state.json";
inline constexpr const char* kModelConfigFile = "config.json";
inline constexpr const char* kRunFile = "run.yaml";
inline constexpr const char* kTokenizerFile = "tokenizer.json";

struct CheckpointTensorFile {
  std::string name;
  std::vector<TensorView> tensors;  // Borrowed; written straight from where they lie.
  std::map<std::string, std::string> metadata;
};
struct CheckpointTextFile {
  std::string name;
  std::string content;
};
struct CheckpointContents {
  int64_t step = 0;
  Json info = Json::object();  // Shown by tools without opening the other files.
  std::vector<CheckpointTensorFile> tensors;
  std::vector<CheckpointTextFile> texts;
};

struct CheckpointFile {
  std::string name;
  int64_t bytes = 0;
  std::string xxh3;      // XXH3-64 of the content, 16 hex digits.
  int64_t tensors = -1;  // -1: not a tensor file.
};
struct CheckpointInfo {
  std::filesystem::path folder;
  int64_t step = 0;
  std::string created;  // UTC
  Json info;
  std::vector<CheckpointFile> files;

  bool Has(std::string_view file) const;
  int64_t bytes() const;
};

// "ckpt-00000040ba"
std::string CheckpointName(int64_t step);
std::optional<int64_t> CheckpointStep(std::string_view folder_name);

// A manifest's text, whose own checksum is compared; `source` stands in messages. The folder is left
// empty and no other file is looked at.
Result<CheckpointInfo> ParseCheckpointManifest(std::string_view text, std::string_view source);
// Reads the manifest and compares the sizes of all files. Not found when `folder` holds no
// manifest; corrupt when the manifest or a size is wrong.
Result<CheckpointInfo> OpenCheckpoint(const std::filesystem::path& folder);
// Reads every file once and compares its checksum.
Status VerifyCheckpoint(const CheckpointInfo& checkpoint);
// A checkpoint by its own folder or by the save folder that holds it (its latest one).
Result<CheckpointInfo> FindCheckpoint(const std::filesystem::path& path);

// The save folder of one run, held by one process at a time. A folder that the store made and in which
// nothing was written vanishes with it.
class CheckpointStore {
 public:
  // Creates the folder where needed, takes its lock and removes what an interrupted save left
  // behind. An error says which process holds the lock.
  static Result<CheckpointStore> Open(const std::filesystem::path& folder);
  CheckpointStore(CheckpointStore&& other) noexcept;
  CheckpointStore& operator=(CheckpointStore&& other) noexcept;
  ~CheckpointStore();

  const std::filesystem::path& folder() const { return folder_; }
  // Folders of committed checkpoints, oldest step first.
  std::vector<std::filesystem::path> List() const;
  // The newest checkpoint whose checksums hold: what `latest` names, otherwise the one before it,
  // and so on. Each one that was passed over is described in *skipped. nullopt when there is none
  // at all; corrupt when there are some, but none is whole.
  Result<std::optional<CheckpointInfo>> LatestValid(std::vector<std::string>* skipped) const;

  // Writes to a temporary folder, syncs, renames, then moves `latest`. After an error everything
  // that was committed before is as it was. Replaces a checkpoint of the same step.
  Result<CheckpointInfo> Save(const CheckpointContents& contents);
  // Bytes that Save will write.
  static int64_t BytesOf(const CheckpointContents& contents);

  // Removes the oldest checkpoints beyond `keep` (-1: none), never the one that `latest` names.
  Status Retain(int64_t keep);
  // Removes one, so that a crash leaves the whole checkpoint or none.
  Status Remove(const std::filesystem::path& checkpoint);

 private:
  CheckpointStore(std::filesystem::path folder, int lock, bool made_folder)
      : folder_(std::move(folder)), lock_(lock), made_folder_(made_folder) {}
  Status RemoveLeftovers();

  std::filesystem::path folder_;
  int lock_ = -1;
  bool made_folder_ = false;
};

}  // namespace tessera
