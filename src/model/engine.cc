#include "model/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/memory.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/optimizer.h"
#include "model/executor.h"
#include "model/init.h"
#include "model/layout.h"
#include "model/program.h"

namespace tessera {

namespace {

// The row of the bigram table for a pair of tokens; the first token of a row has `previous` -1.
int32_t BigramRow(int32_t previous, int32_t token, int64_t buckets) {
  const uint64_t pair = (static_cast<uint64_t>(static_cast<uint32_t>(previous + 1)) << 32) |
                        static_cast<uint32_t>(token);
  uint64_t z = pair * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 32)) * 0xD6E8FEB86659FD93ull;
  z ^= z >> 32;
  return static_cast<int32_t>(z % static_cast<uint64_t>(buckets));
}

}  // namespace

void FillBigramRows(const int32_t* tokens, int64_t rows, int64_t length, int64_t buckets,
                    int32_t* out) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < length; ++t) {
      const int64_t i = row * length + t;
      out[i] = BigramRow(t == 0 ? -1 : tokens[i - 1], tokens[i], buckets);
    }
  }
}

struct Engine::Impl {
  Impl(Plan plan_in, ThreadPool& pool_in) : plan(std::move(plan_in)), pool(pool_in) {}

  Plan plan;
  ThreadPool& pool;
  Layout layout;
  std::unique_ptr<Program> eval_program;
  std::vector<Parameter> parameters;

  MemoryRegion values, grads, state0, state1, average, working, arena, workspace, data;
  std::vector<float> rope_cos, rope_sin, alibi_slopes;
  // Rows of the lookup's gradient in this virtual rank: -1, or the row of a token; the token of a
  // row.
  std::vector<int32_t> lookup_row_of_token, lookup_tokens;
  Memory memory;
  std::unique_ptr<Executor> train_executor, eval_executor;

  bool average_started = false;
  double grad_norm = 0;
  // Rows of the profile outside the executor's ops.
  struct StepSlots {
    OpProfile::Slot clear = 0, merge = 0, norm = 0, muon = 0, update = 0, working = 0;
    OpProfile::Slot pass = 0;
  };
  OpProfile* profile = nullptr;
  StepSlots slots;
  OpWork muon_work, update_work;  // of a step; set with the profile
  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> cleared;  // of the flat gradient, before the first pass; the rest is overwritten
  int64_t cleared_elements = 0;
  int64_t refreshed_elements = 0;  // bf16 weights that are rounded after the update
  std::unique_ptr<OpProfile> own_profile;  // of EnableProfile

  int64_t rows() const { return plan.program->tokens; }
  bool training() const { return plan.options.training; }

  Status AllocateAll();
  void BuildTables();
  void BuildParameters();
  int64_t CopyMicrobatch(const StepBatch& batch, int64_t first, int64_t count);
  void RefreshWorking(size_t param);
  bool RoundedByUpdate(size_t param) const;
  void ClearGradients();
  void UpdateVectors(const UpdateOptions& options, float grad_scale);
  void UpdateMuon(const UpdateOptions& options, float grad_scale);
  void ClearLookup();
  void FillLookupRows();
  void MergeLookup();
  void MergeVirtualRank(int64_t rank);

  template <class Fn>
  void Timed(OpProfile::Slot slot, const OpWork& work, Fn&& fn) {
    TimeOp(profile, slot, -1, work, std::forward<Fn>(fn));
  }
  static double Dbl(int64_t value) { return static_cast<double>(value); }
};

Status Engine::Impl::AllocateAll() {
  const auto allocate = [this](MemoryRegion* region, int64_t bytes,
                               const char* purpose) -> Status {
    TESSERA_ASSIGN(*region, MemoryRegion::Allocate(bytes, purpose, pool));
    return {};
  };
  const int64_t flat = layout.value_elements * 4;
  TESSERA_TRY(allocate(&values, flat, "weights"));
  TESSERA_TRY(allocate(&grads, flat * layout.gradient_copies + layout.lookup_elements * 4,
                       "gradients"));
  TESSERA_TRY(allocate(&state0, layout.state0_elements * 4, "optimizer moments"));
  TESSERA_TRY(allocate(&state1, layout.state1_elements * 4, "optimizer second moments"));
  if (plan.options.weight_average) TESSERA_TRY(allocate(&average, flat, "averaged weights"));
  TESSERA_TRY(allocate(&working, layout.working_elements * 2, "bf16 weights"));
  TESSERA_TRY(allocate(&arena, std::max(plan.program->arena_bytes, eval_program->arena_bytes),
                       "activations"));
  TESSERA_TRY(allocate(&workspace, layout.workspace_bytes, "workspace"));
  TESSERA_TRY(allocate(&data, layout.data_bytes, "batch"));
  return {};
}

