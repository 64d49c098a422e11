#include "model/program.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

namespace tessera {

std::string_view OpKindName(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbedding: return "embedding";
    case OpKind::kDropout: return "dropout";
    case OpKind::kNorm: return "norm";
    case OpKind::kLinear: return "linear";
    case OpKind::kQkv: return "qkv";
    case OpKind::kAttention: return "attention";
    case OpKind::kActivation: return "activation";
    case OpKind::kLoss: return "head+loss";
    case OpKind::kAttentionBackward: return "attention.bwd";
    case OpKind::kQkvBackward: return "qkv.bwd";
    case OpKind::kActivationBackward: return "activation.bwd";
    case OpKind::kNormBackward: return "norm.bwd";
    case OpKind::kLinearBackwardInput: return "linear.bwd.dx";
    case OpKind::kLinearBackwardWeight: return "linear.bwd.dw";
    case OpKind::kEmbeddingBackward: return "embedding.bwd";
  }
  return "?";
}

namespace {

// What a block's forward pass leaves for its backward pass.
struct BlockBuffers {
  BufferId input = kNone;  // residual stream at the block's entry
  BufferId norm1 = kNone, mean1 = kNone, rstd1 = kNone;
  BufferId qkv_raw = kNone, qkv = kNone;
  BufferId attention = kNone, lse = kNone;
  BufferId middle = kNone;  // residual stream between the halves
  BufferId norm2 = kNone, mean2 = kNone, rstd2 = kNone;
  BufferId up = kNone, hidden = kNone;
};

// The residual stream: its value is `sum` plus, when set, a branch that the next norm adds.
struct Stream {
  BufferId sum = kNone;
  BufferId branch = kNone;
};

class Builder {
 public:
  Builder(const ModelConfig& config, const PlanOptions& options, bool with_backward)
      : config_(config), options_(options), backward_(with_backward) {
    program_.params = ListParameters(config);
    for (size_t i = 0; i < program_.params.size(); ++i) {
      index_[program_.params[i].name] = static_cast<ParamId>(i);
    }
    program_.tokens = options.microbatch * options.sequence_length;
    rows_ = program_.tokens;
    element_ = options.precision == Precision::kAmpBf16 ? 2 : 4;
    program_.loss_chunk = ChooseLossChunk();
  }

  Program Build() {
    const int64_t layers = config_.n_layers;
    Stream stream = EmbeddingForward();
    std::vector<BlockBuffers> blocks(static_cast<size_t>(layers));
    for (int64_t layer = 0; layer < layers; ++layer) {
      stream = BlockForward(layer, stream, &blocks[static_cast<size_t>(layer)]);
    }
    const ParamId gain = Param("transformer.norm_f.weight");
    const ParamId bias = Param("transformer.norm_f.bias");
    BufferId last = stream.sum;
    BufferId mean = kNone, rstd = kNone;
    const BufferId final_norm = Norm("final", -1, &stream, gain, bias, &last, &mean, &rstd);
    program_.final_hidden = final_norm;

    Op loss{.kind = OpKind::kLoss};
    loss.x = final_norm;
    loss.weight = HeadParam();
    loss.width_in = config_.d_model;
    loss.width_out = config_.vocab_size;
    const double head = 2.0 * Dbl(rows_) * Dbl(config_.d_model) * Dbl(config_.vocab_size);
    loss.flops = backward_ ? 3 * head : head;
    loss.bytes = Dbl(rows_) * Dbl(config_.vocab_size) * 4 * (backward_ ? 3 : 2);
    BufferId dhidden = kNone;
    if (backward_) dhidden = loss.y = New("d.final", Activation(config_.d_model));
    Emit(loss);

    if (backward_) {
      const BufferId dstream = New("d.stream", Activation(config_.d_model));
      NormBackward(-1, last, dhidden, mean, rstd, gain, bias, dstream, false);
      for (int64_t layer = layers - 1; layer >= 0; --layer) {
        BlockBackward(layer, &blocks[static_cast<size_t>(layer)], dstream);
      }
      EmbeddingBackward(dstream);
    }
    PlaceBuffers();
    MarkFirstGradients();
    return std::move(program_);
  }

