// The run file: one YAML document that says what to train on what, read into plain resolved values.
// docs/run-file.md lists every key; src/train/run_schema.cc declares them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/source.h"
#include "data/stream_options.h"
#include "model/config.h"
#include "model/plan.h"
#include "train/duration.h"
#include "train/schedule.h"

namespace tessera {

struct TokenizerTraining {
  int64_t vocab_size = 0;                   // 0: no training
  std::vector<std::string> special_tokens;  // the first is the end-of-text token
  std::string pre_tokenizer = "gpt2";       // "gpt2", "llama3", "qwen2", "gpt2_digits"
  int64_t max_bytes = 0;                    // of text to learn from; 0: all training documents
  bool operator==(const TokenizerTraining&) const = default;
};

struct TokenizerSettings {
  // A tokenizer.json or a folder that holds one. Empty with train.vocab_size = 0: the dataset's
  // own.
  std::string name;
  TokenizerTraining train;
  bool operator==(const TokenizerSettings&) const = default;
};

// Whether AdamW's and Lion's decay is weight_decay * multiplier (Composer's decoupled form, where
// weight_decay does not depend on lr) or lr * weight_decay.
enum class DecayForm { kDecoupledFromLr, kTimesLr };

struct OptimizerSettings {
  UpdateRule rule = UpdateRule::kAdamW;
  DecayForm decay_form = DecayForm::kDecoupledFromLr;
  // AdamW or Lion; under Muon the AdamW of embeddings, head, gains and biases.
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double muon_lr = 0, muon_momentum = 0.95, muon_weight_decay = 0;
  double embedding_lr_factor = 1, head_lr_factor = 1, vector_lr_factor = 1;
  bool operator==(const OptimizerSettings&) const = default;
};

// When the checksums of a dataset are compared before training.
enum class DataVerify { kAuto, kAlways, kNever };

struct DataSettings {
  std::vector<SourceConfig> sources;  // by name; empty with `dataset`, or to plan only
  std::string dataset;                // a dataset that was built before
  std::string build_folder;  // where the dataset built from `sources` is kept for later runs
  double validation_fraction = 1.0 / 40;
  uint64_t split_seed = 0;
  int64_t shard_bytes = int64_t{1} << 26;
  int64_t max_document_bytes = int64_t{1} << 30;
  bool shuffle = true;
  bool shuffle_documents = false;
  uint64_t shuffle_seed = 0;  // the run's seed where the file does not say
  int prefetch = 4;           // batches
  DataVerify verify = DataVerify::kAuto;
  std::vector<StreamOptions> streams;       // instead of `dataset`, in the file's order
  std::vector<StreamOptions> eval_streams;  // at most one
  StreamOptions stream_defaults;            // what a stream does not set itself
  StreamingOptions streaming;
  // For datasets that Tessera did not write:
  int64_t eos_id = -1;  // -1: from the dataset
  bool insert_eos = true;
  std::string column = "tokens";
};

// A stage of growth: `value` holds until the run reaches `until`, then the next stage; after the
// last stage the run's own global_train_batch_size or max_seq_len.
struct GrowthStage {
  Duration until;
  int64_t value = 0;
  bool operator==(const GrowthStage&) const = default;
};
// The value for the step that starts at `progress`. Fractions count from max_duration.
int64_t GrowthValue(const std::vector<GrowthStage>& stages, int64_t final_value,
                    const Progress& progress, const Duration& max_duration);

struct WeightAverageSettings {
  bool enabled = false;
  double decay = 0.999;  // average = decay * average + (1 - decay) * weights after every update
  Duration start;        // no average before
  bool operator==(const WeightAverageSettings&) const = default;
};

struct SampleSettings {
  std::vector<std::string> prompts;  // empty: no samples at the end of the run
  int64_t max_new_tokens = 128;
  double temperature = 0.8;
  double top_p = 0.95;
  int64_t top_k = 0;  // 0: no limit
  bool operator==(const SampleSettings&) const = default;
};

struct LoggerSettings {
  bool console = true;  // progress on the terminal
  bool jsonl = true;    // metrics as JSON lines in the save folder
  std::string jsonl_filename = "metrics.jsonl";
  bool operator==(const LoggerSettings&) const = default;
};

struct RunConfig {
  std::string run_name;  // the run file's name where it does not say
  uint64_t seed = 17;
  int64_t max_seq_len =
      0;  // training sequences; the model's limit unless model.max_seq_len says more
  Duration max_duration;
  int64_t global_train_batch_size = 0;       // sequences a step
  int64_t device_train_microbatch_size = 0;  // sequences a pass; 0: auto
  int64_t device_eval_batch_size = 0;        // sequences; 0: as large as the micro-batch
  Precision precision = Precision::kAmpBf16;

