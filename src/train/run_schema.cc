#include "train/run_schema.h"

#include <algorithm>
#include <array>

#include "base/strings.h"

namespace tessera {

namespace {

bool IsPlainScalar(const YamlValue& value) {
  return value.kind == YamlValue::Kind::kScalar && !value.quoted;
}

}  // namespace

std::optional<bool> YamlBool(const YamlValue& value) {
  if (!IsPlainScalar(value)) return std::nullopt;
  if (value.text == "true" || value.text == "True") return true;
  if (value.text == "false" || value.text == "False") return false;
  return std::nullopt;
}

std::optional<int64_t> YamlInt(const YamlValue& value) {
  if (!IsPlainScalar(value)) return std::nullopt;
  return ParseInt(value.text);
}

std::optional<double> YamlNumber(const YamlValue& value) {
  if (!IsPlainScalar(value)) return std::nullopt;
  const std::optional<double> number = ParseDouble(value.text);
  if (number.has_value() && !std::isfinite(*number)) return std::nullopt;
  return number;
}

std::optional<std::string> YamlText(const YamlValue& value) {
  if (value.kind != YamlValue::Kind::kScalar) return std::nullopt;
  return value.text;
}

std::string Expected(const YamlValue& value, std::string_view what) {
  if (value.quoted) {
    return fmt::format("found the text {} in quotation marks; allowed is {}", value.Describe(),
                       what);
  }
  return fmt::format("found {}; allowed is {}", value.Describe(), what);
}

std::optional<std::string> ReadTexts(const YamlValue& value, std::vector<std::string>* out) {
  std::vector<std::string> texts;
  if (value.kind == YamlValue::Kind::kScalar) {
    texts.push_back(value.text);
  } else if (value.kind == YamlValue::Kind::kList) {
    for (const YamlValue& item : value.items) {
      const std::optional<std::string> text = YamlText(item);
      if (!text.has_value())
        return fmt::format("its list holds {}; allowed are texts", item.Describe());
      texts.push_back(*text);
    }
  } else {
    return Expected(value, "a list of texts");
  }
  *out = std::move(texts);
  return std::nullopt;
}

std::string DescribeRange(const NumberRange& range) {
  std::string text;
  const bool has_low = std::isfinite(range.low);
  const bool has_high = std::isfinite(range.high);
  if (has_low) text += fmt::format("{} {}", range.open_low ? "above" : "from", range.low);
  if (has_high) {
    text +=
        fmt::format("{}{} {}", has_low ? " " : "", range.open_high ? "to below" : "to", range.high);
  }
  if (!has_low && !has_high) text = "any";
  if (range.none.has_value()) text += ", or null";
  return text;
}

bool InRange(const NumberRange& range, double number) {
  const bool above = range.open_low ? number > range.low : number >= range.low;
  const bool below = range.open_high ? number < range.high : number <= range.high;
  return above && below;
}

std::optional<std::string> ReadDuration(const YamlValue& value, DurationRange range,
                                        Duration* out) {
  if (value.kind != YamlValue::Kind::kScalar) return Expected(value, "a length such as 100ba");
  if (Trim(value.text) == "0") {
    if (!range.zero_allowed) return Expected(value, "a length above zero, such as 100ba");
    *out = Duration{};
    return std::nullopt;
  }
  if (value.text.size() > 60) return Expected(value, "a length such as 100ba");
  const Result<Duration> duration = ParseDuration(value.text);
  if (!duration.ok()) return duration.error().message;
  if (duration->is_zero() && !range.zero_allowed) {
    return Expected(value, "a length above zero, such as 100ba");
  }
  if (duration->unit == TimeUnit::kFraction && !range.fraction_allowed) {
    return Expected(value,
                    "a length in ba, tok, ep or sec: a share of the run is not possible here");
  }
  *out = *duration;
  return std::nullopt;
}

std::optional<int64_t> ParseBytes(std::string_view text) {
  struct Unit {
    std::string_view suffix;
    double factor;
  };
  constexpr std::array<Unit, 10> kUnits = {{{"KiB", 1024.0},
                                            {"MiB", 1048576.0},
                                            {"GiB", 1073741824.0},
                                            {"TiB", 1099511627776.0},
                                            {"kB", 1e3},
                                            {"KB", 1e3},
                                            {"MB", 1e6},
                                            {"GB", 1e9},
                                            {"TB", 1e12},
                                            {"B", 1.0}}};
  std::string_view number = Trim(text);
  double factor = 1;
  for (const Unit& unit : kUnits) {
    if (number.size() > unit.suffix.size() && number.ends_with(unit.suffix)) {
      number = Trim(number.substr(0, number.size() - unit.suffix.size()));
      factor = unit.factor;
      break;
    }
  }
  const std::optional<double> value = ParseDouble(number);
  if (!value.has_value() || !(*value >= 0) || *value * factor > 9e18) return std::nullopt;
  return static_cast<int64_t>(*value * factor);
}

std::optional<std::string> SuggestKey(std::string_view text,
                                      const std::vector<std::string>& names) {
  constexpr size_t kLongestKey = 64;
  if (text.size() > kLongestKey) return std::nullopt;
  return NearestKey(text, names);
}

std::string ChoiceProblem(const YamlValue& value, const std::vector<std::string>& names) {
  std::string message = Expected(value, "one of " + Join(names, ", "));
  if (value.kind == YamlValue::Kind::kScalar) {
    std::optional<std::string> nearest = SuggestKey(value.text, names);
    for (const std::string& name : names) {
      // "bf16" is far from "amp_bf16" by letters, yet plain what is meant.
      if (!nearest.has_value() && value.text.size() > 2 &&
          name.find(value.text) != std::string::npos) {
        nearest = name;
      }
    }
    if (nearest.has_value()) message += fmt::format(" (did you mean '{}'?)", *nearest);
  }
  return message;
}

const std::vector<RunKey>& RunSchema() {
  static const std::vector<RunKey> schema = [] {
    std::vector<RunKey> keys;
    AddRunKeys(&keys);
    AddModelKeys(&keys);
    AddTrainingKeys(&keys);
    AddDataKeys(&keys);
    return keys;
  }();
  return schema;
}

const std::vector<std::pair<std::string, std::string>>& RunSections() {
  static const std::vector<std::pair<std::string, std::string>> sections = {
      {"", "The run: how long, how large, where its files go."},
      {"loggers", "Where progress and metrics go."},
      {"callbacks", "Monitors. They are always on; the section takes llm-foundry's names."},
      {"model",
       "The architecture: a family by `name` or a ready-made shape by `preset`, and what "
       "differs from it."},
      {"tokenizer",
       "How text becomes tokens: an existing tokenizer, one trained here, or (with "
       "neither) the one that the dataset brings."},
      {"optimizer", "The update rule. Defaults of lr, betas and decay depend on `name`."},
      {"scheduler", "How the learning rate moves: every rate is multiplied by the schedule."},
      {"algorithms", "Changes of the loss and the gradient."},
      {"data", "Text to train on: named sources, or a dataset that was built before."},
      {"weight_average",
       "An exponential average of the weights, used for evaluation and the final "
       "model."},
      {"samples", "Texts that the model writes at the end of the run."}};
  return sections;
}

std::optional<std::string> HintForForeignKey(std::string_view path) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 24> kHints = {{
      {"train_loader", "describe the text under data.sources, or name datasets in data.streams or data.dataset"},
      {"eval_loader", "data.validation_fraction holds documents out for evaluation"},
      {"eval_loaders", "data.validation_fraction holds documents out for evaluation"},
      {"device_train_batch_size", "set global_train_batch_size"},
      {"global_seed", "set seed"},
      {"fsdp_config", "remove it: one process trains the whole model"},
      {"tp_config", "remove it: one process trains the whole model"},
      {"compile_config", "remove it: there is nothing to compile at run time"},
      {"dist_timeout", "remove it: one process trains the whole model"},
      {"progress_bar", "set loggers.console"},
      {"log_to_console", "set loggers.console"},
      {"save_filename", "remove it: checkpoints are folders named by step in save_folder"},
      {"save_latest_filename", "remove it: save_folder always holds a pointer to the newest"},
      {"icl_tasks", "remove it: `tessera eval` runs tasks on a finished model"},
      {"eval_gauntlet", "remove it: `tessera eval` runs tasks on a finished model"},
      {"variables", "write the values where they are used; the command line overrides single keys"},
      {"model.init_device", "remove it: weights are made where they are used"},
      {"model.attn_config.attn_impl", "remove it: attention never holds the T x T matrix"},
      {"model.attn_config.attn_uses_sequence_id", "set data.document_mask"},
      {"model.attn_config.qk_gn", "set model.attn_config.qk_norm: rms_per_head"},
      {"model.logit_softcapping", "set model.final_logit_softcapping"},
      {"model.ffn_hidden_size", "set model.ffn_config.ffn_hidden_size"},
      {"algorithms.low_precision_layernorm", "set model.norm_type: low_precision_layernorm"},
      {"algorithms.alibi", "set model.attn_config.alibi"},
  }};
  for (const auto& [key, hint] : kHints) {
    if (path == key) return std::string(hint);
  }
  return std::nullopt;
}

}  // namespace tessera
