// The embedding and the head of a new model, fitted to how often each token follows each other one in
// the training split, before the first step.
//
// A model whose branches start at zero computes softmax(W norm(E_t)) after token t. So long as that is
// all it does, the gradient of its mean loss over the whole split needs only the table of pair counts,
// whatever the split's length: a pass costs as much as the head over one sequence of all tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "data/token_stream.h"
#include "model/engine.h"

namespace tessera {

// Rows of counts, sorted by the following token.
struct PairCounts {
  int64_t vocab = 0;
  int64_t tokens = 0;            // that were counted
  std::vector<int64_t> begin;    // [vocab + 1]: a token's entries in next and count
  std::vector<int32_t> next;     // the token that follows
  std::vector<int32_t> count;    // how often
  std::vector<int64_t> totals;   // [vocab]: sums of the rows
};

// Counts at most `max_tokens`, from pieces that are spread evenly where the split is longer. Memory
// while it runs: 8 bytes a token.
Result<PairCounts> CountPairs(TokenStream& stream, int64_t vocab, int64_t max_tokens,
                              ThreadPool& pool);

struct PairFitOptions {
  int64_t width = 0;
  kernels::NormKind norm = kernels::NormKind::kRmsNorm;
  float norm_eps = 1e-5f;
  float softcap = 0;             // of the logits; 0: none
  int64_t max_contexts = 4096;   // the most frequent tokens; the rows of others stay
  int iterations = 24;
  float lr = 0.1f;               // of Adam (0.8, 0.95); five iterations to warm up, then down to 0
  // Called before each iteration with the number of those done; false ends the fit.
  std::function<bool(int done)> go_on = {};
};

// Fits embedding and head [vocab, width] in place from where they are. Returns the mean loss in nats of
// the last iteration over the pairs of its contexts. The same bits for any number of threads.
double FitPairTables(const PairCounts& counts, const PairFitOptions& options, float* embedding,
                     float* head, ThreadPool& pool);

// What keeps a model from being fitted, or an empty string.
std::string WhyNotPairTables(const ModelConfig& config);

// Fits the engine's tables to the split in `stream`; returns what to tell a person.
// Shows progress unless silent, and ends with an error when a stop is asked for.
Result<std::string> InitializeFromPairs(TokenStream& stream, bool show_progress, ThreadPool& pool,
                                        Engine& engine);

}  // namespace tessera
