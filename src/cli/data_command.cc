// `tessera data`: build, inspect and verify tokenized datasets.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "base/files.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "base/time.h"
#include "cli/commands.h"
#include "data/build.h"
#include "data/dataset.h"
#include "data/document_table.h"
#include "data/mds_reader.h"
#include "tokenizer/tokenizer.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

struct BuildFlags {
  std::vector<std::string> sources;  // NAME=PATH, again for more paths
  std::vector<std::string> licenses, weights, text_fields, formats;  // NAME=VALUE
  std::string tokenizer;
  std::string output;
  double validation_fraction = 1.0 / 40;
  uint64_t split_seed = 0;
  int threads = 0;
  int64_t shard_bytes = int64_t{1} << 26;
  bool overwrite = false;
  bool json = false;
};

struct InspectFlags {
  std::string dataset;
  int64_t sample = -1;
  bool json = false;
};

struct VerifyFlags {
  std::string dataset;
  bool json = false;
};

void PrintJson(const Json& json) { fmt::print("{}\n", JsonText(json, 2)); }

Result<std::pair<std::string, std::string>> SplitFlag(const std::string& flag,
                                                      const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return InvalidArgument(fmt::format("--{} {}: expected NAME=VALUE", flag, text));
  }
  return std::pair(text.substr(0, equals), text.substr(equals + 1));
}

Result<std::vector<SourceConfig>> SourcesOf(const BuildFlags& flags) {
  std::vector<SourceConfig> sources;
  const auto find = [&](const std::string& name) -> SourceConfig* {
    for (SourceConfig& source : sources) {
      if (source.name == name) return &source;
    }
    return nullptr;
  };
  for (const std::string& text : flags.sources) {
    TESSERA_ASSIGN(const auto pair, SplitFlag("source", text));
    if (find(pair.first) == nullptr) sources.emplace_back().name = pair.first;
    find(pair.first)->paths.push_back(pair.second);
  }
  const auto apply = [&](const char* flag, const std::vector<std::string>& values,
                         const auto& set) -> Status {
    for (const std::string& text : values) {
      TESSERA_ASSIGN(const auto pair, SplitFlag(flag, text));
      SourceConfig* source = find(pair.first);
      if (source == nullptr) {
        return InvalidArgument(
            fmt::format("--{} {}: there is no source '{}'", flag, text, pair.first));
      }
      TESSERA_TRY(set(*source, pair.second));
    }
    return {};
  };
  TESSERA_TRY(apply("license", flags.licenses, [](SourceConfig& source, const std::string& value) {
    source.license = value;
    return Status();
  }));
  TESSERA_TRY(
      apply("text-field", flags.text_fields, [](SourceConfig& source, const std::string& value) {
        source.text_field = value;
        return Status();
      }));
  TESSERA_TRY(
      apply("format", flags.formats, [](SourceConfig& source, const std::string& value) -> Status {
        TESSERA_ASSIGN(source.format, ParseSourceFormat(value));
        return {};
      }));
  TESSERA_TRY(
      apply("weight", flags.weights, [](SourceConfig& source, const std::string& value) -> Status {
        const std::optional<double> weight = ParseDouble(value);
        if (!weight) return InvalidArgument(fmt::format("weight '{}' is not a number", value));
        source.weight = *weight;
        return {};
      }));
  return sources;
}

void PrintSplit(const char* name, const SplitInfo& split, const std::string& folder) {
  fmt::print("{:<12} {:>12} {:>12} {:>12} {:>8}  {}\n", name,
             FormatCount(static_cast<double>(split.documents)),
             FormatCount(static_cast<double>(split.tokens)), FormatBytes(split.bytes), split.shards,
             folder);
}

