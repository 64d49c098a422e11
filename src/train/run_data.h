// Gets a run's tokenizer and dataset ready: loads them, or makes them from the sources and keeps
// them for the next time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "data/dataset.h"
#include "data/shard_cache.h"
#include "tokenizer/tokenizer.h"
#include "train/run_config.h"

namespace tessera {

struct RunData {
  std::optional<Tokenizer> tokenizer;  // absent only for foreign datasets without one
  DatasetInfo dataset;
  bool foreign = false;  // an MDS folder that Tessera did not write; `dataset` knows only its place
  std::filesystem::path train_folder;
  std::filesystem::path validation_folder;  // empty: no validation split
  std::shared_ptr<ShardCache> validation_cache;  // holds a stream's shards while they are used
  int64_t vocab_size = 0;                   // of the tokenizer or the dataset; 0: unknown

  bool has_validation() const { return !validation_folder.empty(); }
};

// Lines for a person; progress itself is drawn on stderr unless silent.
struct PrepareOptions {
  std::function<void(const std::string&)> say;
  bool show_progress = true;
};

// The tokenizer is trained on the training documents alone. Both results depend only on the sources
// and the settings; they are kept in data.build_folder (the dataset) and beside it with
// ".tokenizer" behind the name, and made again when what they were made from has changed.
Result<RunData> PrepareRunData(const RunConfig& config, const PrepareOptions& options);

// Brings a whole stream into its local folder; the shards stay while the result lives.
Result<std::unique_ptr<ShardCache>> FetchStream(const StreamOptions& stream, const PrepareOptions& options);

// Compares the dataset's files with their index before training: sizes always, checksums as
// data.verify says. Damage that nobody sees would train a model on noise.
Status CheckDataFiles(const RunConfig& config, const RunData& data, const PrepareOptions& options);

// Sets the embedding's rows where the run file leaves them to the tokenizer, and checks that every
// token has a row.
Status SetVocabSize(ModelConfig* model, int64_t vocab_size);

}  // namespace tessera
