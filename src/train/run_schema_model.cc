// Keys of the model: llm-foundry's names, over every field of ModelConfig.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

constexpr std::array<std::string_view, 4> kFamilies = {"mpt", "gpt2", "llama", "modern"};

std::string NameOfFamily(std::string_view family) { return std::string(family) + "_causal_lm"; }

// The family's ways without its sizes. "mpt" means what it means in llm-foundry: learned positions
// and biases, unless the file says otherwise.
ModelConfig FamilyDefaults(std::string_view family) {
  Result<ModelConfig> named = NamedModel(std::string(family) + "-125m");
  TESSERA_CHECK(named.ok(), "every family has a 125m shape");
  ModelConfig config = *named;
  config.n_layers = config.d_model = config.n_heads = 0;
  config.n_kv_heads = config.head_size = config.ffn_hidden = 0;
  config.vocab_size = config.max_seq_len = 0;
  if (family == "mpt") {
    config.positions = Positions::kLearned;
    config.biases = true;
  }
  return config;
}

RunKey NameKey() {
  RunKey key{.path = "model.name", .type = "choice"};
  for (std::string_view family : kFamilies) {
    key.allowed += (key.allowed.empty() ? "" : ", ") + NameOfFamily(family);
  }
  key.doc = "The family, which gives the defaults of the rest of the section.";
  key.default_text = "required, or model.preset";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    std::vector<std::string> names;
    for (std::string_view family : kFamilies) {
      names.push_back(NameOfFamily(family));
      if (value.kind == YamlValue::Kind::kScalar && value.text == names.back()) {
        reading.config.model = FamilyDefaults(family);
        return std::nullopt;
      }
    }
    return ChoiceProblem(value, names);
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    return NameOfFamily(config.model.family);
  };
  return key;
}

RunKey PresetKey() {
  RunKey key{.path = "model.preset", .type = "text"};
  key.allowed =
      "gpt2-, mpt-, llama- or modern- and 10m, 30m, 125m, 350m, 760m, 1.3b, 2.7b, 6.7b, 13b, "
      "30b, 70b; gpt2-124m";
  key.doc = "A ready-made shape. Other keys change it.";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const std::string text = YamlText(value).value_or("");
    const Result<ModelConfig> named = NamedModel(text);
    if (!named.ok()) return ChoiceProblem(value, NamedModels());
    const std::string family = reading.config.model.family;
    // model.name was read before; without it the family is empty.
    if (!family.empty() && family != named->family) {
      return fmt::format("'{}' is a shape of {}, but model.name is {}: remove one of them", text,
                         NameOfFamily(named->family), NameOfFamily(family));
    }
    reading.config.model = *named;
    reading.config.model_preset = text;
    return std::nullopt;
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    if (config.model_preset.empty()) return nullptr;
    return config.model_preset;
  };
  return key;
}

RunKey NormTypeKey() {
  RunKey key{.path = "model.norm_type", .type = "choice"};
  key.allowed = "layernorm, low_precision_layernorm, rmsnorm, low_precision_rmsnorm";
  key.doc = "low_precision computes the norm in bf16 throughout under amp_bf16.";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const std::vector<std::string> names = {"layernorm", "low_precision_layernorm", "rmsnorm",
                                            "low_precision_rmsnorm"};
    for (size_t i = 0; i < names.size(); ++i) {
      if (value.kind != YamlValue::Kind::kScalar || value.text != names[i]) continue;
      reading.config.model.norm =
          i < 2 ? kernels::NormKind::kLayerNorm : kernels::NormKind::kRmsNorm;
      reading.config.model.low_precision_norm = i % 2 == 1;
      return std::nullopt;
    }
    return ChoiceProblem(value, names);
  };
  key.write = [](const RunConfig& config) -> OrderedJson {
    return fmt::format(
        "{}{}", config.model.low_precision_norm ? "low_precision_" : "",
        config.model.norm == kernels::NormKind::kLayerNorm ? "layernorm" : "rmsnorm");
  };
  return key;
}

// Three switches, as in llm-foundry, for what can be only one thing; run_config.cc refuses two.
RunKey PositionsKey(std::string path, Positions positions, std::string doc) {
  RunKey key{.path = std::move(path), .type = "true or false", .doc = std::move(doc)};
  key.read = [positions](RunFileReading& reading,
                         const YamlValue& value) -> std::optional<std::string> {
    const std::optional<bool> flag = YamlBool(value);
    if (!flag.has_value()) return Expected(value, "true or false");
    Positions& current = reading.config.model.positions;
    if (*flag) {
      current = positions;
    } else if (current == positions) {
      current = Positions::kNone;
    }
    return std::nullopt;
  };
  key.write = [positions](const RunConfig& config) -> OrderedJson {
    return config.model.positions == positions;
  };
  return key;
}