void PrintDataset(const DatasetInfo& info) {
  fmt::print("{:<12} {:>12} {:>12} {:>12} {:>8}  {}\n", "split", "documents", "tokens", "text",
             "shards", "folder");
  PrintSplit("train", info.train, info.train_folder().string());
  PrintSplit("validation", info.validation, info.validation_folder().string());
  fmt::print("\n{:<20} {:>12} {:>12} {:>12} {:>7}  {}\n", "source", "documents", "tokens", "text",
             "weight", "license");
  for (const SourceInfo& source : info.sources) {
    fmt::print("{:<20} {:>12} {:>12} {:>12} {:>7}  {}\n", source.name,
               FormatCount(static_cast<double>(source.documents)),
               FormatCount(static_cast<double>(source.train.tokens + source.validation.tokens)),
               FormatBytes(source.bytes), source.weight,
               source.license.empty() ? "not given" : source.license);
  }
  const double tokens = static_cast<double>(info.train.tokens + info.validation.tokens);
  const double bytes = static_cast<double>(info.train.bytes + info.validation.bytes);
  fmt::print("\nvocabulary {}, {:.2f} bytes a token, tokens as {}, tokenizer {}\n", info.vocab_size,
             tokens > 0 ? bytes / tokens : 0.0, info.token_encoding,
             info.tokenizer_fingerprint.substr(0, 16));
}

Json BuildJson(const DatasetInfo& info, double seconds) {
  Json json = DatasetInfoToJson(info);
  json["folder"] = info.folder.string();
  json["up_to_date"] = info.up_to_date;
  json["seconds"] = seconds;
  return json;
}

Status RunBuild(const BuildFlags& flags) {
  BuildOptions options;
  TESSERA_ASSIGN(options.sources, SourcesOf(flags));
  TESSERA_ASSIGN(const Tokenizer tokenizer, Tokenizer::Load(flags.tokenizer));
  fs::path file = flags.tokenizer;
  std::error_code code;
  if (fs::is_directory(file, code)) file /= "tokenizer.json";
  options.encoder = MakeTokenEncoder(tokenizer, file, SpecialTokens::kAsText);
  options.output = flags.output;
  options.validation_fraction = flags.validation_fraction;
  options.split_seed = flags.split_seed;
  options.threads = flags.threads;
  options.shard_bytes = flags.shard_bytes;
  options.overwrite = flags.overwrite;
  const StopSignals signals;
  std::unique_ptr<ProgressMeter> progress;
  const Stopwatch watch;
  TESSERA_ASSIGN(const DatasetInfo info, BuildDataset(options, [&](const BuildProgress& at) {
                   if (progress == nullptr) {
                     ProgressOptions shown;
                     shown.total = at.input_bytes_total;
                     shown.unit = ProgressUnit::kBytes;
                     progress = std::make_unique<ProgressMeter>("tokenizing", shown);
                   }
                   progress->Update(at.input_bytes_done);
                 }));
  if (progress != nullptr) progress->Finish();
  if (flags.json) {
    PrintJson(BuildJson(info, watch.Seconds()));
    return {};
  }
  if (info.up_to_date) fmt::print("'{}' is up to date\n\n", info.folder.string());
  PrintDataset(info);
  return {};
}

// The dataset's tokenizer, where the split lies in a dataset of ours.
std::optional<Tokenizer> TokenizerOf(const fs::path& split) {
  const fs::path file = split / ".." / "tokenizer.json";
  if (!PathExists(file)) return std::nullopt;
  Result<Tokenizer> tokenizer = Tokenizer::Load(file);
  if (!tokenizer.ok()) return std::nullopt;
  return std::move(tokenizer).value();
}

