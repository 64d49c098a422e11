// The stream of training batches over a dataset split: a pure function of (dataset, seed, position).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/stream_options.h"

namespace tessera {

struct LoaderOptions {
  std::filesystem::path dataset;  // The split's folder, which holds index.json.
  int64_t sequence_length = 0;
  int64_t batch_size = 0;  // Sequences of a global batch; a multiple of `world`.
  uint64_t seed = 0;
  bool shuffle = true;             // Samples in a keyed order that differs in every epoch.
  bool shuffle_documents = false;  // Documents in a keyed order before they are concatenated.
  int prefetch = 4;                // Batches made ahead, at least 1.
  // Rows [rank, rank + 1) * batch_size / world of each global batch are this process's.
  int rank = 0;
  int world = 1;
  // Taken from ../dataset.json where absent; needed for datasets that Tessera did not write.
  std::optional<int32_t> eos_id = {};
  std::optional<int64_t> vocab_size = {};
  bool insert_eos = true;  // false where the samples were concatenated before (llm-foundry).
  std::string column = "tokens";
  // Instead of `dataset`. The order is that of the streams' names in this list.
  std::vector<StreamOptions> streams = {};
  StreamingOptions streaming = {};
};

// The next sample: the whole state of a loader. The same for every rank.
struct LoaderState {
  int64_t epoch = 0;
  int64_t sample = 0;  // Position within the epoch's order, below samples_per_epoch().
  bool operator==(const LoaderState&) const = default;
};
Json LoaderStateToJson(const LoaderState& state);
Result<LoaderState> LoaderStateFromJson(const Json& json, std::string_view source);

struct TokenBatch {
  int64_t rows = 0;             // Filled rows; those behind them hold only ignored targets.
  int64_t sequence_length = 0;  // T
  std::vector<int32_t> tokens;   // [batch, T]
  std::vector<int32_t> targets;  // [batch, T]: tokens shifted by one; -100 is not scored
  // [batch, T]: index in the row at which this token's document begins; its end-of-text id before
  // it counts as its beginning. A mask over documents lets position t see [segment_start[t], t].
  std::vector<int32_t> segment_start;
  int64_t target_count = 0;  // Targets that are scored.
  // Raw text bytes behind the scored targets: each document's bytes are shared out over its tokens
  // so that whole documents sum up exactly. 0 where the dataset does not tell bytes.
  int64_t bytes_covered = 0;
  int64_t replaced_rows = 0;    // Rows whose own sample was bad, see replace_bad_samples.
  LoaderState first;            // The position of the global batch's first sample.
  std::vector<int64_t> samples;  // [batch]: the row's index in its stream, -1 for padding
  std::vector<int32_t> streams;  // [batch]: the row's stream
};

// The documents are concatenated as eos d0 eos d1 eos ... eos and cut into samples of T+1 tokens
// that overlap by one, so every token but the first is a target once per epoch; the last sample is
// padded with ignored targets. Sample g of the run is position g mod n of epoch g div n; batches run
// across the ends of epochs. Not safe for use from more than one thread at a time.
class Loader {
 public:
  static Result<std::unique_ptr<Loader>> Open(const LoaderOptions& options);
  virtual ~Loader() = default;

  virtual int64_t samples_per_epoch() const = 0;
  virtual int64_t total_tokens() const = 0;  // Of the concatenation, end-of-text ids included.
  virtual int64_t documents() const = 0;
  // True where all rows are windows over joined documents, so that another sequence length cuts the
  // same text; false where a row is a stored sample.
  virtual bool rows_are_windows() const = 0;
  // The next batch, valid until the next call of Next or Seek. A failure names shard and sample and
  // is returned again by later calls, until Seek.
  virtual Result<const TokenBatch*> Next() = 0;
  virtual LoaderState state() const = 0;  // Of the sample after the last batch that Next returned.
  virtual Status Seek(const LoaderState& state) = 0;  // O(1)

  struct StreamReport {
    std::string name;
    int64_t rows = 0;           // Of the stream.
    int64_t rows_an_epoch = 0;  // 0 where it is not known beforehand.
    int64_t downloads = 0;
    int64_t downloaded_bytes = 0;
  };
  struct Report {
    std::vector<StreamReport> streams;
    std::vector<std::string> quarantined;  // Shards given up, with the reason.
    int64_t replaced_rows = 0;
    int64_t cache_bytes = 0;
    int64_t most_cache_bytes = 0;
  };
  virtual Report report() const = 0;
};

struct EvalOptions {
  std::filesystem::path dataset;
  int64_t sequence_length = 0;
  // Windows advance by this many tokens; 0 stands for sequence_length. Smaller gives every token
  // more context and costs sequence_length / stride as much.
  int64_t stride = 0;
  int64_t batch_size = 1;
  int64_t max_documents = 0;  // 0: all of them, in the dataset's order.
  bool score_end = true;      // Also score the end-of-text id after each document.
  std::optional<int32_t> eos_id = {};
  std::optional<int64_t> vocab_size = {};
  std::string column = "tokens";
};

// Every document alone: input eos d, targets d eos, cut into windows; each token is scored once and
// sees only its own document. Sum the losses of targets that are not -100; bits per byte is that sum
// / (ln 2 * total_bytes()).
class EvalStream {
 public:
  static Result<std::unique_ptr<EvalStream>> Open(const EvalOptions& options);
  virtual ~EvalStream() = default;

  virtual int64_t documents() const = 0;
  virtual int64_t total_targets() const = 0;
  virtual int64_t total_bytes() const = 0;  // 0 where the dataset does not tell bytes.
  virtual int64_t total_batches() const = 0;
  // The next batch, valid until the next call; nullptr after the last one.
  virtual Result<const TokenBatch*> Next() = 0;
  virtual void Reset() = 0;
};

}  // namespace tessera
