#include "model/executor.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

namespace tessera {

using kernels::GemmArgs;
using kernels::MatrixRef;

namespace {

// One stream of random numbers per (step, layer, site).
RngKey DropoutKey(const PassContext& context, int64_t layer, int site) {
  const uint64_t place = static_cast<uint64_t>((layer + 1) * 4 + site);
  return {context.seed, RngPurpose::kDropout, (static_cast<uint64_t>(context.step) << 20) + place};
}

}  // namespace

Executor::Executor(const Plan& plan, const Program& program, const Layout& layout,
                   const Memory& memory)
    : plan_(plan),
      program_(program),
      layout_(layout),
      memory_(memory),
      dtype_(plan.options.precision == Precision::kAmpBf16 ? DType::kBf16 : DType::kF32) {
  calls_.reserve(program.ops.size());
  for (const Op& op : program.ops) calls_.push_back(Bind(op));
}

void* Executor::At(BufferId id) const {
  if (id == kNone) return nullptr;
  return memory_.arena + program_.buffers[static_cast<size_t>(id)].offset;
}

const float* Executor::Value(ParamId id) const {
  return id == kNone ? nullptr : memory_.values + layout_.value[static_cast<size_t>(id)];
}

float* Executor::Grad(ParamId id) const {
  return id == kNone ? nullptr : memory_.grads + layout_.value[static_cast<size_t>(id)];
}

MatrixRef Executor::Weight(ParamId id) const {
  const ParameterSpec& spec = program_.params[static_cast<size_t>(id)];
  const int64_t working = layout_.working[static_cast<size_t>(id)];
  if (working >= 0) return {memory_.working + working, DType::kBf16, spec.cols, false};
  return {Value(id), DType::kF32, spec.cols, false};
}

kernels::AttentionShape Executor::Shape() const {
  const ModelConfig& config = plan_.config;
  kernels::AttentionShape shape;
  shape.batch = plan_.options.microbatch;
  shape.length = plan_.options.sequence_length;
  shape.heads = config.n_heads;
  shape.kv_heads = config.kv_heads();
  shape.head_size = config.head_dim();
  shape.scale = static_cast<float>(config.softmax_scale > 0
                                       ? config.softmax_scale
                                       : 1 / std::sqrt(static_cast<double>(config.head_dim())));
  shape.window = config.sliding_window;
  shape.softcap = static_cast<float>(config.attention_softcap);
  shape.alibi_slopes = memory_.alibi_slopes;
  if (config.document_mask) shape.segment_start = memory_.segment_start;
  return shape;
}

kernels::QkvArgs Executor::BindQkv(const Op& op) const {
  const ModelConfig& config = plan_.config;
  kernels::QkvArgs args;
  args.rows = program_.tokens;
  args.length = plan_.options.sequence_length;
  args.heads = config.n_heads;
  args.kv_heads = config.kv_heads();
  args.head_size = config.head_dim();
  args.dtype = dtype_;
  args.in = At(op.x);
  args.out = At(op.y);
  args.clip = static_cast<float>(config.clip_qkv);
  args.norm = config.qk_norm;
  args.eps = static_cast<float>(config.norm_eps);
  args.q_gain = Value(op.weight);
  args.k_gain = Value(op.k_gain);
  args.q_bias = Value(op.q_bias);
  args.k_bias = Value(op.k_bias);
  if (config.positions == Positions::kRope) {
    args.rotary_size = static_cast<int64_t>(
        std::llround(config.rotary_fraction * static_cast<double>(config.head_dim())));
    args.rotary_interleaved = config.rope_interleaved;
    args.cos = memory_.rope_cos;
    args.sin = memory_.rope_sin;
  }
  return args;
}

// A weight gradient's chain over tokens is cut between passes at multiples of `cut`: where those are no
// whole steps of the multiplier, fp32 keeps the bits the same for every micro-batch.
kernels::Compute Executor::WeightGradientCompute(int64_t cut) const {
  const kernels::Compute compute = plan_.options.compute;
  return cut % kernels::ChainGrain(compute) == 0 ? compute : kernels::Compute::kF32;
}

GemmArgs Executor::LogitsProduct(const Op& op) const {
  GemmArgs gemm;
  gemm.n = op.width_out;
  gemm.k = op.width_in;
  gemm.a = {At(op.x), dtype_, op.width_in, false};
  gemm.b = Weight(op.weight);
  gemm.b.transposed = true;
  gemm.ldc = LogitsStride(op.width_out);
  gemm.compute = plan_.options.compute;
  return gemm;
}

Executor::Call Executor::Bind(const Op& op) const {
  const ModelConfig& config = plan_.config;
  const int64_t rows = program_.tokens;
  const int64_t length = plan_.options.sequence_length;
  switch (op.kind) {
    case OpKind::kEmbedding: {
      EmbeddingCall call;
      call.args.rows = rows;
      call.args.width = config.d_model;
      call.args.length = length;
      call.args.tokens = op.second ? memory_.bigrams : memory_.tokens;
      const MatrixRef table = Weight(op.weight);
      call.args.table = table.data;
      call.args.table_dtype = table.dtype;
      if (op.bias != kNone) call.args.positions = Weight(op.bias).data;
      call.args.y = At(op.second ? op.y2 : op.y);
      call.args.dtype = dtype_;
      if (op.second) call.add_to = At(op.y);
      return call;
    }
    case OpKind::kEmbeddingBackward: {
      kernels::EmbeddingBackwardArgs args;
      args.rows = rows;
      args.width = config.d_model;
      args.length = length;
      args.tokens = op.second ? memory_.bigrams : memory_.tokens;
      args.dy = At(op.dy);
      args.dtype = dtype_;
      args.dtable = Grad(op.weight);
      if (memory_.lookup_grads != nullptr && !op.second) {
        args.tokens = memory_.lookup_rows;
        args.dtable = memory_.lookup_grads;
      }
      args.dpositions = Grad(op.bias);
      return args;
    }
    case OpKind::kDropout: {
      const double p = op.dropout_site == 0 ? config.embedding_dropout : config.residual_dropout;
      return DropoutCall{At(op.x), At(op.y), rows * config.d_model, length * config.d_model,
                         p, op.layer, op.dropout_site};
    }
    case OpKind::kNorm: {
      kernels::NormForwardArgs args;
      args.kind = config.norm;
      args.rows = rows;
      args.width = config.d_model;
      args.eps = static_cast<float>(config.norm_eps);
      args.dtype = dtype_;
      args.x = op.x2 == kNone ? At(op.x) : At(op.x2);
      if (op.x2 != kNone) {
        args.residual = At(op.x);
        args.sum = At(op.y2);
      }
      args.gain = Value(op.weight);
      args.bias = Value(op.bias);
      args.y = At(op.y);
      args.mean = StatAt(op.stat0);
      args.rstd = StatAt(op.stat1);
      args.low_precision = LowPrecisionNorms();
      return args;
    }
    case OpKind::kNormBackward: {
      kernels::NormBackwardArgs args;
      args.kind = config.norm;
      args.rows = rows;
      args.width = config.d_model;
      args.sequence = length;
      args.dtype = dtype_;
      args.x = At(op.x);
      args.dy = At(op.dy);
      args.gain = Value(op.weight);
      args.mean = StatAt(op.stat0);
      args.rstd = StatAt(op.stat1);
      args.dx = At(op.y);
      args.accumulate_dx = op.accumulate;
      args.dgain = Grad(op.weight);
      args.dbias = Grad(op.bias);
      args.y = At(op.y2);
      args.bias = Value(op.bias);
      args.low_precision = LowPrecisionNorms();
      return args;
    }
    case OpKind::kLinear: {
      GemmArgs gemm;
      gemm.m = rows;
      gemm.n = op.width_out;
      gemm.k = op.width_in;
      gemm.a = {At(op.x), dtype_, op.width_in, false};
      gemm.b = Weight(op.weight);
      gemm.b.transposed = true;
      gemm.c = At(op.y);
      gemm.c_dtype = dtype_;
      gemm.ldc = op.width_out;
      gemm.bias = Value(op.bias);
      gemm.compute = plan_.options.compute;
      return gemm;
    }
    case OpKind::kLinearBackwardInput: {
      GemmArgs gemm;
      gemm.m = rows;
      gemm.n = op.width_in;
      gemm.k = op.width_out;
      gemm.a = {At(op.dy), dtype_, op.width_out, false};
      gemm.b = Weight(op.weight);
      gemm.c = At(op.y);
      gemm.c_dtype = dtype_;
      gemm.ldc = op.width_in;
      gemm.compute = plan_.options.compute;
      return gemm;
    }
    case OpKind::kLinearBackwardWeight: {
      GemmArgs gemm;
      gemm.m = op.width_out;
      gemm.n = op.width_in;
      gemm.k = rows;
      gemm.a = {At(op.dy), dtype_, op.width_out, true};
      gemm.b = {At(op.x), dtype_, op.width_in, false};
      gemm.c = Grad(op.weight);
      gemm.ldc = op.width_in;
      gemm.accumulate = true;
      gemm.compute = WeightGradientCompute(length);
      if (op.bias != kNone) gemm.row_sums = Grad(op.bias);
      return gemm;
    }
    case OpKind::kQkv: return BindQkv(op);
    case OpKind::kQkvBackward: {
      kernels::QkvBackwardArgs args;
      args.forward = BindQkv(op);
      args.forward.out = nullptr;
      args.dout = At(op.dy);
      args.din = At(op.y);
      args.dq_gain = Grad(op.weight);
      args.dk_gain = Grad(op.k_gain);
      args.dq_bias = Grad(op.q_bias);
      args.dk_bias = Grad(op.k_bias);
      return args;
    }
    case OpKind::kAttention:
    case OpKind::kAttentionBackward: {
      const bool backward = op.kind == OpKind::kAttentionBackward;
      const int64_t element = DTypeBytes(dtype_);
      const int64_t q_bytes = config.q_width() * element, kv_bytes = config.kv_width() * element;
      const std::byte* qkv = static_cast<const std::byte*>(At(op.x));
      kernels::AttentionForwardArgs args;
      args.shape = Shape();
      args.dtype = dtype_;
      args.compute = plan_.options.compute;
      args.q = qkv;
      args.k = qkv + q_bytes;
      args.v = qkv + q_bytes + kv_bytes;
      args.q_stride = args.kv_stride = config.qkv_width();
      args.out = At(backward ? op.x2 : op.y);
      args.out_stride = config.q_width();
      args.lse = StatAt(op.stat0);
      if (!backward) return AttentionCall{args, op.layer};
      kernels::AttentionBackwardArgs bargs;
      bargs.forward = args;
      bargs.dout = At(op.dy);
      std::byte* dqkv = static_cast<std::byte*>(At(op.y));
      bargs.dq = dqkv;
      bargs.dk = dqkv + q_bytes;
      bargs.dv = dqkv + q_bytes + kv_bytes;
      return AttentionBackwardCall{bargs, op.layer};
    }
    case OpKind::kActivation:
    case OpKind::kActivationBackward: {
      kernels::ActivationArgs args;
      args.activation = config.activation;
      args.gated = config.gated_ffn;
      args.rows = rows;
      args.width = config.ffn_dim();
      args.dtype = dtype_;
      args.x = At(op.x);
      if (op.kind == OpKind::kActivation) {
        args.y = At(op.y);
      } else {
        args.dy = At(op.dy);
        args.dx = At(op.y);
        args.y = At(op.y2);
      }
      return args;
    }
    case OpKind::kLoss: {
      LossCall call;
      call.chunk = program_.loss_chunk;
      call.backward = op.y != kNone;
      call.logits = LogitsProduct(op);
      call.logits.c = memory_.workspace + layout_.logits_offset;
      if (call.backward) {
        // The gradient replaces the logits; in bf16 each row fills the first half of its place.
        const MatrixRef dlogits = {call.logits.c, dtype_,
                                   call.logits.ldc * (dtype_ == DType::kBf16 ? 2 : 1), false};
        call.dhidden = call.logits;
        call.dhidden.n = op.width_in;
        call.dhidden.k = op.width_out;
        call.dhidden.a = dlogits;
        call.dhidden.a_padded = dtype_ == DType::kBf16;  // RunLoss sees to it
        call.dhidden.b.transposed = false;
        call.dhidden.c = At(op.y);
        call.dhidden.c_dtype = dtype_;
        call.dhidden.ldc = op.width_in;
        call.dweight = call.dhidden;
        call.dweight.m = op.width_out;
        call.dweight.a.transposed = true;
        call.dweight.a_padded = false;
        call.dweight.b = call.logits.a;
        call.dweight.c = Grad(op.weight);
        call.dweight.c_dtype = DType::kF32;
        call.dweight.compute = WeightGradientCompute(std::gcd(length, program_.loss_chunk));
      }
      return call;
    }
  }
  TESSERA_CHECK(false, "unknown op");
}

void Executor::RunLoss(const Op& op, const LossCall& call, const PassContext& context,
                       const OpForms* forms, ThreadPool& pool) {
  const ModelConfig& config = plan_.config;
  const int64_t element = DTypeBytes(dtype_);
  const int64_t row_bytes = config.d_model * element;
  for (int64_t first = 0; first < program_.tokens; first += call.chunk) {
    const int64_t rows = std::min(call.chunk, program_.tokens - first);
    GemmArgs logits = call.logits;
    logits.m = rows;
    logits.a.data = static_cast<const std::byte*>(logits.a.data) + first * row_bytes;
    const double portion = static_cast<double>(rows) / static_cast<double>(program_.tokens);
    Timed(forms, 0, portion, [&] { kernels::Gemm(logits, memory_.workspace, pool); });
    float* chunk = static_cast<float*>(logits.c);
    const float scale = static_cast<float>(config.logit_scale);
    if (scale != 1.0f) kernels::Scale(chunk, scale, rows * logits.ldc, pool);
    kernels::CrossEntropyArgs loss;
    loss.rows = rows;
    loss.vocab = config.vocab_size;
    loss.logits = chunk;
    loss.ld = logits.ldc;
    loss.targets = memory_.targets + first;
    loss.softcap = static_cast<float>(config.logit_softcap);
    loss.loss = memory_.loss + first;
    loss.nll = memory_.nll + first;
    loss.weight = context.weight * scale;
    loss.z_loss = static_cast<float>(context.loss.z_loss);
    loss.label_smoothing = static_cast<float>(context.loss.label_smoothing);
    if (call.backward) {
      loss.dlogits = chunk;
      loss.dlogits_dtype = dtype_;
      loss.dld = call.dhidden.a.ld;
      if (call.dhidden.a_padded) loss.dlogits_columns = RoundUp(config.vocab_size, 32);
    }
    Timed(forms, 1, portion, [&] { kernels::CrossEntropy(loss, pool); });
    if (!call.backward) continue;
    GemmArgs dhidden = call.dhidden;
    dhidden.m = rows;
    dhidden.c = static_cast<std::byte*>(dhidden.c) + first * row_bytes;
    Timed(forms, 2, portion, [&] { kernels::Gemm(dhidden, memory_.workspace, pool); });
    GemmArgs dweight = call.dweight;
    dweight.k = rows;
    dweight.accumulate = first > 0 || !op.first_gradient || !context.fresh_gradients;
    dweight.b.data = logits.a.data;
    Timed(forms, 3, portion, [&] { kernels::Gemm(dweight, memory_.workspace, pool); });
  }
}

void Executor::RunCall(const Op& op, Call& call, const PassContext& context,
                       const OpForms* forms, ThreadPool& pool) {
  const auto attention_dropout = [&](kernels::AttentionShape* shape, int64_t layer) {
    shape->dropout = context.training ? static_cast<float>(plan_.config.attention_dropout) : 0.0f;
    shape->dropout_key = DropoutKey(context, layer, 1);
    shape->first_sequence = context.first_sequence;
  };
  std::visit(
      [&](auto& args) {
        using Args = std::decay_t<decltype(args)>;
        if constexpr (std::is_same_v<Args, EmbeddingCall>) {
          kernels::EmbeddingForward(args.args, pool);
          if (args.add_to != nullptr) {
            kernels::AddActivation(args.args.y, args.add_to, args.args.rows * args.args.width,
                                   dtype_, pool);
          }
        } else if constexpr (std::is_same_v<Args, kernels::EmbeddingBackwardArgs>) {
          kernels::EmbeddingBackward(args, pool);
        } else if constexpr (std::is_same_v<Args, DropoutCall>) {
          if (!context.training && args.x == args.y) return;
          const float p = context.training ? static_cast<float>(args.p) : 0.0f;
          kernels::Dropout(args.x, args.y, args.elements, dtype_, p,
                           DropoutKey(context, args.layer, args.site),
                           context.first_sequence * args.row_elements, pool);
        } else if constexpr (std::is_same_v<Args, kernels::NormForwardArgs>) {
          kernels::NormForward(args, pool);
        } else if constexpr (std::is_same_v<Args, kernels::NormBackwardArgs>) {
          kernels::NormBackward(args, memory_.workspace, pool);
        } else if constexpr (std::is_same_v<Args, GemmArgs>) {
          if (op.kind == OpKind::kLinearBackwardWeight) {
            args.accumulate = !op.first_gradient || !context.fresh_gradients;
          }
          Timed(forms, 0, 1, [&] { kernels::Gemm(args, memory_.workspace, pool); });
        } else if constexpr (std::is_same_v<Args, kernels::QkvArgs>) {
          kernels::QkvForward(args, pool);
        } else if constexpr (std::is_same_v<Args, kernels::QkvBackwardArgs>) {
          kernels::QkvBackward(args, pool);
        } else if constexpr (std::is_same_v<Args, AttentionCall>) {
          attention_dropout(&args.args.shape, args.layer);
          kernels::AttentionForward(args.args, memory_.workspace, pool);
        } else if constexpr (std::is_same_v<Args, AttentionBackwardCall>) {
          attention_dropout(&args.args.forward.shape, args.layer);
          kernels::AttentionBackward(args.args, memory_.workspace, pool);
        } else if constexpr (std::is_same_v<Args, LossCall>) {
          RunLoss(op, args, context, forms, pool);
        } else if constexpr (std::is_same_v<Args, kernels::ActivationArgs>) {
          if (op.kind == OpKind::kActivation) {
            kernels::ActivationForward(args, pool);
          } else {
            kernels::ActivationBackward(args, pool);
          }
        }
      },
      call);
}

// Ops that count their parts themselves.
bool Executor::CountsParts(OpKind kind) {
  return kind == OpKind::kLoss || kind == OpKind::kLinear || kind == OpKind::kLinearBackwardInput ||
         kind == OpKind::kLinearBackwardWeight;
}

void Executor::Run(const PassContext& context, ThreadPool& pool) {
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Op& op = program_.ops[i];
    const OpForms* forms = profile_ == nullptr ? nullptr : &forms_[i];
    if (forms == nullptr || CountsParts(op.kind)) {
      RunCall(op, calls_[i], context, forms, pool);
    } else {
      Timed(forms, 0, 1, [&] { RunCall(op, calls_[i], context, forms, pool); });
    }
  }
}

void Executor::RunLogits(const PassContext& context, float* logits, ThreadPool& pool) {
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Op& op = program_.ops[i];
    if (op.kind != OpKind::kLoss) {
      RunCall(op, calls_[i], context, nullptr, pool);
      continue;
    }
    GemmArgs gemm = LogitsProduct(op);
    gemm.m = program_.tokens;
    gemm.c = logits;
    gemm.ldc = plan_.config.vocab_size;
    kernels::Gemm(gemm, memory_.workspace, pool);
    const float scale = static_cast<float>(plan_.config.logit_scale);
    const int64_t elements = gemm.m * gemm.n;
    if (scale != 1.0f) kernels::Scale(logits, scale, elements, pool);
    if (const float cap = static_cast<float>(plan_.config.logit_softcap); cap > 0) {
      pool.ParallelFor(elements, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) logits[j] = cap * std::tanh(logits[j] / cap);
      });
    }
    return;
  }
}

}  // namespace tessera