Status InspectSample(const fs::path& split, int64_t sample, bool as_json) {
  TESSERA_ASSIGN(MdsReader reader, MdsReader::Open(split));
  if (sample >= reader.samples()) {
    return InvalidArgument(fmt::format("'{}' has {} samples; --sample {} does not exist",
                                       split.string(), reader.samples(), sample));
  }
  std::vector<std::string_view> values;
  TESSERA_TRY(reader.Columns(sample, &values));
  const MdsShard& shard = reader.ShardOf(sample);
  const std::optional<Tokenizer> tokenizer = TokenizerOf(split);
  Json json = {{"sample", sample}, {"where", reader.Where(sample)}, {"columns", Json::object()}};
  for (size_t i = 0; i < values.size(); ++i) {
    const MdsColumn& column = shard.columns[i];
    Result<Json> value = MdsValueToJson(column.encoding, values[i]);
    if (!value.ok()) {
      return value.error().WithContext(
          fmt::format("{}, column '{}'", reader.Where(sample), column.name));
    }
    json["columns"][column.name] = *value;
    if (column.name != "tokens" || !tokenizer) continue;
    const Result<MdsTokens> tokens = ParseMdsTokens(column.encoding, values[i]);
    if (!tokens.ok()) continue;
    std::vector<int32_t> ids(static_cast<size_t>(tokens->count));
    if (CopyMdsTokens(*tokens, 0, tokens->count, ids.data()) >= 0)
      json["text"] = tokenizer->Decode(ids);
  }
  if (as_json) {
    PrintJson(json);
    return {};
  }
  fmt::print("{}\n", json["where"].get<std::string>());
  for (const auto& [name, value] : json["columns"].items()) {
    fmt::print("  {:<12} {}\n", name,
               value.is_string() ? value.get<std::string>() : JsonText(value));
  }
  if (json.contains("text")) fmt::print("\n{}\n", json["text"].get<std::string>());
  return {};
}

Status InspectMds(const fs::path& folder, bool as_json) {
  TESSERA_ASSIGN(const MdsIndex index, ReadMdsIndex(folder));
  int64_t bytes = 0;
  for (const MdsShard& shard : index.shards) bytes += shard.raw.bytes;
  Json columns = Json::array();
  if (!index.shards.empty()) {
    for (const MdsColumn& column : index.shards[0].columns) {
      columns.push_back({{"name", column.name}, {"encoding", column.encoding}});
    }
  }
  if (as_json) {
    PrintJson({{"folder", folder.string()},
               {"samples", index.samples()},
               {"shards", index.shards.size()},
               {"bytes", bytes},
               {"columns", columns}});
    return {};
  }
  fmt::print("{}: {} samples in {} shards, {}\n", folder.string(), index.samples(),
             index.shards.size(), FormatBytes(bytes));
  for (const Json& column : columns) {
    fmt::print("  {:<20} {}\n", column["name"].get<std::string>(),
               column["encoding"].get<std::string>());
  }
  return {};
}

Status RunInspect(const InspectFlags& flags) {
  const fs::path folder = flags.dataset;
  const bool is_dataset = PathExists(folder / kDatasetManifest);
  if (flags.sample >= 0) {
    return InspectSample(is_dataset ? folder / kTrainFolder : folder, flags.sample, flags.json);
  }
  if (!is_dataset) return InspectMds(folder, flags.json);
  TESSERA_ASSIGN(const DatasetInfo info, ReadDatasetInfo(folder));
  if (flags.json) {
    PrintJson(DatasetInfoToJson(info));
  } else {
    PrintDataset(info);
  }
  return {};
}

// documents.idx has its own checksum; here it is also compared with what the shards hold.
std::optional<std::string> CheckDocumentTable(const fs::path& split, const MdsVerifyReport& report) {
  const fs::path path = split / kDocumentTableFile;
  if (!PathExists(path)) return std::nullopt;
  const Result<DocumentTable> table = DocumentTable::Parse(path);
  if (!table.ok()) return table.error().message;
  // Damaged shards were not counted.
  if (report.problem_count > 0) return std::nullopt;
  if (table->documents() == report.samples && table->total_tokens() == report.tokens) {
    return std::nullopt;
  }
  return fmt::format("'{}' lists {} documents and {} tokens, the shards hold {} and {}: it is of "
                     "another dataset; build this one again",
                     path.string(), table->documents(), table->total_tokens(), report.samples,
                     report.tokens);
}

