#include "model/inference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>

#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "model/engine.h"

namespace tessera {

namespace {

constexpr int64_t kAlign = 64;

int64_t Align(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

bool IsVector(const ParameterSpec& spec) {
  return spec.kind == ParameterKind::kGain || spec.kind == ParameterKind::kBias;
}

DType StorageOf(const ParameterSpec& spec, DType dtype) {
  return IsVector(spec) ? DType::kF32 : dtype;
}

int64_t WeightBytes(const ModelConfig& config, DType dtype) {
  int64_t bytes = 0;
  for (const ParameterSpec& spec : ListParameters(config)) {
    bytes += Align(spec.size() * DTypeBytes(StorageOf(spec, dtype)));
  }
  return bytes;
}

int64_t CacheBytes(const ModelConfig& config, const InferenceOptions& options) {
  return config.n_layers * 2 *
         Align(options.max_length * config.kv_width() * DTypeBytes(options.dtype));
}

int64_t UpWidth(const ModelConfig& config) {
  return (config.gated_ffn ? 2 : 1) * config.ffn_dim();
}

// Of the product before it, where that has one.
std::optional<kernels::GemmEpilogue> FusedActivation(const ModelConfig& config) {
  if (config.gated_ffn) return {};
  return kernels::EpilogueOf(config.activation);
}

int64_t RotarySize(const ModelConfig& config) {
  if (config.positions != Positions::kRope) return 0;
  return static_cast<int64_t>(
      std::llround(config.rotary_fraction * static_cast<double>(config.head_dim())));
}

}  // namespace

int64_t LongestSequence(const ModelConfig& config) {
  const bool table =
      config.positions == Positions::kLearned || config.positions == Positions::kRope;
  return table ? config.max_seq_len : std::numeric_limits<int32_t>::max();
}

InferenceModel::InferenceModel(const ModelConfig& config, const InferenceOptions& options,
                               ThreadPool& pool)
    : config_(config),
      options_(options),
      pool_(pool),
      element_(DTypeBytes(options.dtype)),
      rotary_size_(RotarySize(config)) {}

InferenceOptions InferenceModel::Normalized(const ModelConfig& config,
                                            const InferenceOptions& options) {
  InferenceOptions out = options;
  if (out.max_length <= 0) out.max_length = config.max_seq_len;
  out.prefill_chunk = std::clamp<int64_t>(out.prefill_chunk, 1, out.max_length);
  return out;
}

Result<std::unique_ptr<InferenceModel>> InferenceModel::Create(const ModelConfig& config,
                                                               const InferenceOptions& options,
                                                               ThreadPool& pool) {
  if (const std::vector<std::string> errors = CheckModelConfig(config); !errors.empty()) {
    return InvalidArgument(errors.front());
  }
  TESSERA_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBf16);
  const InferenceOptions normalized = Normalized(config, options);
  if (normalized.max_length > LongestSequence(config)) {
    return InvalidArgument(fmt::format(
        "a sequence of {} tokens was asked for, but the model has positions for {} (max_seq_len)",
        normalized.max_length, LongestSequence(config)));
  }
  auto model = std::unique_ptr<InferenceModel>(new InferenceModel(config, normalized, pool));
  TESSERA_TRY(model->Allocate());
  model->BindWeights();
  model->FillTables();
  return model;
}

int64_t InferenceModel::MemoryBytes(const ModelConfig& config, const InferenceOptions& options,
                                    int num_threads) {
  const InferenceOptions normalized = Normalized(config, options);
  return WeightBytes(config, normalized.dtype) + CacheBytes(config, normalized) +
         PlaceBuffers(config, normalized, num_threads).bytes +
         RotarySize(config) * normalized.max_length * 4;
}

kernels::AttentionDecodeArgs InferenceModel::DecodeArgs(const ModelConfig& config,
                                                        const InferenceOptions& options,
                                                        int64_t rows) {
  kernels::AttentionDecodeArgs args;
  args.shape.batch = 1;
  args.shape.length = rows;
  args.shape.heads = config.n_heads;
  args.shape.kv_heads = config.kv_heads();
  args.shape.head_size = config.head_dim();
  args.shape.scale = static_cast<float>(
      config.softmax_scale > 0 ? config.softmax_scale
                               : 1 / std::sqrt(static_cast<double>(config.head_dim())));
  args.shape.window = config.sliding_window;
  args.shape.softcap = static_cast<float>(config.attention_softcap);
  args.dtype = options.dtype;
  args.compute = options.compute;
  args.q_stride = config.qkv_width();
  args.capacity = options.max_length;
  args.out_stride = config.q_width();
  return args;
}

InferenceModel::Buffers InferenceModel::PlaceBuffers(const ModelConfig& config,
                                                     const InferenceOptions& options,
                                                     int num_threads) {
  Buffers at;
  const auto place = [&at](int64_t bytes) {
    const int64_t offset = at.bytes;
    at.bytes += Align(bytes);
    return offset;
  };
  const int64_t chunk = options.prefill_chunk;
  const auto activation = [&](int64_t width) {
    return place(chunk * width * DTypeBytes(options.dtype));
  };
  at.tokens = place((chunk + 1) * 4);
  at.bigrams = place((chunk + 1) * 4);
  at.stream = activation(config.d_model);
  at.branch = activation(config.d_model);
  at.norm = activation(config.d_model);
  at.qkv_raw = activation(config.qkv_width());
  at.qkv = activation(config.qkv_width());
  at.attention = activation(config.q_width());
  at.up = FusedActivation(config).has_value() ? 0 : activation(UpWidth(config));
  at.hidden = activation(config.ffn_dim());
  at.logits = place(config.vocab_size * 4);
  int64_t workspace = kernels::GemmWorkspaceBytes(num_threads);
  // The largest need may lie between one row and a whole chunk: the kernel changes its way.
  for (int64_t rows = 1; rows <= chunk; ++rows) {
    workspace = std::max(workspace, kernels::AttentionDecodeWorkspaceBytes(
                                        DecodeArgs(config, options, rows), num_threads));
  }
  at.workspace = place(workspace);
  return at;
}

Status InferenceModel::Allocate() {
  at_ = PlaceBuffers(config_, options_, pool_.num_threads());
  TESSERA_ASSIGN(weight_memory_, MemoryRegion::Allocate(WeightBytes(config_, options_.dtype),
                                                        "weights", pool_));
  TESSERA_ASSIGN(cache_, MemoryRegion::Allocate(CacheBytes(config_, options_), "key/value cache",
                                                pool_));
  TESSERA_ASSIGN(buffers_, MemoryRegion::Allocate(at_.bytes, "activations", pool_));
  return {};
}

void InferenceModel::BindWeights() {
  std::unordered_map<std::string, WeightIndex> index;
  int64_t offset = 0;
  for (ParameterSpec& spec : ListParameters(config_)) {
    const DType dtype = StorageOf(spec, options_.dtype);
    index[spec.name] = static_cast<WeightIndex>(weights_.size());
    const int64_t bytes = spec.size() * DTypeBytes(dtype);
    weights_.push_back({std::move(spec), dtype, weight_memory_.data() + offset});
    offset += Align(bytes);
  }
  const auto find = [&index](const std::string& name) {
    const auto it = index.find(name);
    return it == index.end() ? kAbsent : it->second;
  };
  const auto norm = [&](const std::string& name) {
    return NormWeights{find(name + ".weight"), find(name + ".bias")};
  };
  const auto linear = [&](const std::string& name) {
    LinearWeights out{find(name + ".weight"), find(name + ".bias")};
    TESSERA_CHECK(out.matrix != kAbsent, name);
    const ParameterSpec& spec = weights_[static_cast<size_t>(out.matrix)].spec;
    out.in = spec.cols;
    out.out = spec.rows;
    return out;
  };
  tokens_table_ = find("transformer.wte.weight");
  bigram_table_ = find("transformer.bigram.weight");
  positions_table_ = find("transformer.wpe.weight");
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    const std::string name = fmt::format("transformer.blocks.{}.", layer);
    Block block;
    block.norm_1 = norm(name + "norm_1");
    block.qkv = linear(name + "attn.Wqkv");
    block.q_norm = norm(name + "attn.q_ln");
    block.k_norm = norm(name + "attn.k_ln");
    block.out_proj = linear(name + "attn.out_proj");
    block.norm_2 = norm(name + "norm_2");
    block.up = linear(name + (config_.gated_ffn ? "ffn.gate_up_proj" : "ffn.up_proj"));
    block.down = linear(name + "ffn.down_proj");
    blocks_.push_back(block);
  }
  final_norm_ = norm("transformer.norm_f");
  head_ = linear(config_.tie_embeddings ? "transformer.wte" : "lm_head");
}

