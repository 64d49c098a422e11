// The machine's rates, measured at the plan's own shapes, and the time of a step that follows.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "base/memory.h"
#include "base/threads.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "model/layout.h"
#include "model/plan.h"
#include "model/program.h"

namespace tessera {

namespace {

// Runs fn until `budget` seconds are spent (at least twice) and returns the best seconds of a call:
// the estimate is of an undisturbed step.
template <class Fn>
double BestSeconds(double budget, Fn&& fn) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30, spent = 0;
  for (int call = 0; call < 2 || (spent < budget && call < 200); ++call) {
    const Clock::time_point start = Clock::now();
    fn();
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::min(best, elapsed.count());
    spent += elapsed.count();
  }
  return best;
}

struct Scratch {
  MemoryRegion a, b, c, workspace;
};

// GFLOP/s over the three products of one linear layer at [rows, in] x [in, out].
double LinearRate(int64_t rows, int64_t in, int64_t out, DType dtype, kernels::Compute compute,
                  const Scratch& scratch, ThreadPool& pool) {
  kernels::GemmArgs forward;
  forward.m = rows;
  forward.n = out;
  forward.k = in;
  forward.a = {scratch.a.data(), dtype, in, false};
  forward.b = {scratch.b.data(), dtype, in, true};
  forward.c = scratch.c.data();
  forward.c_dtype = dtype;
  forward.ldc = out;
  forward.compute = compute;
  kernels::GemmArgs input = forward;
  input.n = in;
  input.k = out;
  input.a = {scratch.c.data(), dtype, out, false};
  input.b = {scratch.b.data(), dtype, in, false};
  input.c = scratch.a.data();
  input.ldc = in;
  kernels::GemmArgs weight = forward;
  weight.m = out;
  weight.n = in;
  weight.k = rows;
  weight.a = {scratch.c.data(), dtype, out, true};
  weight.b = {scratch.a.data(), dtype, in, false};
  weight.c = scratch.b.data();
  weight.c_dtype = DType::kF32;
  weight.ldc = in;
  weight.accumulate = true;
  double seconds = 0;
  for (const kernels::GemmArgs* args : {&forward, &input, &weight}) {
    seconds += BestSeconds(
        0.04, [&] { kernels::Gemm(*args, scratch.workspace.data(), pool); });
  }
  return 6.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out) /
         seconds * 1e-9;
}

}  // namespace

MachineRates MeasureRates(const Plan& plan, ThreadPool& pool) {
  const ModelConfig& config = plan.config;
  const DType dtype = plan.options.precision == Precision::kAmpBf16 ? DType::kBf16 : DType::kF32;
  MachineRates rates;
  // Large models are measured at a capped shape: beyond it the rate no longer changes.
  const int64_t rows = std::min<int64_t>(plan.program->tokens, 2048);
  const int64_t in = std::min<int64_t>(config.d_model, 2048);
  const int64_t out = std::min<int64_t>(config.ffn_dim(), 4096);
  kernels::AttentionShape shape;
  shape.batch = std::max<int64_t>(1, std::min<int64_t>(plan.options.microbatch, 4));
  shape.length = std::min<int64_t>(plan.options.sequence_length, 2048);
  shape.kv_heads = std::min<int64_t>(config.kv_heads(), 4);
  shape.heads = shape.kv_heads * (config.n_heads / config.kv_heads());
  shape.head_size = config.head_dim();
  shape.scale = 0.1f;
  const int64_t q_width = shape.heads * shape.head_size;
  const int64_t kv_width = shape.kv_heads * shape.head_size;
  const int64_t qkv_width = q_width + 2 * kv_width;
  const int64_t tokens = shape.batch * shape.length;

  Scratch scratch;
  const int64_t attention_bytes = tokens * (qkv_width + q_width) * 4;
  const auto region = [&](int64_t bytes) {
    Result<MemoryRegion> result = MemoryRegion::Allocate(bytes, "measuring rates", pool);
    if (!result.ok()) throw ErrorException(result.error());
    return std::move(result).value();
  };
  constexpr int64_t kCopyBytes = int64_t{32} << 20;
  scratch.a = region(std::max({rows * in * 4, attention_bytes, kCopyBytes}));
  scratch.b = region(std::max({in * out * 4, attention_bytes, kCopyBytes}));
  scratch.c = region(std::max(rows * out * 4, attention_bytes));
  scratch.workspace =
      region(std::max(kernels::GemmWorkspaceBytes(pool.num_threads()),
                      kernels::AttentionWorkspaceBytes(shape, pool.num_threads())));
  rates.gemm_gflops = LinearRate(rows, in, out, dtype, plan.options.compute, scratch, pool);

  kernels::AttentionBackwardArgs attention;
  kernels::AttentionForwardArgs& forward = attention.forward;
  const int64_t element = DTypeBytes(dtype);
  forward.shape = shape;
  forward.dtype = dtype;
  forward.compute = plan.options.compute;
  forward.q = scratch.a.data();
  forward.k = scratch.a.data() + q_width * element;
  forward.v = scratch.a.data() + (q_width + kv_width) * element;
  forward.q_stride = forward.kv_stride = qkv_width;
  forward.out = scratch.c.data();
  forward.out_stride = q_width;
  std::vector<float> lse(static_cast<size_t>(tokens * shape.heads));
  forward.lse = lse.data();
  attention.dout = scratch.c.data();
  attention.dq = scratch.b.data();
  attention.dk = scratch.b.data() + q_width * element;
  attention.dv = scratch.b.data() + (q_width + kv_width) * element;
  const double attention_seconds =
      BestSeconds(0.03, [&] { kernels::AttentionForward(forward, scratch.workspace.data(), pool); }) +
      BestSeconds(0.05,
                  [&] { kernels::AttentionBackward(attention, scratch.workspace.data(), pool); });
  rates.attention_gflops = 7.0 * static_cast<double>(q_width) *
                           static_cast<double>(shape.length * tokens) / attention_seconds * 1e-9;

  // Element-wise passes of small models run in the caches: measured at the size of one activation.
  const int64_t floats =
      std::clamp<int64_t>(plan.program->tokens * config.d_model, 1 << 14, kCopyBytes / 4);
  const double copy = BestSeconds(0.03, [&] {
    kernels::AddScaled(0.5f, scratch.a.as<float>(), scratch.b.as<float>(), floats, pool);
  });
  rates.memory_gbps = 12.0 * static_cast<double>(floats) / copy * 1e-9;

  const int64_t vocab = std::min<int64_t>(config.vocab_size, 16384);
  const int64_t loss_rows = std::max<int64_t>(1, std::min<int64_t>(64, kCopyBytes / 4 / vocab));
  std::vector<int32_t> targets(static_cast<size_t>(loss_rows), 1);
  std::vector<float> losses(static_cast<size_t>(loss_rows));
  kernels::CrossEntropyArgs loss;
  loss.rows = loss_rows;
  loss.vocab = loss.ld = loss.dld = vocab;
  loss.logits = scratch.a.as<float>();
  loss.dlogits = scratch.a.data();
  loss.targets = targets.data();
  loss.loss = losses.data();
  loss.softcap = static_cast<float>(config.logit_softcap);
  const double loss_seconds = BestSeconds(0.03, [&] { kernels::CrossEntropy(loss, pool); });
  rates.exp_gps = static_cast<double>(loss_rows * vocab) / loss_seconds * 1e-9;
  return rates;
}