 private:
  static double Dbl(int64_t value) { return static_cast<double>(value); }

  ParamId Param(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? kNone : it->second;
  }
  ParamId HeadParam() const {
    return Param(config_.tie_embeddings ? "transformer.wte.weight" : "lm_head.weight");
  }
  std::string BlockName(int64_t layer) const {
    return fmt::format("transformer.blocks.{}.", layer);
  }
  int64_t Activation(int64_t width) const { return rows_ * width * element_; }

  BufferId New(std::string name, int64_t bytes) {
    program_.buffers.push_back({std::move(name), (bytes + 63) / 64 * 64});
    return static_cast<BufferId>(program_.buffers.size() - 1);
  }
  BufferId New(std::string_view part, int64_t layer, int64_t bytes) {
    return New(layer < 0 ? std::string(part) : fmt::format("{}.{}", layer, part), bytes);
  }

  void Emit(const Op& op) {
    const int64_t position = static_cast<int64_t>(program_.ops.size());
    for (const BufferId id : {op.x, op.x2, op.dy, op.y, op.y2, op.stat0, op.stat1}) {
      if (id == kNone) continue;
      Buffer& buffer = program_.buffers[static_cast<size_t>(id)];
      if (buffer.first < 0) buffer.first = position;
      buffer.last = position;
    }
    program_.ops.push_back(op);
  }

  int64_t ChooseLossChunk() const {
    int64_t chunk = options_.loss_chunk_tokens;
    if (chunk <= 0) {
      // The head's matrix and its gradient pass through memory once a chunk: enough rows to make
      // that cheap, few enough that a chunk of logits stays near the caches for small vocabularies
      // and small beside the rest for large ones. Tiles multiply so much faster than memory moves
      // that they want the rows of larger vocabularies too.
      const auto logits = [this](int64_t rows) { return rows * config_.vocab_size * 4; };
      const bool tiles = kernels::ChainGrain(options_.compute) > 2;
      chunk = logits(1024) <= (int64_t{tiles ? 256 : 128} << 20) ? 1024 : 512;
      while (chunk < 2048 && logits(chunk * 2) <= (int64_t{16} << 20)) chunk *= 2;
    }
    return std::min(chunk, rows_);
  }

  Stream EmbeddingForward() {
    const int64_t width = config_.d_model;
    Stream stream;
    stream.sum = New("embedding", Activation(width));
    Op op{.kind = OpKind::kEmbedding};
    op.y = stream.sum;
    op.weight = Param("transformer.wte.weight");
    op.bias = Param("transformer.wpe.weight");
    op.bytes = 2 * Dbl(Activation(width));  // a row of the table each, and y
    if (op.bias != kNone) op.bytes += Dbl(Activation(width)) / Dbl(options_.microbatch);
    Emit(op);
    if (config_.bigram_buckets > 0) {
      const BufferId pair = New("bigram", Activation(width));
      Op second{.kind = OpKind::kEmbedding};
      second.y = stream.sum;
      second.y2 = pair;
      second.weight = Param("transformer.bigram.weight");
      second.second = true;
      second.bytes = 5 * Dbl(Activation(width));
      Emit(second);
    }
    if (config_.embedding_dropout > 0) EmitDropout(stream.sum, stream.sum, -1, 0);
    return stream;
  }

  void EmitDropout(BufferId x, BufferId y, int64_t layer, int site) {
    Op op{.kind = OpKind::kDropout};
    op.layer = layer;
    op.x = x;
    op.y = y;
    op.dropout_site = site;
    op.bytes = 2 * Dbl(Activation(config_.d_model));
    Emit(op);
  }

