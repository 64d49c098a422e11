#include "model/config.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

namespace tessera {

namespace {

template <class Enum, size_t N>
using NameTable = std::array<std::pair<Enum, std::string_view>, N>;

constexpr NameTable<Positions, 4> kPositions = {{{Positions::kNone, "none"},
                                                 {Positions::kLearned, "learned"},
                                                 {Positions::kAlibi, "alibi"},
                                                 {Positions::kRope, "rope"}}};
constexpr NameTable<InitScheme, 5> kInitSchemes = {{{InitScheme::kNormal, "normal"},
                                                    {InitScheme::kKaimingNormal, "kaiming_normal_"},
                                                    {InitScheme::kSmall, "small_init_"},
                                                    {InitScheme::kNeox, "neox_init_"},
                                                    {InitScheme::kModern, "modern"}}};
constexpr NameTable<kernels::Activation, 5> kActivations = {
    {{kernels::Activation::kGeluTanh, "gelu_tanh"},
     {kernels::Activation::kGeluErf, "gelu"},
     {kernels::Activation::kRelu, "relu"},
     {kernels::Activation::kReluSquared, "relu_squared"},
     {kernels::Activation::kSilu, "silu"}}};
constexpr NameTable<kernels::QkNorm, 3> kQkNorms = {
    {{kernels::QkNorm::kNone, "none"},
     {kernels::QkNorm::kRmsPerHead, "rms_per_head"},
     {kernels::QkNorm::kLayerNormFull, "layernorm"}}};
constexpr NameTable<kernels::NormKind, 2> kNorms = {
    {{kernels::NormKind::kLayerNorm, "layernorm"}, {kernels::NormKind::kRmsNorm, "rmsnorm"}}};

template <class Table, class Enum>
std::string_view NameOf(const Table& table, Enum value) {
  for (const auto& [candidate, name] : table) {
    if (candidate == value) return name;
  }
  return "?";
}

template <class Table, class Enum>
Status ReadName(const Table& table, const Json& json, std::string_view key, std::string_view source,
                Enum* out) {
  TESSERA_ASSIGN(const std::string text, JsonString(json, key, source));
  std::string names;
  for (const auto& [candidate, name] : table) {
    if (name == text) {
      *out = candidate;
      return {};
    }
    names += fmt::format(" {}", name);
  }
  return Corrupt(fmt::format("{}: key '{}' is '{}'; known values:{}", source, key, text, names));
}

}  // namespace

std::string_view PositionsName(Positions positions) { return NameOf(kPositions, positions); }
std::string_view InitSchemeName(InitScheme scheme) { return NameOf(kInitSchemes, scheme); }
std::string_view ActivationName(kernels::Activation activation) {
  return NameOf(kActivations, activation);
}
std::string_view QkNormName(kernels::QkNorm norm) { return NameOf(kQkNorms, norm); }

std::vector<std::string> CheckModelConfig(const ModelConfig& config) {
  std::vector<std::string> errors;
  const auto require = [&errors](bool ok, std::string message) {
    if (!ok) errors.push_back(std::move(message));
  };
  constexpr int64_t kLargest = int64_t{1} << 31;
  const auto in_range = [&](int64_t value, std::string_view name, int64_t low, int64_t high) {
    require(value >= low && value <= high,
            fmt::format("{} is {}; it must be between {} and {}", name, value, low, high));
  };
  in_range(config.n_layers, "n_layers", 1, 10000);
  in_range(config.d_model, "d_model", 1, 1 << 20);
  in_range(config.n_heads, "n_heads", 1, 1 << 16);
  in_range(config.vocab_size, "vocab_size", 2, kLargest);
  in_range(config.max_seq_len, "max_seq_len", 1, kLargest);
  if (!errors.empty()) return errors;

  require(config.n_kv_heads >= 0 && config.n_heads % config.kv_heads() == 0,
          fmt::format("n_heads {} is not a multiple of kv_n_heads {}", config.n_heads,
                      config.n_kv_heads));
  require(
      config.head_size > 0 || config.d_model % config.n_heads == 0,
      fmt::format("d_model {} is not a multiple of n_heads {}; set head_size to choose it freely",
                  config.d_model, config.n_heads));
  require(config.head_dim() > 0 && config.head_dim() % 8 == 0 && config.head_dim() <= 256,
          fmt::format("the head size is {}; it must be a multiple of 8 up to 256 (d_model {} / "
                      "n_heads {})",
                      config.head_dim(), config.d_model, config.n_heads));
  require(config.ffn_dim() > 0, fmt::format("ffn_hidden is {}", config.ffn_hidden));
  require(config.norm_eps > 0, fmt::format("norm_eps is {}; it must be positive", config.norm_eps));
  require(config.clip_qkv >= 0,
          fmt::format("clip_qkv is {}; it can't be negative", config.clip_qkv));
  require(config.attention_softcap >= 0 && config.logit_softcap >= 0,
          "a soft cap can't be negative; 0 turns it off");
  require(config.sliding_window >= 0,
          fmt::format("sliding_window is {}; it can't be negative", config.sliding_window));
  require(config.logit_scale > 0,
          fmt::format("logit_scale is {}; it must be positive", config.logit_scale));
  require(config.bigram_buckets >= 0 && config.bigram_buckets <= kLargest,
          fmt::format("bigram_buckets is {}", config.bigram_buckets));
  for (const auto& [name, p] :
       {std::pair<const char*, double>{"attn_pdrop", config.attention_dropout},
        {"resid_pdrop", config.residual_dropout},
        {"emb_pdrop", config.embedding_dropout}}) {
    require(p >= 0 && p < 1, fmt::format("{} is {}; it must be in [0, 1)", name, p));
  }
  if (config.positions == Positions::kRope) {
    const int64_t rotary = static_cast<int64_t>(
        std::llround(config.rotary_fraction * static_cast<double>(config.head_dim())));
    require(config.rope_theta > 1, fmt::format("rope_theta is {}", config.rope_theta));
    require(
        rotary > 0 && rotary <= config.head_dim() && rotary % 2 == 0,
        fmt::format("rotary_fraction {} of head size {} gives {} rotated values; it must be even "
                    "and at most the head size",
                    config.rotary_fraction, config.head_dim(), rotary));
  }
  return errors;
}

Json ModelConfigToJson(const ModelConfig& c) {
  return Json{{"family", c.family},
              {"n_layers", c.n_layers},
              {"d_model", c.d_model},
              {"n_heads", c.n_heads},
              {"n_kv_heads", c.n_kv_heads},
              {"head_size", c.head_size},
              {"ffn_hidden", c.ffn_hidden},
              {"vocab_size", c.vocab_size},
              {"max_seq_len", c.max_seq_len},
              {"positions", PositionsName(c.positions)},
              {"rope_theta", c.rope_theta},
              {"rotary_fraction", c.rotary_fraction},
              {"rope_interleaved", c.rope_interleaved},
              {"rope_scaling_factor", c.rope_scaling_factor},
              {"rope_original_length", c.rope_original_length},
              {"alibi_bias_max", c.alibi_bias_max},
              {"norm", NameOf(kNorms, c.norm)},
              {"norm_eps", c.norm_eps},
              {"norm_gain", c.norm_gain},
              {"low_precision_norm", c.low_precision_norm},
              {"biases", c.biases},
              {"activation", ActivationName(c.activation)},
              {"gated_ffn", c.gated_ffn},
              {"qk_norm", QkNormName(c.qk_norm)},
              {"qk_norm_gain", c.qk_norm_gain},
              {"clip_qkv", c.clip_qkv},
              {"softmax_scale", c.softmax_scale},
              {"attention_softcap", c.attention_softcap},
              {"sliding_window", c.sliding_window},
              {"document_mask", c.document_mask},
              {"tie_embeddings", c.tie_embeddings},
              {"bigram_buckets", c.bigram_buckets},
              {"logit_scale", c.logit_scale},
              {"logit_softcap", c.logit_softcap},
              {"attention_dropout", c.attention_dropout},
              {"residual_dropout", c.residual_dropout},
              {"embedding_dropout", c.embedding_dropout},
              {"init", InitSchemeName(c.init)},
              {"init_std", c.init_std},
              {"embedding_init_std", c.embedding_init_std}};
}

namespace {

Status ReadBool(const Json& json, const char* key, std::string_view source, bool* out) {
  const auto it = json.find(key);
  if (it == json.end()) return Corrupt(fmt::format("{}: key '{}' is missing", source, key));
  if (!it->is_boolean()) {
    return Corrupt(fmt::format("{}: key '{}' must be true or false", source, key));
  }
  *out = it->get<bool>();
  return {};
}

}  // namespace

Result<ModelConfig> ModelConfigFromJson(const Json& json, std::string_view source) {
  ModelConfig c;
  TESSERA_ASSIGN(c.family, JsonString(json, "family", source));
  const std::pair<const char*, int64_t*> integers[] = {
      {"n_layers", &c.n_layers},
      {"d_model", &c.d_model},
      {"n_heads", &c.n_heads},
      {"n_kv_heads", &c.n_kv_heads},
      {"head_size", &c.head_size},
      {"ffn_hidden", &c.ffn_hidden},
      {"vocab_size", &c.vocab_size},
      {"max_seq_len", &c.max_seq_len},
      {"rope_original_length", &c.rope_original_length},
      {"sliding_window", &c.sliding_window},
      {"bigram_buckets", &c.bigram_buckets}};
  for (const auto& [key, out] : integers) {
    TESSERA_ASSIGN(*out, JsonInt(json, key, source));
  }
  const std::pair<const char*, double*> numbers[] = {
      {"rope_theta", &c.rope_theta},
      {"rotary_fraction", &c.rotary_fraction},
      {"rope_scaling_factor", &c.rope_scaling_factor},
      {"alibi_bias_max", &c.alibi_bias_max},
      {"norm_eps", &c.norm_eps},
      {"clip_qkv", &c.clip_qkv},
      {"softmax_scale", &c.softmax_scale},
      {"attention_softcap", &c.attention_softcap},
      {"logit_scale", &c.logit_scale},
      {"logit_softcap", &c.logit_softcap},
      {"attention_dropout", &c.attention_dropout},
      {"residual_dropout", &c.residual_dropout},
      {"embedding_dropout", &c.embedding_dropout},
      {"init_std", &c.init_std},
      {"embedding_init_std", &c.embedding_init_std}};
  for (const auto& [key, out] : numbers) {
    TESSERA_ASSIGN(*out, JsonNumber(json, key, source));
  }
  const std::pair<const char*, bool*> flags[] = {{"rope_interleaved", &c.rope_interleaved},
                                                 {"norm_gain", &c.norm_gain},
                                                 {"low_precision_norm", &c.low_precision_norm},
                                                 {"biases", &c.biases},
                                                 {"gated_ffn", &c.gated_ffn},
                                                 {"qk_norm_gain", &c.qk_norm_gain},
                                                 {"document_mask", &c.document_mask},
                                                 {"tie_embeddings", &c.tie_embeddings}};
  for (const auto& [key, out] : flags) {
    TESSERA_TRY(ReadBool(json, key, source, out));
  }
  TESSERA_TRY(ReadName(kPositions, json, "positions", source, &c.positions));
  TESSERA_TRY(ReadName(kInitSchemes, json, "init", source, &c.init));
  TESSERA_TRY(ReadName(kActivations, json, "activation", source, &c.activation));
  TESSERA_TRY(ReadName(kQkNorms, json, "qk_norm", source, &c.qk_norm));
  TESSERA_TRY(ReadName(kNorms, json, "norm", source, &c.norm));
  const std::vector<std::string> errors = CheckModelConfig(c);
  if (!errors.empty()) return Corrupt(fmt::format("{}: {}", source, errors.front()));
  return c;
}

std::vector<int64_t> ParameterSpec::shape() const {
  if (kind == ParameterKind::kGain || kind == ParameterKind::kBias) return {cols};
  return {rows, cols};
}

std::vector<ParameterSpec> ListParameters(const ModelConfig& c) {
  std::vector<ParameterSpec> list;
  const auto add = [&list](std::string name, ParameterKind kind, int64_t rows, int64_t cols,
                           int64_t layer = -1, bool residual = false) {
    list.push_back({std::move(name), kind, rows, cols, layer, residual});
  };
  const auto add_norm = [&](const std::string& name, int64_t width, int64_t layer) {
    if (c.norm_gain) add(name + ".weight", ParameterKind::kGain, 1, width, layer);
    if (c.biases && c.norm == kernels::NormKind::kLayerNorm) {
      add(name + ".bias", ParameterKind::kBias, 1, width, layer);
    }
  };
  const auto add_linear = [&](const std::string& name, int64_t out, int64_t in, int64_t layer,
                              bool residual = false) {
    add(name + ".weight", ParameterKind::kMatrix, out, in, layer, residual);
    if (c.biases) add(name + ".bias", ParameterKind::kBias, 1, out, layer);
  };
  const int64_t d = c.d_model;
  add("transformer.wte.weight", ParameterKind::kEmbedding, c.vocab_size, d);
  if (c.bigram_buckets > 0) {
    add("transformer.bigram.weight", ParameterKind::kEmbedding, c.bigram_buckets, d);
  }
  if (c.positions == Positions::kLearned) {
    add("transformer.wpe.weight", ParameterKind::kPosition, c.max_seq_len, d);
  }
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    const std::string block = fmt::format("transformer.blocks.{}.", layer);
    add_norm(block + "norm_1", d, layer);
    add_linear(block + "attn.Wqkv", c.qkv_width(), d, layer);
    if (c.qk_norm != kernels::QkNorm::kNone && c.qk_norm_gain) {
      const bool full = c.qk_norm == kernels::QkNorm::kLayerNormFull;
      for (const bool query : {true, false}) {
        const std::string name = block + (query ? "attn.q_ln" : "attn.k_ln");
        const int64_t width = full ? (query ? c.q_width() : c.kv_width()) : c.head_dim();
        add(name + ".weight", ParameterKind::kGain, 1, width, layer);
        if (full && c.biases) add(name + ".bias", ParameterKind::kBias, 1, width, layer);
      }
    }
    add_linear(block + "attn.out_proj", d, c.q_width(), layer, true);
    add_norm(block + "norm_2", d, layer);
    add_linear(block + (c.gated_ffn ? "ffn.gate_up_proj" : "ffn.up_proj"),
               (c.gated_ffn ? 2 : 1) * c.ffn_dim(), d, layer);
    add_linear(block + "ffn.down_proj", d, c.ffn_dim(), layer, true);
  }
  add_norm("transformer.norm_f", d, -1);
  if (!c.tie_embeddings) add("lm_head.weight", ParameterKind::kHead, c.vocab_size, d);
  return list;
}

