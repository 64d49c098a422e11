#include "kernels/loss.h"

#include "kernels/op_test_support.h"
#include "kernels/reference/loss.h"

namespace tessera::kernels {
namespace {

enum class Place { kNone, kApart, kOver };  // where the gradient goes

struct Case {
  int64_t rows = 0, vocab = 0;
  double softcap = 0, z_loss = 0, smoothing = 0;
  DType dtype = DType::kF32;
  Place place = Place::kOver;
  int64_t padding = 0;  // of each row of logits
};

struct Outputs {
  Doubles loss, nll, lse, gradient;
  std::vector<int32_t> argmax;
  bool operator==(const Outputs&) const = default;
};

std::vector<int32_t> TargetsOf(const Case& c) {
  std::vector<int32_t> targets;
  for (int64_t r = 0; r < c.rows; ++r) {
    targets.push_back(r % 5 == 3 ? -100 + static_cast<int32_t>(r % 7)
                                 : static_cast<int32_t>((r * 7919 + c.vocab - 1) % c.vocab));
  }
  return targets;
}

// Logits with outliers, as trained models have them.
Doubles LogitsOf(const Case& c) {
  Doubles logits = RandomValues(c.rows * c.vocab, 1, DType::kF32, 3.0);
  for (size_t i = 0; i < logits.size(); i += 61) logits[i] *= 4;
  return logits;
}

constexpr float kWeight = 0.125f;

Outputs RunOp(const Case& c, const Doubles& logits, ThreadPool& pool, int64_t cut) {
  const int64_t ld = c.vocab + c.padding;
  Doubles padded(static_cast<size_t>(c.rows * ld), -7.0);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t j = 0; j < c.vocab; ++j) {
      padded[static_cast<size_t>(r * ld + j)] = logits[static_cast<size_t>(r * c.vocab + j)];
    }
  }
  Buffer x(DType::kF32, padded, 1);
  Buffer apart(c.dtype, c.rows * c.vocab, 1);
  const std::vector<int32_t> targets = TargetsOf(c);
  Floats loss(targets.size()), nll(loss), lse(loss);
  std::vector<int32_t> argmax(targets.size());
  const bool half = c.dtype == DType::kBf16;
  const int64_t dld = c.place == Place::kOver ? (half ? 2 * ld : ld) : c.vocab;
  // Columns that a product may read past the last one.
  const int64_t zeros = half && c.place == Place::kOver && c.vocab >= 5 ? 5 : 0;
  for (int64_t first = 0; first < c.rows; first += cut) {
    CrossEntropyArgs args;
    args.rows = std::min(cut, c.rows - first);
    args.vocab = c.vocab;
    args.logits = static_cast<float*>(x.At(first * ld));
    args.ld = ld;
    args.targets = targets.data() + first;
    args.softcap = static_cast<float>(c.softcap);
    args.z_loss = static_cast<float>(c.z_loss);
    args.label_smoothing = static_cast<float>(c.smoothing);
    args.weight = kWeight;
    args.loss = loss.data() + first;
    args.nll = nll.data() + first;
    args.lse = lse.data() + first;
    args.argmax = argmax.data() + first;
    if (c.place == Place::kOver) args.dlogits = args.logits;
    if (c.place == Place::kApart) args.dlogits = apart.At(first * c.vocab);
    args.dlogits_dtype = c.dtype;
    args.dld = dld;
    if (zeros > 0) args.dlogits_columns = c.vocab + zeros;
    CrossEntropy(args, pool);
  }
  EXPECT_TRUE(x.GuardsIntact());
  EXPECT_TRUE(apart.GuardsIntact());
  Doubles gradient;
  for (int64_t r = 0; c.place != Place::kNone && r < c.rows; ++r) {
    for (int64_t j = 0; j < c.vocab; ++j) {
      const void* base = c.place == Place::kOver ? x.data() : apart.data();
      const int64_t at = r * dld + j;
      gradient.push_back(half ? ToFloat(static_cast<const bf16*>(base)[at])
                              : static_cast<const float*>(base)[at]);
    }
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t j = c.vocab; j < c.vocab + zeros; ++j) {
      EXPECT_EQ(ToFloat(static_cast<const bf16*>(x.data())[r * dld + j]), 0.0f) << r << " " << j;
    }
  }
  const Doubles after = x.Values();
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t j = c.vocab; j < ld; ++j) EXPECT_EQ(after[static_cast<size_t>(r * ld + j)], -7.0);
  }
  if (c.place != Place::kOver) {
    EXPECT_EQ(after, padded);
  }
  return {ToDoubles(loss), ToDoubles(nll), ToDoubles(lse), gradient, argmax};
}

