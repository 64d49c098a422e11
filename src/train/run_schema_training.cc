// Keys of the optimizer, the schedule, the loss, averaging and samples.
#include <array>

#include "train/run_schema.h"

namespace tessera {

namespace {

struct OptimizerDefaults {
  std::string_view name;
  OptimizerSettings settings;
};

// Composer's defaults for the decoupled forms, PyTorch's for adamw, the paper's for Lion; Muon's
// own for matrices.
const std::array<OptimizerDefaults, 5>& Optimizers() {
  static const std::array<OptimizerDefaults, 5> table = {{
      {"decoupled_adamw",
       {.rule = UpdateRule::kAdamW, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .weight_decay = 1e-5}},
      {"adamw",
       {.rule = UpdateRule::kAdamW,
        .decay_form = DecayForm::kTimesLr,
        .lr = 1e-3,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .weight_decay = 1e-2}},
      {"decoupled_lionw", {.rule = UpdateRule::kLion, .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.99}},
      {"lion",
       {.rule = UpdateRule::kLion,
        .decay_form = DecayForm::kTimesLr,
        .lr = 1e-4,
        .beta1 = 0.9,
        .beta2 = 0.99}},
      {"muon",
       {.rule = UpdateRule::kMuon,
        .decay_form = DecayForm::kTimesLr,
        .lr = 1e-3,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .muon_lr = 0.02}},
  }};
  return table;
}

RunKey OptimizerNameKey() {
  RunKey key{.path = "optimizer.name", .type = "choice"};
  for (const OptimizerDefaults& entry : Optimizers()) {
    key.allowed += fmt::format("{}{}", key.allowed.empty() ? "" : ", ", entry.name);
  }
  key.doc =
      "decoupled_: weight_decay does not depend on lr (p *= 1 - weight_decay * multiplier), as "
      "in Composer; the others decay by lr * weight_decay. muon takes matrices; embeddings, head, "
      "gains and biases use AdamW with lr, betas, eps and weight_decay.";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    std::vector<std::string> names;
    for (const OptimizerDefaults& entry : Optimizers()) {
      if (value.kind == YamlValue::Kind::kScalar && value.text == entry.name) {
        reading.config.optimizer = entry.settings;
        return std::nullopt;
      }
      names.emplace_back(entry.name);
    }
    return ChoiceProblem(value, names);
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    for (const OptimizerDefaults& entry : Optimizers()) {
      if (entry.settings.rule == config.optimizer.rule &&
          entry.settings.decay_form == config.optimizer.decay_form) {
        return std::string(entry.name);
      }
    }
    return nullptr;
  };
  return key;
}

RunKey BetasKey() {
  RunKey key{
      .path = "optimizer.betas", .type = "list of two numbers", .allowed = "from 0 to below 1"};
  key.doc = "Decay rates of the first and the second moment.";
  key.whole_subtree = true;
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const std::string what = "two numbers from 0 to below 1, such as [0.9, 0.95]";
    if (value.kind != YamlValue::Kind::kList || value.items.size() != 2)
      return Expected(value, what);
    std::array<double, 2> betas{};
    for (size_t i = 0; i < 2; ++i) {
      const std::optional<double> number = YamlNumber(value.items[i]);
      if (!number.has_value() || *number < 0 || *number >= 1) return Expected(value.items[i], what);
      betas[i] = *number;
    }
    reading.config.optimizer.beta1 = betas[0];
    reading.config.optimizer.beta2 = betas[1];
    return std::nullopt;
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    return OrderedJson::array({config.optimizer.beta1, config.optimizer.beta2});
  };
  return key;
}

// llm-foundry names the kind of clipping; by the global norm is the only one.
RunKey ClippingTypeKey() {
  RunKey key{
      .path = "algorithms.gradient_clipping.clipping_type", .type = "choice", .allowed = "norm"};
  key.doc = "By the global L2 norm.";
  key.default_text = "norm";
  key.read = [](RunFileReading& /*reading*/, const YamlValue& value) -> std::optional<std::string> {
    if (value.kind == YamlValue::Kind::kScalar && value.text == "norm") return std::nullopt;
    return ChoiceProblem(value, {"norm"});
  };
  return key;
}

}  // namespace

