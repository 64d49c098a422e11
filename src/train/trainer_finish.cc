#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/strings.h"
#include "kernels/isa.h"
#include "train/compressors.h"
#include "train/run_report.h"
#include "train/samples.h"
#include "train/stage_plan.h"
#include "train/trainer_impl.h"

namespace tessera {

Status Trainer::Finish() {
  if (!stopped_ && data_.has_validation()) {
    TESSERA_TRY(EvaluateNow());
    peak_rss_bytes_ = std::max(peak_rss_bytes_, PeakResidentBytes());
    if (config_.compare_compressors) CompareCompressors();
  }
  if (!stopped_) {
    WriteSamples();
    // Where the machine was slow when the run began, its reference was too low.
    gemm_gflops_ = std::max(gemm_gflops_, MeasureGemmGflops(compute_, *pool_));
  }
  return FinishProfile();
}

// A failure here costs a figure of the summary, not the run.
void Trainer::CompareCompressors() {
  if (!data_.tokenizer) {
    LogWarning("compare_compressors needs the dataset's tokenizer to get at the text");
    return;
  }
  console_.Status("compressing the held-out text with gzip -9 and xz -9e");
  const Result<std::string> text =
      DecodeSplit(data_.validation_folder, *data_.tokenizer, config_.data.column);
  const Result<CompressorResult> compressed =
      text.ok() ? CompressText(*text) : Result<CompressorResult>(text.error());
  if (!compressed.ok()) {
    LogWarning("compare_compressors: {}", compressed.error().message);
    return;
  }
  gzip_bits_ = compressed->gzip_bits_per_byte();
  xz_bits_ = compressed->xz_bits_per_byte();
}

void Trainer::WriteSamples() {
  if (!data_.tokenizer || config_.samples.prompts.empty()) return;
  console_.Status("writing samples");
  engine_->ReleaseStepMemory();  // Generation has weights of its own; the peak stays as planned.
  const bool swap = state_.average_started;
  if (swap) engine_->SwapAverage();
  Result<std::vector<ReportSample>> samples =
      WriteSampleTexts(*engine_, *data_.tokenizer, config_.samples, config_.seed, *pool_);
  if (swap) engine_->SwapAverage();
  if (!samples.ok()) {
    LogWarning("samples: {}", samples.error().message);
    return;
  }
  samples_ = std::move(samples).value();
}

Json Trainer::Summary() const {
  const auto optional = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  const auto from_eval = [&](const char* key) {
    return state_.last_eval.is_object() ? state_.last_eval.value(key, Json()) : Json();
  };
  double loss = state_.last_loss;
  if (!recent_losses_.empty()) {
    loss = 0;
    for (const double value : recent_losses_) loss += value;
    loss /= static_cast<double>(recent_losses_.size());
  }
  const Progress& progress = state_.progress;
  const double rate =
      progress.seconds > 0 ? static_cast<double>(progress.tokens) / progress.seconds : 0;
  const double flops = TrainFlopsPerToken(config_.model, config_.max_seq_len);
  const double products = ProductFlopsPerToken(config_.model, config_.max_seq_len);
  Json summary = {{"run_name", config_.run_name},
                  {"status", stopped_ ? "stopped" : "complete"},
                  {"bits_per_byte", from_eval("bits_per_byte")},
                  {"eval_loss", from_eval("loss")},
                  {"perplexity", from_eval("perplexity")},
                  {"eval_step", state_.last_eval_step < 0 ? Json() : Json(state_.last_eval_step)},
                  {"held_out_bytes", from_eval("bytes")},
                  {"held_out_documents", from_eval("documents")},
                  {"gzip_bits_per_byte", optional(gzip_bits_)},
                  {"xz_bits_per_byte", optional(xz_bits_)},
                  {"parameters", CountParameters(config_.model)},
                  {"loss", std::isfinite(loss) ? Json(loss) : Json()},
                  {"steps", progress.step},
                  {"updates", state_.updates},
                  {"skipped_steps", state_.skipped_steps},
                  {"tokens", progress.tokens},
                  {"epochs", progress.epochs},
                  {"train_seconds", progress.seconds},
                  {"data_wait_seconds", data_wait_seconds_},
                  {"wall_seconds", wall_.Seconds()},
                  {"tokens_per_s", rate},
                  {"flops_per_token", flops},
                  {"gemm_gflops", gemm_gflops_},
                  {"mfu", gemm_gflops_ > 0 ? rate * products / (gemm_gflops_ * 1e9) : 0},
                  {"peak_rss_bytes", peak_rss_bytes_},
                  {"planned_bytes", planned_bytes_},
                  {"global_batch_size", config_.global_train_batch_size},
                  {"microbatch_size", engine_->plan().options.microbatch},
                  {"sequence_length", config_.max_seq_len},
                  {"vocab_size", config_.model.vocab_size},
                  {"precision", PrecisionName(config_.precision)},
                  {"compute", ComputeName(compute_)},
                  {"optimizer", UpdateRuleName(config_.optimizer.rule)},
                  {"seed", config_.seed},
                  {"threads", pool_->num_threads()},
                  {"isa", kernels::IsaName(kernels::ActiveIsa())},
                  {"processor", ThisCpu().brand},
                  {"data_fingerprint", state_.data_fingerprint},
                  {"tokenizer_fingerprint", state_.tokenizer_fingerprint},
                  {"save_folder", config_.save_folder},
                  {"checkpoint", last_checkpoint_.empty() ? Json() : Json(last_checkpoint_)},
                  {"finished", UtcTimestamp()}};
  Json samples = Json::array();
  for (const ReportSample& sample : samples_) {
    samples.push_back({{"prompt", sample.prompt}, {"text", sample.text}});
  }
  summary["samples"] = std::move(samples);
  if (!profile_json_.is_null()) summary["profile"] = profile_json_;
  if (!config_.data.streams.empty()) summary["streams"] = StreamSummary();
  return summary;
}

// What this process brought and what it had to do without.
Json Trainer::StreamSummary() const {
  const Loader::Report report = loader_->report();
  Json streams = {{"replaced_samples", state_.replaced_samples},
                  {"bad_shards", report.quarantined},
                  {"cache_bytes", report.cache_bytes},
                  {"most_cache_bytes", report.most_cache_bytes},
                  {"streams", Json::array()}};
  for (const Loader::StreamReport& stream : report.streams) {
    streams["streams"].push_back({{"name", stream.name},
                                  {"rows", stream.rows},
                                  {"rows_an_epoch", stream.rows_an_epoch},
                                  {"downloads", stream.downloads},
                                  {"downloaded_bytes", stream.downloaded_bytes}});
  }
  return streams;
}

std::string Trainer::SummaryText(const Json& summary) const {
  const Progress& progress = state_.progress;
  std::string text = fmt::format("{} {}: step {}, {} tokens in {} ({} tok/s)\n", config_.run_name,
                                 stopped_ ? "stopped" : "is complete", progress.step,
                                 FormatCount(static_cast<double>(progress.tokens)),
                                 tessera::FormatDuration(progress.seconds),
                                 FormatCount(summary["tokens_per_s"].get<double>()));
  const auto row = [&text](std::string_view name, const std::string& value) {
    text += fmt::format("  {:<14}{}\n", name, value);
  };
  const auto number = [&summary](const char* key, const char* format) {
    const Json& value = summary[key];
    return value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>())
                             : std::string();
  };
  if (const std::string loss = number("loss", "{:.4f}"); !loss.empty()) row("loss", loss);
  if (const std::string held_out = number("eval_loss", "{:.4f}"); !held_out.empty()) {
    std::string value = fmt::format("{} (perplexity {})", held_out, number("perplexity", "{:.2f}"));
    if (state_.last_eval_step != progress.step) {
      value += fmt::format(" at step {}", state_.last_eval_step);
    }
    row("held out", value);
  }
  if (const std::string bits = number("bits_per_byte", "{:.4f}"); !bits.empty()) {
    std::string value = bits;
    if (gzip_bits_) value += fmt::format("   gzip -9: {:.4f}", *gzip_bits_);
    if (xz_bits_) value += fmt::format("   xz -9e: {:.4f}", *xz_bits_);
    row("bits per byte", value);
  }
  if (!config_.data.streams.empty()) {
    const Loader::Report report = loader_->report();
    int64_t bytes = 0;
    for (const Loader::StreamReport& stream : report.streams) bytes += stream.downloaded_bytes;
    row("streams", fmt::format("{} fetched, {:.1f}% of the time waited for data", FormatBytes(bytes),
                               100 * data_wait_seconds_ / std::max(step_seconds_, 1e-9)));
    if (state_.replaced_samples > 0 || !report.quarantined.empty()) {
      row("bad data", fmt::format("{} samples replaced by others, {} shards given up", state_.replaced_samples,
                                  report.quarantined.size()));
    }
  }
  row("memory", fmt::format("{} at most, {} planned", FormatBytes(peak_rss_bytes_),
                            FormatBytes(planned_bytes_)));
  for (const ReportSample& sample : samples_) {
    text += fmt::format("\n[{}]{}\n", sample.prompt, sample.text);
  }
  if (!samples_.empty()) text += "\n";
  if (!last_checkpoint_.empty()) row("checkpoint", last_checkpoint_);
  row("summary", (folder_ / "summary.json").string());
  if (config_.report) row("report", (folder_ / "report.html").string());
  if (stopped_ && !options_.resume_command.empty()) {
    text += fmt::format("go on with\n  {}\n", options_.resume_command);
  }
  return text;
}

Status Trainer::WriteReport(const Json& summary) const {
  ReportInputs inputs;
  inputs.config = &config_;
  inputs.summary = &summary;
  inputs.dataset = data_.foreign ? nullptr : &data_.dataset;
  inputs.memory = memory_;
  inputs.peak_rss_bytes = peak_rss_bytes_;
  inputs.samples = samples_;
  if (metrics_) inputs.metrics = metrics_->path();
  const Result<Report> report = BuildRunReport(inputs);
  if (!report.ok()) return report.error();
  return WriteFileAtomic(folder_ / "report.html", RenderReport(*report));
}

}  // namespace tessera