  // Adds the stream's pending branch and normalises. `sum` receives the stream's full value.
  BufferId Norm(std::string_view part, int64_t layer, Stream* stream, ParamId gain, ParamId bias,
                BufferId* sum, BufferId* mean, BufferId* rstd) {
    const int64_t width = config_.d_model;
    Op op{.kind = OpKind::kNorm};
    op.layer = layer;
    op.x = stream->sum;
    op.weight = gain;
    op.bias = bias;
    op.y = New(fmt::format("{}.norm", part), layer, Activation(width));
    op.bytes = 2 * Dbl(Activation(width));
    if (stream->branch != kNone) {
      op.x2 = stream->branch;
      op.y2 = New(fmt::format("{}.sum", part), layer, Activation(width));
      op.bytes *= 2;
      *sum = op.y2;
    } else {
      *sum = stream->sum;
    }
    if (backward_) {
      if (config_.norm == kernels::NormKind::kLayerNorm) {
        op.stat0 = *mean = New(fmt::format("{}.mean", part), layer, rows_ * 4);
      }
      op.stat1 = *rstd = New(fmt::format("{}.rstd", part), layer, rows_ * 4);
    }
    Emit(op);
    *stream = {*sum, kNone};
    return op.y;
  }

  BufferId Linear(std::string_view part, int64_t layer, BufferId x, const std::string& name,
                  int64_t in, int64_t out) {
    Op op{.kind = OpKind::kLinear};
    op.layer = layer;
    op.x = x;
    op.y = New(part, layer, Activation(out));
    op.weight = Param(name + ".weight");
    op.bias = Param(name + ".bias");
    op.width_in = in;
    op.width_out = out;
    op.flops = 2.0 * Dbl(rows_) * Dbl(in) * Dbl(out);
    Emit(op);
    return op.y;
  }

  bool HasQkvOp() const {
    return config_.positions == Positions::kRope || config_.clip_qkv > 0 ||
           config_.qk_norm != kernels::QkNorm::kNone;
  }
  bool QkvInPlace() const {
    return config_.clip_qkv == 0 && config_.qk_norm == kernels::QkNorm::kNone;
  }
  void SetQkvParams(int64_t layer, Op* op) const {
    const std::string attn = BlockName(layer) + "attn.";
    op->weight = Param(attn + "q_ln.weight");
    op->k_gain = Param(attn + "k_ln.weight");
    op->q_bias = Param(attn + "q_ln.bias");
    op->k_bias = Param(attn + "k_ln.bias");
  }

  int64_t UpWidth() const { return (config_.gated_ffn ? 2 : 1) * config_.ffn_dim(); }

  BufferId ActivationForward(int64_t layer, BufferId up) {
    Op op{.kind = OpKind::kActivation};
    op.layer = layer;
    op.x = up;
    op.y = New("hidden", layer, Activation(config_.ffn_dim()));
    op.bytes = Dbl(Activation(UpWidth() + config_.ffn_dim()));
    Emit(op);
    return op.y;
  }

  // Attention's half of a block up to its output projection (not included).
  void AttentionHalf(int64_t layer, BlockBuffers* b) {
    b->qkv_raw = Linear("qkv", layer, b->norm1, BlockName(layer) + "attn.Wqkv", config_.d_model,
                        config_.qkv_width());
    b->qkv = b->qkv_raw;
    if (HasQkvOp()) {
      if (!QkvInPlace()) b->qkv = New("qkv.ready", layer, Activation(config_.qkv_width()));
      Op op{.kind = OpKind::kQkv};
      op.layer = layer;
      op.x = b->qkv_raw;
      op.y = b->qkv;
      SetQkvParams(layer, &op);
      op.bytes = 2 * Dbl(Activation(config_.qkv_width()));
      Emit(op);
    }
    Op op{.kind = OpKind::kAttention};
    op.layer = layer;
    op.x = b->qkv;
    op.y = b->attention = New("attention", layer, Activation(config_.q_width()));
    op.stat0 = b->lse = New("lse", layer, rows_ * config_.n_heads * 4);
    op.flops = AttentionFlops();
    op.dropout_site = 1;
    Emit(op);
  }

  double AttentionFlops() const {
    const double length = Dbl(options_.sequence_length);
    const double span = config_.sliding_window > 0
                            ? std::min(length, 2 * Dbl(config_.sliding_window))
                            : length;
    return 2.0 * Dbl(config_.q_width()) * length * span * Dbl(options_.microbatch);
  }

  void UpProjection(int64_t layer, BlockBuffers* b) {
    b->up = Linear("up", layer, b->norm2,
                   BlockName(layer) + (config_.gated_ffn ? "ffn.gate_up_proj" : "ffn.up_proj"),
                   config_.d_model, UpWidth());
  }

