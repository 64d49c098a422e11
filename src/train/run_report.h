// Puts the report of a run together: its metrics as curves, its settings, data and memory as
// tables.
#pragma once

#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/dataset.h"
#include "model/plan.h"
#include "track/report.h"
#include "train/run_config.h"

namespace tessera {

struct ReportInputs {
  const RunConfig* config = nullptr;
  const Json* summary = nullptr;         // what summary.json holds
  const DatasetInfo* dataset = nullptr;  // null: a foreign dataset
  std::filesystem::path metrics;         // empty: no curves
  MemoryTable memory;
  int64_t peak_rss_bytes = 0;
  std::vector<ReportSample> samples;
};

Result<Report> BuildRunReport(const ReportInputs& inputs);

}  // namespace tessera