void Engine::Impl::BuildTables() {
  const ModelConfig& config = plan.config;
  if (config.positions == Positions::kRope) {
    kernels::RopeTableOptions options;
    options.positions = plan.options.sequence_length;
    options.rotary_size = static_cast<int64_t>(
        std::llround(config.rotary_fraction * static_cast<double>(config.head_dim())));
    options.base = config.rope_theta;
    options.factor = config.rope_scaling_factor;
    options.original_length = config.rope_original_length;
    const size_t size = static_cast<size_t>(options.positions * options.rotary_size / 2);
    rope_cos.resize(size);
    rope_sin.resize(size);
    kernels::FillRopeTable(options, rope_cos.data(), rope_sin.data());
  }
  if (config.positions == Positions::kAlibi) {
    alibi_slopes.resize(static_cast<size_t>(config.n_heads));
    kernels::FillAlibiSlopes(config.n_heads, static_cast<float>(config.alibi_bias_max),
                             alibi_slopes.data());
  }
  memory.values = values.as<float>();
  memory.grads = grads.as<float>();
  if (layout.lookup_elements > 0) {
    memory.lookup_grads = memory.grads + layout.value_elements * layout.gradient_copies;
    lookup_row_of_token.assign(static_cast<size_t>(plan.config.vocab_size), -1);
  }
  memory.working = working.as<bf16>();
  memory.arena = arena.data();
  memory.workspace = workspace.data();
  int32_t* ints = data.as<int32_t>();
  memory.tokens = ints;
  memory.targets = ints + rows();
  memory.segment_start = ints + 2 * rows();
  memory.bigrams = ints + 3 * rows();
  memory.lookup_rows = ints + 4 * rows();
  memory.loss = data.as<float>() + 5 * rows();
  memory.nll = data.as<float>() + 6 * rows();
  memory.rope_cos = rope_cos.data();
  memory.rope_sin = rope_sin.data();
  memory.alibi_slopes = alibi_slopes.empty() ? nullptr : alibi_slopes.data();
}

void Engine::Impl::BuildParameters() {
  for (size_t i = 0; i < plan.program->params.size(); ++i) {
    Parameter parameter;
    parameter.spec = plan.program->params[i];
    parameter.rule = RuleFor(parameter.spec, plan.options.optimizer);
    parameter.value = values.as<float>() + layout.value[i];
    if (training()) {
      parameter.grad = grads.as<float>() + layout.value[i];
      parameter.state0 = state0.as<float>() + layout.state0[i];
      if (layout.state1[i] >= 0) parameter.state1 = state1.as<float>() + layout.state1[i];
    }
    if (average.bytes() > 0) parameter.average = average.as<float>() + layout.value[i];
    parameters.push_back(parameter);
  }
  const std::vector<bool> overwritten = plan.program->OverwrittenGradients();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (layout.working[i] >= 0 && !RoundedByUpdate(i)) {
      refreshed_elements += parameters[i].spec.size();
    }
    if (overwritten[i]) continue;
    const int64_t begin = layout.value[i];
    const int64_t end = i + 1 < parameters.size() ? layout.value[i + 1] : layout.value_elements;
    if (cleared.empty() || cleared.back().end < begin) cleared.push_back({begin, begin});
    cleared.back().end = end;
    cleared_elements += end - begin;
  }
}