int64_t CountParameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const ParameterSpec& spec : ListParameters(config)) total += spec.size();
  return total;
}

double TrainFlopsPerToken(const ModelConfig& config, int64_t sequence_length) {
  return 6.0 * static_cast<double>(CountParameters(config)) +
         6.0 * static_cast<double>(config.n_layers) * static_cast<double>(config.q_width()) *
             static_cast<double>(sequence_length);
}

double ProductFlopsPerToken(const ModelConfig& config, int64_t sequence_length) {
  int64_t lookups = 0;
  for (const ParameterSpec& spec : ListParameters(config)) {
    const bool table =
        spec.kind == ParameterKind::kEmbedding || spec.kind == ParameterKind::kPosition;
    const bool also_head = config.tie_embeddings && spec.name == "transformer.wte.weight";
    if (table && !also_head) lookups += spec.size();
  }
  return TrainFlopsPerToken(config, sequence_length) - 6.0 * static_cast<double>(lookups);
}

namespace {

struct Shape {
  const char* size;
  int64_t layers, width, heads;
};

// The sizes of GPT-3 (Brown et al., table 2.1) and of the published MPT models; the small ones are
// ours.
constexpr Shape kShapes[] = {{"10m", 6, 256, 4},     {"30m", 8, 448, 7},     {"125m", 12, 768, 12},
                             {"350m", 24, 1024, 16}, {"760m", 24, 1536, 12}, {"1.3b", 24, 2048, 16},
                             {"2.7b", 32, 2560, 20}, {"6.7b", 32, 4096, 32}, {"13b", 40, 5120, 40},
                             {"30b", 48, 7168, 56},  {"70b", 80, 8192, 64}};

ModelConfig Gpt2(const Shape& shape) {
  ModelConfig c;
  c.family = "gpt2";
  c.n_layers = shape.layers;
  c.d_model = shape.width;
  c.n_heads = shape.heads;
  c.vocab_size = 50257;
  c.max_seq_len = 1024;
  return c;
}

ModelConfig Mpt(const Shape& shape) {
  ModelConfig c;
  c.family = "mpt";
  c.n_layers = shape.layers;
  c.d_model = shape.width;
  c.n_heads = shape.heads;
  c.vocab_size = 50368;
  c.max_seq_len = 2048;
  c.positions = Positions::kAlibi;
  c.biases = false;
  c.low_precision_norm = true;
  c.activation = kernels::Activation::kGeluErf;
  c.init = InitScheme::kKaimingNormal;
  return c;
}

ModelConfig Llama(const Shape& shape) {
  ModelConfig c;
  c.family = "llama";
  c.n_layers = shape.layers;
  c.d_model = shape.width;
  c.n_heads = shape.heads;
  c.n_kv_heads = shape.heads % 4 == 0 && shape.width >= 2048 ? shape.heads / 4 : shape.heads;
  // 8/3 of the width, so that three matrices cost what two of 4 d_model do, rounded up to 64.
  c.ffn_hidden = (shape.width * 8 / 3 + 63) / 64 * 64;
  c.vocab_size = 50304;
  c.max_seq_len = 2048;
  c.positions = Positions::kRope;
  c.norm = kernels::NormKind::kRmsNorm;
  c.biases = false;
  c.activation = kernels::Activation::kSilu;
  c.gated_ffn = true;
  c.tie_embeddings = false;
  return c;
}

ModelConfig Modern(const Shape& shape) {
  ModelConfig c = Llama(shape);
  c.family = "modern";
  c.n_kv_heads = 0;
  c.ffn_hidden = 0;
  c.norm_gain = false;
  c.activation = kernels::Activation::kReluSquared;
  c.gated_ffn = false;
  c.qk_norm = kernels::QkNorm::kRmsPerHead;
  c.qk_norm_gain = false;
  c.logit_softcap = 15;
  c.init = InitScheme::kModern;
  return c;
}

}  // namespace