void CheckCase(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.rows << "x" << c.vocab << " softcap " << c.softcap << " z "
                                  << c.z_loss << " smoothing " << c.smoothing << " "
                                  << DTypeName(c.dtype) << " place " << static_cast<int>(c.place));
  const Doubles logits = LogitsOf(c);
  const Outputs got = RunOp(c, logits, PoolOf(2), c.rows);
  const std::vector<int32_t> targets = TargetsOf(c);
  const reference::CrossEntropyOptions options = {c.softcap, double{static_cast<float>(c.z_loss)},
                                                  double{static_cast<float>(c.smoothing)},
                                                  double{kWeight}};
  for (int64_t r = 0; r < c.rows; ++r) {
    const size_t row = static_cast<size_t>(r), start = static_cast<size_t>(r * c.vocab);
    Doubles gradient(static_cast<size_t>(c.vocab));
    const reference::CrossEntropyRow want = reference::CrossEntropy(
        options, logits.data() + start, c.vocab, targets[row], gradient.data());
    // Logits up to 60 (or the cap): their rounding, the sum's chain and the exponentials' 2 units
    // are absolute errors of lse and relative errors of probabilities.
    double largest = 0;
    for (int64_t j = 0; j < c.vocab; ++j) {
      largest = std::max(largest, std::abs(logits[start + static_cast<size_t>(j)]));
    }
    const double shift = c.softcap > 0 ? 8 * c.softcap : 4 * largest;
    const double error = (ChainOf(c.vocab) + shift + 8) * kUnit;
    const double z_size = 1 + c.z_loss * std::abs(want.lse);
    // The sum of logits for smoothing, in its own chain.
    const double smooth = c.smoothing * ChainOf(c.vocab) * 2 * largest * kUnit;
    EXPECT_NEAR(got.lse[row], want.lse, error + kUnit * std::abs(want.lse));
    EXPECT_NEAR(got.nll[row], want.nll, error + kUnit * std::abs(want.nll));
    EXPECT_NEAR(got.loss[row], want.loss, error * z_size + smooth + kUnit * std::abs(want.loss));
    EXPECT_EQ(got.argmax[row], want.argmax);
    if (c.place == Place::kNone) continue;
    const Doubles mine(got.gradient.begin() + r * c.vocab, got.gradient.begin() + (r + 1) * c.vocab);
    ExpectWithin(mine, gradient, [&](size_t j) {
      const bool own = static_cast<int64_t>(j) == targets[row];
      const double p = std::abs(gradient[j]) + double{kWeight} * (own ? z_size : c.smoothing);
      return 2 * error * p * (c.softcap > 0 ? 4 : 1) + RoundingOf(c.dtype) * std::abs(gradient[j]) +
             4 * kUnit * double{kWeight} * c.smoothing + 1e-37;
    }, "gradient");
  }
}

TEST(CrossEntropy, AgreesWithTheReferenceOnTheGrid) {
  ForEachIsa([] {
    for (const double softcap : {0.0, 15.0}) {
      for (const DType dtype : kDTypes) {
        for (const Place place : {Place::kNone, Place::kApart, Place::kOver}) {
          for (const int64_t vocab : {1, 2, 17, 64, 126, 257, 4099}) {  // 126: zeros past both parts
            CheckCase({7, vocab, softcap, 0, 0, dtype, place, 0});
            CheckCase({5, vocab, softcap, 1e-3, 0.1, dtype, place, 3});
          }
        }
      }
    }
  });
}

TEST(CrossEntropy, LargeVocabulary) {
  ForEachIsa([] { CheckCase({2, 50304, 0, 1e-4, 0, DType::kBf16, Place::kOver, 0}); });
}

TEST(CrossEntropy, BitsDependNeitherOnThreadsNorOnCutsNorOnPlace) {
  ForEachIsa([] {
    for (const double softcap : {0.0, 15.0}) {
      for (const DType dtype : kDTypes) {
        Case c = {23, 1037, softcap, 1e-3, 0.1, dtype, Place::kOver, 1};
        const Doubles logits = LogitsOf(c);
        const Outputs want = RunOp(c, logits, PoolOf(1), c.rows);
        for (const int threads : {1, 2, 3}) {
          for (const Place place : {Place::kApart, Place::kOver}) {
            c.place = place;
            EXPECT_TRUE(RunOp(c, logits, PoolOf(threads), c.rows) == want) << threads;
            EXPECT_TRUE(RunOp(c, logits, PoolOf(threads), 5) == want) << threads;
          }
        }
      }
    }
  });
}