void AddTrainingKeys(std::vector<RunKey>* keys) {
  const auto add = [keys](RunKey key, std::string default_text = "") {
    if (!default_text.empty()) key.default_text = std::move(default_text);
    keys->push_back(std::move(key));
  };
  const std::string by_name = "from optimizer.name";
  add(OptimizerNameKey());
  add(NumberKey(
          "optimizer.lr", [](auto& c) -> auto& { return c.optimizer.lr; }, {.low = 0, .high = 1000},
          "The highest learning rate; the scheduler multiplies it."),
      by_name);
  add(BetasKey(), by_name);
  add(NumberKey(
          "optimizer.eps", [](auto& c) -> auto& { return c.optimizer.eps; }, {.low = 0, .high = 1},
          "Added to the root of the second moment."),
      by_name);
  add(NumberKey(
          "optimizer.weight_decay", [](auto& c) -> auto& { return c.optimizer.weight_decay; },
          {.low = 0, .high = 100}, "Of matrices and embeddings; gains and biases never decay."),
      by_name);
  add(NumberKey(
          "optimizer.muon.lr", [](auto& c) -> auto& { return c.optimizer.muon_lr; },
          {.low = 0, .high = 1000}, "Muon's learning rate."),
      by_name);
  add(NumberKey(
      "optimizer.muon.momentum", [](auto& c) -> auto& { return c.optimizer.muon_momentum; },
      {.low = 0, .high = 1, .open_high = true}, "Its (Nesterov) momentum."));
  add(NumberKey(
      "optimizer.muon.weight_decay", [](auto& c) -> auto& { return c.optimizer.muon_weight_decay; },
      {.low = 0, .high = 100}, "Its decay: p *= 1 - lr * weight_decay."));
  add(NumberKey(
      "optimizer.embedding_lr_factor",
      [](auto& c) -> auto& { return c.optimizer.embedding_lr_factor; }, {.low = 0, .high = 10000},
      "Multiplies lr for embeddings."));
  add(NumberKey(
      "optimizer.head_lr_factor", [](auto& c) -> auto& { return c.optimizer.head_lr_factor; },
      {.low = 0, .high = 10000}, "Multiplies lr for the head."));
  add(NumberKey(
      "optimizer.vector_lr_factor", [](auto& c) -> auto& { return c.optimizer.vector_lr_factor; },
      {.low = 0, .high = 10000}, "Multiplies lr for gains and biases."));

  std::vector<Choice<ScheduleKind>> kinds;
  for (ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine,
                            ScheduleKind::kInverseSqrt, ScheduleKind::kWarmupStableDecay}) {
    kinds.push_back({ScheduleKindName(kind), kind});
  }
  add(ChoiceKey(
      "scheduler.name", [](auto& c) -> auto& { return c.scheduler.kind; }, kinds,
      "The schedule; see below."));
  add(DurationKey(
      "scheduler.t_warmup", [](auto& c) -> auto& { return c.scheduler.t_warmup; }, {},
      "The rate rises from 0 over this time."));
  add(DurationKey(
      "scheduler.t_max", [](auto& c) -> auto& { return c.scheduler.t_max; },
      {.zero_allowed = false}, "When the schedule ends."));
  add(NumberKey(
      "scheduler.alpha_f", [](auto& c) -> auto& { return c.scheduler.alpha_f; },
      {.low = 0, .high = 1}, "The multiplier at its end."));
  add(DurationKey(
      "scheduler.t_scale", [](auto& c) -> auto& { return c.scheduler.t_scale; }, {},
      "inv_sqrt_with_warmup: after this time the rate is 1/sqrt(2); required there."));
  add(DurationKey(
      "scheduler.t_cooldown", [](auto& c) -> auto& { return c.scheduler.t_cooldown; }, {},
      "inv_sqrt_with_warmup: linear fall at the end."));
  add(NumberKey(
      "scheduler.alpha_f_cooldown", [](auto& c) -> auto& { return c.scheduler.alpha_f_cooldown; },
      {.low = 0, .high = 1}, "inv_sqrt_with_warmup: the multiplier after that."));
  add(DurationKey(
      "scheduler.t_decay", [](auto& c) -> auto& { return c.scheduler.t_decay; }, {},
      "warmup_stable_decay: the fall at the end."));
  add(ChoiceKey(
      "scheduler.decay_shape", [](auto& c) -> auto& { return c.scheduler.decay_shape; },
      std::vector<Choice<DecayShape>>{{"linear", DecayShape::kLinear}, {"sqrt", DecayShape::kSqrt}},
      "warmup_stable_decay: its shape; sqrt falls faster at first (1 - sqrt)."));

  add(ClippingTypeKey());
  add(NumberKey(
      "algorithms.gradient_clipping.clipping_threshold",
      [](auto& c) -> auto& { return c.gradient_clipping; },
      {.low = 0, .high = kNoLimit, .open_low = true, .none = 0.0},
      "Gradients with a larger norm are scaled down to it; null: never."));
  add(NumberKey(
      "algorithms.label_smoothing.smoothing", [](auto& c) -> auto& { return c.label_smoothing; },
      {.low = 0, .high = 1, .open_high = true}, "Share of the target spread over all words."));
  add(NumberKey(
      "z_loss", [](auto& c) -> auto& { return c.z_loss; }, {.low = 0, .high = 1},
      "Adds this times the squared log of the softmax's denominator to the loss."));

  add(BoolKey(
      "weight_average.enabled", [](auto& c) -> auto& { return c.weight_average.enabled; },
      "Keep the average (one more copy of the weights)."));
  add(NumberKey(
      "weight_average.decay", [](auto& c) -> auto& { return c.weight_average.decay; },
      {.low = 0, .high = 1, .open_high = true},
      "average = decay * average + (1 - decay) * weights, after every step."));
  add(DurationKey(
      "weight_average.start", [](auto& c) -> auto& { return c.weight_average.start; }, {},
      "When it begins."));

  add(TextsKey(
      "samples.prompts", [](auto& c) -> auto& { return c.samples.prompts; },
      "Beginnings that the model goes on from; none: no samples. '' starts from nothing."));
  add(IntKey(
      "samples.max_new_tokens", [](auto& c) -> auto& { return c.samples.max_new_tokens; },
      {1, int64_t{1} << 31, "", 0}, "Tokens of a sample."));
  add(NumberKey(
      "samples.temperature", [](auto& c) -> auto& { return c.samples.temperature; },
      {.low = 0, .high = 100}, "0 always takes the likeliest token."));
  add(NumberKey(
      "samples.top_p", [](auto& c) -> auto& { return c.samples.top_p; },
      {.low = 0, .high = 1, .open_low = true},
      "Takes from the likeliest tokens that make up this probability."));
  add(IntKey(
      "samples.top_k", [](auto& c) -> auto& { return c.samples.top_k; },
      {0, int64_t{1} << 31, "", 0}, "Takes from so many likeliest tokens; 0: any number."));
}

}  // namespace tessera
