#include "model/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace tessera {

namespace {

bool MoreProbable(const Sampler::Candidate& a, const Sampler::Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// 53 uniform bits in [0, 1): with the 24 of RngKey::Uniform tokens rarer than 6e-8 would never be
// drawn.
double UniformAt(uint64_t seed, int64_t position) {
  const RngKey key{0, RngPurpose::kSampling, seed};
  const auto block = key.Block(static_cast<uint64_t>(position));
  const uint64_t bits = (uint64_t{block[0]} << 21) | (block[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace

std::vector<std::string> CheckSamplerOptions(const SamplerOptions& o) {
  std::vector<std::string> errors;
  const auto require = [&](bool ok, const char* name, double value, const char* range) {
    if (!ok) errors.push_back(fmt::format("{} is {}; it must be {}", name, value, range));
  };
  require(o.temperature >= 0 && std::isfinite(o.temperature), "temperature", o.temperature,
          "0 (greedy) or more");
  require(o.top_k >= 0, "top-k", static_cast<double>(o.top_k), "0 (off) or more");
  require(o.top_p > 0 && o.top_p <= 1, "top-p", o.top_p, "in (0, 1]; 1 turns it off");
  require(o.min_p >= 0 && o.min_p <= 1, "min-p", o.min_p, "in [0, 1]; 0 turns it off");
  require(o.repetition_penalty > 0 && std::isfinite(o.repetition_penalty), "repetition-penalty",
          o.repetition_penalty, "positive; 1 turns it off");
  return errors;
}

Sampler::Sampler(const SamplerOptions& options, int64_t vocab_size, int64_t max_tokens)
    : options_(options), vocab_size_(vocab_size) {
  TESSERA_CHECK(vocab_size > 0);
  TESSERA_CHECK(CheckSamplerOptions(options).empty(), "unchecked sampler options");
  candidates_.reserve(static_cast<size_t>(vocab_size));
  if (options.repetition_penalty != 1.0 && options.repetition_window != 0) {
    recent_count_.resize(static_cast<size_t>(vocab_size));
    const int64_t window = options.repetition_window;
    history_.reserve(static_cast<size_t>(window < 0 ? max_tokens : std::min(window, max_tokens)));
  }
}

void Sampler::Accept(int32_t token) {
  if (recent_count_.empty()) return;
  if (token < 0 || token >= vocab_size_) return;  // a token that can't be drawn again
  ++recent_count_[static_cast<size_t>(token)];
  const int64_t window = options_.repetition_window;
  if (window < 0) return;
  if (history_.size() < static_cast<size_t>(window)) {
    history_.push_back(token);
    return;
  }
  --recent_count_[static_cast<size_t>(history_[next_])];
  history_[next_] = token;
  next_ = (next_ + 1) % history_.size();
}

double Sampler::Penalized(int32_t token, float logit) const {
  const double value = static_cast<double>(logit);
  if (recent_count_.empty() || recent_count_[static_cast<size_t>(token)] == 0) return value;
  const double penalty = options_.repetition_penalty;
  constexpr double kLargest = std::numeric_limits<float>::max();
  return std::clamp(value > 0 ? value / penalty : value * penalty, -kLargest, kLargest);
}

void Sampler::SortTo(size_t sorted, size_t count) {
  const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
  const auto middle = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
  if (middle != candidates_.end()) {
    std::nth_element(begin, middle, candidates_.end(), MoreProbable);
  }
  std::sort(begin, middle, MoreProbable);
}

Result<std::span<const Sampler::Candidate>> Sampler::Distribution(std::span<const float> logits) {
  TESSERA_CHECK(static_cast<int64_t>(logits.size()) >= vocab_size_);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  candidates_.clear();
  Candidate best{-1, -kInfinity, 1.0};
  for (int32_t token = 0; token < vocab_size_; ++token) {
    const float logit = logits[static_cast<size_t>(token)];
    if (!(logit < kInfinity)) {
      return Corrupt(fmt::format("the model's logit of token {} is {}: its weights are damaged, or "
                                 "its training diverged",
                                 token, logit));
    }
    if (logit == -kInfinity) continue;
    const Candidate candidate{token, static_cast<float>(Penalized(token, logit)), 0};
    if (best.token < 0 || candidate.logit > best.logit) best = {token, candidate.logit, 1.0};
    candidates_.push_back(candidate);
  }
  if (best.token < 0) return Corrupt("the model excludes every token: all its logits are -infinity");
  if (options_.temperature == 0) {
    candidates_.assign(1, best);
    return std::span<const Candidate>(candidates_);
  }

  size_t sorted = 0;
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates_.size()) {
    sorted = static_cast<size_t>(options_.top_k);
    SortTo(0, sorted);
    candidates_.resize(sorted);
  }
  double mass = 0;
  const double largest = static_cast<double>(best.logit);
  for (Candidate& candidate : candidates_) {
    candidate.probability =
        std::exp((static_cast<double>(candidate.logit) - largest) / options_.temperature);
    mass += candidate.probability;
  }
  if (options_.top_p < 1) {
    // Sorts only as many places as the mass needs.
    double kept_mass = 0;
    size_t kept = 0;
    const double wanted = options_.top_p * mass;
    while (kept < candidates_.size() && (kept == 0 || kept_mass < wanted)) {
      if (kept == sorted) {
        const size_t next = std::min(candidates_.size(), std::max<size_t>(64, 2 * sorted));
        SortTo(sorted, next);
        sorted = next;
      }
      kept_mass += candidates_[kept++].probability;
    }
    candidates_.resize(kept);
    sorted = std::min(sorted, kept);
    mass = kept_mass;
  }
  if (options_.min_p > 0) {
    // The largest probability is exp(0) = 1 before normalising.
    std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < options_.min_p; });
    if (sorted == 0) std::sort(candidates_.begin(), candidates_.end(), MoreProbable);
    mass = 0;
    for (const Candidate& candidate : candidates_) mass += candidate.probability;
  }
  for (Candidate& candidate : candidates_) candidate.probability /= mass;
  return std::span<const Candidate>(candidates_);
}

Result<int32_t> Sampler::Sample(std::span<const float> logits, int64_t position) {
  TESSERA_ASSIGN(const std::span<const Candidate> kept, Distribution(logits));
  const double uniform = UniformAt(options_.seed, position);
  double sum = 0;
  for (const Candidate& candidate : kept) {
    sum += candidate.probability;
    if (uniform < sum) return candidate.token;
  }
  // The sum of rounded probabilities may end just below one; the rest belongs to the last token
  // that has any probability at all.
  for (size_t i = kept.size(); i-- > 0;) {
    if (kept[i].probability > 0) return kept[i].token;
  }
  return kept.front().token;
}

}  // namespace tessera
