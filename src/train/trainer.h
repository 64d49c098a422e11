// The trainer: from a run file to a trained model, its checkpoints, metrics, summary and report.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "model/engine.h"
#include "tokenizer/tokenizer.h"
#include "track/report.h"
#include "train/run_config.h"

namespace tessera {

// Continues the prompts of a run's settings with a trained engine.
using GenerateSamples = std::function<Result<std::vector<ReportSample>>(
    Engine& engine, const Tokenizer& tokenizer, const SampleSettings& settings, uint64_t seed)>;

struct TrainOptions {
  bool show_progress = true;   // false: only warnings and errors on stderr
  bool profile = false;        // time by kind of op at the end, on stderr
  std::string resume_command;  // told to the person after a stop
  GenerateSamples generate;    // empty: no samples
};

struct TrainOutcome {
  bool complete = false;  // false: stopped by a signal, after saving
  int stop_signal = 0;
  Json summary;           // what summary.json holds
  std::string text;       // the same for people
};

// Runs to max_duration or until a stop is requested (base/signals.h). What was saved before an error
// stays valid.
Result<TrainOutcome> RunTraining(const RunConfig& config, const TrainOptions& options);

}  // namespace tessera