  BufferId Norm1(int64_t layer, Stream* stream, BlockBuffers* b) {
    return Norm("attn", layer, stream, Param(BlockName(layer) + "norm_1.weight"),
                Param(BlockName(layer) + "norm_1.bias"), &b->input, &b->mean1, &b->rstd1);
  }
  BufferId Norm2(int64_t layer, Stream* stream, BlockBuffers* b) {
    return Norm("ffn", layer, stream, Param(BlockName(layer) + "norm_2.weight"),
                Param(BlockName(layer) + "norm_2.bias"), &b->middle, &b->mean2, &b->rstd2);
  }

  BufferId OutProjection(int64_t layer, const BlockBuffers& b) {
    const BufferId out = Linear("attn.out", layer, b.attention, BlockName(layer) + "attn.out_proj",
                                config_.q_width(), config_.d_model);
    if (config_.residual_dropout > 0) EmitDropout(out, out, layer, 2);
    return out;
  }

  Stream BlockForward(int64_t layer, Stream stream, BlockBuffers* b) {
    b->norm1 = Norm1(layer, &stream, b);
    AttentionHalf(layer, b);
    stream.branch = OutProjection(layer, *b);
    b->norm2 = Norm2(layer, &stream, b);
    UpProjection(layer, b);
    b->hidden = ActivationForward(layer, b->up);
    stream.branch = Linear("ffn.out", layer, b->hidden, BlockName(layer) + "ffn.down_proj",
                           config_.ffn_dim(), config_.d_model);
    if (config_.residual_dropout > 0) EmitDropout(stream.branch, stream.branch, layer, 3);
    return stream;
  }

  // Runs a block's forward pass again from its input, up to what backward needs; the activation comes
  // with its gradient.
  void RecomputeBlock(int64_t layer, BlockBuffers* b) {
    Stream stream{b->input, kNone};
    BlockBuffers fresh;
    fresh.norm1 = Norm1(layer, &stream, &fresh);
    AttentionHalf(layer, &fresh);
    stream.branch = OutProjection(layer, fresh);
    fresh.norm2 = Norm2(layer, &stream, &fresh);
    UpProjection(layer, &fresh);
    *b = fresh;
  }

  // The norm's output again, as `again`, unless that is kNone.
  void NormBackward(int64_t layer, BufferId x, BufferId dy, BufferId mean, BufferId rstd,
                    ParamId gain, ParamId bias, BufferId dx, bool accumulate, BufferId again = kNone) {
    Op op{.kind = OpKind::kNormBackward};
    op.layer = layer;
    op.x = x;
    op.dy = dy;
    op.stat0 = mean;
    op.stat1 = rstd;
    op.weight = gain;
    op.bias = bias;
    op.y = dx;
    op.y2 = again;
    op.accumulate = accumulate;
    op.bytes = (3 + (accumulate ? 1 : 0) + (again != kNone ? 1 : 0)) * Dbl(Activation(config_.d_model));
    Emit(op);
  }

  // Input gradient of a linear layer; its weight gradient is emitted apart because the saved input
  // may have to be recomputed first.
  BufferId LinearBackwardInput(std::string_view part, int64_t layer, BufferId dy,
                               const std::string& name, int64_t in, int64_t out) {
    Op op{.kind = OpKind::kLinearBackwardInput};
    op.layer = layer;
    op.dy = dy;
    op.weight = Param(name + ".weight");
    op.width_in = in;
    op.width_out = out;
    op.y = New(part, layer, Activation(in));
    op.flops = 2.0 * Dbl(rows_) * Dbl(in) * Dbl(out);
    Emit(op);
    return op.y;
  }
  void LinearBackwardWeight(int64_t layer, BufferId x, BufferId dy, const std::string& name,
                            int64_t in, int64_t out) {
    Op op{.kind = OpKind::kLinearBackwardWeight};
    op.layer = layer;
    op.x = x;
    op.dy = dy;
    op.weight = Param(name + ".weight");
    op.bias = Param(name + ".bias");
    op.width_in = in;
    op.width_out = out;
    op.flops = 2.0 * Dbl(rows_) * Dbl(in) * Dbl(out);
    if (op.bias != kNone) op.bytes = Dbl(Activation(out));
    Emit(op);
  }