Engine::Engine() = default;
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::Create(Plan plan, ThreadPool& pool) {
  TESSERA_CHECK(plan.program != nullptr, "the plan was not built");
  TESSERA_CHECK(plan.options.num_threads == pool.num_threads(),
                "the plan was built for another number of threads");
  auto impl = std::make_unique<Impl>(std::move(plan), pool);
  const Plan& p = impl->plan;
  impl->layout = ComputeLayout(p.config, p.options, *p.program);
  impl->eval_program = std::make_unique<Program>(BuildProgram(p.config, p.options, false));
  TESSERA_TRY(impl->AllocateAll());
  impl->BuildTables();
  impl->BuildParameters();
  impl->eval_executor =
      std::make_unique<Executor>(p, *impl->eval_program, impl->layout, impl->memory);
  if (p.options.training) {
    impl->train_executor =
        std::make_unique<Executor>(p, *p.program, impl->layout, impl->memory);
  }
  auto engine = std::unique_ptr<Engine>(new Engine());
  engine->impl_ = std::move(impl);
  return engine;
}

const Plan& Engine::plan() const { return impl_->plan; }
std::span<Parameter> Engine::parameters() { return impl_->parameters; }

void Engine::InitializeWeights(uint64_t seed) {
  for (const Parameter& parameter : impl_->parameters) {
    InitializeParameter(impl_->plan.config, parameter.spec, seed, parameter.value, impl_->pool);
  }
  WeightsChanged();
}

void Engine::Impl::RefreshWorking(size_t param) {
  const int64_t offset = layout.working[param];
  if (offset < 0) return;
  kernels::CastToBf16(parameters[param].value, memory.working + offset,
                      parameters[param].spec.size(), kernels::Rounding::kNearest, RngKey{}, 0,
                      pool);
}

// AdamW writes the bf16 weights itself.
bool Engine::Impl::RoundedByUpdate(size_t param) const {
  return parameters[param].rule == UpdateRule::kAdamW && layout.working[param] >= 0;
}

// Sets to zero what the first pass adds to; the other gradients it overwrites.
void Engine::Impl::ClearGradients() {
  for (const Range& range : cleared) {
    kernels::Fill(memory.grads + range.begin, 0.0f, range.end - range.begin, pool);
  }
}

void Engine::WeightsChanged() {
  for (size_t i = 0; i < impl_->parameters.size(); ++i) impl_->RefreshWorking(i);
}

// Copies sequences first .. first+count-1 into the micro-batch and fills the rest with ignored
// targets. Returns the number of counted targets.
int64_t Engine::Impl::CopyMicrobatch(const StepBatch& batch, int64_t first, int64_t count) {
  const int64_t length = plan.options.sequence_length;
  const int64_t used = count * length, all = rows();
  const int64_t offset = first * length;
  const uint32_t vocab = static_cast<uint32_t>(plan.config.vocab_size);
  int64_t counted = 0;
  for (int64_t i = 0; i < used; ++i) {
    const int32_t token = batch.tokens[offset + i];
    const int32_t target = batch.targets == nullptr ? -1 : batch.targets[offset + i];
    if (static_cast<uint32_t>(token) >= vocab || target >= static_cast<int32_t>(vocab)) {
      throw ErrorException(Corrupt(fmt::format(
          "sequence {} of the batch holds token {} (target {}) but the model's vocabulary has {}: "
          "the data was built with another tokenizer",
          first + i / length, token, target, vocab)));
    }
    memory.tokens[i] = token;
    memory.targets[i] = target;
    memory.segment_start[i] = batch.segment_start == nullptr ? 0 : batch.segment_start[offset + i];
    counted += target >= 0;
  }
  for (int64_t i = used; i < all; ++i) {
    memory.tokens[i] = 0;
    memory.targets[i] = -1;
    memory.segment_start[i] = 0;
  }
  if (plan.config.bigram_buckets > 0) {
    FillBigramRows(memory.tokens, plan.options.microbatch, length, plan.config.bigram_buckets,
                   memory.bigrams);
  }
  return counted;
}

void Engine::Impl::ClearLookup() {
  for (const int32_t token : lookup_tokens) lookup_row_of_token[static_cast<size_t>(token)] = -1;
  lookup_tokens.clear();
}

