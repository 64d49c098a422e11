// Keys of the data and the tokenizer.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

// Formats of a source by their names in the file.
constexpr std::array<std::pair<std::string_view, SourceFormat>, 3> kFormats = {
    {{"auto", SourceFormat::kAuto},
     {"text", SourceFormat::kText},
     {"jsonl", SourceFormat::kJsonl}}};

constexpr const char* kSourceKeys = "path or paths, format, text_field, id_field, license, weight";

// One source: PATH, [PATHS], or a section.
class SourceReader {
 public:
  SourceReader(RunFileReading& reading, std::string name, const YamlValue& value)
      : reading_(reading), where_("data.sources." + name), value_(value) {
    source_.name = std::move(name);
  }

  SourceConfig Read() {
    if (value_.kind == YamlValue::Kind::kMap) {
      for (const YamlMember& member : value_.members) ReadMember(member);
      if (source_.paths.empty() && !failed_) {
        Fail(value_, "", "it has no path; set path: FILE, FOLDER or PATTERN");
      }
    } else {
      ReadPaths(value_, "");
    }
    return source_;
  }

 private:
  void Fail(const YamlValue& value, std::string_view key, std::string_view message) {
    failed_ = true;
    reading_.Fail(value, key.empty() ? where_ : fmt::format("{}.{}", where_, key), message);
  }

  void ReadPaths(const YamlValue& value, std::string_view key) {
    std::vector<std::string> paths;
    if (const auto problem = ReadTexts(value, &paths)) return Fail(value, key, *problem);
    for (const std::string& path : paths) {
      if (path.empty()) return Fail(value, key, "a path is empty");
    }
    if (paths.empty()) return Fail(value, key, "the list of paths is empty");
    if (!source_.paths.empty()) return Fail(value, key, "path and paths are both set; remove one");
    source_.paths = std::move(paths);
  }

  void ReadTextInto(const YamlValue& value, std::string_view key, std::string* out) {
    const std::optional<std::string> text = YamlText(value);
    if (!text.has_value()) return Fail(value, key, Expected(value, "a text"));
    *out = *text;
  }

  void ReadFormat(const YamlValue& value) {
    std::vector<std::string> names;
    for (const auto& [name, format] : kFormats) {
      if (value.kind == YamlValue::Kind::kScalar && value.text == name) {
        source_.format = format;
        return;
      }
      names.emplace_back(name);
    }
    Fail(value, "format", ChoiceProblem(value, names));
  }

  void ReadMember(const YamlMember& member) {
    const YamlValue& value = member.value;
    if (value.is_null()) return;
    if (member.key == "path" || member.key == "paths") return ReadPaths(value, member.key);
    if (member.key == "format") return ReadFormat(value);
    if (member.key == "text_field") return ReadTextInto(value, member.key, &source_.text_field);
    if (member.key == "id_field") return ReadTextInto(value, member.key, &source_.id_field);
    if (member.key == "license") return ReadTextInto(value, member.key, &source_.license);
    if (member.key == "weight") {
      const std::optional<double> weight = YamlNumber(value);
      if (!weight.has_value() || *weight <= 0 || *weight > 1000) {
        return Fail(value, "weight", Expected(value, "a number above 0 to 1000"));
      }
      source_.weight = *weight;
      return;
    }
    std::string message = fmt::format("unknown key; a source has {}", kSourceKeys);
    if (const auto nearest = SuggestKey(member.key, {"path", "paths", "format", "text_field",
                                                     "id_field", "license", "weight"})) {
      message += fmt::format(" (did you mean '{}'?)", *nearest);
    }
    Fail(value, member.key.substr(0, 60), message);
  }

  RunFileReading& reading_;
  std::string where_;
  const YamlValue& value_;
  SourceConfig source_;
  bool failed_ = false;
};

bool IsSourceName(std::string_view name) {
  if (name.empty() || name.size() > 100) return false;
  for (const char c : name) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '_' || c == '-';
    if (!ok) return false;
  }
  return true;
}

RunKey SourcesKey() {
  RunKey key{.path = "data.sources", .type = "section of sources"};
  key.allowed = "NAME: PATH, or NAME: {" + std::string(kSourceKeys) + "}";
  key.doc =
      "Named sources of documents. A path is a file, a folder or a pattern such as "
      "docs/**/*.md; txt, md, rst, pod and jsonl, also .gz, .zst, .xz. format: auto, text or "
      "jsonl. "
      "license is kept with the dataset. weight repeats (2.5) or thins out (0.25) a source's "
      "training documents. The command line adds one: data.sources.mine=PATH.";
  key.whole_subtree = true;
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    if (value.kind != YamlValue::Kind::kMap) {
      return Expected(value, "a section of NAME: PATH");
    }
    reading.config.data.sources.clear();
    for (const YamlMember& member : value.members) {
      if (!IsSourceName(member.key)) {
        reading.Fail(member.value, "data.sources",
                     fmt::format("'{}' can't name a source: use letters, digits, _ and -",
                                 member.key.substr(0, 60)));
        continue;
      }
      if (member.value.is_null()) continue;  // NAME=null on the command line takes a source away
      reading.config.data.sources.push_back(SourceReader(reading, member.key, member.value).Read());
    }
    // By name, so that neither the file's order nor an override changes the dataset.
    std::sort(reading.config.data.sources.begin(), reading.config.data.sources.end(),
              [](const SourceConfig& a, const SourceConfig& b) { return a.name < b.name; });
    return std::nullopt;
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    if (config.data.sources.empty()) return nullptr;
    OrderedJson map = OrderedJson::object();
    for (const SourceConfig& source : config.data.sources) {
      OrderedJson entry = {{"paths", source.paths}};
      for (const auto& [name, format] : kFormats) {
        if (format == source.format) entry["format"] = std::string(name);
      }
      entry["text_field"] = source.text_field;
      entry["id_field"] = source.id_field;
      entry["license"] = source.license;
      entry["weight"] = source.weight;
      map[source.name] = std::move(entry);
    }
    return map;
  };
  return key;
}

}  // namespace