  // What a norm's forward pass left.
  struct NormBuffers {
    BufferId x, y, mean, rstd;
  };

  // Backward of a norm of the stream and of the linear layer that reads it. A norm whose output was not
  // kept is computed again with its gradient, and the weight's gradient comes last.
  void NormedLinearBackward(std::string_view part, int64_t layer, const NormBuffers& norm, BufferId dy,
                            const std::string& linear, int64_t out, const std::string& name,
                            BufferId dstream) {
    const int64_t d = config_.d_model;
    const bool again = options_.recompute == Recompute::kNorm;
    if (!again) LinearBackwardWeight(layer, norm.y, dy, linear, d, out);
    const BufferId dnorm = LinearBackwardInput(fmt::format("d.{}", part), layer, dy, linear, d, out);
    const BufferId y = again ? New(fmt::format("{}.again", part), layer, Activation(d)) : kNone;
    NormBackward(layer, norm.x, dnorm, norm.mean, norm.rstd, Param(name + ".weight"),
                 Param(name + ".bias"), dstream, true, y);
    if (again) LinearBackwardWeight(layer, y, dy, linear, d, out);
  }

  // The gradient of a residual branch: the stream's own, through dropout where there is one.
  BufferId BranchGradient(int64_t layer, BufferId dstream, int site) {
    if (config_.residual_dropout <= 0) return dstream;
    const BufferId dy = New("d.dropout", layer, Activation(config_.d_model));
    EmitDropout(dstream, dy, layer, site);
    return dy;
  }

  void BlockBackward(int64_t layer, BlockBuffers* b, BufferId dstream) {
    const std::string block = BlockName(layer);
    const std::string up_name = block + (config_.gated_ffn ? "ffn.gate_up_proj" : "ffn.up_proj");
    const int64_t d = config_.d_model, ffn = config_.ffn_dim();
    const bool hidden_again = options_.recompute != Recompute::kNone;
    if (options_.recompute == Recompute::kBlock) RecomputeBlock(layer, b);

    const BufferId ddown = BranchGradient(layer, dstream, 3);
    if (!hidden_again) LinearBackwardWeight(layer, b->hidden, ddown, block + "ffn.down_proj", ffn, d);
    const BufferId dhidden =
        LinearBackwardInput("d.hidden", layer, ddown, block + "ffn.down_proj", ffn, d);
    Op act{.kind = OpKind::kActivationBackward};
    act.layer = layer;
    act.x = b->up;
    act.dy = dhidden;
    act.y = config_.gated_ffn ? New("d.up", layer, Activation(UpWidth())) : dhidden;
    act.bytes = Dbl(Activation(2 * UpWidth() + ffn));
    if (hidden_again) {
      act.y2 = New("hidden.again", layer, Activation(ffn));
      act.bytes += Dbl(Activation(ffn));
    }
    Emit(act);
    if (hidden_again) LinearBackwardWeight(layer, act.y2, ddown, block + "ffn.down_proj", ffn, d);
    NormedLinearBackward("norm2", layer, {b->middle, b->norm2, b->mean2, b->rstd2}, act.y, up_name,
                         UpWidth(), block + "norm_2", dstream);

    const BufferId dout = BranchGradient(layer, dstream, 2);
    LinearBackwardWeight(layer, b->attention, dout, block + "attn.out_proj", config_.q_width(), d);
    const BufferId dattention = LinearBackwardInput("d.attention", layer, dout,
                                                    block + "attn.out_proj", config_.q_width(), d);
    Op attention{.kind = OpKind::kAttentionBackward};
    attention.layer = layer;
    attention.x = b->qkv;
    attention.x2 = b->attention;
    attention.dy = dattention;
    attention.stat0 = b->lse;
    attention.y = New("d.qkv", layer, Activation(config_.qkv_width()));
    attention.flops = 2.5 * AttentionFlops();
    attention.dropout_site = 1;
    Emit(attention);
    if (HasQkvOp()) {
      Op op{.kind = OpKind::kQkvBackward};
      op.layer = layer;
      op.x = b->qkv_raw;
      op.dy = attention.y;
      op.y = attention.y;
      SetQkvParams(layer, &op);
      // In place, values as they are where they are not clipped.
      op.bytes = 3 * Dbl(Activation(config_.clip_qkv > 0 ? config_.qkv_width()
                                                         : config_.q_width() + config_.kv_width()));
      Emit(op);
    }
    NormedLinearBackward("norm1", layer, {b->input, b->norm1, b->mean1, b->rstd1}, attention.y,
                         block + "attn.Wqkv", config_.qkv_width(), block + "norm_1", dstream);
  }

