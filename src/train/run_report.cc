#include "train/run_report.h"

#include <fmt/format.h>

#include <cmath>

#include "base/strings.h"
#include "track/metrics_file.h"

namespace tessera {

namespace {

// Points of a curve: more than this many cannot be told apart at the page's width.
constexpr size_t kPoints = 800;

struct Curves {
  ChartSeries loss{.name = "training"}, lr{.name = "lr"}, muon_lr{.name = "muon lr"};
  ChartSeries rate{.name = "tokens/s"}, grad_norm{.name = "gradient norm"};
  ChartSeries eval_loss{.name = "held out", .markers = true};
  ChartSeries bits{.name = "held out", .markers = true};
};

void Push(ChartSeries* series, double x, const Json& line, const char* key) {
  const auto it = line.find(key);
  if (it == line.end() || !it->is_number()) return;
  series->x.push_back(x);
  series->y.push_back(it->get<double>());
}

Result<Curves> ReadCurves(const std::filesystem::path& path) {
  Curves curves;
  TESSERA_TRY(VisitMetrics(path, [&](const Json& line, std::string_view) {
    const auto step = line.find("step");
    if (step == line.end() || !step->is_number()) return;
    const double x = step->get<double>();
    Push(&curves.loss, x, line, "loss");
    Push(&curves.lr, x, line, "lr");
    Push(&curves.muon_lr, x, line, "muon_lr");
    Push(&curves.rate, x, line, "tokens_per_s");
    Push(&curves.grad_norm, x, line, "grad_norm");
    Push(&curves.eval_loss, x, line, "eval_loss");
    Push(&curves.bits, x, line, "eval_bits_per_byte");
  }));
  return curves;
}

// The raw points pale behind their smoothed course.
std::vector<ChartSeries> WithTrend(const ChartSeries& series) {
  if (series.x.size() < 20) return {series};
  // A mean over about a fiftieth of the run.
  const double keep = 1 - 1 / std::max(4.0, static_cast<double>(series.x.size()) / 50);
  ChartSeries raw = Thinned(series, kPoints);
  raw.raw = true;
  raw.name = "each step";
  return {raw, Thinned(Smoothed(series, keep), kPoints)};
}

void AddCharts(const Curves& curves, Report* report) {
  Chart loss{
      .title = "Loss", .x_label = "step", .y_label = "nats", .series = WithTrend(curves.loss)};
  if (!curves.eval_loss.x.empty()) loss.series.push_back(curves.eval_loss);
  report->charts.push_back(std::move(loss));
  report->charts.push_back({.title = "Held-out bits per byte",
                            .x_label = "step",
                            .y_label = "bits",
                            .series = {curves.bits}});
  Chart lr{.title = "Learning rate", .x_label = "step", .series = {}, .from_zero = true};
  lr.series.push_back(Thinned(curves.lr, kPoints));
  if (!curves.muon_lr.x.empty()) lr.series.push_back(Thinned(curves.muon_lr, kPoints));
  report->charts.push_back(std::move(lr));
  report->charts.push_back({.title = "Speed",
                            .x_label = "step",
                            .y_label = "tokens/s",
                            .series = WithTrend(curves.rate),
                            .from_zero = true});
  report->charts.push_back({.title = "Gradient norm",
                            .x_label = "step",
                            .series = WithTrend(curves.grad_norm),
                            .from_zero = true});
}

std::string Text(const Json& summary, const char* key, const char* format) {
  const Json value = summary.value(key, Json());
  return value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>())
                           : std::string("-");
}

void AddFigures(const Json& summary, Report* report) {
  const auto has = [&](const char* key) {
    return summary.contains(key) && summary[key].is_number();
  };
  if (has("bits_per_byte")) {
    std::string note;
    if (has("gzip_bits_per_byte")) {
      note = fmt::format("gzip -9 {}, xz -9e {}", Text(summary, "gzip_bits_per_byte", "{:.3f}"),
                         Text(summary, "xz_bits_per_byte", "{:.3f}"));
    }
    report->figures.push_back(
        {"bits per byte, held out", Text(summary, "bits_per_byte", "{:.4f}"), note});
  }
  if (has("eval_loss")) {
    report->figures.push_back({"loss, held out", Text(summary, "eval_loss", "{:.4f}"),
                               "perplexity " + Text(summary, "perplexity", "{:.2f}")});
  }
  report->figures.push_back({"loss, training", Text(summary, "loss", "{:.4f}"), "last 50 steps"});
  const auto count = [&](const char* key) { return FormatCount(summary[key].get<double>()); };
  report->figures.push_back({"parameters", count("parameters"), ""});
  report->figures.push_back(
      {"tokens", count("tokens"), Text(summary, "epochs", "{:.2f}") + " epochs"});
  report->figures.push_back({"training time",
                             tessera::FormatDuration(summary["train_seconds"].get<double>()),
                             Text(summary, "steps", "{:.0f}") + " steps"});
  report->figures.push_back(
      {"speed", count("tokens_per_s") + " tok/s",
       fmt::format("{:.0f}% of the matrix product's rate", 100 * summary["mfu"].get<double>())});
}

void AddTables(const ReportInputs& inputs, Report* report) {
  const RunConfig& config = *inputs.config;
  const ModelConfig& model = config.model;
  const Json& summary = *inputs.summary;
  ReportTable settings{.title = "Settings"};
  const auto add = [](ReportTable* table, std::string name, std::string value) {
    table->rows.push_back({std::move(name), std::move(value)});
  };
  add(&settings, "model",
      fmt::format("{}: {} layers, width {}, {} heads, vocabulary {}", model.family, model.n_layers,
                  model.d_model, model.n_heads, model.vocab_size));
  add(&settings, "batch",
      fmt::format("{} sequences of {} tokens in passes of {}", config.global_train_batch_size,
                  config.max_seq_len, summary["microbatch_size"].get<int64_t>()));
  add(&settings, "optimizer",
      config.optimizer.rule == UpdateRule::kMuon
          ? fmt::format("muon, lr {:g}, adamw lr {:g}", config.optimizer.muon_lr,
                        config.optimizer.lr)
          : fmt::format("{}, lr {:g}, weight decay {:g}", UpdateRuleName(config.optimizer.rule),
                        config.optimizer.lr, config.optimizer.weight_decay));
  add(&settings, "schedule", std::string(ScheduleKindName(config.scheduler.kind)));
  add(&settings, "length", FormatDuration(config.max_duration));
  add(&settings, "precision",
      fmt::format("{}, products in {}", PrecisionName(config.precision),
                  summary["compute"].get<std::string>()));
  add(&settings, "seed", fmt::format("{}", config.seed));
  add(&settings, "machine",
      fmt::format("{}, {} threads, {}", summary["processor"].get<std::string>(),
                  summary["threads"].get<int64_t>(), summary["isa"].get<std::string>()));
  if (const int64_t skipped = summary["skipped_steps"].get<int64_t>(); skipped > 0) {
    add(&settings, "skipped steps", fmt::format("{} (loss or gradient not finite)", skipped));
  }
  report->tables.push_back(std::move(settings));

  ReportTable memory{.title = "Memory: planned before the start, and measured"};
  const auto bytes = [&](std::string name, int64_t value) {
    if (value > 0) add(&memory, std::move(name), FormatBytes(value));
  };
  bytes("weights", inputs.memory.weights);
  bytes("working copies", inputs.memory.working);
  bytes("gradients", inputs.memory.gradients);
  bytes("optimizer state", inputs.memory.moments);
  bytes("averaged weights", inputs.memory.average);
  bytes("activations", inputs.memory.activations);
  bytes("workspace", inputs.memory.workspace);
  bytes("batches", inputs.memory.data);
  bytes("process", inputs.memory.process);
  bytes("total planned", inputs.memory.total());
  bytes("measured peak", inputs.peak_rss_bytes);
  report->tables.push_back(std::move(memory));

  if (inputs.dataset != nullptr) {
    ReportTable data{.title = "Data",
                     .header = {"source", "licence", "files", "documents", "text",
                                "training tokens", "held-out tokens"}};
    for (const SourceInfo& source : inputs.dataset->sources) {
      data.rows.push_back({source.name, source.license.empty() ? "not given" : source.license,
                           fmt::format("{}", source.files), fmt::format("{}", source.documents),
                           FormatBytes(source.bytes),
                           FormatCount(static_cast<double>(source.train.tokens)),
                           FormatCount(static_cast<double>(source.validation.tokens))});
    }
    report->tables.push_back(std::move(data));
  }
}

}  // namespace

Result<Report> BuildRunReport(const ReportInputs& inputs) {
  const Json& summary = *inputs.summary;
  Report report;
  report.title = inputs.config->run_name;
  report.subtitle = fmt::format("Training run, {} at {}", summary["status"].get<std::string>(),
                                summary["finished"].get<std::string>());
  AddFigures(summary, &report);
  if (!inputs.metrics.empty()) {
    TESSERA_ASSIGN(const Curves curves, ReadCurves(inputs.metrics));
    AddCharts(curves, &report);
  }
  AddTables(inputs, &report);
  report.samples = inputs.samples;
  report.details.emplace_back("The resolved run file", RunConfigToYaml(*inputs.config));
  report.footer = fmt::format("Data fingerprint {}. Made by tessera {}.",
                              summary["data_fingerprint"].get<std::string>(), "0.1.0");
  return report;
}

}  // namespace tessera
