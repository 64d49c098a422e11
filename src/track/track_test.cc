#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "base/test_folder.h"
#include "track/chart.h"
#include "track/console.h"
#include "track/metrics_file.h"
#include "track/report.h"

namespace tessera {
namespace {

std::vector<int64_t> StepsOf(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  EXPECT_TRUE(VisitMetrics(path, [&](const Json& line, std::string_view) {
                steps.push_back(line["step"].get<int64_t>());
              }).ok());
  return steps;
}

TEST(MetricsFile, ResumeDropsLaterAndTornLines) {
  const TestFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    auto file = MetricsFile::Create(path);
    ASSERT_TRUE(file.ok());
    for (int64_t step = 1; step <= 5; ++step) {
      ASSERT_TRUE(file->Write({{"step", step}, {"loss", 1.5}}).ok());
    }
  }
  std::ofstream(path, std::ios::app) << "{\"step\": 2, \"lo";
  auto resumed =
      MetricsFile::Resume(path, [](const Json& line) { return line["step"].get<int64_t>() <= 3; });
  ASSERT_TRUE(resumed.ok()) << resumed.error().message;
  ASSERT_TRUE(resumed->Write({{"step", 4}}).ok());
  EXPECT_EQ(StepsOf(path), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST(MetricsFile, ResumeStartsWhereThereIsNone) {
  const TestFolder folder;
  auto file = MetricsFile::Resume(folder / "metrics.jsonl", [](const Json&) { return true; });
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->Write({{"step", 1}, {"bad", "\xff"}}).ok()) << "invalid UTF-8 is replaced";
  EXPECT_EQ(StepsOf(folder / "metrics.jsonl"), (std::vector<int64_t>{1}));
}

TEST(Console, LineShowsWhatIsKnown) {
  StepView view;
  view.step = 120;
  view.total_steps = 2000;
  view.fraction = 0.06;
  view.loss = 3.21412;
  view.lr = 6e-4;
  EXPECT_EQ(FormatStepLine(view), "step 120/2000   6% | loss 3.2141 | lr 6.00e-04");
  view.total_steps = -1;
  view.tokens_per_s = 12'300;
  view.mfu = 0.61;
  view.resident_bytes = int64_t{1} << 30;
  view.seconds_left = 187;
  view.skipped_steps = 2;
  EXPECT_EQ(FormatStepLine(view),
            "step 120   6% | loss 3.2141 | lr 6.00e-04 | 12.3k tok/s | 61% mfu | 1.0 GiB | "
            "2 skipped | 3m07s left");
}

TEST(Chart, TicksAreRound) {
  EXPECT_EQ(AxisTicks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(AxisTicks(3, 3, 5), (std::vector<double>{3}));
  EXPECT_FALSE(std::signbit(AxisTicks(0, 10, 5)[0])) << "printed as -0";
  for (const double tick : AxisTicks(1.3, 7.9, 4)) {
    EXPECT_GE(tick, 1.3);
    EXPECT_LE(tick, 7.9);
  }
}

TEST(Chart, ThinnedKeepsMeans) {
  ChartSeries series;
  for (int i = 0; i < 1000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i % 2);
  }
  const ChartSeries thin = Thinned(series, 100);
  ASSERT_EQ(thin.x.size(), 100u);
  for (const double y : thin.y) EXPECT_DOUBLE_EQ(y, 0.5);
  EXPECT_DOUBLE_EQ(thin.x[0], 4.5);
}

TEST(Chart, SmoothingStartsAtTheFirstValue) {
  const ChartSeries smooth = Smoothed({.name = "", .x = {1, 2, 3}, .y = {4, 4, 4}}, 0.9);
  for (const double y : smooth.y) EXPECT_NEAR(y, 4, 1e-12);
}

TEST(Chart, OnePointIsNoCurve) {
  Chart chart;
  chart.series.push_back({.name = "", .x = {394}, .y = {1.7}});
  EXPECT_EQ(RenderChart(chart), "");
  chart.series[0].x.push_back(400);
  chart.series[0].y.push_back(1.6);
  EXPECT_NE(RenderChart(chart), "");
}

TEST(Chart, LeavesOutWhatIsNotFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Chart chart;
  chart.series.push_back({.name = "a<b", .x = {1, 2, 3}, .y = {1, nan, 2}});
  const std::string svg = RenderChart(chart);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  chart.series[0].y = {nan, nan, nan};
  EXPECT_EQ(RenderChart(chart), "");
}

TEST(Report, IsOnePageAndEscapes) {
  Report report;
  report.title = "<run>";
  report.figures.push_back({"loss", "1.2", ""});
  report.samples.push_back({"A & B", "<script>alert(1)</script>\x01"});
  report.tables.push_back({"t", {}, {{"a", "b"}}});
  report.charts.push_back({.title = "loss",
                           .x_label = "step",
                           .y_label = "nats",
                           .series = {{.name = "train", .x = {1, 2}, .y = {3, 2}}}});
  const std::string html = RenderReport(report);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_NE(html.find("&lt;run&gt;"), std::string::npos);
  EXPECT_NE(html.find("<polyline"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos) << "no external resource";
  EXPECT_EQ(html.find('\x01'), std::string::npos);
}

}  // namespace
}  // namespace tessera
