// The trainer: from a run file to a trained model, its checkpoints, metrics, summary and report.
#pragma once

#include <string>

#include "base/error.h"
#include "base/json.h"
#include "train/run_config.h"

namespace tessera {

struct TrainOptions {
  bool show_progress = true;   // false: only warnings and errors on stderr
  bool profile = false;        // each form of op beside the limits: on stderr, in the summary
  std::string trace_file;      // timeline of the first steps; empty: none
  std::string resume_command;  // told to the person after a stop
};

struct TrainOutcome {
  bool complete = false;  // false: stopped by a signal, after saving
  int stop_signal = 0;
  Json summary;      // what summary.json holds
  std::string text;  // the same for people
};

// Runs to max_duration or until a stop is requested (base/signals.h). What was saved before an
// error stays valid.
Result<TrainOutcome> RunTraining(const RunConfig& config, const TrainOptions& options);

}  // namespace tessera