void InferenceModel::FillTables() {
  if (rotary_size_ > 0) {
    kernels::RopeTableOptions table;
    table.positions = options_.max_length;
    table.rotary_size = rotary_size_;
    table.base = config_.rope_theta;
    table.factor = config_.rope_scaling_factor;
    table.original_length = config_.rope_original_length;
    rope_cos_.resize(static_cast<size_t>(table.positions * rotary_size_ / 2));
    rope_sin_.resize(rope_cos_.size());
    kernels::FillRopeTable(table, rope_cos_.data(), rope_sin_.data());
  }
  if (config_.positions == Positions::kAlibi) {
    alibi_slopes_.resize(static_cast<size_t>(config_.n_heads));
    kernels::FillAlibiSlopes(config_.n_heads, static_cast<float>(config_.alibi_bias_max),
                             alibi_slopes_.data());
  }
}

void InferenceModel::SetWeight(size_t index, const void* values, DType dtype) {
  TESSERA_CHECK(index < weights_.size());
  TESSERA_CHECK(dtype == DType::kF32 || dtype == DType::kBf16);
  const Weight& weight = weights_[index];
  const int64_t n = weight.spec.size();
  if (dtype == weight.dtype) {
    std::memcpy(weight.data, values, static_cast<size_t>(n * DTypeBytes(dtype)));
  } else if (dtype == DType::kF32) {
    kernels::CastToBf16(static_cast<const float*>(values), static_cast<bf16*>(weight.data), n,
                        kernels::Rounding::kNearest, RngKey{}, 0, pool_);
  } else {
    kernels::CastToFloat(static_cast<const bf16*>(values), static_cast<float*>(weight.data), n,
                         pool_);
  }
}

