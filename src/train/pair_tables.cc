#include "train/pair_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>

#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "base/time.h"
#include "kernels/loss.h"
#include "kernels/optimizer.h"

namespace tessera {

namespace {

constexpr int64_t kPieces = 64;
// 67 M tokens: enough for the counts of pairs that matter, seconds to read.
constexpr int64_t kMaxTokens = int64_t{1} << 26;
constexpr float kBeta1 = 0.8f, kBeta2 = 0.95f;

float Flt(int64_t value) { return static_cast<float>(value); }

// Tokens with their followers: [vocab + 1] starts, and the followers of each token in stored order.
struct Followers {
  std::vector<int64_t> begin;
  std::vector<int32_t> next;
};

Result<Followers> ReadFollowers(TokenStream& stream, int64_t vocab, int64_t max_tokens) {
  const int64_t size = stream.size();
  const int64_t pieces = size > max_tokens ? kPieces : 1;
  const int64_t piece = std::min(size, max_tokens) / pieces;
  std::vector<int32_t> tokens(static_cast<size_t>(pieces * piece));
  for (int64_t p = 0; p < pieces; ++p) {
    TESSERA_TRY(stream.Read(size / pieces * p, piece, tokens.data() + p * piece, nullptr));
  }
  Followers followers;
  followers.begin.assign(static_cast<size_t>(vocab + 1), 0);
  const auto each_pair = [&](auto&& use) {
    for (int64_t p = 0; p < pieces; ++p) {
      for (int64_t i = p * piece; i + 1 < (p + 1) * piece; ++i) {
        use(static_cast<size_t>(tokens[static_cast<size_t>(i)]), tokens[static_cast<size_t>(i + 1)]);
      }
    }
  };
  each_pair([&](size_t token, int32_t) { ++followers.begin[token + 1]; });
  std::partial_sum(followers.begin.begin(), followers.begin.end(), followers.begin.begin());
  followers.next.resize(static_cast<size_t>(followers.begin.back()));
  std::vector<int64_t> at(followers.begin.begin(), followers.begin.end() - 1);
  each_pair([&](size_t token, int32_t next) {
    followers.next[static_cast<size_t>(at[token]++)] = next;
  });
  return followers;
}

// The state of a fit: its contexts' rows of the embedding, gathered, and the head.
class PairFit {
 public:
  PairFit(const PairCounts& counts, const PairFitOptions& options, float* embedding, float* head,
          ThreadPool& pool)
      : counts_(counts), options_(options), embedding_(embedding), head_(head), pool_(pool) {
    const auto total = [&](int32_t t) { return counts.totals[static_cast<size_t>(t)]; };
    for (int32_t token = 0; token < counts.vocab; ++token) {
      if (total(token) > 0) contexts_.push_back(token);
    }
    std::stable_sort(contexts_.begin(), contexts_.end(),
                     [&](int32_t a, int32_t b) { return total(a) > total(b); });
    if (rows() > options.max_contexts) contexts_.resize(static_cast<size_t>(options.max_contexts));
    for (const int32_t token : contexts_) pairs_ += total(token);
    const int64_t row_values = rows() * options.width, head_values = counts.vocab * options.width;
    chunk_ = std::clamp<int64_t>((int64_t{2} << 20) / counts.vocab, 16, 1024);
    for (Values* v : {&x_, &y_, &dx_, &dy_, &m_x_, &v_x_}) v->assign(Size(row_values), 0);
    for (Values* v : {&d_head_, &m_head_, &v_head_}) v->assign(Size(head_values), 0);
    for (Values* v : {&logits_, &gradient_}) v->assign(Size(chunk_ * counts.vocab), 0);
    for (Values* v : {&mean_, &rstd_, &loss_, &lse_}) v->assign(Size(rows()), 0);
    targets_.resize(Size(rows()));
    for (int64_t r = 0; r < rows(); ++r) {
      std::copy_n(embedding + contexts_[Size(r)] * options.width, options.width, Row(x_, r));
      targets_[Size(r)] = counts.next[Size(counts.begin[Size(contexts_[Size(r)])])];
    }
    const auto bytes = [&](int64_t k, int64_t n) {
      return kernels::PackedBBytes(k, n, DType::kF32, kernels::Compute::kF32);
    };
    packed_forward_ = Aligned(bytes(options.width, counts.vocab));
    packed_back_ = Aligned(bytes(counts.vocab, options.width));
    workspace_ = Aligned(kernels::GemmWorkspaceBytes(pool.num_threads()));
  }