void AddDataKeys(std::vector<RunKey>* keys) {
  const auto add = [keys](RunKey key, std::string default_text = "") {
    if (!default_text.empty()) key.default_text = std::move(default_text);
    keys->push_back(std::move(key));
  };
  add(TextKey(
      "tokenizer.name", [](auto& c) -> auto& { return c.tokenizer.name; },
      "A tokenizer.json, or a folder that holds one."));
  add(IntKey(
          "tokenizer.train.vocab_size",
          [](auto& c) -> auto& { return c.tokenizer.train.vocab_size; },
          {257, int64_t{1} << 24, "", 0},
          "Train a byte-level tokenizer with so many words on the training documents."),
      "no training");
  keys->back().write = [](const RunConfig& config) -> OrderedJson {
    if (config.tokenizer.train.vocab_size == 0) return nullptr;
    return config.tokenizer.train.vocab_size;
  };
  add(TextsKey(
      "tokenizer.train.special_tokens",
      [](auto& c) -> auto& { return c.tokenizer.train.special_tokens; },
      "Words that are never split; the first ends a document."));
  add(ChoiceKey(
      "tokenizer.train.pre_tokenizer",
      [](auto& c) -> auto& { return c.tokenizer.train.pre_tokenizer; },
      std::vector<Choice<std::string>>{{"gpt2", "gpt2"},
                                       {"llama3", "llama3"},
                                       {"qwen2", "qwen2"},
                                       {"gpt2_digits", "gpt2_digits"}},
      "How text is cut before pairs are merged."));
  add(BytesKey(
      "tokenizer.train.max_bytes", [](auto& c) -> auto& { return c.tokenizer.train.max_bytes; }, 1,
      "all", "Text to learn from."));

  add(SourcesKey(), "none");
  add(TextKey(
      "data.dataset", [](auto& c) -> auto& { return c.data.dataset; },
      "A dataset folder from `tessera data build`, instead of sources."));
  add(TextKey(
          "data.build_folder", [](auto& c) -> auto& { return c.data.build_folder; },
          "Where the dataset made from sources is kept; built again only when something changed."),
      "{save_folder}/dataset");
  add(NumberKey(
      "data.validation_fraction", [](auto& c) -> auto& { return c.data.validation_fraction; },
      {.low = 0, .high = 1, .open_high = true},
      "Share of documents held out for evaluation, by a hash of their identity."));
  add(IntKey(
      "data.split_seed", [](auto& c) -> auto& { return c.data.split_seed; }, {},
      "Chooses other documents."));
  add(BytesKey(
      "data.shard_bytes", [](auto& c) -> auto& { return c.data.shard_bytes; }, int64_t{1} << 12, "",
      "Size limit of a dataset's file."));
  add(BytesKey(
      "data.max_document_bytes", [](auto& c) -> auto& { return c.data.max_document_bytes; }, 1, "",
      "A larger document is an error."));
  add(BoolKey(
      "data.shuffle", [](auto& c) -> auto& { return c.data.shuffle; },
      "Samples in a random order, another one in each epoch."));
  add(BoolKey(
      "data.shuffle_documents", [](auto& c) -> auto& { return c.data.shuffle_documents; },
      "Also documents, before they are joined and cut into samples."));
  add(IntKey(
          "data.shuffle_seed", [](auto& c) -> auto& { return c.data.shuffle_seed; }, {},
          "Fixes these orders."),
      "seed");
  add(BoolKey(
      "data.document_mask", [](auto& c) -> auto& { return c.model.document_mask; },
      "Attention does not cross the borders of documents within a sample."));
  add(IntKey(
      "data.prefetch", [](auto& c) -> auto& { return c.data.prefetch; }, {1, 1024, "", 0},
      "Batches that are made ready ahead."));
  add(ChoiceKey(
      "data.verify", [](auto& c) -> auto& { return c.data.verify; },
      std::vector<Choice<DataVerify>>{{"auto", DataVerify::kAuto},
                                      {"always", DataVerify::kAlways},
                                      {"never", DataVerify::kNever}},
      "Compare the checksums of the dataset's files before training; auto: of datasets up to 1 GiB."));
  add(IntKey(
      "data.eos_id", [](auto& c) -> auto& { return c.data.eos_id; },
      {0, int64_t{1} << 31, "-1", -1},
      "The end-of-text token; -1: as the dataset says. For datasets from elsewhere."));
  add(BoolKey(
      "data.insert_eos", [](auto& c) -> auto& { return c.data.insert_eos; },
      "false where samples were joined before, as llm-foundry's converters do."));
  add(TextKey(
      "data.column", [](auto& c) -> auto& { return c.data.column; },
      "The column that holds token ids."));
  AddStreamKeys(keys);
}

}  // namespace tessera
