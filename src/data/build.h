// Documents to a tokenized dataset: read, split, tokenize in parallel, write MDS shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "data/dataset.h"
#include "data/source.h"

namespace tessera {

// What the builder needs of a tokenizer. `encode` appends ids and is called from many threads.
struct TokenEncoder {
  std::function<void(std::string_view text, std::vector<int32_t>* ids)> encode;
  int32_t eos_id = 0;
  int64_t vocab_size = 0;
  std::string fingerprint;
  std::filesystem::path file;  // Copied into the dataset as tokenizer.json; empty: none.
};

// From a Tokenizer of src/tokenizer, which is cheap to copy and is kept. A template, since this
// folder does not depend on that one. Pass SpecialTokens::kAsText as `mode`: text in a corpus that
// looks like a control token must not become one.
template <class TokenizerType, class Mode>
TokenEncoder MakeTokenEncoder(const TokenizerType& tokenizer, std::filesystem::path file,
                              Mode mode) {
  TokenEncoder encoder;
  encoder.encode = [tokenizer, mode](std::string_view text, std::vector<int32_t>* ids) {
    tokenizer.Encode(text, ids, mode);
  };
  encoder.eos_id = tokenizer.eos_id().value_or(-1);
  encoder.vocab_size = tokenizer.vocab_size();
  encoder.fingerprint = tokenizer.fingerprint();
  encoder.file = std::move(file);
  return encoder;
}

struct BuildOptions {
  std::filesystem::path output;
  std::vector<SourceConfig> sources;
  TokenEncoder encoder;
  double validation_fraction = 1.0 / 40;  // 0: no validation split.
  uint64_t split_seed = 0;
  int threads = 0;                              // 0: every core. The result does not depend on it.
  int64_t shard_bytes = int64_t{1} << 26;       // An MDS shard's size limit.
  int64_t max_document_bytes = int64_t{1} << 30;  // Also after decompression.
  bool overwrite = false;
};

struct BuildProgress {
  int64_t input_bytes_done = 0;   // Of the files as they lie on disk.
  int64_t input_bytes_total = 0;  // Counts a source once for each pass that its weight needs.
  int64_t documents = 0;
  int64_t tokens = 0;
  double seconds = 0;
};
using BuildProgressFn = std::function<void(const BuildProgress&)>;

// Polls StopRequested() of base/signals.h. Builds beside `output` and renames at the end, so that an interrupted build leaves what was
// there. Returns at once (up_to_date) when `output` was built from the same inputs and options;
// refuses to replace another dataset unless `overwrite`.
Result<DatasetInfo> BuildDataset(const BuildOptions& options, const BuildProgressFn& progress = {});

// Calls `visit` for every document of the sources in build order, each once: the same documents and
// the same split as BuildDataset. For training a tokenizer and for baselines on held-out text.
struct DocumentView {
  const SourceConfig* source = nullptr;
  std::string_view identity;
  std::string_view text;
  bool validation = false;
};
Status VisitDocuments(const BuildOptions& options,
                      const std::function<Status(const DocumentView&)>& visit);

}  // namespace tessera
