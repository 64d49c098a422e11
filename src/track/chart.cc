#include "track/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/strings.h"

namespace tessera {

namespace {

// The drawing's own units; the page scales it to its column.
constexpr double kWidth = 560, kHeight = 260;
constexpr double kLeft = 58, kRight = 14, kTop = 12, kBottom = 40;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

std::string TickLabel(double value, double step) {
  const double size = std::abs(value);
  if (size >= 10'000) return FormatCount(value);
  if (size > 0 && size < 1e-3) return fmt::format("{:.1e}", value);
  const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return fmt::format("{:.{}f}", value, std::min(digits, 6));
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // Control characters are not allowed in HTML.
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;
    }
  }
  return out;
}

ChartSeries Thinned(const ChartSeries& series, size_t points) {
  const size_t n = series.x.size();
  if (points == 0 || n <= points) return series;
  ChartSeries out = series;
  out.x.clear();
  out.y.clear();
  for (size_t i = 0; i < points; ++i) {
    const size_t begin = i * n / points, end = (i + 1) * n / points;
    double x = 0, y = 0, count = 0;
    for (size_t j = begin; j < end; ++j) {
      if (!std::isfinite(series.y[j])) continue;
      x += series.x[j];
      y += series.y[j];
      count += 1;
    }
    if (count == 0) continue;
    out.x.push_back(x / count);
    out.y.push_back(y / count);
  }
  return out;
}

ChartSeries Smoothed(const ChartSeries& series, double keep) {
  ChartSeries out = series;
  out.y.clear();
  out.x.clear();
  double mean = 0, weight = 0;
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!std::isfinite(series.y[i])) continue;
    mean = keep * mean + (1 - keep) * series.y[i];
    weight = keep * weight + (1 - keep);
    out.x.push_back(series.x[i]);
    out.y.push_back(mean / weight);
  }
  return out;
}

std::vector<double> AxisTicks(double low, double high, int count) {
  const double span = high - low;
  if (!(span > 0) || count < 1) return {low};
  const double raw = span / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double lead = raw / power;
  const double step = power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    ticks.push_back(i * step + 0.0);  // no -0
  }
  return ticks;
}

std::string RenderChart(const Chart& chart) {
  Range x_range, y_range;
  for (const ChartSeries& series : chart.series) {
    for (size_t i = 0; i < series.x.size(); ++i) {
      if (!std::isfinite(series.y[i])) continue;
      x_range.Add(series.x[i]);
      y_range.Add(series.y[i]);
    }
  }
  if (y_range.empty() || x_range.low == x_range.high) return "";  // one point is no curve
  if (chart.from_zero) y_range.Add(0);
  if (y_range.high == y_range.low) {
    const double margin = y_range.high == 0 ? 1 : std::abs(y_range.high) * 0.1;
    y_range.high += margin;
    if (!chart.from_zero || y_range.low != 0) y_range.low -= margin;
  }
  const double pad = 0.04 * (y_range.high - y_range.low);
  y_range.high += pad;
  if (!chart.from_zero) y_range.low -= pad;
  const auto px = [&](double x) {
    return kLeft + (x - x_range.low) / (x_range.high - x_range.low) * (kWidth - kLeft - kRight);
  };
  const auto py = [&](double y) {
    return kHeight - kBottom -
           (y - y_range.low) / (y_range.high - y_range.low) * (kHeight - kTop - kBottom);
  };

  std::string svg = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
                                kWidth, kHeight, EscapeHtml(chart.title));
  const std::vector<double> y_ticks = AxisTicks(y_range.low, y_range.high, 5);
  const double y_step = y_ticks.size() > 1 ? y_ticks[1] - y_ticks[0] : 1;
  for (const double tick : y_ticks) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick\" x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}</text>",
        kLeft, kWidth - kRight, py(tick), kLeft - 7, py(tick) + 3.5, TickLabel(tick, y_step));
  }
  const std::vector<double> x_ticks = AxisTicks(x_range.low, x_range.high, 6);
  const double x_step = x_ticks.size() > 1 ? x_ticks[1] - x_ticks[0] : 1;
  for (const double tick : x_ticks) {
    svg +=
        fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    px(tick), kHeight - kBottom + 16, TickLabel(tick, x_step));
  }
  svg += fmt::format("<line class=\"axis\" x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\"/>", kLeft,
                     kWidth - kRight, kHeight - kBottom);
  svg += fmt::format("<text class=\"label\" x=\"{:.0f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6, EscapeHtml(chart.x_label));
  size_t colour = 0;
  for (const ChartSeries& series : chart.series) {
    const std::string style = series.raw ? "raw" : fmt::format("s{}", colour % 4);
    std::string points;
    for (size_t i = 0; i < series.x.size(); ++i) {
      if (!std::isfinite(series.y[i])) continue;
      points += fmt::format("{:.1f},{:.1f} ", px(series.x[i]), py(series.y[i]));
      if (series.markers) {
        svg += fmt::format(
            "<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"><title>{}</title></circle>",
            style, px(series.x[i]), py(series.y[i]),
            EscapeHtml(fmt::format("{} {:.4g} at {:.6g}", series.name, series.y[i], series.x[i])));
      }
    }
    svg += fmt::format("<polyline class=\"{}\" points=\"{}\"/>", style, points);
    if (!series.raw) ++colour;
  }
  svg += "</svg>";
  return svg;
}

}  // namespace tessera
