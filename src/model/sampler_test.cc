#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

namespace tessera {
namespace {

// Logits whose softmax is exactly these probabilities, up to rounding of the logarithm.
std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::map<int32_t, double> DistributionOf(const SamplerOptions& options,
                                         const std::vector<float>& logits,
                                         const std::vector<int32_t>& history = {}) {
  Sampler sampler(options, static_cast<int64_t>(logits.size()), 64);
  for (const int32_t token : history) sampler.Accept(token);
  const auto kept = sampler.Distribution(logits);
  EXPECT_TRUE(kept.ok());
  std::map<int32_t, double> out;
  for (const Sampler::Candidate& candidate : *kept) out[candidate.token] = candidate.probability;
  return out;
}

// A logit of size |l| < 8 is rounded to 2^-22 at most, which is the relative error of exp(l / T).
void ExpectDistribution(const std::map<int32_t, double>& actual,
                        const std::map<int32_t, double>& expected, double temperature = 1) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [token, probability] : expected) {
    ASSERT_TRUE(actual.contains(token)) << token;
    EXPECT_NEAR(actual.at(token), probability, 0x1p-20 / temperature) << token;
  }
}

const std::vector<double> kProbabilities = {0.1, 0.4, 0.05, 0.25, 0.2};

TEST(Sampler, PlainIsTheSoftmax) {
  ExpectDistribution(DistributionOf({}, LogitsOf(kProbabilities)),
                     {{0, 0.1}, {1, 0.4}, {2, 0.05}, {3, 0.25}, {4, 0.2}});
}

TEST(Sampler, TemperatureRaisesToItsInverse) {
  // p^2 / sum p^2 with sum = 0.275; and sqrt.
  ExpectDistribution(DistributionOf({.temperature = 0.5}, LogitsOf(kProbabilities)),
                     {{0, 0.01 / 0.275}, {1, 0.16 / 0.275}, {2, 0.0025 / 0.275},
                      {3, 0.0625 / 0.275}, {4, 0.04 / 0.275}},
                     0.5);
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {1, 3, 2, 3};
  ExpectDistribution(DistributionOf({.temperature = 0}, logits), {{1, 1.0}});
}

TEST(Sampler, TopKKeepsTheMostProbable) {
  ExpectDistribution(DistributionOf({.top_k = 2}, LogitsOf(kProbabilities)),
                     {{1, 0.4 / 0.65}, {3, 0.25 / 0.65}});
  ExpectDistribution(DistributionOf({.top_k = 2}, {1, 1, 1, 0}), {{0, 0.5}, {1, 0.5}});
  EXPECT_EQ(DistributionOf({.top_k = 50}, LogitsOf(kProbabilities)).size(), 5u);
}

TEST(Sampler, TopPKeepsTheFewestThatReachTheMass) {
  // 0.4 + 0.25 = 0.65 reaches 0.6; 0.7 needs the third.
  ExpectDistribution(DistributionOf({.top_p = 0.6}, LogitsOf(kProbabilities)),
                     {{1, 0.4 / 0.65}, {3, 0.25 / 0.65}});
  ExpectDistribution(DistributionOf({.top_p = 0.7}, LogitsOf(kProbabilities)),
                     {{1, 0.4 / 0.85}, {3, 0.25 / 0.85}, {4, 0.2 / 0.85}});
  // However small the mass, one token stays.
  ExpectDistribution(DistributionOf({.top_p = 1e-9}, LogitsOf(kProbabilities)), {{1, 1.0}});
}

TEST(Sampler, TopPSortsAsFarAsItNeeds) {
  // 1000 equal tokens: the mass of 0.9 is 900 of them, the lowest ids.
  const auto kept = DistributionOf({.top_p = 0.8995}, std::vector<float>(1000, 0.5f));
  ASSERT_EQ(kept.size(), 900u);
  EXPECT_EQ(kept.rbegin()->first, 899);
}

TEST(Sampler, MinPIsRelativeToTheLargest) {
  ExpectDistribution(DistributionOf({.min_p = 0.45}, LogitsOf(kProbabilities)),
                     {{1, 0.4 / 0.85}, {3, 0.25 / 0.85}, {4, 0.2 / 0.85}});
  ExpectDistribution(DistributionOf({.min_p = 1}, LogitsOf(kProbabilities)), {{1, 1.0}});
}

