// What each op of a program does, for the profile: its form, FLOPs, least memory traffic, and vector
// operations.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/isa.h"
#include "model/executor.h"

namespace tessera {

namespace {

// Vector operations an element, from the formulas: additions, products and fused ones count one, an
// exponential 10 (reduction of the range, a polynomial of degree 5, scaling), a
// division or square root 16. They bound ops whose operands lie in a cache.
constexpr double kExp = 10, kDivide = 16;
constexpr double kGelu = kExp + kDivide + 8;           // x sigmoid(2u), u = x (a + b x^2)
constexpr double kGeluBackward = kExp + kDivide + 14;  // and its derivative
constexpr double kSiluGate = kExp + kDivide + 4;
constexpr double kReluSquared = 3;
constexpr double kNormForward = 6;    // sum; centre, square; centre, scale, gain with bias
constexpr double kNormBackward = 14;  // two sums over the row, dx, gain and bias gradients
constexpr double kLossRow = kExp + 5;  // the largest, exp of the distance to it, its sum, the gradient
// tanh as a quotient of polynomials, the cap's derivative.
constexpr double kSoftcap = kDivide + 17;
constexpr double kRotate = 4;
// A score of attention: the largest, distance to it, its exponential, the sum; backward the
// probability again and its gradient from dP - delta.
constexpr double kScoreForward = kExp + 3, kScoreBackward = kExp + 3;
constexpr double kAlibi = 2;

double Dbl(int64_t value) { return static_cast<double>(value); }

// What bf16 adds an element for its loads and stores: widening is two integer operations, rounding one
// instruction where the processor has it and else eight, of which two keep NaN.
double Conversions(DType dtype, double loads, double stores) {
  if (dtype != DType::kBf16) return 0;
  const bool rounds = kernels::ActiveIsa() >= kernels::Isa::kAvx512Bf16;
  return 2 * loads + (rounds ? 1 : 8) * stores;
}

std::string Form(int64_t m, int64_t n, int64_t k) { return fmt::format("{} x {} x {}", m, n, k); }
std::string Form(int64_t rows, int64_t width) { return fmt::format("{} x {}", rows, width); }

// Operands and result of a product once; an accumulated result is also read.
double ProductBytes(double m, double n, double k, double element_a, double element_b,
                    double element_c, bool accumulate) {
  return m * k * element_a + k * n * element_b + m * n * element_c * (accumulate ? 2 : 1);
}

}  // namespace

Executor::OpForms Executor::FormsOf(const Op& op, OpProfile* profile) const {
  const ModelConfig& config = plan_.config;
  const int64_t rows = program_.tokens;
  const double element = static_cast<double>(DTypeBytes(dtype_));
  const double r = Dbl(rows), in = Dbl(op.width_in), out = Dbl(op.width_out);
  const std::string_view name = OpKindName(op.kind);
  OpForms forms;
  forms.layer = op.layer;
  forms.work[0] = {op.flops, op.bytes, 0};
  const auto slot = [&](size_t part, std::string_view form, OpClass op_class) {
    forms.slot[part] = profile->AddSlot(name, form, op_class);
  };
  const auto weight_element = [&] {
    return static_cast<double>(DTypeBytes(Weight(op.weight).dtype));
  };
  switch (op.kind) {
    case OpKind::kEmbedding:
    case OpKind::kEmbeddingBackward:
    case OpKind::kDropout:
      slot(0, Form(rows, config.d_model), OpClass::kOther);
      break;
    case OpKind::kNorm:
    case OpKind::kNormBackward:
      slot(0, Form(rows, config.d_model), OpClass::kOther);
      forms.work[0].vector_ops =
          r * Dbl(config.d_model) *
          (op.kind == OpKind::kNorm
               ? kNormForward + (op.x2 == kNone ? Conversions(dtype_, 1, 1) : Conversions(dtype_, 2, 2))
               : kNormBackward + Conversions(dtype_, op.accumulate ? 3 : 2, op.y2 == kNone ? 1 : 2));
      break;
    case OpKind::kQkv:
    case OpKind::kQkvBackward:
      slot(0, Form(rows, config.qkv_width()), OpClass::kOther);
      forms.work[0].vector_ops =
          r * Dbl(config.q_width() + config.kv_width()) *
          (kRotate + Conversions(dtype_, op.kind == OpKind::kQkv ? 1 : 2, 1));
      break;
    case OpKind::kActivation:
    case OpKind::kActivationBackward: {
      const bool backward = op.kind == OpKind::kActivationBackward;
      slot(0, Form(rows, config.ffn_dim()), OpClass::kOther);
      double each = config.gated_ffn ? kSiluGate : backward ? kGeluBackward : kGelu;
      if (config.activation == kernels::Activation::kReluSquared ||
          config.activation == kernels::Activation::kRelu) {
        each = kReluSquared;
      }
      const double inputs = (config.gated_ffn ? 2 : 1) + (backward ? 1 : 0);
      const double outputs = (config.gated_ffn && backward ? 2 : 1) + (op.y2 != kNone ? 1 : 0);
      each += Conversions(dtype_, inputs, outputs);
      forms.work[0].vector_ops = r * Dbl(config.ffn_dim()) * each;
      break;
    }
    case OpKind::kAttention:
    case OpKind::kAttentionBackward: {
      slot(0,
           fmt::format("{} x {} x {} x {}", plan_.options.microbatch, config.n_heads,
                       plan_.options.sequence_length, config.head_dim()),
           OpClass::kAttention);
      const double qkv = Dbl(config.qkv_width()), heads = Dbl(config.q_width());
      const bool forward = op.kind == OpKind::kAttention;
      forms.work[0].bytes = forward ? r * (qkv + heads) * element : r * (2 * qkv + 2 * heads) * element;
      // Scores share the vector units with products; tiles exclude them (docs/decisions/0013).
      const double scores = op.flops / ((forward ? 4 : 10) * Dbl(config.head_dim()));
      double each = forward ? kScoreForward : kScoreBackward;
      if (config.positions == Positions::kAlibi) each += kAlibi;
      if (config.attention_softcap > 0) each += kSoftcap;
      // Dots take probabilities and gradients rounded.
      if (kernels::ActiveIsa() >= kernels::Isa::kAvx512Bf16) each += Conversions(dtype_, 0, forward ? 1 : 2);
      forms.work[0].vector_ops = scores * each;
      break;
    }
    case OpKind::kLinear:
    case OpKind::kLinearBackwardInput: {
      const bool forward = op.kind == OpKind::kLinear;
      slot(0, forward ? Form(rows, op.width_out, op.width_in) : Form(rows, op.width_in, op.width_out),
           OpClass::kProduct);
      forms.work[0].bytes = ProductBytes(r, forward ? out : in, forward ? in : out, element,
                                         weight_element(), element, false);
      break;
    }
    case OpKind::kLinearBackwardWeight:
      slot(0, Form(op.width_out, op.width_in, rows), OpClass::kProduct);
      forms.work[0].bytes = ProductBytes(out, in, r, element, element, 4, true);
      break;
    case OpKind::kLoss: {
      // The logits' chunk is written by the product, read by the loss, overwritten by the gradient.
      const bool backward = op.y != kNone;
      const double product = 2 * r * in * out;
      const double chunks = r / Dbl(std::max<int64_t>(program_.loss_chunk, 1));
      const int64_t chunk = program_.loss_chunk;
      slot(0, "logits " + Form(chunk, op.width_out, op.width_in), OpClass::kProduct);
      forms.work[0] = {product, r * in * element + chunks * in * out * weight_element() + 4 * r * out, 0};
      slot(1, "loss " + Form(chunk, op.width_out), OpClass::kOther);
      forms.work[1] = {0, r * out * (backward ? 4 + element : 4),
                       r * out * (kLossRow + (config.logit_softcap > 0 ? kSoftcap : 0) +
                                  (backward ? Conversions(dtype_, 0, 1) : 0))};
      if (backward) {
        slot(2, "dx " + Form(chunk, op.width_in, op.width_out), OpClass::kProduct);
        slot(3, "dw " + Form(op.width_out, op.width_in, chunk), OpClass::kProduct);
        forms.work[2] = {product,
                         r * (in + out) * element + chunks * in * out * weight_element(), 0};
        forms.work[3] = {product, r * (in + out) * element + chunks * in * out * 8, 0};
      }
      break;
    }
  }
  return forms;
}

std::vector<OpMove> Executor::MovesOf(size_t position, const std::vector<OpWork>& work) const {
  const Op& op = program_.ops[position];
  const auto buffer = [this](BufferId id) -> const Buffer& {
    return program_.buffers[static_cast<size_t>(id)];
  };
  // What happened since the op before that used the same memory, whatever lay there. Both go through it
  // in about the same order: of each about half comes between the two uses.
  const auto move_of = [&](BufferId id, OpMove::Way way) {
    const Buffer& mine = buffer(id);
    OpMove move = {Dbl(mine.bytes), work[position].bytes / 2, way, work[position].flops / 2};
    for (size_t back = 1; back < work.size(); ++back) {  // into the pass before
      const size_t i = (position + work.size() - back) % work.size();
      const Op& other = program_.ops[i];
      bool uses = false;
      for (const BufferId used : {other.x, other.x2, other.dy, other.y, other.y2}) {
        if (used == kNone) continue;
        const Buffer& theirs = buffer(used);
        uses = uses || (theirs.offset < mine.offset + mine.bytes &&
                        mine.offset < theirs.offset + theirs.bytes);
      }
      move.distance += work[i].bytes * (uses ? 0.5 : 1);
      move.flops += work[i].flops * (uses ? 0.5 : 1);
      if (uses) break;
    }
    return move;
  };
  std::vector<OpMove> moves;
  double counted = 0;
  const auto add = [&](BufferId id, OpMove::Way way) {
    moves.push_back(move_of(id, way));
    counted += moves.back().bytes;
  };
  for (const BufferId id : {op.x, op.x2, op.dy}) {
    if (id != kNone) add(id, OpMove::Way::kRead);
  }
  for (const BufferId id : {op.y, op.y2}) {
    if (id == kNone) continue;
    const bool adds = id == op.y && (op.accumulate || (op.kind == OpKind::kEmbedding && op.second));
    const bool over = id == op.x || id == op.x2 || id == op.dy;
    if (adds) add(id, OpMove::Way::kRead);
    add(id, adds || over ? OpMove::Way::kInPlace : OpMove::Way::kFresh);
  }
  // Rows of tables, and of their gradients, which are added to.
  constexpr double kFromMemory = 1e12;
  const double rest = op.bytes - counted;
  if (rest <= 0) return moves;
  const double row = Dbl(plan_.config.d_model), rows = Dbl(program_.tokens);
  const bool backward = op.kind == OpKind::kEmbeddingBackward;
  const double read = backward ? rest / 2 : rest;
  const double row_bytes = row * (backward ? 4 : static_cast<double>(DTypeBytes(dtype_)));
  OpMove table = {std::min(read, rows * row_bytes), kFromMemory};
  table.row_bytes = row_bytes;
  const double positions = read - table.bytes;
  moves.push_back(table);
  moves.push_back({positions, kFromMemory});
  if (!backward) return moves;
  table.way = OpMove::Way::kInPlace;
  moves.push_back(table);
  moves.push_back({positions, kFromMemory, OpMove::Way::kInPlace});
  return moves;
}

void Executor::SetProfile(OpProfile* profile) {
  profile_ = profile;
  forms_.clear();
  if (profile == nullptr) return;
  forms_.reserve(program_.ops.size());
  std::vector<OpWork> work;  // of each op, its parts together
  for (const Op& op : program_.ops) {
    forms_.push_back(FormsOf(op, profile));
    OpWork sum;
    for (const OpWork& part : forms_.back().work) {
      sum.flops += part.flops;
      sum.bytes += part.bytes;
    }
    work.push_back(sum);
  }
  for (size_t i = 0; i < program_.ops.size(); ++i) {
    const Op& op = program_.ops[i];
    const OpForms& forms = forms_[i];
    if (op.kind == OpKind::kLoss) {
      const double chunks = Dbl(program_.tokens) / Dbl(std::max<int64_t>(program_.loss_chunk, 1));
      // The gradient takes the logits' place.
      const double logits = Dbl(program_.tokens * op.width_out) * 4;
      const double distance = (forms.work[0].bytes + logits) / chunks / 2;
      const double flops = forms.work[0].flops / chunks / 2;
      profile->AddMoves(
          forms.slot[1],
          {{logits, distance, OpMove::Way::kRead, flops},
           {forms.work[1].bytes - logits, distance, OpMove::Way::kInPlace, flops}});
    } else if (op.flops == 0) {
      profile->AddMoves(forms.slot[0], MovesOf(i, work));
    }
  }
}

}  // namespace tessera