std::optional<std::string> CheckTokenizerCopy(const DatasetInfo& info) {
  const fs::path path = info.tokenizer_file();
  constexpr std::string_view kAdvice =
      "put the tokenizer.json with which the dataset was built into its place";
  if (!PathExists(path)) return fmt::format("'{}' is missing; {}", path.string(), kAdvice);
  const Result<Tokenizer> tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) return fmt::format("{}; {}", tokenizer.error().message, kAdvice);
  if (tokenizer->fingerprint() == info.tokenizer_fingerprint) return std::nullopt;
  return fmt::format("'{}' is not the tokenizer that made the tokens: its fingerprint is {}, {} says "
                     "{}; {}",
                     path.string(), tokenizer->fingerprint(), kDatasetManifest,
                     info.tokenizer_fingerprint, kAdvice);
}

Status RunVerify(const VerifyFlags& flags) {
  const fs::path folder = flags.dataset;
  MdsVerifyOptions options;
  std::vector<std::pair<fs::path, const SplitInfo*>> splits = {{folder, nullptr}};
  std::optional<DatasetInfo> info;
  if (PathExists(folder / kDatasetManifest)) {
    TESSERA_ASSIGN(info, ReadDatasetInfo(folder));
    options.vocab_size = info->vocab_size;
    splits = {{info->train_folder(), &info->train}, {info->validation_folder(), &info->validation}};
  }
  std::vector<std::string> problems;
  int64_t problem_count = 0;
  Json json = {{"splits", Json::array()}};
  for (const auto& [split, wanted] : splits) {
    ProgressOptions shown;
    shown.unit = ProgressUnit::kBytes;
    ProgressMeter progress(fmt::format("verifying {}", split.filename().string()), shown);
    options.progress = [&](int64_t bytes) { progress.Update(bytes); };
    TESSERA_ASSIGN(MdsVerifyReport report, VerifyMds(split, options));
    if (wanted != nullptr && report.problem_count == 0 &&
        (report.samples != wanted->documents || report.tokens != wanted->tokens)) {
      report.problems.push_back(fmt::format(
          "'{}' holds {} documents and {} tokens, {} says {} and {}", split.string(),
          report.samples, report.tokens, kDatasetManifest, wanted->documents, wanted->tokens));
      ++report.problem_count;
    }
    if (const auto problem = CheckDocumentTable(split, report)) {
      report.problems.push_back(*problem);
      ++report.problem_count;
    }
    problem_count += report.problem_count;
    problems.insert(problems.end(), report.problems.begin(), report.problems.end());
    if (!flags.json) {
      fmt::print("{}: {} samples, {} tokens, {} in {} shards, {} hashes match{}\n", split.string(),
                 report.samples, report.tokens, FormatBytes(report.bytes), report.shards,
                 report.hashes_checked,
                 report.hashes_unknown > 0
                     ? fmt::format(", {} of unknown kinds not checked", report.hashes_unknown)
                     : "");
      for (const std::string& problem : report.problems) fmt::print("  {}\n", problem);
    }
    json["splits"].push_back({{"folder", split.string()},
                              {"samples", report.samples},
                              {"tokens", report.tokens},
                              {"bytes", report.bytes},
                              {"shards", report.shards},
                              {"hashes_checked", report.hashes_checked},
                              {"hashes_unknown", report.hashes_unknown},
                              {"problem_count", report.problem_count},
                              {"problems", report.problems}});
  }
  if (info) {
    json["tokenizer_problem"] = Json();
    if (const auto problem = CheckTokenizerCopy(*info)) {
      problems.push_back(*problem);
      ++problem_count;
      json["tokenizer_problem"] = *problem;
      if (!flags.json) fmt::print("  {}\n", *problem);
    }
  }
  json["ok"] = problem_count == 0;
  if (flags.json) PrintJson(json);
  if (problem_count > 0) {
    return Corrupt(fmt::format("'{}' has {}: {}", folder.string(),
                               problem_count == 1 ? std::string("a problem")
                                                  : fmt::format("{} problems, first", problem_count),
                               problems.front()));
  }
  return {};
}

}  // namespace