TEST(Sampler, FiltersCombineInOrder) {
  // top-k 4 leaves 0.95 of the mass, of which top-p 0.9 needs 0.855: 0.4 + 0.25 + 0.2 = 0.85 is too
  // little, so all four stay; min-p 0.3 then drops 0.1.
  ExpectDistribution(
      DistributionOf({.top_k = 4, .top_p = 0.9, .min_p = 0.3}, LogitsOf(kProbabilities)),
      {{1, 0.4 / 0.85}, {3, 0.25 / 0.85}, {4, 0.2 / 0.85}});
}

TEST(Sampler, RepetitionPenaltyTouchesRecentTokensOnce) {
  const std::vector<float> logits = {2, -1, 0.5f, 1};
  const SamplerOptions options{.repetition_penalty = 2};
  const double sum = std::exp(1) + std::exp(-2) + std::exp(0.5) + std::exp(1);
  ExpectDistribution(DistributionOf(options, logits, {0, 1, 0, 0}),
                     {{0, std::exp(1) / sum}, {1, std::exp(-2) / sum},
                      {2, std::exp(0.5) / sum}, {3, std::exp(1) / sum}});
}

TEST(Sampler, RepetitionWindowForgets) {
  const std::vector<float> logits = {2, 2, 2};
  const SamplerOptions options{.repetition_penalty = 2, .repetition_window = 2};
  const auto forgotten = DistributionOf(options, logits, {0, 0, 1, 2});
  EXPECT_GT(forgotten.at(0), forgotten.at(1));
  EXPECT_DOUBLE_EQ(forgotten.at(1), forgotten.at(2));
  const auto all = DistributionOf({.repetition_penalty = 2, .repetition_window = -1}, logits,
                                  {0, 0, 1, 2});
  EXPECT_DOUBLE_EQ(all.at(0), all.at(1));
  // A token that is told twice stays recent until both are out of the window.
  const auto twice = DistributionOf({.repetition_penalty = 2, .repetition_window = 2}, logits,
                                    {1, 0, 0});
  EXPECT_LT(twice.at(0), twice.at(1));
}

// Counts over n positions are binomial: within five standard deviations.
TEST(Sampler, DrawsWithTheDistributionsFrequencies) {
  const std::vector<float> logits = LogitsOf(kProbabilities);
  Sampler sampler({.seed = 3}, 5, 0);
  constexpr int64_t kDraws = 20000;
  std::vector<int64_t> counts(5, 0);
  for (int64_t position = 0; position < kDraws; ++position) {
    const auto token = sampler.Sample(logits, position);
    ASSERT_TRUE(token.ok());
    ++counts[static_cast<size_t>(*token)];
  }
  for (size_t i = 0; i < 5; ++i) {
    const double p = kProbabilities[i], n = static_cast<double>(kDraws);
    EXPECT_NEAR(static_cast<double>(counts[i]), n * p, 5 * std::sqrt(n * p * (1 - p))) << i;
  }
}

TEST(Sampler, DrawDependsOnSeedAndPositionOnly) {
  const std::vector<float> logits(1000, 0.0f);
  Sampler a({.seed = 3}, 1000, 0), b({.seed = 3}, 1000, 0), c({.seed = 4}, 1000, 0);
  ASSERT_TRUE(b.Sample(logits, 99).ok());
  int same_seed = 0, other_seed = 0;
  for (int64_t position = 0; position < 100; ++position) {
    const int32_t token = *a.Sample(logits, position);
    same_seed += token == *b.Sample(logits, position);
    other_seed += token == *c.Sample(logits, position);
  }
  EXPECT_EQ(same_seed, 100);
  EXPECT_LT(other_seed, 10);  // 0.1 expected
}

TEST(Sampler, ExcludesMinusInfinityAndRefusesBrokenLogits) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  ExpectDistribution(DistributionOf({}, {-kInf, 1, -kInf}), {{1, 1.0}});
  Sampler sampler({}, 2, 0);
  for (const std::vector<float>& logits :
       {std::vector<float>{0, NAN}, std::vector<float>{kInf, 0}, std::vector<float>{-kInf, -kInf}}) {
    const auto token = sampler.Sample(logits, 0);
    ASSERT_FALSE(token.ok());
    EXPECT_EQ(token.error().code, ErrorCode::kCorrupt);
  }
}

TEST(Sampler, ChecksEveryOption) {
  EXPECT_TRUE(CheckSamplerOptions({}).empty());
  const SamplerOptions bad{.temperature = -1, .top_k = -1, .top_p = 0, .min_p = 2,
                           .repetition_penalty = 0};
  EXPECT_EQ(CheckSamplerOptions(bad).size(), 5u);
  EXPECT_EQ(CheckSamplerOptions({.temperature = NAN}).size(), 1u);
}

}  // namespace
}  // namespace tessera
