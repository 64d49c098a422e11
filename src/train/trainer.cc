#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/strings.h"
#include "train/stage_plan.h"
#include "train/trainer_impl.h"

namespace tessera {

namespace {

// Non-finite steps that are described when a run stops on them.
constexpr size_t kSeenSteps = 8;
// Losses whose mean stands for the run's last loss in the summary.
constexpr size_t kRecentLosses = 50;

// JSON has no NaN or infinity; null stands for them.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

UpdateOptions UpdateFor(const RunConfig& config, int64_t update, double multiplier) {
  const OptimizerSettings& o = config.optimizer;
  UpdateOptions options;
  options.step = update;
  options.grad_clip = config.gradient_clipping;
  options.lr = o.lr * multiplier;
  options.beta1 = o.beta1;
  options.beta2 = o.beta2;
  options.eps = o.eps;
  options.weight_decay = o.weight_decay;
  options.decoupled_by_lr = o.decay_form == DecayForm::kTimesLr;
  options.initial_lr = o.lr;
  options.muon_lr = o.muon_lr * multiplier;
  options.muon_momentum = o.muon_momentum;
  options.muon_weight_decay = o.muon_weight_decay;
  options.embedding_lr_factor = o.embedding_lr_factor;
  options.head_lr_factor = o.head_lr_factor;
  options.vector_lr_factor = o.vector_lr_factor;
  return options;
}

}  // namespace

Result<TrainOutcome> Trainer::Run() {
  TESSERA_TRY(OpenFolder());
  TESSERA_TRY(CheckEarly());
  PrepareOptions prepare;
  prepare.say = [this](const std::string& text) { Say(text); };
  prepare.show_progress = options_.show_progress && config_.loggers.console;
  TESSERA_ASSIGN(data_, PrepareRunData(config_, prepare));
  TESSERA_TRY(CheckDataFiles(config_, data_, prepare));
  TESSERA_TRY(SetVocabSize(&config_.model, data_.vocab_size));
  if (data_.tokenizer) {
    tokenizer_json_ = data_.tokenizer->ToJson();
    state_.tokenizer_fingerprint = data_.tokenizer->fingerprint();
  }
  state_.data_fingerprint = data_.dataset.fingerprint;
  state_.seed = config_.seed;
  state_.virtual_ranks = config_.virtual_ranks;
  state_.optimizer = config_.optimizer.rule;
  state_.precision = config_.precision;

  std::string explanation;
  compute_ = ChooseCompute(config_.precision, &explanation);
  state_.compute = compute_;
  TESSERA_TRY(ReadStart());
  Say(explanation);
  TESSERA_TRY(CheckDiskSpace());
  pool_ = std::make_unique<ThreadPool>(config_.threads);
  TESSERA_TRY(BuildStage(start_, weights_only_ ? LoadPart::kWeights : LoadPart::kWeightsAndState));
  gemm_gflops_ = MeasureGemmGflops(compute_, *pool_);
  ResetPeakResident();
  TESSERA_TRY(OpenMetrics());
  TESSERA_TRY(WriteFileAtomic(folder_ / kRunFile, RunConfigToYaml(run_)));

  Status looped = Loop();
  peak_rss_bytes_ = std::max(peak_rss_bytes_, PeakResidentBytes());
  TESSERA_TRY(looped);
  TESSERA_TRY(Finish());
  TrainOutcome outcome;
  outcome.complete = !stopped_;
  outcome.stop_signal = StopSignal();
  outcome.summary = Summary();
  outcome.text = SummaryText(outcome.summary);
  const std::string json = JsonText(outcome.summary, 2) + "\n";
  TESSERA_TRY(WriteFileAtomic(folder_ / "summary.json", json));
  if (config_.report) TESSERA_TRY(WriteReport(outcome.summary));
  if (save_error_) return *save_error_;
  return outcome;
}

std::pair<int64_t, int64_t> Trainer::StageShape() const {
  return {GrowthValue(config_.sequence_length_growth, config_.max_seq_len, state_.progress,
                      config_.max_duration),
          GrowthValue(config_.batch_size_growth, config_.global_train_batch_size, state_.progress,
                      config_.max_duration)};
}

// Passes through a checkpoint: a stage's memory is given back before the next stage takes its own,
// and what is resumed after a crash is what went on here.
Status Trainer::ChangeStage() {
  const auto [length, batch] = StageShape();
  if (length == state_.sequence_length && batch == state_.batch_size) return {};
  TESSERA_ASSIGN(const CheckpointInfo saved, SaveCheckpoint(/*with_state=*/true));
  return BuildStage(saved, LoadPart::kWeightsAndState);
}

Status Trainer::Loop() {
  TESSERA_ASSIGN(const Schedule schedule,
                 Schedule::Create(config_.scheduler, config_.max_duration));
  const Duration& warmup = config_.scheduler.t_warmup;
  if (warmup.unit == config_.max_duration.unit && warmup.value > config_.max_duration.value) {
    LogWarning("the run of {} ends within its warm-up of {}: the rate never reaches optimizer.lr",
               FormatDuration(config_.max_duration), FormatDuration(warmup));
  }
  if (config_.eval_first && state_.progress.step == 0 && data_.has_validation()) {
    TESSERA_TRY(EvaluateNow());
  }
  while (!HasReached(state_.progress, config_.max_duration)) {
    if (StopRequested()) {
      stopped_ = true;
      break;
    }
    TESSERA_TRY(ChangeStage());
    const Progress before = state_.progress;
    const Status stepped = Step(schedule);
    if (!stepped.ok()) {
      // A step is a transaction: what came before it is whole and worth keeping.
      // A run that did no step leaves nothing that a second attempt would have to ask about.
      const int64_t step = state_.progress.step;
      if (step > first_step_ && last_saved_step_ != step && state_.nonfinite_in_row == 0) TrySave();
      return stepped;
    }
    const Progress& after = state_.progress;
    const bool more = !HasReached(after, config_.max_duration);
    if (more && data_.has_validation() && !StopRequested() &&
        IsDue(before, after, ResolveFraction(config_.eval_interval, config_.max_duration))) {
      TESSERA_TRY(EvaluateNow());
    }
    if (more &&
        IsDue(before, after, ResolveFraction(config_.save_interval, config_.max_duration))) {
      TrySave();
    }
  }
  if (last_saved_step_ != state_.progress.step) TrySave();
  return {};
}

Status Trainer::Step(const Schedule& schedule) {
  const Stopwatch watch;
  const Progress before = state_.progress;
  Result<const TokenBatch*> next = loader_->Next();
  const double data_wait = watch.Seconds();
  data_wait_seconds_ += data_wait;
  if (!next.ok()) return next.error().WithContext(fmt::format("step {}", before.step + 1));
  const TokenBatch& batch = **next;
  StepBatch step;
  step.sequences = state_.batch_size;
  step.tokens = batch.tokens.data();
  step.targets = batch.targets.data();
  step.segment_start = batch.segment_start.empty() ? nullptr : batch.segment_start.data();
  const LossOptions loss = {.label_smoothing = config_.label_smoothing, .z_loss = config_.z_loss};
  const StepResult result = engine_->ForwardBackward(step, loss, config_.seed, before.step + 1);

  Progress after = before;
  ++after.step;
  after.tokens += state_.batch_size * state_.sequence_length;
  const LoaderState position = loader_->state();
  after.epochs =
      static_cast<double>(position.epoch) +
      static_cast<double>(position.sample) / static_cast<double>(loader_->samples_per_epoch());
  after.seconds += watch.Seconds();
  const UpdateOptions update = UpdateFor(config_, state_.updates + 1, schedule.Multiplier(after));
  if (result.finite) {
    engine_->Update(update);
    ++state_.updates;
    state_.nonfinite_in_row = 0;
    const WeightAverageSettings& average = config_.weight_average;
    if (average.enabled &&
        HasReached(after, ResolveFraction(average.start, config_.max_duration))) {
      engine_->UpdateAverage(average.decay);
      state_.average_started = true;
    }
  } else {
    ++state_.skipped_steps;
    ++state_.nonfinite_in_row;
  }
  const double seconds = watch.Seconds();
  after.seconds = before.seconds + seconds;
  step_seconds_ += seconds;
  state_.progress = after;
  state_.replaced_samples += batch.replaced_rows;
  state_.loader = position;
  state_.last_loss = result.loss;

  const int64_t tokens = after.tokens - before.tokens;
  window_.emplace_back(seconds, tokens);
  window_seconds_ += seconds;
  window_tokens_ += tokens;
  while (static_cast<int64_t>(window_.size()) > std::max<int64_t>(config_.speed_window, 1)) {
    window_seconds_ -= window_.front().first;
    window_tokens_ -= window_.front().second;
    window_.pop_front();
  }
  seen_.push_back({after.step, result.loss, result.grad_norm});
  if (seen_.size() > kSeenSteps) seen_.pop_front();
  if (result.finite) {
    recent_losses_.push_back(result.loss);
    if (recent_losses_.size() > kRecentLosses) recent_losses_.pop_front();
  }
  WriteStepMetrics(result, update, seconds, data_wait);
  ShowStep(result, update, before);
  return result.finite ? Status() : HandleNonFinite(result);
}

Status Trainer::HandleNonFinite(const StepResult& result) {
  const int64_t step = state_.progress.step;
  LogWarning("step {}: loss {} and gradient norm {} are not both finite; the update was skipped",
             step, result.loss, result.grad_norm);
  if (state_.nonfinite_in_row < config_.max_nonfinite_steps) return {};
  std::string seen;
  for (const SeenStep& entry : seen_) {
    seen += fmt::format("\n  step {}: loss {:.5g}, gradient norm {:.5g}", entry.step, entry.loss,
                        entry.grad_norm);
  }
  return InvalidArgument(fmt::format(
      "stopped at step {}: {} steps in a row had a loss or gradient that is not finite.{}\n"
      "The weights are those of step {}{}. Lower the learning rate, lengthen the warm-up, set "
      "gradient_clipping, or use precision=fp32.",
      step, state_.nonfinite_in_row, seen, step - state_.nonfinite_in_row,
      last_checkpoint_.empty() ? ""
                               : fmt::format("; the last checkpoint is {}", last_checkpoint_)));
}

Status Trainer::EvaluateNow() {
  if (state_.last_eval_step == state_.progress.step && !state_.last_eval.is_null()) return {};
  EvaluationOptions options;
  options.dataset = data_.validation_folder;
  options.sequence_length = state_.sequence_length;
  options.batch_size = config_.device_eval_batch_size > 0 ? config_.device_eval_batch_size
                                                          : engine_->plan().options.microbatch;
  options.max_batches = config_.eval_subset_num_batches;
  options.column = config_.data.column;
  if (config_.data.eos_id >= 0) options.eos_id = static_cast<int32_t>(config_.data.eos_id);
  if (data_.foreign) {
    options.vocab_size = config_.model.vocab_size;
    if (!options.eos_id && data_.tokenizer) options.eos_id = data_.tokenizer->eos_id();
  }
  options.progress = [this](int64_t done, int64_t total) {
    console_.Status(fmt::format("evaluating {} of {} batches", done, total));
  };
  const bool swap = state_.average_started;
  if (swap) engine_->SwapAverage();
  const Result<Evaluation> evaluated = Evaluate(*engine_, options);
  if (swap) engine_->SwapAverage();
  if (!evaluated.ok()) {
    if (evaluated.error().code == ErrorCode::kCancelled) return {};
    return evaluated.error().WithContext("evaluation");
  }
  state_.last_eval_step = state_.progress.step;
  state_.last_eval = EvaluationToJson(*evaluated);
  OrderedJson line = {{"step", state_.progress.step},
                      {"tokens", state_.progress.tokens},
                      {"train_seconds", state_.progress.seconds},
                      {"eval_loss", Number(evaluated->loss)},
                      {"eval_perplexity", Number(evaluated->perplexity)}};
  line["eval_bits_per_byte"] =
      evaluated->bits_per_byte ? Number(*evaluated->bits_per_byte) : Json();
  line["eval_targets"] = evaluated->targets;
  line["eval_seconds"] = evaluated->seconds;
  WriteMetrics(line);
  Say(fmt::format("eval at step {}: loss {:.4f} | perplexity {:.2f}{} | {} documents in {}",
                  state_.progress.step, evaluated->loss, evaluated->perplexity,
                  evaluated->bits_per_byte
                      ? fmt::format(" | {:.4f} bits per byte", *evaluated->bits_per_byte)
                      : "",
                  evaluated->documents, tessera::FormatDuration(evaluated->seconds)));
  return {};
}

Result<CheckpointInfo> Trainer::SaveCheckpoint(bool with_state) {
  const Stopwatch watch;
  state_.compute = compute_;
  CheckpointContents contents;
  contents.step = state_.progress.step;
  contents.info = {{"run_name", config_.run_name},
                   {"parameters", CountParameters(config_.model)},
                   {"tokens", state_.progress.tokens},
                   {"loss", Number(state_.last_loss)}};
  contents.tensors = EngineTensors(*engine_, with_state, state_.average_started);
  contents.texts.push_back({kStateFile, JsonText(RunStateToJson(state_), 2) + "\n"});
  contents.texts.push_back(
      {kModelConfigFile, JsonText(ModelConfigToJson(config_.model), 2) + "\n"});
  contents.texts.push_back({kRunFile, RunConfigToYaml(config_)});
  if (!tokenizer_json_.empty()) contents.texts.push_back({kTokenizerFile, tokenizer_json_});
  TESSERA_ASSIGN(CheckpointInfo saved, store_->Save(contents));
  last_saved_step_ = saved.step;
  last_checkpoint_ = saved.folder.string();
  Say(fmt::format("saved {} ({} in {})", saved.folder.string(), FormatBytes(saved.bytes()),
                  tessera::FormatDuration(watch.Seconds())));
  for (const std::filesystem::path& old : replaced_) {
    if (old == saved.folder || !PathExists(old)) continue;
    if (const Status removed = store_->Remove(old); !removed.ok()) {
      LogWarning("{}", removed.error().message);
    }
  }
  replaced_.clear();
  if (const Status kept = store_->Retain(config_.save_num_checkpoints_to_keep); !kept.ok()) {
    LogWarning("{}", kept.error().message);
  }
  return saved;
}

void Trainer::TrySave() {
  const Result<CheckpointInfo> saved = SaveCheckpoint(!config_.save_weights_only);
  if (saved.ok()) {
    save_error_.reset();
    return;
  }
  save_error_ = saved.error();
  LogError("{}; training goes on and tries again at the next save", saved.error().message);
}

void Trainer::WriteMetrics(const OrderedJson& line) {
  if (!metrics_) return;
  const Status written = metrics_->Write(line);
  if (!written.ok() && !metrics_failed_) {
    LogWarning("metrics are not recorded: {}", written.error().message);
  }
  metrics_failed_ = !written.ok();
}

void Trainer::WriteStepMetrics(const StepResult& result, const UpdateOptions& update,
                               double seconds, double data_wait) {
  if (!metrics_) return;
  OrderedJson line = {
      {"step", state_.progress.step},
      {"loss", Number(result.loss)},
      {"nll", Number(result.nll)},
      {"lr", update.lr},
      {"grad_norm", Number(result.grad_norm)},
      {"tokens", state_.progress.tokens},
      {"epochs", state_.progress.epochs},
      {"targets", result.targets},
      {"batch_size", state_.batch_size},
      {"sequence_length", state_.sequence_length},
      {"tokens_per_s", static_cast<double>(state_.batch_size * state_.sequence_length) / seconds},
      {"seconds", seconds},
      {"data_wait_seconds", data_wait},
      {"train_seconds", state_.progress.seconds}};
  if (config_.optimizer.rule == UpdateRule::kMuon) line["muon_lr"] = update.muon_lr;
  if (state_.replaced_samples > 0) line["replaced_samples"] = state_.replaced_samples;
  if (!result.finite) line["skipped"] = true;
  WriteMetrics(line);
}

double Trainer::WindowRate() const {
  return window_seconds_ > 0 ? static_cast<double>(window_tokens_) / window_seconds_ : -1;
}

double Trainer::SecondsLeft() const {
  const Duration& limit = config_.max_duration;
  if (limit.unit == TimeUnit::kSecond) {
    return std::max(0.0, limit.value - state_.progress.seconds);
  }
  if (window_.empty() || window_seconds_ <= 0) return -1;
  const double done = ProgressIn(state_.progress, limit.unit);
  const double left = std::max(0.0, limit.value - done);
  if (limit.unit == TimeUnit::kBatch) {
    return left * window_seconds_ / static_cast<double>(window_.size());
  }
  // Tokens and epochs pass at the rate of tokens.
  const double per_token = done > 0 ? done / static_cast<double>(state_.progress.tokens) : 0;
  return per_token > 0 ? left / per_token / WindowRate() : -1;
}

void Trainer::ShowStep(const StepResult& result, const UpdateOptions& update,
                       const Progress& before) {
  const Duration& limit = config_.max_duration;
  StepView view;
  view.step = state_.progress.step;
  if (limit.unit == TimeUnit::kBatch) view.total_steps = static_cast<int64_t>(limit.value);
  view.fraction =
      limit.value > 0 ? std::min(1.0, ProgressIn(state_.progress, limit.unit) / limit.value) : 1;
  view.loss = result.loss;
  view.lr = config_.optimizer.rule == UpdateRule::kMuon ? update.muon_lr : update.lr;
  view.tokens_per_s = WindowRate();
  if (gemm_gflops_ > 0) {
    view.mfu = view.tokens_per_s * ProductFlopsPerToken(config_.model, state_.sequence_length) /
               (gemm_gflops_ * 1e9);
  }
  view.resident_bytes = ResidentBytes();
  view.seconds_left = SecondsLeft();
  view.skipped_steps = state_.skipped_steps;
  const bool due = IsDue(before, state_.progress,
                         ResolveFraction(config_.console_log_interval, config_.max_duration));
  const bool force = before.step == 0 || HasReached(state_.progress, limit) || !result.finite;
  console_.Step(view, due, force);
}

Result<TrainOutcome> RunTraining(const RunConfig& config, const TrainOptions& options) {
  try {
    Trainer trainer(config, options);
    return trainer.Run();
  } catch (const ErrorException& exception) {
    return exception.error();
  }
}

}  // namespace tessera