void RegisterData(Command app, Outcome& outcome) {
  Command data = app.AddCommand("data", "Build, inspect and verify tokenized datasets");
  data.RequireCommand();

  auto build_flags = std::make_shared<BuildFlags>();
  Command build = data.AddCommand("build", "Documents to tokenized, streamable shards");
  build
      .AddOption("--source", build_flags->sources,
                 "NAME=PATH: file, folder or pattern; may be repeated")
      .Required();
  build.AddOption("--tokenizer", build_flags->tokenizer, "tokenizer.json or its folder").Required();
  build.AddOption("-o,--output", build_flags->output, "The dataset's folder").Required();
  build.AddOption("--license", build_flags->licenses, "NAME=LICENSE of a source");
  build.AddOption("--weight", build_flags->weights,
                  "NAME=W: repeat or thin out a source (1: once)");
  build.AddOption("--text-field", build_flags->text_fields,
                  "NAME=FIELD of jsonl that holds the text");
  build.AddOption("--format", build_flags->formats, "NAME=auto|text|jsonl");
  build
      .AddOption("--validation-fraction", build_flags->validation_fraction,
                 "Part of the documents held out, by hash of their names")
      .ShowDefault();
  build.AddOption("--split-seed", build_flags->split_seed, "Another choice of held-out documents");
  build.AddOption("--threads", build_flags->threads, "0: all cores; the result is the same");
  build.AddOption("--shard-bytes", build_flags->shard_bytes, "Size limit of a shard").ShowDefault();
  build.AddFlag("--overwrite", build_flags->overwrite, "Replace a dataset of other inputs");
  build.AddFlag("--json", build_flags->json, "Report as JSON");
  build.SetFooter(
      "Examples:\n"
      "  tessera data build --source docs=/usr/share/doc/guide --tokenizer tokenizer.json -o "
      "data/docs\n"
      "  tessera data build --source web='crawl/*.jsonl.zst' --text-field web=content \\\n"
      "      --license web=CC-BY-4.0 --source notes=notes.txt --weight notes=3 \\\n"
      "      --tokenizer tokenizer.json -o data/mix");
  build.SetCallback([build_flags, &outcome] { outcome.status = RunBuild(*build_flags); });

  auto inspect_flags = std::make_shared<InspectFlags>();
  Command inspect = data.AddCommand("inspect", "What a dataset holds");
  inspect.AddOption("dataset", inspect_flags->dataset, "A dataset's or a split's folder")
      .Required();
  inspect.AddOption("--sample", inspect_flags->sample, "Show this sample, decoded");
  inspect.AddFlag("--json", inspect_flags->json, "Report as JSON");
  inspect.SetFooter(
      "Examples:\n"
      "  tessera data inspect data/docs\n"
      "  tessera data inspect data/docs/validation --sample 3");
  inspect.SetCallback([inspect_flags, &outcome] { outcome.status = RunInspect(*inspect_flags); });

  auto verify_flags = std::make_shared<VerifyFlags>();
  Command verify =
      data.AddCommand("verify", "Check every checksum, offset and token id of a dataset");
  verify.AddOption("dataset", verify_flags->dataset, "A dataset's or a split's folder").Required();
  verify.AddFlag("--json", verify_flags->json, "Report as JSON");
  verify.SetFooter("Example:\n  tessera data verify data/docs");
  verify.SetCallback([verify_flags, &outcome] { outcome.status = RunVerify(*verify_flags); });
  RegisterDataOrder(data, outcome);
}

}  // namespace tessera::cli