// Gives each token of the micro-batch a row of the lookup's gradient; a new row is zeros.
void Engine::Impl::FillLookupRows() {
  if (memory.lookup_grads == nullptr) return;
  const size_t before = lookup_tokens.size();
  for (int64_t i = 0; i < rows(); ++i) {
    int32_t& row = lookup_row_of_token[static_cast<size_t>(memory.tokens[i])];
    if (row < 0) {
      row = static_cast<int32_t>(lookup_tokens.size());
      lookup_tokens.push_back(memory.tokens[i]);
    }
    memory.lookup_rows[i] = row;
  }
  TESSERA_CHECK(static_cast<int64_t>(lookup_tokens.size()) <= layout.lookup_rows);
  const int64_t width = plan.config.d_model;
  kernels::Fill(memory.lookup_grads + static_cast<int64_t>(before) * width, 0.0f,
                static_cast<int64_t>(lookup_tokens.size() - before) * width, pool);
}

// Adds the lookup's gradient to the head's. The tied table is the first parameter, so its gradient
// is the front of the flat array.
void Engine::Impl::MergeLookup() {
  if (memory.lookup_grads == nullptr) return;
  kernels::EmbeddingBackwardArgs args;
  args.rows = args.length = static_cast<int64_t>(lookup_tokens.size());
  args.width = plan.config.d_model;
  args.tokens = lookup_tokens.data();
  args.dy = memory.lookup_grads;
  args.dtable = memory.grads;
  kernels::EmbeddingBackward(args, pool);
}

// The fixed tree over virtual ranks, as a binary counter: after rank r its sum is merged with the
// partial sums of the trailing ones of r, then parked one level up.
void Engine::Impl::MergeVirtualRank(int64_t rank) {
  const int64_t ranks = plan.options.virtual_ranks;
  if (ranks == 1) return;
  const int64_t flat = layout.value_elements;
  const auto parked = [&](int64_t level) { return memory.grads + (level + 1) * flat; };
  int64_t level = 0;
  for (; (rank >> level) & 1; ++level) {
    kernels::AddScaled(1.0f, parked(level), memory.grads, flat, pool);
  }
  if (rank + 1 < ranks) {
    float* to = parked(level);
    const float* from = memory.grads;
    pool.ParallelFor(flat, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin) * 4);
    });
    return;
  }
  for (++level; (ranks >> level) != 0; ++level) {
    if ((ranks >> level) & 1) kernels::AddScaled(1.0f, parked(level), memory.grads, flat, pool);
  }
}

StepResult Engine::ForwardBackward(const StepBatch& batch, const LossOptions& loss, uint64_t seed,
                                   int64_t step) {
  Impl& s = *impl_;
  const PlanOptions& options = s.plan.options;
  TESSERA_CHECK(options.training, "the engine was built for evaluation");
  TESSERA_CHECK(batch.sequences == options.global_batch, "the batch has not the planned size");
  StepResult result;
  if (s.profile != nullptr) s.profile->set_step(step);
  const int64_t total = batch.sequences * options.sequence_length;
  for (int64_t i = 0; i < total; ++i) result.targets += batch.targets[i] >= 0;

  PassContext context;
  context.seed = seed;
  context.step = step;
  context.loss = loss;
  context.training = true;
  context.weight = result.targets > 0 ? static_cast<float>(1.0 / static_cast<double>(result.targets))
                                      : 0.0f;
  const int64_t per_rank = options.global_batch / options.virtual_ranks;
  double loss_sum = 0, nll_sum = 0;
  for (int64_t rank = 0; rank < options.virtual_ranks; ++rank) {
    s.Timed(s.slots.clear, {0, 4 * Impl::Dbl(s.cleared_elements), 0}, [&] {
      s.ClearGradients();
      s.ClearLookup();
    });
    for (int64_t i = 0; i < per_rank; i += options.microbatch) {
      context.first_sequence = rank * per_rank + i;
      s.CopyMicrobatch(batch, context.first_sequence, options.microbatch);
      s.FillLookupRows();
      context.fresh_gradients = i == 0;
      if (s.profile != nullptr) s.profile->set_pass(context.first_sequence / options.microbatch);
      s.Timed(s.slots.pass, {}, [&] { s.train_executor->Run(context, s.pool); });
      for (int64_t row = 0; row < s.rows(); ++row) {
        if (s.memory.targets[row] < 0) continue;
        loss_sum += static_cast<double>(s.memory.loss[row]);
        nll_sum += static_cast<double>(s.memory.nll[row]);
      }
    }
    if (s.profile != nullptr) s.profile->set_pass(-1);
    const double added =
        Impl::Dbl(static_cast<int64_t>(s.lookup_tokens.size()) * s.plan.config.d_model);
    s.Timed(s.slots.merge, {0, 12 * added, 0}, [&] {
      s.MergeLookup();
      s.MergeVirtualRank(rank);
    });
  }
  const double count = static_cast<double>(std::max<int64_t>(result.targets, 1));
  result.loss = loss_sum / count;
  result.nll = nll_sum / count;
  s.Timed(s.slots.norm, {0, 4 * Impl::Dbl(s.layout.value_elements), 0}, [&] {
    result.grad_norm = std::sqrt(kernels::SumSquares(s.memory.grads, s.layout.value_elements,
                                                     s.workspace.as<double>(), s.pool));
  });
  s.grad_norm = result.grad_norm;
  result.finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  return result;
}

