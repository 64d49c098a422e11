#include "data/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tessera {
namespace {

TEST(Permutation, IsABijectionForEverySmallSize) {
  for (int64_t n = 1; n <= 300; ++n) {
    const Permutation permutation(n, 42, static_cast<uint64_t>(n));
    std::vector<bool> seen(static_cast<size_t>(n), false);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = permutation.Forward(i);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, n);
      ASSERT_FALSE(seen[static_cast<size_t>(value)]) << "n " << n << " value " << value;
      seen[static_cast<size_t>(value)] = true;
      ASSERT_EQ(permutation.Inverse(value), i);
    }
  }
}

TEST(Permutation, IsABijectionAroundPowersOfTwo) {
  for (const int64_t n : {1023, 1024, 1025, 65535, 65536, 65537, 100003}) {
    const Permutation permutation(n, 7, 3);
    std::vector<bool> seen(static_cast<size_t>(n), false);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = permutation.Forward(i);
      ASSERT_LT(value, n);
      ASSERT_FALSE(seen[static_cast<size_t>(value)]);
      seen[static_cast<size_t>(value)] = true;
    }
  }
}

TEST(Permutation, InvertsAtTheLargestSizes) {
  for (const int64_t n : {int64_t{1} << 40, (int64_t{1} << 62) + 12345, INT64_MAX}) {
    const Permutation permutation(n, 1, 2);
    for (int64_t i = 0; i < 200; ++i) {
      const int64_t position = i % 2 == 0 ? i : n - 1 - i;
      const int64_t value = permutation.Forward(position);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, n);
      ASSERT_EQ(permutation.Inverse(value), position);
    }
  }
}

TEST(Permutation, SeedAndStreamChangeTheOrder) {
  const int64_t n = 1000;
  const Permutation base(n, 1, 0);
  const Permutation other_seed(n, 2, 0);
  const Permutation other_stream(n, 1, 1);
  int64_t same_seed = 0;
  int64_t same_stream = 0;
  for (int64_t i = 0; i < n; ++i) {
    same_seed += base.Forward(i) == other_seed.Forward(i);
    same_stream += base.Forward(i) == other_stream.Forward(i);
  }
  // Fixed points between random permutations are Poisson with mean 1: above 12 is under 1e-10.
  EXPECT_LE(same_seed, 12);
  EXPECT_LE(same_stream, 12);
}

TEST(Permutation, SpreadsEveryPositionEvenly) {
  // Over 16,000 keys each of 16 values should come up 1,000 times at position 0: standard
  // deviation sqrt(1000 * 15/16) = 30.6, so 6 of them are 184 (chance of failure under 1e-7).
  constexpr int64_t kValues = 16;
  std::vector<int64_t> counts(kValues, 0);
  for (uint64_t stream = 0; stream < 16000; ++stream) {
    ++counts[static_cast<size_t>(Permutation(kValues, 5, stream).Forward(0))];
  }
  for (const int64_t count : counts) EXPECT_NEAR(static_cast<double>(count), 1000.0, 184.0);
}

TEST(Permutation, NeighboursDoNotStayNeighbours) {
  const int64_t n = 10000;
  const Permutation permutation(n, 9, 9);
  int64_t adjacent = 0;
  for (int64_t i = 0; i + 1 < n; ++i) {
    adjacent += std::llabs(permutation.Forward(i + 1) - permutation.Forward(i)) == 1;
  }
  // Mean 2 for a random permutation.
  EXPECT_LE(adjacent, 16);
}

// The order is part of the run's contract: a changed value would change every resumed run.
TEST(Permutation, KeepsItsValues) {
  const Permutation permutation(1000, 17, 0);
  std::vector<int64_t> values;
  for (int64_t i = 0; i < 5; ++i) values.push_back(permutation.Forward(i));
  EXPECT_EQ(values, (std::vector<int64_t>{621, 676, 346, 655, 299}));
}

}  // namespace
}  // namespace tessera