const float* InferenceModel::Vector(WeightIndex index) const {
  if (index == kAbsent) return nullptr;
  return static_cast<const float*>(weights_[static_cast<size_t>(index)].data);
}

kernels::MatrixRef InferenceModel::Matrix(WeightIndex index) const {
  const Weight& weight = weights_[static_cast<size_t>(index)];
  return {weight.data, weight.dtype, weight.spec.cols, false};
}

Result<std::span<const float>> InferenceModel::Prefill(std::span<const int32_t> tokens) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  TESSERA_CHECK(count > 0, "Prefill needs at least one token");
  if (count > options_.max_length - position_) {
    return InvalidArgument(fmt::format(
        "{} more tokens after {} do not fit into a sequence of at most {}", count, position_,
        options_.max_length));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config_.vocab_size) {
      return InvalidArgument(fmt::format(
          "token {} is outside the model's vocabulary of {}: the text was encoded with another "
          "tokenizer",
          token, config_.vocab_size));
    }
  }
  int64_t rows = 0;
  for (int64_t first = 0; first < count; first += rows) {
    rows = std::min(options_.prefill_chunk, count - first);
    RunChunk(tokens.data() + first, rows);
  }
  RunHead(rows);
  return std::span<const float>(At<const float>(at_.logits),
                                static_cast<size_t>(config_.vocab_size));
}

void InferenceModel::RunChunk(const int32_t* tokens, int64_t rows) {
  int32_t* ids = At<int32_t>(at_.tokens);
  ids[0] = position_ == 0 ? -1 : last_token_;
  std::memcpy(ids + 1, tokens, static_cast<size_t>(rows) * sizeof(int32_t));
  Embed(rows);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    const Block& block = blocks_[static_cast<size_t>(layer)];
    Norm(block.norm_1, layer > 0, 0, rows);
    Linear(block.qkv, At(at_.norm), At(at_.qkv_raw), rows);
    Attend(layer, rows);
    Linear(block.out_proj, At(at_.attention), At(at_.branch), rows);
    Norm(block.norm_2, true, 0, rows);
    Expand(block.up, rows);
    Linear(block.down, At(at_.hidden), At(at_.branch), rows);
  }
  position_ += rows;
  last_token_ = ids[rows];
}