  int64_t rows() const { return static_cast<int64_t>(contexts_.size()); }

  // One pass over all contexts and one update; the mean loss before it.
  double Iterate(int iteration) {
    const int64_t width = options_.width, vocab = counts_.vocab;
    kernels::NormForward({.kind = options_.norm, .rows = rows(), .width = width,
                          .eps = options_.norm_eps, .x = x_.data(), .y = y_.data(),
                          .mean = mean_.data(), .rstd = rstd_.data()},
                         pool_);
    const kernels::MatrixRef head{head_, DType::kF32, width, false};
    const kernels::MatrixRef turned{head_, DType::kF32, width, true};
    kernels::PackB(turned, width, vocab, DType::kF32, kernels::Compute::kF32,
                   packed_forward_.get(), pool_);
    kernels::PackB(head, vocab, width, DType::kF32, kernels::Compute::kF32, packed_back_.get(),
                   pool_);
    std::fill(d_head_.begin(), d_head_.end(), 0.0f);
    for (int64_t first = 0; first < rows(); first += chunk_) {
      Chunk(first, std::min(chunk_, rows() - first));
    }
    kernels::NormBackward({.kind = options_.norm, .rows = rows(), .width = width, .x = x_.data(),
                           .dy = dy_.data(), .mean = mean_.data(), .rstd = rstd_.data(),
                           .dx = dx_.data()},
                          nullptr, pool_);
    Update(iteration, x_, dx_, m_x_, v_x_);
    Update(iteration, std::span<float>(head_, Size(vocab * width)), d_head_, m_head_, v_head_);
    double loss = 0;
    for (const float part : loss_) loss += part;
    return loss;
  }

  void Store() {
    for (int64_t r = 0; r < rows(); ++r) {
      std::copy_n(Row(x_, r), options_.width, embedding_ + contexts_[Size(r)] * options_.width);
    }
  }

 private:
  using Values = std::vector<float>;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  using Buffer = std::unique_ptr<void, Free>;

  static size_t Size(int64_t n) { return static_cast<size_t>(n); }
  static Buffer Aligned(int64_t bytes) {
    return Buffer(std::aligned_alloc(64, Size((bytes + 63) / 64 * 64)));
  }
  float* Row(Values& values, int64_t row) const { return values.data() + row * options_.width; }
  float Weight(int64_t row) const {
    return Flt(counts_.totals[Size(contexts_[Size(row)])]) / Flt(pairs_);
  }

