// The report of a run: one HTML page that needs nothing else, with curves, tables and samples.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "track/chart.h"

namespace tessera {

struct ReportFigure {
  std::string label;
  std::string value;
  std::string note;
};

struct ReportTable {
  std::string title;
  std::vector<std::string> header = {};  // empty: rows of name and value
  std::vector<std::vector<std::string>> rows = {};
};

struct ReportSample {
  std::string prompt;
  std::string text;  // what the model wrote after it
};

struct Report {
  std::string title;
  std::string subtitle;
  std::vector<ReportFigure> figures;
  std::vector<Chart> charts;
  std::vector<ReportTable> tables;
  std::vector<ReportSample> samples;
  // Long texts, folded: title and content.
  std::vector<std::pair<std::string, std::string>> details;
  std::string footer;
};

std::string RenderReport(const Report& report);

}  // namespace tessera
