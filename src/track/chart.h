// Line charts as inline SVG, drawn without scripts or external resources.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct ChartSeries {
  std::string name;
  std::vector<double> x = {}, y = {};  // Points with a non-finite y are left out.
  bool raw = false;                    // Drawn thin and pale, behind the others.
  bool markers = false;                // A dot at each point: for few points.
};

struct Chart {
  std::string title;
  std::string x_label;
  std::string y_label = {};
  std::vector<ChartSeries> series = {};
  bool from_zero = false;  // The y axis starts at 0.
};

// At most `points` points: means of equal runs of neighbours.
ChartSeries Thinned(const ChartSeries& series, size_t points);
// An exponential mean with the bias of its start removed.
ChartSeries Smoothed(const ChartSeries& series, double keep);
// Round values at which an axis from `low` to `high` is labelled, about `count` of them.
std::vector<double> AxisTicks(double low, double high, int count);
// "<svg ...>...</svg>"; colours come from the page's CSS variables.
std::string RenderChart(const Chart& chart);
std::string EscapeHtml(std::string_view text);

}  // namespace tessera