  // Logits of some contexts, the loss of their rows, and its gradients.
  void Chunk(int64_t first, int64_t n) {
    const int64_t width = options_.width, vocab = counts_.vocab;
    kernels::Gemm({.m = n, .n = vocab, .k = width,
                   .a = {Row(y_, first), DType::kF32, width, false}, .b = {},
                   .packed_b = packed_forward_.get(), .c = logits_.data(), .ldc = vocab},
                  workspace_.get(), pool_);
    // With one follower as the target; the loop below puts the others in its place.
    kernels::CrossEntropy({.rows = n, .vocab = vocab, .logits = logits_.data(), .ld = vocab,
                           .targets = targets_.data() + first, .softcap = options_.softcap,
                           .loss = loss_.data() + first, .lse = lse_.data() + first,
                           .dlogits = gradient_.data(), .dld = vocab},
                          pool_);
    pool_.ParallelForGrain(n, 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) CountedTargets(first + r, r);
    });
    kernels::Gemm({.m = n, .n = width, .k = vocab,
                   .a = {gradient_.data(), DType::kF32, vocab, false}, .b = {},
                   .packed_b = packed_back_.get(), .c = Row(dy_, first), .ldc = width},
                  workspace_.get(), pool_);
    pool_.ParallelForGrain(n, 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = first + begin; r < first + end; ++r) {
        const float weight = Weight(r);
        for (int64_t i = 0; i < width; ++i) Row(dy_, r)[i] *= weight;
        // The head's gradient takes each row as often as it was seen; y is made anew next time.
        for (int64_t i = 0; i < width; ++i) Row(y_, r)[i] *= weight;
      }
    });
    kernels::Gemm({.m = vocab, .n = width, .k = n,
                   .a = {gradient_.data(), DType::kF32, vocab, true},
                   .b = {Row(y_, first), DType::kF32, width, false}, .c = d_head_.data(),
                   .ldc = width, .accumulate = true},
                  workspace_.get(), pool_);
  }

  // The gradient of lse - sum_j p_j l_j instead of lse - l_target, l = softcap tanh(x / softcap).
  void CountedTargets(int64_t row, int64_t in_chunk) {
    const float* x = logits_.data() + in_chunk * counts_.vocab;
    float* g = gradient_.data() + in_chunk * counts_.vocab;
    const size_t token = Size(contexts_[Size(row)]);
    const float total = Flt(counts_.totals[token]);
    const float cap = options_.softcap;
    const auto slope = [cap](float value) {
      if (cap <= 0) return 1.0f;
      const float t = std::tanh(value / cap);
      return 1 - t * t;
    };
    const auto capped = [cap](float value) { return cap <= 0 ? value : cap * std::tanh(value / cap); };
    const size_t target = Size(targets_[Size(row)]);
    g[target] += slope(x[target]);
    double expected = 0;
    for (int64_t e = counts_.begin[token]; e < counts_.begin[token + 1]; ++e) {
      const size_t next = Size(counts_.next[Size(e)]);
      const float p = Flt(counts_.count[Size(e)]) / total;
      g[next] -= p * slope(x[next]);
      expected += static_cast<double>(p) * static_cast<double>(capped(x[next]));
    }
    const double nats = static_cast<double>(lse_[Size(row)]) - expected;
    loss_[Size(row)] = Weight(row) * static_cast<float>(nats);
  }

  void Update(int iteration, std::span<float> value, const Values& gradient, Values& m, Values& v) {
    const float done = Flt(iteration) / Flt(options_.iterations);
    const float warm = std::min(1.0f, Flt(iteration + 1) / 5);
    const float step = Flt(iteration + 1);
    kernels::AdamW({.n = static_cast<int64_t>(value.size()), .p = value.data(), .g = gradient.data(),
                    .m = m.data(), .v = v.data(), .lr = options_.lr * warm * (1 - done),
                    .beta1 = kBeta1, .beta2 = kBeta2, .eps = 1e-8f,
                    .bias_correction1 = 1 - std::pow(kBeta1, step),
                    .bias_correction2 = 1 - std::pow(kBeta2, step)},
                   pool_);
  }

  const PairCounts& counts_;
  const PairFitOptions& options_;
  float* embedding_;
  float* head_;
  ThreadPool& pool_;
  std::vector<int32_t> contexts_, targets_;
  int64_t pairs_ = 0, chunk_ = 0;
  Values x_, y_, dx_, dy_, m_x_, v_x_, d_head_, m_head_, v_head_;
  Values logits_, gradient_, mean_, rstd_, loss_, lse_;
  Buffer packed_forward_, packed_back_, workspace_;
};

}  // namespace