  void EmbeddingBackward(BufferId dstream) {
    if (config_.embedding_dropout > 0) EmitDropout(dstream, dstream, -1, 0);
    Op op{.kind = OpKind::kEmbeddingBackward};
    op.dy = dstream;
    op.weight = Param("transformer.wte.weight");
    op.bias = Param("transformer.wpe.weight");
    // The gradient, and rows of fp32 that it is added to.
    const double rows = Dbl(rows_) * Dbl(config_.d_model) * 4;
    op.bytes = Dbl(Activation(config_.d_model)) + 2 * rows;
    if (op.bias != kNone) op.bytes += 2 * rows / Dbl(options_.microbatch);
    Emit(op);
    if (config_.bigram_buckets > 0) {
      op.weight = Param("transformer.bigram.weight");
      op.bias = kNone;
      op.second = true;
      Emit(op);
    }
  }

  // Offsets in the arena: buffers by decreasing size, each at the lowest place that is free during
  // all of its life (greedy by size; within a few percent of optimal for nets of equal blocks).
  void PlaceBuffers() {
    std::vector<BufferId> order(program_.buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [this](BufferId a, BufferId b) {
      return At(a).bytes > At(b).bytes;
    });
    std::vector<BufferId> placed;
    for (const BufferId id : order) {
      Buffer& buffer = At(id);
      if (buffer.first < 0) continue;
      std::vector<std::pair<int64_t, int64_t>> taken;
      for (const BufferId other : placed) {
        const Buffer& o = At(other);
        if (o.first <= buffer.last && buffer.first <= o.last) {
          taken.emplace_back(o.offset, o.offset + o.bytes);
        }
      }
      std::sort(taken.begin(), taken.end());
      int64_t offset = 0;
      for (const auto& [begin, end] : taken) {
        if (offset + buffer.bytes <= begin) break;
        offset = std::max(offset, end);
      }
      buffer.offset = offset;
      program_.arena_bytes = std::max(program_.arena_bytes, offset + buffer.bytes);
      placed.push_back(id);
    }
  }

  // Gradients of matrices come from products; the embedding's backward op adds to the tied head's, or
  // to a table of its own, after it.
  void MarkFirstGradients() {
    std::vector<bool> touched(program_.params.size(), false);
    for (Op& op : program_.ops) {
      const bool product = op.kind == OpKind::kLinearBackwardWeight ||
                           (op.kind == OpKind::kLoss && op.y != kNone);
      if (!product && op.kind != OpKind::kEmbeddingBackward) continue;
      const size_t weight = static_cast<size_t>(op.weight);
      op.first_gradient = product && !touched[weight];
      touched[weight] = true;
    }
  }

  Buffer& At(BufferId id) { return program_.buffers[static_cast<size_t>(id)]; }

  const ModelConfig& config_;
  const PlanOptions& options_;
  const bool backward_;
  Program program_;
  std::map<std::string, ParamId> index_;
  int64_t rows_ = 0;
  int64_t element_ = 4;
};

}  // namespace

std::vector<bool> Program::OverwrittenGradients() const {
  std::vector<bool> overwritten(params.size(), false);
  for (const Op& op : ops) {
    if (op.first_gradient) overwritten[static_cast<size_t>(op.weight)] = true;
  }
  return overwritten;
}

Program BuildProgram(const ModelConfig& config, const PlanOptions& options, bool with_backward) {
  return Builder(config, options, with_backward).Build();
}

}  // namespace tessera
