// The architecture of a decoder-only model: one struct covers GPT-2, MPT, Llama-style and the small
// modern recipe. Pure data; model/config.cc checks it and derives sizes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/qkv.h"

namespace tessera {

enum class Positions { kNone, kLearned, kAlibi, kRope };

enum class InitScheme {
  kNormal,         // N(0, init_std), residual projections divided by sqrt(2L)  (GPT-2)
  kKaimingNormal,  // N(0, sqrt(2 / fan_in)), residual projections divided by sqrt(2L)  (MPT)
  kSmall,          // N(0, sqrt(2 / (5 d_model))), residual divisor sqrt(2L)
  kNeox,           // kSmall with residual divisor L / sqrt(10)
  kModern,         // uniform with std 1/sqrt(fan_in), residual projections and head zero (see config.cc)
};

struct ModelConfig {
  std::string family = "mpt";  // "gpt2", "mpt", "llama" or "modern": names of exported tensors
  int64_t n_layers = 0;
  int64_t d_model = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;   // 0: n_heads
  int64_t head_size = 0;    // 0: d_model / n_heads; a multiple of 8
  int64_t ffn_hidden = 0;   // 0: 4 * d_model
  int64_t vocab_size = 0;   // rows of the embedding; 0 in a run file: taken from the tokenizer
  int64_t max_seq_len = 1024;

  Positions positions = Positions::kLearned;
  double rope_theta = 10000.0;
  double rotary_fraction = 1.0;
  bool rope_interleaved = false;
  double rope_scaling_factor = 1.0;  // Llama 3.1
  int64_t rope_original_length = 8192;
  double alibi_bias_max = 8.0;

  kernels::NormKind norm = kernels::NormKind::kLayerNorm;
  double norm_eps = 1e-5;
  bool norm_gain = true;            // false: no learned gain
  bool low_precision_norm = false;  // MPT's low_precision_layernorm
  bool biases = true;               // of linear layers and LayerNorm

  kernels::Activation activation = kernels::Activation::kGeluTanh;
  bool gated_ffn = false;  // SwiGLU, GeGLU

  kernels::QkNorm qk_norm = kernels::QkNorm::kNone;
  bool qk_norm_gain = true;
  double clip_qkv = 0;       // 0: none
  double softmax_scale = 0;  // 0: 1/sqrt(head size)
  double attention_softcap = 0;
  int64_t sliding_window = 0;
  bool document_mask = false;  // attention stays inside a document of a packed sequence

  bool tie_embeddings = true;
  // Adds a second embedding, of the hashed pair (previous token, token), with this many rows: cheap
  // in compute, worth a layer or two in a short run. 0: none.
  int64_t bigram_buckets = 0;
  double logit_scale = 1.0;
  double logit_softcap = 0;

  double attention_dropout = 0, residual_dropout = 0, embedding_dropout = 0;

  InitScheme init = InitScheme::kNormal;
  double init_std = 0.02;
  double embedding_init_std = -1;  // < 0: the scheme's own

  int64_t kv_heads() const { return n_kv_heads > 0 ? n_kv_heads : n_heads; }
  int64_t head_dim() const { return head_size > 0 ? head_size : d_model / n_heads; }
  int64_t ffn_dim() const { return ffn_hidden > 0 ? ffn_hidden : 4 * d_model; }
  int64_t q_width() const { return n_heads * head_dim(); }
  int64_t kv_width() const { return kv_heads() * head_dim(); }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

// Every inconsistency with the values and the way out; empty when the config can be built.
std::vector<std::string> CheckModelConfig(const ModelConfig& config);

// JSON form stored in checkpoints ("config.json" of Tessera's own keys) and its exact inverse.
Json ModelConfigToJson(const ModelConfig& config);
Result<ModelConfig> ModelConfigFromJson(const Json& json, std::string_view source);

// Names as used in run files and JSON, both ways: "learned", "rope", "gelu", "swiglu" ...
std::string_view PositionsName(Positions positions);
std::string_view InitSchemeName(InitScheme scheme);
std::string_view ActivationName(kernels::Activation activation);
std::string_view QkNormName(kernels::QkNorm norm);

// What a parameter is for: decides optimizer, weight decay and initialisation.
enum class ParameterKind { kMatrix, kEmbedding, kPosition, kHead, kGain, kBias };

struct ParameterSpec {
  std::string name;  // "transformer.blocks.3.attn.Wqkv.weight"
  ParameterKind kind = ParameterKind::kMatrix;
  int64_t rows = 0, cols = 0;  // [out, in] for matrices; [1, n] for vectors
  int64_t layer = -1;          // block, or -1
  bool residual_projection = false;  // attn.out_proj and ffn.down_proj
  int64_t size() const { return rows * cols; }
  std::vector<int64_t> shape() const;  // 2-D, or 1-D for vectors
};

// All parameters in the order of the forward pass.
std::vector<ParameterSpec> ListParameters(const ModelConfig& config);
int64_t CountParameters(const ModelConfig& config);
// FLOPs of one training token, forward and backward: 6 N + 6 L C T, N = all parameters (embedding
// counted once), C = width of attention, T = sequence length (causal attention, PaLM appendix B
// halved).
double TrainFlopsPerToken(const ModelConfig& config, int64_t sequence_length);
// The same without tables that are only looked up (positions, token pairs, an untied embedding):
// what the products of a step really compute, for comparing with their best rate.
double ProductFlopsPerToken(const ModelConfig& config, int64_t sequence_length);

// Ready-made shapes: "gpt2-124m", "mpt-125m", "llama-350m" ...; not found lists the names.
Result<ModelConfig> NamedModel(std::string_view name);
std::vector<std::string> NamedModels();

}  // namespace tessera
