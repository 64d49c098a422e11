// Draws the next token from logits: repetition penalty, temperature, top-k, top-p, min-p. The draw is
// a pure function of (options, tokens so far, logits, position), so a request gives the same text
// on any number of threads and in any batch.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace tessera {

struct SamplerOptions {
  double temperature = 1.0;         // 0: the most probable token (greedy)
  int64_t top_k = 0;                // keep this many of the most probable tokens; 0: all
  double top_p = 1.0;               // keep the fewest most probable tokens of this much mass
  double min_p = 0;                 // drop tokens below this fraction of the largest probability
  double repetition_penalty = 1.0;  // logits of recent tokens: l > 0 ? l / r : l * r
  int64_t repetition_window = 256;  // how many tokens back; < 0: all
  uint64_t seed = 0;
};

// Every option out of range, named as on the command line.
std::vector<std::string> CheckSamplerOptions(const SamplerOptions& options);

class Sampler {
 public:
  struct Candidate {
    int32_t token = 0;
    float logit = 0;
    double probability = 0;
  };

  // `vocab_size` bounds the tokens that can be drawn; `max_tokens` how many Accept calls to expect
  // (more are fine, but may allocate).
  Sampler(const SamplerOptions& options, int64_t vocab_size, int64_t max_tokens);

  // Tells a token of the prompt or a drawn one, for the repetition penalty.
  void Accept(int32_t token);

  // The token for `position` of the sequence. logits: at least vocab_size values, of which the
  // first vocab_size count; -infinity excludes a token. Corrupt when a logit is NaN or +infinity, or
  // when all are excluded: the weights are broken. O(V), with filters O(V + K log K) for K kept
  // tokens. Position keys the random number: a sequence must not use one twice.
  Result<int32_t> Sample(std::span<const float> logits, int64_t position);

  // What Sample draws from: the kept tokens with probabilities that sum to one. Most probable first
  // when a filter is on (equal logits: the lower id first), by id otherwise. Under temperature 0
  // one candidate. Valid until the next call.
  Result<std::span<const Candidate>> Distribution(std::span<const float> logits);

 private:
  double Penalized(int32_t token, float logit) const;
  // Sorts candidates_ up to `count` places (those before `sorted` are in place already).
  void SortTo(size_t sorted, size_t count);

  SamplerOptions options_;
  int64_t vocab_size_;
  std::vector<int32_t> history_;       // the last tokens, oldest overwritten when the window is full
  size_t next_ = 0;                    // place of the oldest, once history_ is full
  std::vector<int32_t> recent_count_;  // [vocab] occurrences in the window; empty without penalty
  std::vector<Candidate> candidates_;
};

}  // namespace tessera