std::vector<std::string> NamedModels() {
  std::vector<std::string> names = {"gpt2-124m", "gpt2-tiny", "mpt-tiny", "llama-tiny"};
  for (const Shape& shape : kShapes) {
    for (const char* family : {"gpt2", "mpt", "llama", "modern"}) {
      names.push_back(fmt::format("{}-{}", family, shape.size));
    }
  }
  return names;
}

Result<ModelConfig> NamedModel(std::string_view name) {
  const size_t dash = name.find('-');
  const std::string_view family = name.substr(0, dash);
  std::string_view size = dash == std::string_view::npos ? "" : name.substr(dash + 1);
  if (family == "gpt2" && size == "124m") size = "125m";
  static constexpr Shape kTiny = {"tiny", 2, 32, 4};
  const Shape* shape = size == "tiny" ? &kTiny : nullptr;
  for (const Shape& candidate : kShapes) {
    if (size == candidate.size) shape = &candidate;
  }
  if (shape != nullptr) {
    ModelConfig config;
    if (family == "gpt2") config = Gpt2(*shape);
    if (family == "mpt") config = Mpt(*shape);
    if (family == "llama") config = Llama(*shape);
    if (family == "modern") config = Modern(*shape);
    if (config.n_layers > 0) {
      if (shape == &kTiny) {
        config.vocab_size = 96;
        config.max_seq_len = 64;
        if (family == "llama") config.n_kv_heads = 2;
      }
      return config;
    }
  }
  std::string names;
  for (const std::string& known : NamedModels()) names += " " + known;
  return NotFound(fmt::format("no model is called '{}'; known:{}", name, names));
}

}  // namespace tessera
