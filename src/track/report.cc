#include "track/report.h"

#include <fmt/format.h>

namespace tessera {

namespace {

// Light and dark follow the reader's system. Colours of the curves keep 3:1 contrast on both.
constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1c1e21;--soft:#63676e;--line:#e3e3df;
--c0:#2563c9;--c1:#c2571a;--c2:#1d8a5b;--c3:#8b46b5;--raw:#b9c9e6}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1e2125;--ink:#e8e9eb;--soft:#9aa0a8;
--line:#30343a;--c0:#6aa3ff;--c1:#f0935a;--c2:#4cc38a;--c3:#c28af0;--raw:#38465e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 48px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:17px;margin:36px 0 12px}
.sub{color:var(--soft);margin:0 0 24px}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:16px}
.figs{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.fig b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.fig span,.note{color:var(--soft);font-size:13px}
.card h3{margin:0 0 6px;font-size:14px;display:flex;justify-content:space-between;gap:12px}
.key{font-weight:400;color:var(--soft);font-size:12.5px}
.key i{display:inline-block;width:14px;height:3px;vertical-align:middle;margin:0 5px 0 10px;
border-radius:2px}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.tick,.label{fill:var(--soft);font-size:11px}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
polyline.raw{stroke:var(--raw);stroke-width:1}
polyline.s0{stroke:var(--c0)}polyline.s1{stroke:var(--c1)}polyline.s2{stroke:var(--c2)}
polyline.s3{stroke:var(--c3)}
circle.s0{fill:var(--c0)}circle.s1{fill:var(--c1)}circle.s2{fill:var(--c2)}circle.s3{fill:var(--c3)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:500}tr:last-child td{border-bottom:0}
td:not(:first-child){font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:13px/1.5 ui-monospace,"DejaVu Sans Mono",
monospace}
.sample+.sample{margin-top:12px}.prompt{color:var(--c0);font-weight:600}
details{margin-top:12px}summary{cursor:pointer}details pre{margin-top:10px}
footer{color:var(--soft);font-size:13px;margin-top:36px}
)css";

std::string RenderTable(const ReportTable& table) {
  std::string out = fmt::format("<section class=\"card\"><h3>{}</h3><div class=\"scroll\"><table>",
                                EscapeHtml(table.title));
  if (!table.header.empty()) {
    out += "<tr>";
    for (const std::string& cell : table.header) out += fmt::format("<th>{}</th>", EscapeHtml(cell));
    out += "</tr>";
  }
  for (const std::vector<std::string>& row : table.rows) {
    out += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      const char* tag = i == 0 && table.header.empty() ? "th" : "td";
      out += fmt::format("<{0}>{1}</{0}>", tag, EscapeHtml(row[i]));
    }
    out += "</tr>";
  }
  return out + "</table></div></section>";
}

std::string RenderChartCard(const Chart& chart) {
  const std::string svg = RenderChart(chart);
  if (svg.empty()) return "";
  std::string key;
  size_t colour = 0;
  for (const ChartSeries& series : chart.series) {
    const std::string variable = series.raw ? "raw" : fmt::format("c{}", colour++ % 4);
    key += fmt::format("<i style=\"background:var(--{})\"></i>{}", variable,
                       EscapeHtml(series.name));
  }
  return fmt::format(
      "<section class=\"card\"><h3>{}<span class=\"key\">{}</span></h3>{}</section>",
      EscapeHtml(chart.title), key, svg);
}

}  // namespace

std::string RenderReport(const Report& report) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>{0}</title><style>{1}</style></head>\n<body><main><h1>{0}</h1><p class=\"sub\">{2}</p>",
      EscapeHtml(report.title), kStyle, EscapeHtml(report.subtitle));
  out += "<div class=\"figs\">";
  for (const ReportFigure& figure : report.figures) {
    out += fmt::format("<div class=\"card fig\"><span>{}</span><b>{}</b><span>{}</span></div>",
                       EscapeHtml(figure.label), EscapeHtml(figure.value), EscapeHtml(figure.note));
  }
  out += "</div>\n<h2>Curves</h2><div class=\"grid2\">";
  for (const Chart& chart : report.charts) out += RenderChartCard(chart);
  out += "</div>\n";
  if (!report.samples.empty()) {
    out += "<h2>What it writes</h2>";
    for (const ReportSample& sample : report.samples) {
      out += fmt::format(
          "<div class=\"card sample\"><pre><span class=\"prompt\">{}</span>{}</pre></div>",
          EscapeHtml(sample.prompt), EscapeHtml(sample.text));
    }
  }
  out += "\n<h2>The run</h2><div class=\"grid2\">";
  for (const ReportTable& table : report.tables) out += RenderTable(table);
  out += "</div>\n";
  for (const auto& [title, content] : report.details) {
    out += fmt::format(
        "<details class=\"card\"><summary>{}</summary><pre>{}</pre></details>", EscapeHtml(title),
        EscapeHtml(content));
  }
  out += fmt::format("<footer>{}</footer></main></body></html>\n", EscapeHtml(report.footer));
  return out;
}

}  // namespace tessera
