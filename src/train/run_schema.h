// The declared keys of a run file: where each value goes, what is allowed, and its description.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/json.h"
#include "train/run_config.h"
#include "train/run_file_reader.h"

namespace tessera {

// What is being read. Custom keys report problems of their parts themselves.
struct RunFileReading {
  RunConfig config;
  std::vector<RunFileProblem> problems;

  void Fail(const YamlValue& value, std::string_view path, std::string_view message) {
    problems.push_back({value.line, value.override_text, fmt::format("{}: {}", path, message)});
  }
};

struct RunKey {
  std::string path = {};     // "optimizer.muon.lr"
  std::string type = {};     // "integer", "number", "duration" ...
  std::string allowed = {};  // "1 to 64", "adamw, lion": may be empty
  std::string doc = {};
  std::string default_text = {};  // where the default is no constant: "from model.name"
  // Takes the value into the reading's config; returns what is wrong, or nothing.
  std::function<std::optional<std::string>(RunFileReading&, const YamlValue&)> read = {};
  // The resolved value; empty for keys that are only another way to write one of the rest.
  std::function<OrderedJson(const RunConfig&)> write = {};
  bool null_means_none = false;  // else null stands for the default
  bool whole_subtree = false;    // the value's own members are not keys of the schema
};

// In the order in which they are read and written: keys on which defaults depend come first.
const std::vector<RunKey>& RunSchema();
// A config with the defaults that do not depend on other keys.
RunConfig DefaultRunConfig();
// What each section is for, in the order of the documentation: {"optimizer", "..."}.
const std::vector<std::pair<std::string, std::string>>& RunSections();
// What to do with keys of llm-foundry and Composer that have no counterpart here.
std::optional<std::string> HintForForeignKey(std::string_view path);
// docs/run-file.md.
std::string RunFileReference();

// The parts of the schema, one a file.
void AddRunKeys(std::vector<RunKey>* keys);
void AddModelKeys(std::vector<RunKey>* keys);
void AddTrainingKeys(std::vector<RunKey>* keys);
void AddDataKeys(std::vector<RunKey>* keys);
void AddStreamKeys(std::vector<RunKey>* keys);

// Values as written in the file; nullopt when they are of another type.
std::optional<bool> YamlBool(const YamlValue& value);
std::optional<int64_t> YamlInt(const YamlValue& value);
std::optional<double> YamlNumber(const YamlValue& value);
std::optional<std::string> YamlText(const YamlValue& value);  // any scalar
// "found 'x'; allowed is y"
std::string Expected(const YamlValue& value, std::string_view what);
// NearestKey for texts short enough to be a key: the search costs their length times all names.
std::optional<std::string> SuggestKey(std::string_view text, const std::vector<std::string>& names);
// A list of texts, or an error text.
std::optional<std::string> ReadTexts(const YamlValue& value, std::vector<std::string>* out);

inline constexpr double kNoLimit = std::numeric_limits<double>::infinity();
inline constexpr int64_t kLargestCount = int64_t{1} << 53;

// ---- makers; `field` is a generic lambda from a config to the member: [](auto& c) -> auto& {...}

template <class Field>
RunKey BoolKey(std::string path, Field field, std::string doc) {
  RunKey key{.path = std::move(path), .type = "true or false", .doc = std::move(doc)};
  key.read = [field](RunFileReading& reading,
                     const YamlValue& value) -> std::optional<std::string> {
    const std::optional<bool> flag = YamlBool(value);
    if (!flag.has_value()) return Expected(value, "true or false");
    field(reading.config) = *flag;
    return std::nullopt;
  };
  key.write = [field](const RunConfig& config) -> OrderedJson { return field(config); };
  return key;
}

// `word`, where not empty, may stand for `word_value`: "auto" for 0, or "-1" for itself.
struct IntRange {
  int64_t low = 0;
  int64_t high = kLargestCount;
  std::string word = {};
  int64_t word_value = 0;
};

template <class Field>
RunKey IntKey(std::string path, Field field, IntRange range, std::string doc) {
  RunKey key{.path = std::move(path), .type = "integer", .doc = std::move(doc)};
  key.allowed = range.high >= kLargestCount ? fmt::format("{} or more", range.low)
                                            : fmt::format("{} to {}", range.low, range.high);
  if (!range.word.empty()) key.allowed += ", or " + range.word;
  key.read = [field, range, allowed = key.allowed](
                 RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    using Int = std::remove_reference_t<decltype(field(reading.config))>;
    const bool is_word = !range.word.empty() && value.text == range.word;
    const std::optional<int64_t> number = is_word ? range.word_value : YamlInt(value);
    if (!number.has_value() || (!is_word && (*number < range.low || *number > range.high))) {
      return Expected(value, "an integer: " + allowed);
    }
    field(reading.config) = static_cast<Int>(*number);
    return std::nullopt;
  };
  key.write = [field, range](const RunConfig& config) -> OrderedJson {
    const int64_t number = static_cast<int64_t>(field(config));
    if (range.word_value == 0 && !range.word.empty() && number == 0) return range.word;
    return number;
  };
  return key;
}

// [low, high], without the ends where `open` says so.
struct NumberRange {
  double low = 0;
  double high = kNoLimit;
  bool open_low = false;
  bool open_high = false;
  // null is written for this value and read as it.
  std::optional<double> none = {};
};

std::string DescribeRange(const NumberRange& range);
bool InRange(const NumberRange& range, double number);

template <class Field>
RunKey NumberKey(std::string path, Field field, NumberRange range, std::string doc) {
  RunKey key{.path = std::move(path), .type = "number", .doc = std::move(doc)};
  key.allowed = DescribeRange(range);
  key.null_means_none = range.none.has_value();
  key.read = [field, range, allowed = key.allowed](
                 RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    if (value.is_null() && range.none.has_value()) {
      field(reading.config) = *range.none;
      return std::nullopt;
    }
    const std::optional<double> number = YamlNumber(value);
    if (!number.has_value() || !InRange(range, *number)) {
      return Expected(value, "a number: " + allowed);
    }
    field(reading.config) = *number;
    return std::nullopt;
  };
  key.write = [field, range](const RunConfig& config) -> OrderedJson {
    const double number = field(config);
    if (range.none.has_value() && number == *range.none) return nullptr;
    return number;
  };
  return key;
}

template <class Field>
RunKey TextKey(std::string path, Field field, std::string doc) {
  RunKey key{.path = std::move(path), .type = "text", .doc = std::move(doc)};
  key.read = [field](RunFileReading& reading,
                     const YamlValue& value) -> std::optional<std::string> {
    const std::optional<std::string> text = YamlText(value);
    if (!text.has_value()) return Expected(value, "a text");
    field(reading.config) = *text;
    return std::nullopt;
  };
  key.write = [field](const RunConfig& config) -> OrderedJson {
    if (field(config).empty()) return nullptr;
    return field(config);
  };
  return key;
}

template <class Field>
RunKey TextsKey(std::string path, Field field, std::string doc) {
  RunKey key{.path = std::move(path), .type = "list of texts", .doc = std::move(doc)};
  key.whole_subtree = true;
  key.read = [field](RunFileReading& reading, const YamlValue& value) {
    return ReadTexts(value, &field(reading.config));
  };
  key.write = [field](const RunConfig& config) -> OrderedJson { return field(config); };
  return key;
}

struct DurationRange {
  bool zero_allowed = true;
  bool fraction_allowed = true;
};
std::optional<std::string> ReadDuration(const YamlValue& value, DurationRange range, Duration* out);

template <class Field>
RunKey DurationKey(std::string path, Field field, DurationRange range, std::string doc) {
  RunKey key{.path = std::move(path), .type = "duration", .doc = std::move(doc)};
  key.allowed = fmt::format("ba, tok, ep, sec{}{}", range.fraction_allowed ? ", dur" : "",
                            range.zero_allowed ? ", or 0" : "");
  key.read = [field, range](RunFileReading& reading, const YamlValue& value) {
    return ReadDuration(value, range, &field(reading.config));
  };
  key.write = [field](const RunConfig& config) -> OrderedJson {
    return FormatDuration(field(config));
  };
  return key;
}

// A size in memory: "8 GiB", "64MiB", or bytes. `word` stands for 0 where it is not empty.
std::optional<int64_t> ParseBytes(std::string_view text);

template <class Field>
RunKey BytesKey(std::string path, Field field, int64_t low, std::string word, std::string doc) {
  RunKey key{.path = std::move(path), .type = "size", .doc = std::move(doc)};
  key.allowed = fmt::format("bytes, KiB, MiB, GiB, TiB, at least {}{}{}", low,
                            word.empty() ? "" : ", or ", word);
  key.read = [field, low, word, allowed = key.allowed](
                 RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const bool is_word = !word.empty() && value.text == word;
    std::optional<int64_t> bytes = is_word ? std::optional<int64_t>(0) : std::nullopt;
    if (!is_word && value.kind == YamlValue::Kind::kScalar) bytes = ParseBytes(value.text);
    if (!bytes.has_value() || (!is_word && *bytes < low))
      return Expected(value, "a size: " + allowed);
    field(reading.config) = *bytes;
    return std::nullopt;
  };
  key.write = [field, word](const RunConfig& config) -> OrderedJson {
    if (!word.empty() && field(config) == 0) return word;
    return field(config);
  };
  return key;
}

template <class Enum>
struct Choice {
  std::string_view name;
  Enum value;
};
std::string ChoiceProblem(const YamlValue& value, const std::vector<std::string>& names);

template <class Field, class Enum>
RunKey ChoiceKey(std::string path, Field field, std::vector<Choice<Enum>> choices,
                 std::string doc) {
  RunKey key{.path = std::move(path), .type = "choice", .doc = std::move(doc)};
  for (const Choice<Enum>& choice : choices) {
    key.allowed += fmt::format("{}{}", key.allowed.empty() ? "" : ", ", choice.name);
  }
  key.read = [field, choices](RunFileReading& reading,
                              const YamlValue& value) -> std::optional<std::string> {
    std::vector<std::string> names;
    for (const Choice<Enum>& choice : choices) {
      if (value.kind == YamlValue::Kind::kScalar && value.text == choice.name) {
        field(reading.config) = choice.value;
        return std::nullopt;
      }
      names.emplace_back(choice.name);
    }
    return ChoiceProblem(value, names);
  };
  key.write = [field, choices](const RunConfig& config) -> OrderedJson {
    for (const Choice<Enum>& choice : choices) {
      if (field(config) == choice.value) return std::string(choice.name);
    }
    return nullptr;
  };
  return key;
}

}  // namespace tessera