TEST(CrossEntropy, IgnoredRowsCostNothing) {
  ForEachIsa([] {
    for (const bool statistics : {false, true}) {
      Floats logits = ToFloats(RandomValues(40, 1)), loss(2, 9), nll(2, 9), lse(2, 9);
      const std::vector<int32_t> targets = {-1, -100};
      CrossEntropyArgs args;
      args.rows = 2;
      args.vocab = args.ld = args.dld = 20;
      args.logits = logits.data();
      args.targets = targets.data();
      args.z_loss = 0.1f;
      args.loss = loss.data();
      args.nll = nll.data();
      args.lse = statistics ? lse.data() : nullptr;
      args.dlogits = logits.data();
      CrossEntropy(args, PoolOf(1));
      for (const float g : logits) EXPECT_EQ(g, 0.0f);
      for (const float l : loss) EXPECT_EQ(l, 0.0f);
      for (const float l : nll) EXPECT_EQ(l, 0.0f);
    }
  });
}

TEST(CrossEntropy, TakesTheFirstOfEqualMaxima) {
  ForEachIsa([] {
    Floats logits(100, 1.0f), loss(1);
    logits[41] = logits[67] = 2.0f;
    const int32_t target = 3;
    int32_t argmax = -1;
    CrossEntropyArgs args;
    args.rows = 1;
    args.vocab = args.ld = 100;
    args.logits = logits.data();
    args.targets = &target;
    args.loss = loss.data();
    args.argmax = &argmax;
    CrossEntropy(args, PoolOf(1));
    EXPECT_EQ(argmax, 41);
  });
}

// A step with a bad loss is skipped by whoever sees it, so it must be seen.
TEST(CrossEntropy, NanAndInfinityReachTheLoss) {
  ForEachIsa([] {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      for (const float softcap : {0.0f, 10.0f}) {
        if (softcap > 0 && std::isinf(bad)) continue;  // tanh makes it finite
        for (const int64_t at : {0, 16, 36}) {
          Floats logits(37, 0.5f), loss(1);
          logits[static_cast<size_t>(at)] = bad;
          const int32_t target = 3;
          CrossEntropyArgs args;
          args.rows = 1;
          args.vocab = args.ld = args.dld = 37;
          args.logits = logits.data();
          args.targets = &target;
          args.loss = loss.data();
          args.softcap = softcap;
          args.dlogits = logits.data();
          CrossEntropy(args, PoolOf(1));
          EXPECT_FALSE(std::isfinite(loss[0])) << bad << " at " << at;
        }
      }
    }
  });
}

// Minus infinity masks a word: probability and gradient 0.
TEST(CrossEntropy, MinusInfinityMasksAWord) {
  ForEachIsa([] {
    Floats logits(37, 0.5f), loss(1);
    logits[20] = logits[36] = -std::numeric_limits<float>::infinity();
    const int32_t target = 3;
    CrossEntropyArgs args;
    args.rows = 1;
    args.vocab = args.ld = args.dld = 37;
    args.logits = logits.data();
    args.targets = &target;
    args.loss = loss.data();
    args.dlogits = logits.data();
    CrossEntropy(args, PoolOf(1));
    EXPECT_NEAR(loss[0], std::log(35.0), 16 * kUnit * 4);
    EXPECT_EQ(logits[20], 0.0f);
    EXPECT_EQ(logits[36], 0.0f);
    EXPECT_NEAR(logits[3], 1 / 35.0 - 1, 4 * kUnit);
  });
}

TEST(CrossEntropy, ReferenceGradientsAreTheSlopes) {
  for (const double softcap : {0.0, 4.0}) {
    const reference::CrossEntropyOptions options = {softcap, 0.05, 0.1, 0.7};
    Doubles logits = RandomValues(11, 1, DType::kF32, 2.0), gradient(11);
    reference::CrossEntropy(options, logits.data(), 11, 4, gradient.data());
    ExpectSlopes(logits, gradient, [&] {
      return 0.7 * reference::CrossEntropy(options, logits.data(), 11, 4, nullptr).loss;
    }, "gradient");
  }
}

}  // namespace
}  // namespace tessera::kernels