void InferenceModel::Expand(const LinearWeights& up, int64_t rows) {
  if (const auto epilogue = FusedActivation(config_); epilogue.has_value()) {
    Linear(up, At(at_.norm), At(at_.hidden), rows, *epilogue);
    return;
  }
  Linear(up, At(at_.norm), At(at_.up), rows);
  kernels::ActivationArgs activation;
  activation.activation = config_.activation;
  activation.gated = config_.gated_ffn;
  activation.rows = rows;
  activation.width = config_.ffn_dim();
  activation.dtype = options_.dtype;
  activation.x = At(at_.up);
  activation.y = At(at_.hidden);
  kernels::ActivationForward(activation, pool_);
}

void InferenceModel::Embed(int64_t rows) {
  const int32_t* ids = At<const int32_t>(at_.tokens);
  kernels::EmbeddingForwardArgs args;
  args.rows = args.length = rows;
  args.width = config_.d_model;
  args.tokens = ids + 1;
  const kernels::MatrixRef table = Matrix(tokens_table_);
  args.table = table.data;
  args.table_dtype = table.dtype;
  if (positions_table_ != kAbsent) args.positions = Matrix(positions_table_).data;
  args.first_position = position_;
  args.y = At(at_.stream);
  args.dtype = options_.dtype;
  kernels::EmbeddingForward(args, pool_);
  if (bigram_table_ == kAbsent) return;
  // The first token of a sequence has no pair before it, so hashing starts there; later chunks start
  // one token earlier, whose row is not used.
  int32_t* pairs = At<int32_t>(at_.bigrams);
  if (position_ == 0) {
    FillBigramRows(ids + 1, 1, rows, config_.bigram_buckets, pairs + 1);
  } else {
    FillBigramRows(ids, 1, rows + 1, config_.bigram_buckets, pairs);
  }
  args.tokens = pairs + 1;
  args.table = Matrix(bigram_table_).data;
  args.positions = nullptr;
  args.y = At(at_.branch);
  kernels::EmbeddingForward(args, pool_);
  kernels::AddActivation(At(at_.branch), At(at_.stream), rows * config_.d_model, options_.dtype,
                         pool_);
}

void InferenceModel::Norm(const NormWeights& weights, bool add_branch, int64_t first_row,
                          int64_t rows) {
  const int64_t skip = first_row * config_.d_model * element_;
  kernels::NormForwardArgs args;
  args.kind = config_.norm;
  args.rows = rows;
  args.width = config_.d_model;
  args.eps = static_cast<float>(config_.norm_eps);
  args.dtype = options_.dtype;
  args.x = At(at_.stream + skip);
  if (add_branch) {
    args.residual = args.x;
    args.x = At(at_.branch + skip);
    args.sum = At(at_.stream + skip);
  }
  args.gain = Vector(weights.gain);
  args.bias = Vector(weights.bias);
  args.y = At(at_.norm);
  args.low_precision = config_.low_precision_norm && options_.dtype == DType::kBf16;
  kernels::NormForward(args, pool_);
}

void InferenceModel::Linear(const LinearWeights& weights, const void* x, void* y, int64_t rows,
                            kernels::GemmEpilogue epilogue) {
  kernels::GemmArgs gemm;
  gemm.m = rows;
  gemm.n = weights.out;
  gemm.k = weights.in;
  gemm.a = {x, options_.dtype, weights.in, false};
  gemm.b = Matrix(weights.matrix);
  gemm.b.transposed = true;
  gemm.c = y;
  gemm.c_dtype = options_.dtype;
  gemm.ldc = weights.out;
  gemm.bias = Vector(weights.bias);
  gemm.epilogue = epilogue;
  gemm.compute = options_.compute;
  gemm.exact_chain = false;
  kernels::Gemm(gemm, At(at_.workspace), pool_);
}