Result<PairCounts> CountPairs(TokenStream& stream, int64_t vocab, int64_t max_tokens,
                              ThreadPool& pool) {
  TESSERA_ASSIGN(Followers followers, ReadFollowers(stream, vocab, max_tokens));
  PairCounts counts;
  counts.vocab = vocab;
  counts.tokens = std::min(stream.size(), max_tokens);
  counts.totals.resize(static_cast<size_t>(vocab));
  std::vector<int64_t> distinct(static_cast<size_t>(vocab));
  pool.ParallelForGrain(vocab, 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const size_t t = static_cast<size_t>(token);
      const auto first = followers.next.begin() + followers.begin[t];
      const auto last = followers.next.begin() + followers.begin[t + 1];
      std::sort(first, last);
      counts.totals[t] = last - first;
      for (auto at = first; at != last; at = std::upper_bound(at, last, *at)) ++distinct[t];
    }
  });
  counts.begin.assign(static_cast<size_t>(vocab + 1), 0);
  std::partial_sum(distinct.begin(), distinct.end(), counts.begin.begin() + 1);
  counts.next.resize(static_cast<size_t>(counts.begin.back()));
  counts.count.resize(counts.next.size());
  pool.ParallelForGrain(vocab, 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const size_t t = static_cast<size_t>(token);
      const auto last = followers.next.begin() + followers.begin[t + 1];
      size_t to = static_cast<size_t>(counts.begin[t]);
      for (auto at = followers.next.begin() + followers.begin[t]; at != last; ++to) {
        const auto behind = std::upper_bound(at, last, *at);
        counts.next[to] = *at;
        counts.count[to] = static_cast<int32_t>(behind - at);
        at = behind;
      }
    }
  });
  return counts;
}

double FitPairTables(const PairCounts& counts, const PairFitOptions& options, float* embedding,
                     float* head, ThreadPool& pool) {
  PairFit fit(counts, options, embedding, head, pool);
  if (fit.rows() == 0) return 0;
  double loss = 0;
  for (int i = 0; i < options.iterations; ++i) {
    if (options.go_on && !options.go_on(i)) return loss;
    loss = fit.Iterate(i);
  }
  fit.Store();
  return loss;
}

std::string WhyNotPairTables(const ModelConfig& config) {
  if (config.init != InitScheme::kModern) {
    return "needs branches that start at zero: a model of the modern family or "
           "model.init_config.name modern";
  }
  if (config.tie_embeddings) return "needs a head of its own: set model.tie_word_embeddings to false";
  if (config.positions == Positions::kLearned) return "needs rope or alibi, not learned positions";
  return "";
}

Result<std::string> InitializeFromPairs(TokenStream& stream, bool show_progress, ThreadPool& pool,
                                        Engine& engine) {
  const Stopwatch watch;
  const ModelConfig& config = engine.plan().config;
  float *embedding = nullptr, *head = nullptr;
  for (const Parameter& parameter : engine.parameters()) {
    if (parameter.spec.kind == ParameterKind::kHead) head = parameter.value;
    if (parameter.spec.name == "transformer.wte.weight") embedding = parameter.value;
  }
  if (embedding == nullptr || head == nullptr) return Internal("the model has no embedding and head");
  engine.ReleaseStepMemory();
  TESSERA_ASSIGN(const PairCounts counts, CountPairs(stream, config.vocab_size, kMaxTokens, pool));
  PairFitOptions options{.width = config.d_model,
                         .norm = config.norm,
                         .norm_eps = static_cast<float>(config.norm_eps),
                         .softcap = static_cast<float>(config.logit_softcap)};
  ProgressMeter meter("fitting tables",
                      {.total = options.iterations,
                       .noun = "passes",
                       .mode = show_progress ? ProgressMode::kAuto : ProgressMode::kSilent});
  options.go_on = [&](int done) {
    meter.Update(done);
    return !StopRequested();
  };
  const double loss = FitPairTables(counts, options, embedding, head, pool);
  if (StopRequested()) {
    return Error{.code = ErrorCode::kCancelled, .message = "stopped while fitting the tables"};
  }
  engine.WeightsChanged();
  return fmt::format(
      "tables: fitted to the pairs of {} tokens in {:.1f}s, loss {:.4f} before the first step",
      FormatCount(static_cast<double>(counts.tokens)), watch.Seconds(), loss);
}

}  // namespace tessera
