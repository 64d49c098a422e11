// The trainer's parts: setting up, the loop, and the end of a run.
#pragma once

#include <cstdio>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/threads.h"
#include "base/time.h"
#include "checkpoint/checkpoint.h"
#include "data/loader.h"
#include "model/engine.h"
#include "model/profile.h"
#include "track/console.h"
#include "track/metrics_file.h"
#include "track/report.h"
#include "train/engine_state.h"
#include "train/evaluation.h"
#include "train/run_data.h"
#include "train/run_state.h"
#include "train/schedule.h"
#include "train/trainer.h"

namespace tessera {

class Trainer {
 public:
  Trainer(const RunConfig& config, const TrainOptions& options);
  Result<TrainOutcome> Run();

 private:
  // What a step left behind, for the message when a run stops on non-finite values.
  struct SeenStep {
    int64_t step = 0;
    double loss = 0;
    double grad_norm = 0;
  };

  // trainer_setup.cc
  Status OpenFolder();
  // Refuses what can be known to fail before the tokenizer and the dataset are made.
  Status CheckEarly();
  Status CheckResume(const CheckpointInfo& checkpoint, const RunState& saved);
  Status CheckDiskSpace();
  Status ReadStart();
  Status OpenMetrics();
  // Plans and allocates for the stage of growth that the progress lies in; fills the engine from
  // `source`, or initialises it.
  Status BuildStage(const std::optional<CheckpointInfo>& source, LoadPart part);
  // Fits embedding and head of a new model to the counts of token pairs.
  Status FitTables();
  Status OpenLoader();

  // trainer.cc
  Status Loop();
  Status Step(const Schedule& schedule);
  Status HandleNonFinite(const StepResult& result);
  std::pair<int64_t, int64_t> StageShape() const;  // sequence length, batch size
  Status ChangeStage();
  Status EvaluateNow();
  Result<CheckpointInfo> SaveCheckpoint(bool with_state);
  // Saves; a failure is told and training goes on, since the earlier checkpoints are whole.
  void TrySave();
  void ShowStep(const StepResult& result, const UpdateOptions& update, const Progress& before);
  void WriteStepMetrics(const StepResult& result, const UpdateOptions& update, double seconds,
                        double data_wait);
  void WriteMetrics(const OrderedJson& line);
  double WindowRate() const;  // tokens a second over the speed window
  double SecondsLeft() const;

  // trainer_finish.cc
  Status Finish();
  Json Summary() const;
  Json StreamSummary() const;
  std::string SummaryText(const Json& summary) const;
  void CompareCompressors();
  void WriteSamples();
  Status WriteReport(const Json& summary) const;
  // trainer_profile.cc
  void StartProfile();
  Status FinishProfile();

  void Say(const std::string& text) { console_.Print(text); }

  const RunConfig& run_;  // as given
  RunConfig config_;      // with the vocabulary's size
  const TrainOptions& options_;
  Stopwatch wall_;
  RunConsole console_;
  std::unique_ptr<ThreadPool> pool_;
  std::filesystem::path folder_;
  std::optional<CheckpointStore> store_;
  std::vector<std::filesystem::path> replaced_;  // checkpoints of a run that this one replaces
  RunData data_;
  std::string tokenizer_json_;
  kernels::Compute compute_ = kernels::Compute::kF32;
  double gemm_gflops_ = 0;

  std::unique_ptr<OpProfile> profile_;  // outlives the engines of all stages
  double unprofiled_seconds_ = 0;  // of training before this process
  Json profile_json_;

  RunState state_;
  std::optional<CheckpointInfo> start_;  // what the run begins from
  bool resumed_ = false;                 // from this run's own checkpoint
  bool weights_only_ = false;            // only the weights of start_
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Loader> loader_;
  std::optional<MetricsFile> metrics_;
  bool metrics_failed_ = false;

  int64_t first_step_ = 0;  // where this process began
  int64_t last_saved_step_ = -1;
  std::string last_checkpoint_;
  std::optional<Error> save_error_;
  std::deque<std::pair<double, int64_t>> window_;  // seconds and tokens of recent steps
  double window_seconds_ = 0;
  int64_t window_tokens_ = 0;
  double step_seconds_ = 0;       // of this process
  double data_wait_seconds_ = 0;  // of these, waiting for batches
  std::deque<SeenStep> seen_;
  std::deque<double> recent_losses_;
  bool stopped_ = false;
  int64_t planned_bytes_ = 0;
  int64_t peak_rss_bytes_ = 0;
  MemoryTable memory_;
  std::optional<double> gzip_bits_, xz_bits_;
  std::vector<ReportSample> samples_;
};

}  // namespace tessera