namespace {

double DecayOf(const UpdateOptions& options, double lr) {
  if (options.decoupled_by_lr) return lr * options.weight_decay;
  return options.initial_lr > 0 ? options.weight_decay * options.lr / options.initial_lr : 0;
}

double LrFactor(const UpdateOptions& options, ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kEmbedding:
    case ParameterKind::kPosition: return options.embedding_lr_factor;
    case ParameterKind::kHead: return options.head_lr_factor;
    case ParameterKind::kGain:
    case ParameterKind::kBias: return options.vector_lr_factor;
    case ParameterKind::kMatrix: return 1;
  }
  return 1;
}

}  // namespace

void Engine::Impl::UpdateVectors(const UpdateOptions& options, float grad_scale) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = parameters[i];
    const ParameterKind kind = parameter.spec.kind;
    const bool decays = kind != ParameterKind::kGain && kind != ParameterKind::kBias;
    const double lr = options.lr * LrFactor(options, kind);
    const double decay = decays ? DecayOf(options, lr) : 0;
    if (parameter.rule == UpdateRule::kAdamW) {
      kernels::AdamWArgs args;
      args.n = parameter.spec.size();
      args.p = parameter.value;
      args.g = parameter.grad;
      args.m = parameter.state0;
      args.v = parameter.state1;
      if (RoundedByUpdate(i)) args.rounded = memory.working + layout.working[i];
      args.lr = static_cast<float>(lr);
      args.beta1 = static_cast<float>(options.beta1);
      args.beta2 = static_cast<float>(options.beta2);
      args.eps = static_cast<float>(options.eps);
      args.decay = static_cast<float>(decay);
      args.grad_scale = grad_scale;
      const double t = static_cast<double>(options.step);
      args.bias_correction1 = static_cast<float>(1 - std::pow(options.beta1, t));
      args.bias_correction2 = static_cast<float>(1 - std::pow(options.beta2, t));
      kernels::AdamW(args, pool);
    } else if (parameter.rule == UpdateRule::kLion) {
      kernels::LionArgs args;
      args.n = parameter.spec.size();
      args.p = parameter.value;
      args.g = parameter.grad;
      args.m = parameter.state0;
      args.lr = static_cast<float>(lr);
      args.beta1 = static_cast<float>(options.beta1);
      args.beta2 = static_cast<float>(options.beta2);
      args.decay = static_cast<float>(decay);
      args.grad_scale = grad_scale;
      kernels::Lion(args, pool);
    }
  }
}

void Engine::Impl::UpdateMuon(const UpdateOptions& options, float grad_scale) {
  const std::vector<MuonBlock>& blocks = layout.muon_blocks;
  kernels::MuonArgs batch[64];
  for (size_t i = 0; i < blocks.size();) {
    int64_t count = 0;
    const int64_t rows = blocks[i].rows, cols = blocks[i].cols;
    while (i < blocks.size() && blocks[i].rows == rows && blocks[i].cols == cols && count < 64) {
      const Parameter& parameter = parameters[static_cast<size_t>(blocks[i].param)];
      const int64_t offset = blocks[i].first_row * cols;
      batch[count++] = {rows, cols, parameter.value + offset, parameter.grad + offset,
                        parameter.state0 + offset};
      ++i;
    }
    kernels::MuonOptions muon;
    muon.lr = static_cast<float>(options.muon_lr);
    muon.momentum = static_cast<float>(options.muon_momentum);
    muon.decay = static_cast<float>(options.muon_lr * options.muon_weight_decay);
    muon.grad_scale = grad_scale;
    muon.scale = static_cast<float>(
        std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(cols))));
    muon.compute = plan.options.compute;
    kernels::Muon(batch, count, muon, memory.workspace, pool);
  }
}

