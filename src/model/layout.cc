#include "model/layout.h"

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"

namespace tessera {

namespace {

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Levels of the binary counter that sums virtual ranks in a fixed tree.
int64_t TreeLevels(int64_t virtual_ranks) {
  int64_t levels = 0;
  while ((int64_t{1} << levels) < virtual_ranks) ++levels;
  return levels;
}

void AddMuonBlocks(const ModelConfig& config, const Program& program, Layout* layout) {
  for (size_t i = 0; i < program.params.size(); ++i) {
    const ParameterSpec& spec = program.params[i];
    if (spec.kind != ParameterKind::kMatrix) continue;
    const ParamId id = static_cast<ParamId>(i);
    const auto add = [&](int64_t first, int64_t rows) {
      layout->muon_blocks.push_back({id, first, rows, spec.cols});
    };
    if (spec.name.ends_with("Wqkv.weight")) {
      add(0, config.q_width());
      add(config.q_width(), config.kv_width());
      add(config.q_width() + config.kv_width(), config.kv_width());
    } else if (spec.name.ends_with("gate_up_proj.weight")) {
      add(0, spec.rows / 2);
      add(spec.rows / 2, spec.rows / 2);
    } else {
      add(0, spec.rows);
    }
  }
  std::stable_sort(layout->muon_blocks.begin(), layout->muon_blocks.end(),
                   [](const MuonBlock& a, const MuonBlock& b) {
                     return std::pair(a.rows, a.cols) < std::pair(b.rows, b.cols);
                   });
}

}  // namespace

UpdateRule RuleFor(const ParameterSpec& spec, UpdateRule optimizer) {
  if (optimizer == UpdateRule::kMuon && spec.kind != ParameterKind::kMatrix) {
    return UpdateRule::kAdamW;
  }
  return optimizer;
}

int64_t LogitsStride(int64_t vocab_size) { return RoundUp(vocab_size, 16); }

Layout ComputeLayout(const ModelConfig& config, const PlanOptions& options,
                     const Program& program) {
  Layout layout;
  const bool amp = options.precision == Precision::kAmpBf16;
  for (const ParameterSpec& spec : program.params) {
    const int64_t padded = RoundUp(spec.size(), 16);
    layout.value.push_back(layout.value_elements);
    layout.value_elements += padded;
    layout.state0.push_back(layout.state0_elements);
    layout.state0_elements += padded;
    if (RuleFor(spec, options.optimizer) == UpdateRule::kAdamW) {
      layout.state1.push_back(layout.state1_elements);
      layout.state1_elements += padded;
    } else {
      layout.state1.push_back(-1);
    }
    const bool vector = spec.kind == ParameterKind::kGain || spec.kind == ParameterKind::kBias;
    if (amp && !vector) {
      layout.working.push_back(layout.working_elements);
      layout.working_elements += RoundUp(padded, 32);
    } else {
      layout.working.push_back(-1);
    }
  }
  layout.gradient_copies = options.training ? 1 + TreeLevels(options.virtual_ranks) : 0;
  if (options.training && config.tie_embeddings) {
    const int64_t tokens = options.global_batch / options.virtual_ranks * options.sequence_length;
    layout.lookup_rows = std::min(config.vocab_size, tokens);
    layout.lookup_elements = RoundUp(layout.lookup_rows * config.d_model, 16);
  }
  if (!options.training) layout.state0_elements = layout.state1_elements = 0;

  const int threads = options.num_threads;
  layout.gemm_workspace = RoundUp(kernels::GemmWorkspaceBytes(threads), 4096);
  layout.logits_offset = layout.gemm_workspace;
  layout.logits_bytes = program.loss_chunk * LogitsStride(config.vocab_size) * 4;
  layout.workspace_bytes = layout.logits_offset + layout.logits_bytes;

  kernels::AttentionShape shape;
  shape.batch = options.microbatch;
  shape.length = options.sequence_length;
  shape.heads = config.n_heads;
  shape.kv_heads = config.kv_heads();
  shape.head_size = config.head_dim();
  layout.workspace_bytes =
      std::max(layout.workspace_bytes, kernels::AttentionWorkspaceBytes(shape, threads));

  if (options.training) {
    if (config.norm_gain || config.biases) {
      layout.workspace_bytes = std::max(
          layout.workspace_bytes, kernels::NormBackwardWorkspaceBytes(
                                      program.tokens, config.d_model, options.sequence_length));
    }
    layout.workspace_bytes = std::max(
        layout.workspace_bytes,
        kernels::SumSquaresPartials(layout.value_elements) * static_cast<int64_t>(sizeof(double)));
    if (options.optimizer == UpdateRule::kMuon) {
      AddMuonBlocks(config, program, &layout);
      for (size_t i = 0; i < layout.muon_blocks.size();) {
        const MuonBlock& block = layout.muon_blocks[i];
        size_t end = i;
        while (end < layout.muon_blocks.size() && layout.muon_blocks[end].rows == block.rows &&
               layout.muon_blocks[end].cols == block.cols) {
          ++end;
        }
        layout.workspace_bytes =
            std::max(layout.workspace_bytes,
                     kernels::MuonWorkspaceBytes(block.rows, block.cols,
                                                 static_cast<int64_t>(end - i), threads));
        i = end;
      }
    }
  }
  layout.workspace_bytes = RoundUp(layout.workspace_bytes, 4096);

  // tokens, targets, segment starts, bigram ids, lookup rows, loss and nll of each row of a
  // micro-batch.
  layout.data_bytes = RoundUp(program.tokens * 7 * 4, 4096);
  return layout;
}

}  // namespace tessera