  Duration eval_interval;  // zero: only at the end
  bool eval_first = false;
  int64_t eval_subset_num_batches = -1;  // -1: the whole validation split

  Duration save_interval;   // zero: only at the end
  std::string save_folder;  // holds checkpoints, metrics, report, summary; {run_name} is replaced
  int64_t save_num_checkpoints_to_keep = -1;  // -1: all
  bool save_overwrite = false;
  bool save_weights_only = false;
  bool autoresume = false;
  std::string load_path;
  bool load_weights_only = false;
  bool init_from_token_pairs = false;

  Duration console_log_interval = {1, TimeUnit::kBatch};  // plain lines when there is no terminal
  LoggerSettings loggers;
  int64_t speed_window = 100;  // steps over which rates are averaged (callbacks.speed_monitor)

  std::string model_preset;  // what model.preset named, for display
  ModelConfig model;         // vocab_size 0: taken from the tokenizer
  TokenizerSettings tokenizer;
  OptimizerSettings optimizer;
  ScheduleConfig scheduler;
  double gradient_clipping = 0;  // global norm; 0: none
  double label_smoothing = 0;
  double z_loss = 0;
  DataSettings data;

  int64_t virtual_ranks = 1;
  Recompute recompute = Recompute::kNone;
  int64_t memory_limit = 0;          // bytes; 0: what the machine has free
  int threads = 0;                   // 0: every core
  int64_t loss_chunk_tokens = 0;     // 0: chosen by the plan
  int64_t max_nonfinite_steps = 10;  // in a row, then the run stops

  std::vector<GrowthStage> batch_size_growth;
  std::vector<GrowthStage> sequence_length_growth;
  WeightAverageSettings weight_average;
  SampleSettings samples;
  bool report = true;                // a self-contained HTML page at the end
  bool compare_compressors = false;  // gzip -9 and xz -9e of the held-out bytes in the summary
};

// Reads a run file with `overrides` ("key.path=value", the value in YAML) applied before anything
// is checked. Every error of the file is reported at once, one a line, each with file and line (or
// the override), key, what was found and what is allowed. Does not look at the files that it names.
Result<RunConfig> ReadRunFile(const std::filesystem::path& path,
                              const std::vector<std::string>& overrides = {});
// The same for text in memory; `source` stands in messages and gives the default run_name.
Result<RunConfig> ParseRunFile(std::string_view text, std::string_view source,
                               const std::vector<std::string>& overrides = {});

// What ReadRunFile lets pass for planning: a run without data.
Status CheckTrainable(const RunConfig& config);

// The resolved file with every default filled in; reading it gives the same RunConfig.
Json RunConfigToJson(const RunConfig& config);
std::string RunConfigToYaml(const RunConfig& config);

// What the plan needs to know of a run. `microbatch` replaces `auto`; see ChooseMicrobatch.
PlanOptions PlanOptionsFor(const RunConfig& config, int64_t microbatch, int num_threads,
                           kernels::Compute compute);

}  // namespace tessera