RunKey LogitScaleKey() {
  RunKey key{.path = "model.logit_scale", .type = "number"};
  key.allowed = "above 0, or inv_sqrt_d_model, or null";
  key.doc = "Multiplies the logits.";
  key.null_means_none = true;
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    ModelConfig& model = reading.config.model;
    if (value.is_null()) {
      model.logit_scale = 1.0;
      return std::nullopt;
    }
    if (value.text == "inv_sqrt_d_model") {
      model.logit_scale = 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(model.d_model, 1)));
      return std::nullopt;
    }
    const std::optional<double> number = YamlNumber(value);
    if (!number.has_value() || *number <= 0) {
      return Expected(value, "a number above 0, inv_sqrt_d_model, or null");
    }
    model.logit_scale = *number;
    return std::nullopt;
  };
  key.write = [](const RunConfig& config) -> OrderedJson { return config.model.logit_scale; };
  return key;
}

RunKey ExpansionRatioKey() {
  RunKey key{.path = "model.expansion_ratio", .type = "number"};
  key.allowed = "above 0 to 1024";
  key.doc = "Width of the feed-forward layer over d_model; or set ffn_config.ffn_hidden_size.";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const std::optional<double> number = YamlNumber(value);
    if (!number.has_value() || *number <= 0 || *number > 1024) {
      return Expected(value, "a number above 0 to 1024");
    }
    ModelConfig& model = reading.config.model;
    model.ffn_hidden = static_cast<int64_t>(*number * static_cast<double>(model.d_model));
    return std::nullopt;
  };
  return key;
}

RunKey QkLnKey() {
  RunKey key{.path = "model.attn_config.qk_ln", .type = "true or false"};
  key.doc = "llm-foundry's word for qk_norm: layernorm.";
  key.read = [](RunFileReading& reading, const YamlValue& value) -> std::optional<std::string> {
    const std::optional<bool> flag = YamlBool(value);
    if (!flag.has_value()) return Expected(value, "true or false");
    kernels::QkNorm& norm = reading.config.model.qk_norm;
    if (*flag) {
      norm = kernels::QkNorm::kLayerNormFull;
    } else if (norm == kernels::QkNorm::kLayerNormFull) {
      norm = kernels::QkNorm::kNone;
    }
    return std::nullopt;
  };
  return key;
}

template <class Enum, class Name>
std::vector<Choice<Enum>> ChoicesOf(std::initializer_list<Enum> values, Name name) {
  std::vector<Choice<Enum>> choices;
  for (Enum value : values) choices.push_back({name(value), value});
  return choices;
}

}  // namespace

