#include "kernels/elementwise.h"

#include <limits>

#include "kernels/op_test_support.h"

namespace tessera::kernels {
namespace {

constexpr std::array<int64_t, 9> kSizes = {1, 3, 7, 16, 17, 64, 257, 8193, 20011};
const RngKey kKey = {42, RngPurpose::kStochasticRounding, 0x123456789abcdefull};

float FromBits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
uint32_t BitsOf(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

std::vector<uint16_t> Cast(const Floats& x, Rounding rounding, int64_t first_index,
                           ThreadPool& pool) {
  Buffer y(DType::kBf16, static_cast<int64_t>(x.size()), 1);
  bf16* out = static_cast<bf16*>(y.data());
  CastToBf16(x.data(), out, static_cast<int64_t>(x.size()), rounding, kKey, first_index, pool);
  EXPECT_TRUE(y.GuardsIntact());
  std::vector<uint16_t> bits;
  for (size_t i = 0; i < x.size(); ++i) bits.push_back(out[i].bits);
  return bits;
}

TEST(Cast, NearestEqualsTheScalarRule) {
  ForEachIsa([] {
    for (const int64_t n : kSizes) {
      const Floats x = ToFloats(RandomValues(n, 1));
      const std::vector<uint16_t> got = Cast(x, Rounding::kNearest, 0, PoolOf(2));
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(got[i], ToBf16(x[i]).bits) << i;
    }
  });
}

TEST(Cast, StochasticAddsTheHighHalfOfTheElementsWord) {
  ForEachIsa([] {
    for (const int64_t n : kSizes) {
      // Also where the block's index passes 32 bits, and at every position in a block.
      for (const int64_t first : {int64_t{0}, int64_t{1}, int64_t{6}, (int64_t{1} << 34) - 103}) {
        const Floats x = ToFloats(RandomValues(n, 1));
        const std::vector<uint16_t> got = Cast(x, Rounding::kStochastic, first, PoolOf(3));
        for (size_t i = 0; i < x.size(); ++i) {
          const uint64_t element = static_cast<uint64_t>(first) + i;
          const uint32_t word = kKey.Block(element >> 2)[element & 3];
          ASSERT_EQ(got[i], static_cast<uint16_t>((BitsOf(x[i]) + (word >> 16)) >> 16))
              << n << " " << first << " " << i;
        }
      }
    }
  });
}

TEST(Cast, SpecialValues) {
  const float inf = std::numeric_limits<float>::infinity();
  // The first three payloads would vanish or carry into the sign if they were rounded.
  const Floats x = {FromBits(0x7f800001u), FromBits(0x7fffffffu), FromBits(0xffffffffu),
                    FromBits(0xff800001u), inf, -inf, 0.0f, -0.0f, 1.0f};
  ForEachIsa([&] {
    for (const Rounding rounding : {Rounding::kNearest, Rounding::kStochastic}) {
      const std::vector<uint16_t> got = Cast(x, rounding, 3, PoolOf(1));
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_TRUE(std::isnan(ToFloat(bf16{got[i]})));
        EXPECT_NE(got[i] & 0x40, 0);
        EXPECT_EQ(got[i] >> 15, BitsOf(x[i]) >> 31);
      }
      for (size_t i = 4; i < x.size(); ++i) EXPECT_EQ(got[i], BitsOf(x[i]) >> 16) << i;
    }
    // Above the largest bf16: to infinity when nearest.
    EXPECT_EQ(Cast({std::numeric_limits<float>::max()}, Rounding::kNearest, 0, PoolOf(1))[0], 0x7f80);
  });
}

// x = 1 + f ulp rounds up with probability f: the mean of n draws has deviation
// ulp sqrt(f (1-f) / n).
TEST(Cast, StochasticMeanIsTheValue) {
  ForEachIsa([] {
    const int64_t n = 100000;
    const double ulp = 0x1p-7;
    for (const double f : {0.125, 0.5, 0.9}) {
      const double value = Rounded(1.0 + f * ulp, DType::kF32);
      const Floats x(static_cast<size_t>(n), static_cast<float>(value));
      double sum = 0;
      for (const uint16_t bits : Cast(x, Rounding::kStochastic, 0, PoolOf(2))) {
        sum += ToFloat(bf16{bits});
      }
      const double sigma = ulp * std::sqrt(f * (1 - f) / static_cast<double>(n));
      EXPECT_NEAR(sum / static_cast<double>(n), value, 5 * sigma) << f;
    }
  });
}

TEST(Cast, ToFloatIsExact) {
  ForEachIsa([] {
    std::vector<bf16> x;
    for (uint32_t bits = 0; bits < 65536; ++bits) x.push_back(bf16{static_cast<uint16_t>(bits)});
    Floats y(x.size());
    CastToFloat(x.data(), y.data(), static_cast<int64_t>(x.size()), PoolOf(2));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(BitsOf(y[i]), static_cast<uint32_t>(i) << 16);
  });
}

TEST(Elementwise, FillScaleAddBlend) {
  ForEachIsa([] {
    for (const int64_t n : kSizes) {
      const Doubles x = RandomValues(n, 1), y = RandomValues(n, 2);
      Doubles added(x), blended(x), scaled(x);
      for (size_t i = 0; i < x.size(); ++i) {
        scaled[i] = x[i] * 0.7f;
        added[i] = y[i] + double{1.7f} * x[i];
        blended[i] = double{0.3f} * x[i] + double{0.9f} * y[i];
      }
      const auto bound = [&](size_t i) { return 2 * kUnit * (2 * std::abs(x[i]) + std::abs(y[i])); };
      for (const int threads : {1, 2, 3}) {
        Buffer xs(DType::kF32, x, 1), ys(DType::kF32, y, 3);
        float* px = static_cast<float*>(xs.data());
        float* py = static_cast<float*>(ys.data());
        AddScaled(1.7f, px, py, n, PoolOf(threads));
        ExpectWithin(ys.Values(), added, bound, "AddScaled");
        Buffer zs(DType::kF32, y, 3);
        float* pz = static_cast<float*>(zs.data());
        Blend(0.3f, px, 0.9f, pz, n, PoolOf(threads));
        ExpectWithin(zs.Values(), blended, bound, "Blend");
        Scale(px, 0.7f, n, PoolOf(threads));
        ExpectWithin(xs.Values(), scaled, bound, "Scale");
        Fill(px, 2.5f, n, PoolOf(threads));
        EXPECT_EQ(xs.Values(), Doubles(x.size(), 2.5));
        for (const Buffer* b : {&xs, &ys, &zs}) EXPECT_TRUE(b->GuardsIntact());
      }
    }
  });
}

TEST(Elementwise, AddActivationRoundsOnce) {
  ForEachIsa([] {
    for (const DType dtype : kDTypes) {
      for (const int64_t n : kSizes) {
        const Doubles x = RandomValues(n, 1, dtype), y = RandomValues(n, 2, dtype);
        Buffer xs(dtype, x, 1), ys(dtype, y, 3);
        AddActivation(xs.data(), ys.data(), n, dtype, PoolOf(2));
        Doubles want(x);
        for (size_t i = 0; i < x.size(); ++i) want[i] = Rounded(x[i] + y[i], dtype);
        EXPECT_EQ(ys.Values(), want);
        EXPECT_TRUE(ys.GuardsIntact());
      }
    }
  });
}

TEST(Dropout, KeepsByTheElementsUniformNumber) {
  ForEachIsa([] {
    for (const DType dtype : kDTypes) {
      for (const int64_t n : kSizes) {
        for (const int64_t first : {int64_t{0}, int64_t{3}, (int64_t{1} << 34) - 101}) {
          const Doubles x = RandomValues(n, 1, dtype);
          Buffer xs(dtype, x, 1), ys(dtype, n, 3);
          const float p = 0.3f;
          Dropout(xs.data(), ys.data(), n, dtype, p, kKey, first, PoolOf(2));
          const Doubles got = ys.Values();
          for (size_t i = 0; i < x.size(); ++i) {
            const bool keep = kKey.Uniform(static_cast<uint64_t>(first) + i) >= p;
            const double want = keep ? x[i] / (1 - double{p}) : 0.0;
            ASSERT_NEAR(got[i], want, (RoundingOf(dtype) + 3 * kUnit) * std::abs(want)) << i;
          }
          EXPECT_TRUE(ys.GuardsIntact());
          Dropout(xs.data(), xs.data(), n, dtype, p, kKey, first, PoolOf(3));  // in place
          EXPECT_EQ(xs.Values(), got);
        }
      }
    }
  });
}

TEST(Dropout, BitsDependNeitherOnThreadsNorOnCuts) {
  ForEachIsa([] {
    const int64_t n = 30011;
    Buffer x(DType::kF32, RandomValues(n, 1)), whole(DType::kF32, n);
    Dropout(x.data(), whole.data(), n, DType::kF32, 0.5f, kKey, 9, PoolOf(1));
    for (const int threads : {1, 2, 3}) {
      Buffer parts(DType::kF32, n);
      for (int64_t first = 0; first < n; first += 9001) {
        Dropout(x.At(first), parts.At(first), std::min<int64_t>(9001, n - first), DType::kF32, 0.5f,
                kKey, 9 + first, PoolOf(threads));
      }
      EXPECT_EQ(parts.Values(), whole.Values());
    }
  });
}

TEST(Dropout, KeepsTheRightShareAndTheMean) {
  ForEachIsa([] {
    const int64_t n = 100000;
    const double p = 0.1f;
    Floats x(static_cast<size_t>(n), 1.0f), y(x);
    Dropout(x.data(), y.data(), n, DType::kF32, 0.1f, kKey, 0, PoolOf(2));
    int64_t kept = 0;
    double sum = 0;
    for (const float v : y) {
      kept += v != 0.0f;
      sum += double{v};
    }
    const double count = static_cast<double>(n), sigma = std::sqrt(p * (1 - p) / count);
    EXPECT_NEAR(static_cast<double>(kept) / count, 1 - p, 5 * sigma);
    EXPECT_NEAR(sum / count, 1.0, 5 * sigma / (1 - p) + 4 * kUnit);
  });
}

TEST(Dropout, EdgesOfTheProbability) {
  ForEachIsa([] {
    const Floats x = ToFloats(RandomValues(999, 1));
    Floats y(x.size());
    Dropout(x.data(), y.data(), 999, DType::kF32, 0.0f, kKey, 0, PoolOf(1));
    EXPECT_EQ(y, x);
    Dropout(x.data(), y.data(), 999, DType::kF32, 1.0f, kKey, 0, PoolOf(1));
    EXPECT_EQ(y, Floats(x.size(), 0.0f));
  });
}

}  // namespace
}  // namespace tessera::kernels