void InferenceModel::Attend(int64_t layer, int64_t rows) {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const std::byte* ready = At<std::byte>(at_.qkv_raw);
  if (rotary_size_ > 0 || config_.clip_qkv > 0 || config_.qk_norm != kernels::QkNorm::kNone) {
    kernels::QkvArgs args;
    args.rows = args.length = rows;
    args.first_position = position_;
    args.heads = config_.n_heads;
    args.kv_heads = config_.kv_heads();
    args.head_size = config_.head_dim();
    args.dtype = options_.dtype;
    args.in = At(at_.qkv_raw);
    args.out = At(at_.qkv);
    args.clip = static_cast<float>(config_.clip_qkv);
    args.norm = config_.qk_norm;
    args.eps = static_cast<float>(config_.norm_eps);
    args.q_gain = Vector(block.q_norm.gain);
    args.k_gain = Vector(block.k_norm.gain);
    args.q_bias = Vector(block.q_norm.bias);
    args.k_bias = Vector(block.k_norm.bias);
    args.rotary_size = rotary_size_;
    args.rotary_interleaved = config_.rope_interleaved;
    args.cos = rope_cos_.data();
    args.sin = rope_sin_.data();
    kernels::QkvForward(args, pool_);
    ready = At<std::byte>(at_.qkv);
  }

  const int64_t row_bytes = config_.qkv_width() * element_;
  const int64_t kv_bytes = config_.kv_width() * element_;
  const int64_t q_bytes = config_.q_width() * element_;
  const int64_t layer_bytes = CacheBytes(config_, options_) / config_.n_layers;
  std::byte* keys = cache_.data() + layer * layer_bytes;
  std::byte* values = keys + layer_bytes / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t to = (position_ + row) * kv_bytes;
    const std::byte* from = ready + row * row_bytes + q_bytes;
    std::memcpy(keys + to, from, static_cast<size_t>(kv_bytes));
    std::memcpy(values + to, from + kv_bytes, static_cast<size_t>(kv_bytes));
  }

  kernels::AttentionDecodeArgs args = DecodeArgs(config_, options_, rows);
  args.shape.alibi_slopes = alibi_slopes_.empty() ? nullptr : alibi_slopes_.data();
  args.q = ready;
  args.k_cache = keys;
  args.v_cache = values;
  args.past = &position_;
  args.out = At(at_.attention);
  kernels::AttentionDecode(args, At(at_.workspace), pool_);
}

// Logits of the chunk's last row.
void InferenceModel::RunHead(int64_t rows) {
  Norm(final_norm_, true, rows - 1, 1);
  float* logits = At<float>(at_.logits);
  kernels::GemmArgs gemm;
  gemm.m = 1;
  gemm.n = head_.out;
  gemm.k = head_.in;
  gemm.a = {At(at_.norm), options_.dtype, head_.in, false};
  gemm.b = Matrix(head_.matrix);
  gemm.b.transposed = true;
  gemm.c = logits;
  gemm.ldc = head_.out;
  gemm.compute = options_.compute;
  gemm.exact_chain = false;
  kernels::Gemm(gemm, At(at_.workspace), pool_);
  const float scale = static_cast<float>(config_.logit_scale);
  if (scale != 1.0f) kernels::Scale(logits, scale, head_.out, pool_);
  const float cap = static_cast<float>(config_.logit_softcap);
  if (cap > 0) {
    pool_.ParallelFor(head_.out, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) logits[j] = cap * std::tanh(logits[j] / cap);
    });
  }
}

void CopyWeights(Engine& engine, InferenceModel* model) {
  const std::span<const Parameter> parameters = engine.parameters();
  TESSERA_CHECK(parameters.size() == model->parameters().size(), "another architecture");
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = model->parameters()[i].spec;
    TESSERA_CHECK(parameters[i].spec.name == spec.name && parameters[i].spec.size() == spec.size(),
                  spec.name);
    model->SetWeight(i, parameters[i].value, DType::kF32);
  }
}

}  // namespace tessera
