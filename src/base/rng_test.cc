#include "base/rng.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>

namespace tessera {
namespace {

using Block = std::array<uint32_t, 4>;

// The known-answer vectors of Random123 for philox4x32 with 10 rounds.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(Philox({ones, ones, ones, ones}, {ones, ones}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // The first digits of pi.
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngTest, SeedPurposeStreamAndIndexEachChangeTheValue) {
  std::set<uint32_t> words;
  for (const uint64_t seed : {1u, 2u}) {
    for (const RngPurpose purpose : {RngPurpose::kInit, RngPurpose::kDropout}) {
      for (const uint64_t stream : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
        for (const uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
          words.insert(RngKey{seed, purpose, stream}.Block(index)[0]);
        }
      }
    }
  }
  EXPECT_EQ(words.size(), 2u * 2 * 3 * 3);
}

// Bounds are five standard errors of the estimate: sigma / sqrt(n) for the mean, and for the
// variance sigma^2 sqrt((kurtosis - 1) / n) with kurtosis 9/5 (uniform) and 3 (normal).
TEST(RngTest, UniformHasItsMomentsAndRange) {
  const RngKey key{7, RngPurpose::kSampling, 3};
  constexpr int kCount = 200'000;
  double sum = 0;
  double sum_squares = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = key.Uniform(i);
    ASSERT_GE(x, 0.0);
    ASSERT_LT(x, 1.0);
    sum += x;
    sum_squares += x * x;
  }
  const double mean = sum / kCount;
  const double variance = sum_squares / kCount - mean * mean;
  EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(variance, 1.0 / 12, 5 * (1.0 / 12) * std::sqrt(0.8 / kCount));
}

TEST(RngTest, NormalHasItsMomentsAndIndependentNeighbours) {
  const RngKey key{7, RngPurpose::kInit, HashName("blocks.0.mlp.up")};
  constexpr int kCount = 200'000;
  double sum = 0;
  double sum_squares = 0;
  double sum_neighbours = 0;
  double former = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = key.Normal(i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    sum_squares += x * x;
    sum_neighbours += x * former;
    former = x;
  }
  EXPECT_NEAR(sum / kCount, 0, 5 * std::sqrt(1.0 / kCount));
  EXPECT_NEAR(sum_squares / kCount, 1, 5 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(sum_neighbours / kCount, 0, 5 * std::sqrt(1.0 / kCount));
}

TEST(RngTest, ElementsDoNotDependOnTheOrderOfCalls) {
  const RngKey key{11, RngPurpose::kDropout, 5};
  const float late = key.Uniform(1000);
  for (uint64_t i = 0; i < 1000; ++i) (void)key.Uniform(i);
  EXPECT_EQ(key.Uniform(1000), late);
}

TEST(RngTest, NamesHashAsFnv1a) {
  EXPECT_EQ(HashName(""), 0xcbf29ce484222325u);
  EXPECT_EQ(HashName("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(HashName("foobar"), 0x85944171f73967e8u);
}

}  // namespace
}  // namespace tessera