void Engine::Update(const UpdateOptions& options) {
  Impl& s = *impl_;
  float grad_scale = 1;
  if (options.grad_clip > 0) {
    // As torch.nn.utils.clip_grad_norm_: the 1e-6 keeps a zero gradient finite.
    grad_scale = static_cast<float>(std::min(1.0, options.grad_clip / (s.grad_norm + 1e-6)));
  }
  if (!s.layout.muon_blocks.empty()) {
    s.Timed(s.slots.muon, s.muon_work, [&] { s.UpdateMuon(options, grad_scale); });
  }
  s.Timed(s.slots.update, s.update_work, [&] { s.UpdateVectors(options, grad_scale); });
  if (s.refreshed_elements > 0) {
    s.Timed(s.slots.working, {0, 6 * Impl::Dbl(s.refreshed_elements), 0}, [&] {
      for (size_t i = 0; i < s.parameters.size(); ++i) {
        if (!s.RoundedByUpdate(i)) s.RefreshWorking(i);
      }
    });
  }
}

void Engine::UpdateAverage(double decay) {
  Impl& s = *impl_;
  TESSERA_CHECK(s.average.bytes() > 0, "the plan keeps no average");
  const float keep = s.average_started ? static_cast<float>(decay) : 0.0f;
  kernels::Blend(1 - keep, s.memory.values, keep, s.average.as<float>(), s.layout.value_elements,
                 s.pool);
  s.average_started = true;
}

void Engine::AverageLoaded() {
  TESSERA_CHECK(impl_->average.bytes() > 0, "the plan keeps no average");
  impl_->average_started = true;
}

void Engine::ReleaseStepMemory() {
  impl_->grads.Discard();
  impl_->arena.Discard();
}

void Engine::SwapAverage() {
  Impl& s = *impl_;
  TESSERA_CHECK(s.average.bytes() > 0, "the plan keeps no average");
  float* a = s.memory.values;
  float* b = s.average.as<float>();
  s.pool.ParallelFor(s.layout.value_elements,
                     [&](int64_t begin, int64_t end) { std::swap_ranges(a + begin, a + end, b + begin); });
  WeightsChanged();
}

double Engine::Evaluate(const StepBatch& batch, float* token_nll) {
  Impl& s = *impl_;
  const int64_t microbatch = s.plan.options.microbatch;
  const int64_t length = s.plan.options.sequence_length;
  double sum = 0;
  for (int64_t first = 0; first < batch.sequences; first += microbatch) {
    const int64_t count = std::min(microbatch, batch.sequences - first);
    s.CopyMicrobatch(batch, first, count);
    s.eval_executor->Run(PassContext{}, s.pool);
    for (int64_t row = 0; row < count * length; ++row) {
      const float nll = s.memory.targets[row] >= 0 ? s.memory.nll[row] : 0.0f;
      sum += static_cast<double>(nll);
      if (token_nll != nullptr) token_nll[first * length + row] = nll;
    }
  }
  return sum;
}

void Engine::Logits(const int32_t* tokens, int64_t sequences, float* logits) {
  Impl& s = *impl_;
  TESSERA_CHECK(sequences == s.plan.options.microbatch, "give one micro-batch of sequences");
  StepBatch batch;
  batch.sequences = sequences;
  batch.tokens = tokens;
  s.CopyMicrobatch(batch, 0, sequences);
  s.eval_executor->RunLogits(PassContext{}, logits, s.pool);
}