void AddModelKeys(std::vector<RunKey>* keys) {
  const auto add = [keys](RunKey key, std::string default_text = "from model.name") {
    if (key.default_text.empty()) key.default_text = std::move(default_text);
    keys->push_back(std::move(key));
  };
  constexpr int64_t kLargest = int64_t{1} << 31;
  const std::string required = "required, or from model.preset";
  add(NameKey());
  add(PresetKey(), "none");
  add(IntKey(
          "model.d_model", [](auto& c) -> auto& { return c.model.d_model; }, {1, 1 << 20, "", 0},
          "Width of the residual stream."),
      required);
  add(IntKey(
          "model.n_heads", [](auto& c) -> auto& { return c.model.n_heads; }, {1, 1 << 16, "", 0},
          "Attention heads."),
      required);
  add(IntKey(
          "model.n_layers", [](auto& c) -> auto& { return c.model.n_layers; }, {1, 10000, "", 0},
          "Blocks."),
      required);
  add(IntKey(
          "model.head_dim", [](auto& c) -> auto& { return c.model.head_size; }, {8, 256, "", 0},
          "Width of a head, a multiple of 8."),
      "d_model / n_heads");
  add(ExpansionRatioKey(), "4");
  add(IntKey(
          "model.max_seq_len", [](auto& c) -> auto& { return c.model.max_seq_len; },
          {1, kLargest, "", 0}, "The longest sequence that the model can be given."),
      "max_seq_len");
  add(IntKey(
          "model.vocab_size", [](auto& c) -> auto& { return c.model.vocab_size; },
          {2, kLargest, "auto", 0},
          "Rows of the embedding, at least the tokenizer's words; auto: as many."),
      "from model.preset where the tokenizer section is empty, else auto");
  add(NumberKey(
      "model.resid_pdrop", [](auto& c) -> auto& { return c.model.residual_dropout; },
      {.low = 0, .high = 1, .open_high = true}, "Dropout of what a block adds."));
  add(NumberKey(
      "model.emb_pdrop", [](auto& c) -> auto& { return c.model.embedding_dropout; },
      {.low = 0, .high = 1, .open_high = true}, "Dropout of the embedding."));
  add(PositionsKey("model.learned_pos_emb", Positions::kLearned,
                   "A learned vector for each position."));
  add(BoolKey(
      "model.no_bias", [](auto& c) -> auto& { return c.model.biases; },
      "No biases in linear layers and LayerNorms."));
  // The file's word is the opposite of the field.
  keys->back().read = [](RunFileReading& reading,
                         const YamlValue& value) -> std::optional<std::string> {
    const std::optional<bool> flag = YamlBool(value);
    if (!flag.has_value()) return Expected(value, "true or false");
    reading.config.model.biases = !*flag;
    return std::nullopt;
  };
  keys->back().write = [](const RunConfig& config) -> OrderedJson { return !config.model.biases; };
  add(NormTypeKey());
  add(NumberKey(
      "model.norm_eps", [](auto& c) -> auto& { return c.model.norm_eps; },
      {.low = 0, .high = 1, .open_low = true}, "Added to the variance."));
  add(BoolKey(
      "model.norm_gain", [](auto& c) -> auto& { return c.model.norm_gain; },
      "Norms have a learned gain."));
  add(BoolKey(
      "model.tie_word_embeddings", [](auto& c) -> auto& { return c.model.tie_embeddings; },
      "The head uses the embedding's weights."));
  add(LogitScaleKey(), "null");
  add(NumberKey(
      "model.final_logit_softcapping", [](auto& c) -> auto& { return c.model.logit_softcap; },
      {.low = 0, .high = kNoLimit, .open_low = true, .none = 0.0},
      "Logits l become c tanh(l / c)."));
  add(IntKey(
      "model.bigram_buckets", [](auto& c) -> auto& { return c.model.bigram_buckets; },
      {0, kLargest, "", 0},
      "Rows of a second embedding, of the hashed pair of the previous token and this one; 0: "
      "none."));
  add(NumberKey(
      "model.attn_config.attn_pdrop", [](auto& c) -> auto& { return c.model.attention_dropout; },
      {.low = 0, .high = 1, .open_high = true}, "Dropout of attention weights."));
  add(IntKey(
          "model.attn_config.kv_n_heads", [](auto& c) -> auto& { return c.model.n_kv_heads; },
          {1, 1 << 16, "", 0}, "Key and value heads (grouped-query attention); divides n_heads."),
      "n_heads");
  add(QkLnKey(), "false");
  add(ChoiceKey(
      "model.attn_config.qk_norm", [](auto& c) -> auto& { return c.model.qk_norm; },
      ChoicesOf(
          {kernels::QkNorm::kNone, kernels::QkNorm::kRmsPerHead, kernels::QkNorm::kLayerNormFull},
          QkNormName),
      "Norm of queries and keys: per head, or over all heads together."));
  add(BoolKey(
      "model.attn_config.qk_norm_gain", [](auto& c) -> auto& { return c.model.qk_norm_gain; },
      "That norm has a learned gain."));
  add(NumberKey(
      "model.attn_config.clip_qkv", [](auto& c) -> auto& { return c.model.clip_qkv; },
      {.low = 0, .high = kNoLimit, .open_low = true, .none = 0.0},
      "Clamps queries, keys and values to [-c, c]."));
  add(NumberKey(
      "model.attn_config.softmax_scale", [](auto& c) -> auto& { return c.model.softmax_scale; },
      {.low = 0, .high = kNoLimit, .open_low = true, .none = 0.0},
      "Multiplies the scores; null: 1 / sqrt(head size)."));
  add(NumberKey(
      "model.attn_config.attn_logit_softcapping",
      [](auto& c) -> auto& { return c.model.attention_softcap; },
      {.low = 0, .high = kNoLimit, .open_low = true, .none = 0.0},
      "Scores s become c tanh(s / c)."));
  add(IntKey(
      "model.attn_config.sliding_window_size",
      [](auto& c) -> auto& { return c.model.sliding_window; }, {1, kLargest, "", 0},
      "Tokens that each position can look back; -1: all."));
  keys->back().allowed += ", or -1";
  keys->back().read = [](RunFileReading& reading,
                         const YamlValue& value) -> std::optional<std::string> {
    const std::optional<int64_t> number = YamlInt(value);
    if (!number.has_value() || *number < -1 || *number == 0 || *number > kLargest) {
      return Expected(value, "an integer: 1 or more, or -1");
    }
    reading.config.model.sliding_window = std::max<int64_t>(*number, 0);
    return std::nullopt;
  };
  keys->back().write = [](const RunConfig& config) -> OrderedJson {
    return config.model.sliding_window > 0 ? config.model.sliding_window : -1;
  };
  add(PositionsKey("model.attn_config.alibi", Positions::kAlibi,
                   "Linear biases by distance in place of position vectors."));
  add(NumberKey(
      "model.attn_config.alibi_bias_max", [](auto& c) -> auto& { return c.model.alibi_bias_max; },
      {.low = 0, .high = 1024, .open_low = true}, "The steepest slope is 2^-(this / heads)."));
  add(PositionsKey("model.attn_config.rope", Positions::kRope, "Rotary positions."));
  add(NumberKey(
      "model.attn_config.rope_theta", [](auto& c) -> auto& { return c.model.rope_theta; },
      {.low = 1, .high = kNoLimit, .open_low = true}, "Base of the rotary wavelengths."));
  add(NumberKey(
      "model.attn_config.rotary_fraction", [](auto& c) -> auto& { return c.model.rotary_fraction; },
      {.low = 0, .high = 1, .open_low = true}, "Share of each head that rotates."));
  add(BoolKey(
      "model.attn_config.rope_interleaved",
      [](auto& c) -> auto& { return c.model.rope_interleaved; },
      "Pairs are neighbours instead of lying half a head apart."));
  add(NumberKey(
      "model.attn_config.rope_hf_config.factor",
      [](auto& c) -> auto& { return c.model.rope_scaling_factor; }, {.low = 1, .high = kNoLimit},
      "Llama 3.1's stretching of long wavelengths; 1: none."));
  add(IntKey(
      "model.attn_config.rope_hf_config.original_max_position_embeddings",
      [](auto& c) -> auto& { return c.model.rope_original_length; }, {1, kLargest, "", 0},
      "The length from which it stretches."));
  add(ChoiceKey(
      "model.ffn_config.ffn_type", [](auto& c) -> auto& { return c.model.gated_ffn; },
      std::vector<Choice<bool>>{{"mptmlp", false}, {"mptglu", true}},
      "mptglu multiplies the activation with a second projection (SwiGLU, GeGLU)."));
  add(ChoiceKey(
      "model.ffn_config.ffn_act_fn", [](auto& c) -> auto& { return c.model.activation; },
      ChoicesOf({kernels::Activation::kGeluErf, kernels::Activation::kGeluTanh,
                 kernels::Activation::kRelu, kernels::Activation::kReluSquared,
                 kernels::Activation::kSilu},
                ActivationName),
      "The activation."));
  add(IntKey(
          "model.ffn_config.ffn_hidden_size", [](auto& c) -> auto& { return c.model.ffn_hidden; },
          {1, 1 << 24, "", 0}, "Width of the feed-forward layer."),
      "expansion_ratio * d_model; llama_causal_lm: 8/3 d_model, rounded up to 64");
  add(ChoiceKey(
      "model.init_config.name", [](auto& c) -> auto& { return c.model.init; },
      ChoicesOf({InitScheme::kNormal, InitScheme::kKaimingNormal, InitScheme::kSmall,
                 InitScheme::kNeox, InitScheme::kModern},
                InitSchemeName),
      "How weights start."));
  add(NumberKey(
      "model.init_config.init_std", [](auto& c) -> auto& { return c.model.init_std; },
      {.low = 0, .high = 100}, "Standard deviation of the scheme normal."));
  add(NumberKey(
      "model.init_config.emb_init_std", [](auto& c) -> auto& { return c.model.embedding_init_std; },
      {.low = 0, .high = 100, .none = -1.0},
      "Standard deviation of the embedding; null: the scheme's own."));
}

}  // namespace tessera
