#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/log.h"
#include "base/strings.h"
#include "train/pair_tables.h"
#include "train/stage_plan.h"
#include "train/trainer_impl.h"

namespace tessera {

namespace fs = std::filesystem;

Trainer::Trainer(const RunConfig& config, const TrainOptions& options)
    : run_(config),
      config_(config),
      options_(options),
      console_(options.show_progress && config.loggers.console),
      folder_(config.save_folder) {}

// Takes the folder before any work is done, so that a run that must not start fails at once.
Status Trainer::OpenFolder() {
  if (config_.save_folder.empty()) {
    return InvalidArgument(
        "save_folder is not set: the run has no place for its checkpoints, "
        "metrics and summary");
  }
  Result<CheckpointStore> store = CheckpointStore::Open(folder_);
  if (!store.ok()) return store.error().WithContext("save_folder");
  store_ = std::move(store).value();
  const std::vector<fs::path> existing = store_->List();
  if (existing.empty()) return {};
  if (config_.autoresume) {
    std::vector<std::string> skipped;
    Result<std::optional<CheckpointInfo>> latest = store_->LatestValid(&skipped);
    for (const std::string& reason : skipped) LogWarning("passed over a checkpoint: {}", reason);
    if (!latest.ok()) return latest.error();
    start_ = std::move(latest).value();
    resumed_ = start_.has_value();
    return {};
  }
  if (!config_.save_overwrite) {
    return Error{
        .code = ErrorCode::kExists,
        .message = fmt::format(
            "'{}' already holds {} checkpoint{} (the last is {}): set autoresume=true to go "
            "on from it, save_overwrite=true to replace that run, or another run_name or "
            "save_folder",
            folder_.string(), existing.size(), existing.size() == 1 ? "" : "s",
            existing.back().filename().string())};
  }
  // They stay until the first checkpoint of this run is committed.
  replaced_ = existing;
  return {};
}

Status Trainer::CheckEarly() {
  if (!start_ && !config_.load_path.empty()) {
    const Result<CheckpointInfo> loaded = FindCheckpoint(config_.load_path);
    if (!loaded.ok()) return loaded.error().WithContext("load_path");
  }
  // With a tokenizer that is still to be trained the vocabulary is at most what is asked for; a
  // model of half that size that does not fit won't fit with more words either.
  RunConfig least = config_;
  if (least.model.vocab_size == 0) {
    least.model.vocab_size = std::max<int64_t>(config_.tokenizer.train.vocab_size / 2, 257);
  }
  const int threads = config_.threads > 0 ? config_.threads : AvailableCores();
  const auto [length, batch] = StageShape();
  const Result<Plan> plan = PlanStage(least, {.sequence_length = length,
                                              .batch_size = batch,
                                              .num_threads = threads,
                                              .compute = kernels::Compute::kF32});
  return plan.ok() ? Status() : plan.error();
}

Status Trainer::CheckResume(const CheckpointInfo& checkpoint, const RunState& saved) {
  if (saved.optimizer != config_.optimizer.rule) {
    return InvalidArgument(
        fmt::format("checkpoint '{}' was trained with the optimizer {}, the run uses {}: set "
                    "load_weights_only=true with load_path to start from its weights",
                    checkpoint.folder.string(), UpdateRuleName(saved.optimizer),
                    UpdateRuleName(config_.optimizer.rule)));
  }
  const auto warn = [](std::string_view what) {
    LogWarning(
        "{} since the checkpoint was saved: the run goes on, but not with the bits that it "
        "would have had without the change",
        what);
  };
  if (saved.seed != config_.seed) warn("the seed has changed");
  if (saved.virtual_ranks != config_.virtual_ranks) warn("virtual_ranks has changed");
  if (saved.precision != config_.precision) warn("the precision has changed");
  if (saved.tokenizer_fingerprint != state_.tokenizer_fingerprint) {
    return InvalidArgument(fmt::format(
        "checkpoint '{}' was trained with another tokenizer than that of the data: its token ids "
        "mean something else",
        checkpoint.folder.string()));
  }
  if (saved.data_fingerprint != state_.data_fingerprint) warn("the dataset has changed");
  return {};
}

// Reads what the run begins from into state_ and start_.
Status Trainer::ReadStart() {
  if (!start_ && !config_.load_path.empty()) {
    Result<CheckpointInfo> loaded = FindCheckpoint(config_.load_path);
    if (!loaded.ok()) return loaded.error().WithContext("load_path");
    start_ = std::move(loaded).value();
    if (const Status whole = VerifyCheckpoint(*start_); !whole.ok()) {
      return whole.error().WithContext("load_path");
    }
    weights_only_ = config_.load_weights_only;
  }
  if (!start_) return {};
  TESSERA_TRY(CheckArchitecture(*start_, config_.model));
  if (weights_only_) {
    Say(fmt::format("weights from {}", start_->folder.string()));
    return {};
  }
  const fs::path path = start_->folder / kStateFile;
  TESSERA_ASSIGN(const Json json, ReadJsonFile(path, int64_t{1} << 24));
  TESSERA_ASSIGN(RunState saved, RunStateFromJson(json, path.string()));
  TESSERA_TRY(CheckResume(*start_, saved));
  // Another processor may have chosen the other multiplier; the run keeps what it began with.
  if (saved.precision == config_.precision) compute_ = saved.compute;
  saved.compute = compute_;
  saved.seed = config_.seed;
  saved.virtual_ranks = config_.virtual_ranks;
  saved.precision = config_.precision;
  saved.data_fingerprint = state_.data_fingerprint;
  if (!config_.weight_average.enabled) saved.average_started = false;
  state_ = std::move(saved);
  first_step_ = state_.progress.step;
  if (resumed_) last_saved_step_ = state_.progress.step;
  if (resumed_) last_checkpoint_ = start_->folder.string();
  Say(fmt::format("resuming from {} (step {}, {} tokens)", start_->folder.string(),
                  state_.progress.step, FormatCount(static_cast<double>(state_.progress.tokens))));
  return {};
}

// Weights and state once, and what they replace is removed only after that.
Status Trainer::CheckDiskSpace() {
  int64_t values = CountParameters(config_.model);
  int64_t copies = 1;
  if (!config_.save_weights_only) {
    copies += config_.optimizer.rule == UpdateRule::kAdamW ? 2 : 1;
  }
  if (config_.weight_average.enabled) ++copies;
  // Muon runs keep a second moment for the few parameters outside matrices: within the slack.
  const int64_t needed = values * 4 * copies + (int64_t{4} << 20);
  TESSERA_ASSIGN(const int64_t free, FreeDiskBytes(folder_));
  if (free < needed) {
    return IoError(
        fmt::format("a checkpoint of this run needs about {} and '{}' has {} free: free "
                    "space or choose another save_folder before training",
                    FormatBytes(needed), folder_.string(), FormatBytes(free)));
  }
  return {};
}

Status Trainer::OpenMetrics() {
  if (!config_.loggers.jsonl) return {};
  const fs::path path = folder_ / config_.loggers.jsonl_filename;
  if (!resumed_) {
    TESSERA_ASSIGN(metrics_, MetricsFile::Create(path));
    return {};
  }
  const int64_t step = state_.progress.step;
  const int64_t evaluated = state_.last_eval_step;
  TESSERA_ASSIGN(metrics_, MetricsFile::Resume(path, [&](const Json& line) {
                   const auto at = line.find("step");
                   if (at == line.end() || !at->is_number_integer()) return true;
                   return at->get<int64_t>() <= (line.contains("eval_loss") ? evaluated : step);
                 }));
  return {};
}

Status Trainer::BuildStage(const std::optional<CheckpointInfo>& source, LoadPart part) {
  const auto [length, batch] = StageShape();
  // Released before the next stage is planned: two stages never lie in memory together.
  loader_.reset();
  engine_.reset();
  // What preparing the data took and gave back must not count as this stage's memory.
  ::malloc_trim(0);
  TESSERA_ASSIGN(const Plan plan, PlanStage(config_, {.sequence_length = length,
                                                      .batch_size = batch,
                                                      .num_threads = pool_->num_threads(),
                                                      .compute = compute_}));
  memory_ = plan.memory;
  planned_bytes_ = std::max(planned_bytes_, plan.memory.total());
  Say(fmt::format(
      "model: {} parameters, {} layers of width {}, vocabulary {}; {} sequences of {} tokens a "
      "step "
      "in passes of {}",
      FormatCount(static_cast<double>(CountParameters(config_.model))), config_.model.n_layers,
      config_.model.d_model, config_.model.vocab_size, batch, length, plan.options.microbatch));
  std::string table = FormatMemoryTable(plan.memory);
  if (table.ends_with('\n')) table.pop_back();
  Say("memory\n" + table);
  TESSERA_ASSIGN(engine_, Engine::Create(plan, *pool_));
  if (source) {
    TESSERA_TRY(part == LoadPart::kWeights
                    ? LoadModelWeights(*source, *engine_)
                    : LoadEngine(*source, part, state_.average_started, *engine_));
  } else {
    engine_->InitializeWeights(config_.seed);
    if (config_.init_from_token_pairs) TESSERA_TRY(FitTables());
  }
  StartProfile();
  TESSERA_TRY(OpenLoader());
  state_.sequence_length = length;
  state_.batch_size = batch;
  return {};
}

Status Trainer::FitTables() {
  const Stopwatch watch;
  if (data_.foreign) {
    return InvalidArgument(
        "init_from_token_pairs counts the tokens of a dataset that Tessera made: use data.sources, or "
        "make one with 'tessera data build'");
  }
  TESSERA_ASSIGN(const std::unique_ptr<TokenStream> stream,
                 TokenStream::Open({.dataset = data_.train_folder,
                                    .column = config_.data.column,
                                    .vocab_size = config_.model.vocab_size,
                                    .insert_eos = config_.data.insert_eos}));
  TESSERA_ASSIGN(const std::string told,
                 InitializeFromPairs(*stream, options_.show_progress, *pool_, *engine_));
  Say(told);
  ::malloc_trim(0);
  state_.progress.seconds += watch.Seconds();
  return {};
}

Status Trainer::OpenLoader() {
  const auto [length, batch] = StageShape();
  LoaderOptions options;
  options.dataset = data_.train_folder;
  options.sequence_length = length;
  options.batch_size = batch;
  options.seed = config_.data.shuffle_seed;
  options.shuffle = config_.data.shuffle;
  options.shuffle_documents = config_.data.shuffle_documents;
  options.prefetch = config_.data.prefetch;
  if (config_.data.eos_id >= 0) options.eos_id = static_cast<int32_t>(config_.data.eos_id);
  if (data_.foreign) {
    options.vocab_size = config_.model.vocab_size;
    if (!options.eos_id && data_.tokenizer) options.eos_id = data_.tokenizer->eos_id();
  }
  options.insert_eos = config_.data.insert_eos;
  options.column = config_.data.column;
  options.streams = config_.data.streams;
  options.streaming = config_.data.streaming;
  if (data_.tokenizer) {
    options.streaming.encode = [tokenizer = *data_.tokenizer](std::string_view text,
                                                              std::vector<int32_t>* ids) {
      tokenizer.Encode(text, ids);
    };
  }
  TESSERA_ASSIGN(loader_, Loader::Open(options));
  const int64_t samples = loader_->samples_per_epoch();
  if (samples < 1) {
    return InvalidArgument(
        fmt::format("the training split of {} tokens holds not one sequence of "
                    "{}: lower max_seq_len or give more text",
                    loader_->total_tokens(), length));
  }
  if (state_.progress.step > 0) {
    // A stored sample stays the same one whatever the length.
    if (loader_->rows_are_windows()) {
      state_.loader = ConvertLoaderState(state_.loader, state_.sequence_length, length, samples);
    }
    TESSERA_TRY(loader_->Seek(state_.loader));
  }
  return {};
}

}  // namespace tessera