void Engine::SetProfile(OpProfile* profile) {
  Impl& s = *impl_;
  s.profile = profile;
  if (s.train_executor) s.train_executor->SetProfile(profile);
  if (profile == nullptr) return;
  const auto slot = [&](std::string_view name, std::string_view form, OpClass op_class) {
    return profile->AddSlot(name, form, op_class);
  };
  s.muon_work = s.update_work = {};
  double rounded_bytes = 0;
  kernels::MuonOptions muon;
  muon.compute = s.plan.options.compute;
  for (const MuonBlock& block : s.layout.muon_blocks) {
    s.muon_work.flops += kernels::MuonFlops(block.rows, block.cols, muon);
    // w, g, momentum read; w, momentum written
    s.muon_work.bytes += 20 * Impl::Dbl(block.rows) * Impl::Dbl(block.cols);
  }
  for (size_t i = 0; i < s.parameters.size(); ++i) {
    const Parameter& parameter = s.parameters[i];
    const double elements = Impl::Dbl(parameter.spec.size());
    if (parameter.rule == UpdateRule::kAdamW) {
      s.update_work.bytes += 28 * elements;  // w, g, m, v read; w, m, v written
      if (s.RoundedByUpdate(i)) rounded_bytes += 2 * elements;
      s.update_work.vector_ops += 46 * elements;  // 14 and the square root and division
    } else if (parameter.rule == UpdateRule::kLion) {
      s.update_work.bytes += 20 * elements;
      s.update_work.vector_ops += 10 * elements;
    }
  }
  s.update_work.bytes += rounded_bytes;
  s.slots.clear = slot("gradients", "set to zero", OpClass::kOther);
  s.slots.merge = slot("gradients", "sum of parts", OpClass::kOther);
  s.slots.norm = slot(kProfileGradientNorm, "", OpClass::kOther);
  s.slots.muon = slot(kProfileMuon, "", OpClass::kOther);
  s.slots.update = slot(kProfileOptimizer, UpdateRuleName(s.plan.options.optimizer ==
                                                                  UpdateRule::kLion
                                                              ? UpdateRule::kLion
                                                              : UpdateRule::kAdamW),
                        OpClass::kOther);
  s.slots.working = slot(kProfileOptimizer, "bf16 weights", OpClass::kOther);
  // Gradients and states come from memory once a step, in pieces of any size.
  constexpr double kFromMemory = 1e12;
  using Way = OpMove::Way;
  profile->AddMoves(s.slots.clear, {{1, kFromMemory, Way::kFresh}});
  profile->AddMoves(s.slots.norm, {{1, kFromMemory}});
  const double row_bytes = 4 * Impl::Dbl(s.plan.config.d_model);
  profile->AddMoves(s.slots.merge, {{1, kFromMemory},
                                    {1, kFromMemory, Way::kRead, 0, row_bytes},
                                    {1, kFromMemory, Way::kInPlace, 0, row_bytes}});
  const bool lion = s.plan.options.optimizer == UpdateRule::kLion;
  const double masters = (s.update_work.bytes - rounded_bytes) / (lion ? 5.0 : 7.0);
  profile->AddMoves(s.slots.update, {{(lion ? 3.0 : 4.0) * masters, kFromMemory},
                                     {(lion ? 2.0 : 3.0) * masters, kFromMemory, Way::kInPlace},
                                     {rounded_bytes, kFromMemory, Way::kFresh}});
  profile->AddMoves(s.slots.working, {{4, kFromMemory}, {2, kFromMemory, Way::kFresh}});
  s.slots.pass = slot("forward and backward", "", OpClass::kPhase);
}

void Engine::EnableProfile(bool on) {
  impl_->own_profile = on ? std::make_unique<OpProfile>() : nullptr;
  SetProfile(impl_->own_profile.get());
}

std::vector<Engine::OpTime> Engine::TakeProfile() {
  std::vector<OpTime> taken;
  if (impl_->own_profile == nullptr) return taken;
  for (const OpProfile::Row& row : impl_->own_profile->rows()) {
    // Clearing and adding up gradients are no kinds of op.
    if (row.calls == 0 || row.op_class == OpClass::kPhase || row.name == "gradients") continue;
    auto entry = std::find_if(taken.begin(), taken.end(),
                              [&](const OpTime& one) { return one.name == row.name; });
    if (entry == taken.end()) {
      taken.push_back({row.name});
      entry = taken.end() - 1;
    }
    entry->seconds += row.seconds;
    entry->flops += row.work.flops;
    entry->bytes += row.work.bytes;
    entry->calls += row.calls;
  }
  impl_->own_profile->Reset();
  std::stable_sort(taken.begin(), taken.end(),
                   [](const OpTime& a, const OpTime& b) { return a.seconds > b.seconds; });
  return taken;
}

}  // namespace tessera