std::string_view EstimateBasisName(EstimateBasis basis) {
  switch (basis) {
    case EstimateBasis::kRates:
      return "rates";
    case EstimateBasis::kOneBlock:
      return "one_block";
    case EstimateBasis::kWholeSteps:
      return "whole_steps";
  }
  return "?";
}

StepEstimate EstimateStep(const Plan& plan, const MachineRates& rates) {
  const ModelConfig& config = plan.config;
  const PlanOptions& options = plan.options;
  StepEstimate estimate;
  double gemm = 0, attention = 0, bytes = 0;
  for (const Op& op : plan.program->ops) {
    if (op.kind == OpKind::kAttention || op.kind == OpKind::kAttentionBackward) {
      attention += op.flops;
    } else {
      gemm += op.flops;
      if (op.kind != OpKind::kLoss) bytes += op.bytes;
    }
  }
  const double passes = static_cast<double>(options.global_batch / options.microbatch);
  const double logits =
      static_cast<double>(plan.program->tokens) * static_cast<double>(config.vocab_size);
  estimate.gemm_seconds = passes * gemm / (rates.gemm_gflops * 1e9);
  estimate.attention_seconds = passes * attention / (rates.attention_gflops * 1e9);
  estimate.elementwise_seconds =
      passes * (bytes / (rates.memory_gbps * 1e9) + logits / (rates.exp_gps * 1e9));

  const Layout layout = ComputeLayout(config, options, *plan.program);
  // Gradients are zeroed and summed, AdamW reads p, g, m, v and writes p, m, v.
  double update_bytes = 8.0 * static_cast<double>(layout.value_elements) +
                        28.0 * static_cast<double>(layout.state1_elements) +
                        static_cast<double>(plan.memory.working) * 3;
  double update_flops = 0;
  kernels::MuonOptions muon;
  muon.compute = options.compute;
  for (const MuonBlock& block : layout.muon_blocks) {
    update_flops += kernels::MuonFlops(block.rows, block.cols, muon);
    update_bytes += 24.0 * static_cast<double>(block.rows * block.cols);
  }
  estimate.optimizer_seconds =
      update_bytes / (rates.memory_gbps * 1e9) + update_flops / (rates.gemm_gflops * 1e9);
  estimate.seconds = estimate.gemm_seconds + estimate.attention_seconds +
                     estimate.elementwise_seconds + estimate.optimizer_seconds;
  const double tokens = static_cast<double>(options.global_batch * options.sequence_length);
  estimate.tokens_per_s = tokens / estimate.seconds;
  estimate.flops = tokens * TrainFlopsPerToken(config, options.sequence_length);
  return estimate;
}

}  // namespace tessera
