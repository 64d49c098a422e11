#include "train/run_report.h"

#include <gtest/gtest.h>

#include "base/test_folder.h"

namespace tessera {
namespace {

constexpr const char* kSummary = R"({
  "run_name": "r", "status": "complete", "finished": "2025-01-01T00:00:00Z", "bits_per_byte": 1.75,
  "eval_loss": 2.5, "perplexity": 12.2, "gzip_bits_per_byte": 2.6, "xz_bits_per_byte": 2.24,
  "loss": 2.4, "parameters": 5000000, "tokens": 900000, "epochs": 0.5, "train_seconds": 180,
  "steps": 440, "tokens_per_s": 5000, "mfu": 0.6, "microbatch_size": 8, "compute": "fp32",
  "processor": "a <fast> one", "threads": 2, "isa": "avx512", "skipped_steps": 1,
  "data_fingerprint": "abc"})";

TEST(RunReport, HoldsCurvesTablesAndSamples) {
  const TestFolder folder;
  std::string metrics;
  for (int step = 1; step <= 40; ++step) {
    metrics += "{\"step\":" + std::to_string(step) + ",\"loss\":" + std::to_string(5.0 / step) +
               ",\"lr\":0.001,\"tokens_per_s\":5000,\"grad_norm\":null}\n";
  }
  metrics += "{\"step\":40,\"eval_loss\":2.5,\"eval_bits_per_byte\":1.75}\n{\"step\":41,\"lo";
  folder.Write("metrics.jsonl", metrics);
  RunConfig config;
  config.run_name = "r";
  config.max_duration = {40, TimeUnit::kBatch};
  const Json summary = Json::parse(kSummary);
  DatasetInfo dataset;
  SourceInfo source;
  source.name = "manuals";
  source.license = "CC-BY-4.0";
  dataset.sources.push_back(source);
  ReportInputs inputs;
  inputs.config = &config;
  inputs.summary = &summary;
  inputs.dataset = &dataset;
  inputs.metrics = folder / "metrics.jsonl";
  inputs.memory.weights = 1 << 20;
  inputs.samples = {{"Returns the", " value."}};
  const auto report = BuildRunReport(inputs);
  ASSERT_TRUE(report.ok()) << report.error().message;
  ASSERT_EQ(report->charts.size(), 5u);
  EXPECT_EQ(report->charts[0].series[0].x.size(), 40u) << "the torn line is left out";
  EXPECT_EQ(report->charts[1].series[0].y, std::vector<double>{1.75});
  const std::string html = RenderReport(*report);
  for (const char* part : {"1.7500", "gzip -9 2.600", "manuals", "CC-BY-4.0", "Returns the",
                           "a &lt;fast&gt; one", "skipped steps", "1.0 MiB"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(html.find("Gradient norm"), std::string::npos) << "a curve without values has no card";
}

}  // namespace
}  // namespace tessera
