// Where every parameter, gradient, moment and scratch area lies: sizes that the plan prints and
// the engine allocates come from this one place.
#pragma once

#include <cstdint>
#include <vector>

#include "model/plan.h"
#include "model/program.h"

namespace tessera {

// A block of rows of a parameter that Muon treats as one matrix (q, k and v apart, gate and up
// apart).
struct MuonBlock {
  ParamId param = 0;
  int64_t first_row = 0, rows = 0, cols = 0;
};

struct Layout {
  // Offsets in elements into flat arrays; each parameter starts at a multiple of 16 elements.
  std::vector<int64_t> value;    // values, gradients and averages
  std::vector<int64_t> state0;
  std::vector<int64_t> state1;   // -1 where the rule has no second moment
  std::vector<int64_t> working;  // -1 where no bf16 copy is kept
  int64_t value_elements = 0, state0_elements = 0, state1_elements = 0, working_elements = 0;
  int64_t gradient_copies = 0;   // 1, plus the partial sums of the tree over virtual ranks
  // With tied embeddings the table's gradient has two sources, head and lookup. Each has its own
  // chain over the tokens of a virtual rank, added at its end: in one chain their order would
  // depend on the micro-batch. The lookup's part holds a row for each token of the vocabulary that
  // a virtual rank meets, in the order of their first use: at most lookup_rows, or 0.
  int64_t lookup_rows = 0, lookup_elements = 0;

  // Muon's blocks ordered by shape, so that equal shapes are one batch.
  std::vector<MuonBlock> muon_blocks;

  // Scratch, in bytes. Products use the front; the chunk of logits lies behind them.
  int64_t gemm_workspace = 0;
  int64_t logits_offset = 0, logits_bytes = 0;
  int64_t norm_partials_offset = 0;
  int64_t workspace_bytes = 0;
  // Micro-batch inputs and per-row results, in bytes.
  int64_t data_bytes = 0;
};

UpdateRule RuleFor(const ParameterSpec& spec, UpdateRule optimizer);
// fp32 rows of the chunk of logits are padded to a whole number of cache lines.
int64_t LogitsStride(int64_t vocab_size);
Layout ComputeLayout(const ModelConfig& config, const PlanOptions& options, const Program& program);

}  // namespace tessera
