#include "kernels/optimizer.h"

#include "kernels/op_test_support.h"
#include "kernels/reference/optimizer.h"

namespace tessera::kernels {
namespace {

constexpr std::array<int64_t, 8> kSizes = {1, 3, 16, 17, 257, 4096, 8191, 20011};

struct State {
  Doubles p, m, v;
  bool operator==(const State&) const = default;
};

State StateOf(int64_t n) {
  State s = {RandomValues(n, 1), RandomValues(n, 2, DType::kF32, 0.1),
             RandomValues(n, 3, DType::kF32, 0.1)};
  for (double& v : s.v) v *= v;
  for (double& v : s.v) v = Rounded(v, DType::kF32);
  return s;
}

AdamWArgs Settings() {
  AdamWArgs args;
  args.lr = 3e-3f;
  args.beta1 = 0.9f;
  args.beta2 = 0.95f;
  args.eps = 1e-8f;
  args.decay = 3e-4f;
  args.grad_scale = 0.37f;
  args.bias_correction1 = 1.0f - std::pow(0.9f, 3.0f);
  args.bias_correction2 = 1.0f - std::pow(0.95f, 3.0f);
  return args;
}

// `cut`: length of the ranges that the update is called on; every other one is rounded to bf16 too.
State RunAdamW(const State& start, const Doubles& g, ThreadPool& pool, int64_t cut) {
  const int64_t n = static_cast<int64_t>(g.size());
  Buffer p(DType::kF32, start.p, 1), m(DType::kF32, start.m, 3), v(DType::kF32, start.v, 5),
      gradient(DType::kF32, g, 7), rounded(DType::kBf16, Doubles(g.size()), 9);
  for (int64_t first = 0; first < n; first += cut) {
    AdamWArgs args = Settings();
    const bool rounds = first / cut % 2 == 0;
    if (rounds) args.rounded = static_cast<bf16*>(rounded.At(first));
    args.n = std::min(cut, n - first);
    args.p = static_cast<float*>(p.At(first));
    args.m = static_cast<float*>(m.At(first));
    args.v = static_cast<float*>(v.At(first));
    args.g = static_cast<const float*>(gradient.At(first));
    AdamW(args, pool);
  }
  const Doubles values = p.Values(), halves = rounded.Values();
  for (size_t i = 0; i < values.size(); ++i) {
    const bool rounds = static_cast<int64_t>(i) / cut % 2 == 0;
    const double want = rounds ? double{ToFloat(ToBf16(static_cast<float>(values[i])))} : 0.0;
    EXPECT_EQ(halves[i], want) << i;
  }
  for (const Buffer* b : {&p, &m, &v, &gradient, &rounded}) EXPECT_TRUE(b->GuardsIntact());
  return {p.Values(), m.Values(), v.Values()};
}

TEST(AdamW, AgreesWithTheReference) {
  ForEachIsa([] {
    for (const int64_t n : kSizes) {
      const State start = StateOf(n);
      const Doubles g = RandomValues(n, 4);
      const State got = RunAdamW(start, g, PoolOf(2), n);
      const AdamWArgs s = Settings();
      State want = start;
      // 1 - beta is exact in fp32 (beta >= 1/2), so the reference takes the rounded beta.
      reference::AdamW({s.lr, s.beta1, s.beta2, s.eps, s.decay, s.grad_scale, s.bias_correction1,
                        s.bias_correction2},
                       n, g.data(), want.p.data(), want.m.data(), want.v.data());
      ExpectWithin(got.m, want.m, [&](size_t i) {
        return 4 * kUnit * (std::abs(start.m[i]) + std::abs(g[i]));
      }, "m");
      ExpectWithin(got.v, want.v, [&](size_t i) { return 6 * kUnit * want.v[i] + 1e-37; }, "v");
      // m's absolute error over sqrt(v), then about 8 roundings of the update and 2 of p.
      ExpectWithin(got.p, want.p, [&](size_t i) {
        const double root = std::sqrt(want.v[i] / s.bias_correction2) + double{s.eps};
        const double update =
            s.lr / s.bias_correction1 * (std::abs(start.m[i]) + std::abs(g[i])) / root;
        return 16 * kUnit * update + 3 * kUnit * std::abs(want.p[i]) + kUnit * std::abs(start.p[i]);
      }, "p");
      for (const int threads : {1, 2, 3}) {
        EXPECT_TRUE(RunAdamW(start, g, PoolOf(threads), n) == got);
        EXPECT_TRUE(RunAdamW(start, g, PoolOf(threads), 1000) == got);
      }
    }
  });
}

TEST(AdamW, ZeroGradientAndStateDecayOnly) {
  ForEachIsa([] {
    const int64_t n = 37;
    const State start = {RandomValues(n, 1), Doubles(37), Doubles(37)};
    const State got = RunAdamW(start, Doubles(37), PoolOf(1), n);
    for (size_t i = 0; i < 37; ++i) {
      const double want = start.p[i] * double{1.0f - Settings().decay};
      EXPECT_NEAR(got.p[i], want, kUnit * std::abs(want) * 1.01);
      EXPECT_EQ(got.m[i], 0.0);
      EXPECT_EQ(got.v[i], 0.0);
    }
  });
}

State RunLion(const State& start, const Doubles& g, ThreadPool& pool, int64_t cut) {
  const int64_t n = static_cast<int64_t>(g.size());
  Buffer p(DType::kF32, start.p, 1), m(DType::kF32, start.m, 3), gradient(DType::kF32, g, 7);
  for (int64_t first = 0; first < n; first += cut) {
    LionArgs args;
    args.n = std::min(cut, n - first);
    args.p = static_cast<float*>(p.At(first));
    args.m = static_cast<float*>(m.At(first));
    args.g = static_cast<const float*>(gradient.At(first));
    args.lr = 1e-3f;
    args.decay = 1e-4f;
    args.grad_scale = 0.5f;
    Lion(args, pool);
  }
  for (const Buffer* b : {&p, &m, &gradient}) EXPECT_TRUE(b->GuardsIntact());
  return {p.Values(), m.Values(), {}};
}

TEST(Lion, AgreesWithTheReference) {
  ForEachIsa([] {
    for (const int64_t n : kSizes) {
      const State start = StateOf(n);
      Doubles g = RandomValues(n, 4);
      for (size_t i = 0; i < g.size(); i += 7) g[i] = 0;
      const State got = RunLion(start, g, PoolOf(2), n);
      State want = start;
      reference::Lion({1e-3f, 0.9f, 0.99f, 1e-4f, 0.5}, n, g.data(), want.p.data(), want.m.data());
      ExpectWithin(got.m, want.m, [&](size_t i) {
        return 4 * kUnit * (std::abs(start.m[i]) + std::abs(g[i]));
      }, "m");
      ExpectWithin(got.p, want.p, [&](size_t i) {
        // Where the direction is itself a rounding error its sign is open: none in this data.
        return 3 * kUnit * (std::abs(start.p[i]) + 1e-3);
      }, "p");
      for (const int threads : {1, 2, 3}) {
        EXPECT_TRUE(RunLion(start, g, PoolOf(threads), n) == got);
        EXPECT_TRUE(RunLion(start, g, PoolOf(threads), 1000) == got);
      }
    }
  });
}

TEST(Lion, ZeroDirectionDoesNotMove) {
  ForEachIsa([] {
    const State start = {Doubles(20, 0.0), Doubles(20, 0.0), {}};
    EXPECT_EQ(RunLion(start, Doubles(20, 0.0), PoolOf(1), 20).p, Doubles(20, 0.0));
  });
}

TEST(SumSquares, IsTheSameForEveryThreadCountAndInstructionSet) {
  for (const int64_t n : {0, 1, 31, 33, 4095, 4096, 4097, 50021}) {
    const Doubles x = RandomValues(n, 1, DType::kF32, 3.0);
    const Floats floats = ToFloats(x);
    double first = -1;
    ForEachIsa([&] {
      for (const int threads : {1, 2, 3}) {
        Doubles partials(static_cast<size_t>(SumSquaresPartials(n)));
        const double got = SumSquares(floats.data(), n, partials.data(), PoolOf(threads));
        const double want = Dot(x, x);
        // Both sums are chains of at most n additions in double.
        EXPECT_NEAR(got, want, static_cast<double>(n) * 0x1p-52 * want);
        if (first < 0) first = got;
        EXPECT_EQ(got, first) << n << " " << threads;
      }
    });
  }
}

TEST(SumSquares, DoesNotOverflowAndShowsNan) {
  ForEachIsa([] {
    Floats x(100, 1e30f);
    double partial = 0;
    EXPECT_NEAR(SumSquares(x.data(), 100, &partial, PoolOf(1)), 1e62, 1e56);
    x[77] = std::nanf("");
    EXPECT_TRUE(std::isnan(SumSquares(x.data(), 100, &partial, PoolOf(1))));
  });
}

}  // namespace
}  // namespace tessera::kernels
