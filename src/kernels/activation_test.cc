#include "kernels/activation.h"

#include "kernels/gemm.h"
#include "kernels/op_test_support.h"
#include "kernels/reference/activation.h"

namespace tessera::kernels {
namespace {

constexpr std::array<Activation, 5> kAll = {Activation::kGeluTanh, Activation::kGeluErf,
                                            Activation::kRelu, Activation::kReluSquared,
                                            Activation::kSilu};

struct Result {
  Doubles y, dx;
  bool operator==(const Result&) const = default;
};

bool Same(const Doubles& a, const Doubles& b) {
  return std::ranges::equal(a, b, [](double x, double y) { return x == y || (x != x && y != y); });
}

Result RunOp(Activation activation, bool gated, int64_t rows, int64_t width, DType dtype,
           const Doubles& x, const Doubles& dy, int64_t offset, ThreadPool& pool, bool alias) {
  Buffer xs(dtype, x, offset), dys(dtype, dy, offset);
  Buffer y(dtype, rows * width, offset), dx(dtype, static_cast<int64_t>(x.size()), offset);
  ActivationArgs args;
  args.activation = activation;
  args.gated = gated;
  args.rows = rows;
  args.width = width;
  args.dtype = dtype;
  args.x = xs.data();
  args.dy = dys.data();
  // With y again, and alone.
  Buffer again(dtype, rows * width, offset), dx_with_y(dtype, static_cast<int64_t>(x.size()), offset);
  args.y = again.data();
  args.dx = dx_with_y.data();
  ActivationBackward(args, pool);
  args.y = nullptr;
  args.dx = alias ? dys.data() : dx.data();
  ActivationBackward(args, pool);
  args.y = alias ? xs.data() : y.data();
  ActivationForward(args, pool);
  for (const Buffer* buffer : {&xs, &dys, &y, &dx, &again, &dx_with_y}) {
    EXPECT_TRUE(buffer->GuardsIntact());
  }
  const Result result = {alias ? xs.Values() : y.Values(), alias ? dys.Values() : dx.Values()};
  EXPECT_TRUE(Same(again.Values(), result.y) && Same(dx_with_y.Values(), result.dx));
  return result;
}

// Exp, division and the polynomials are good to about 2 units each; a chain of them to 16. The
// argument of an exponential, at most 1.6 |x| (1 + 0.045 x^2), adds that many units, weighed by
// the slope, which dies faster than x grows: 32 (1 + |x|) units cover both.
void Check(Activation activation, bool gated, int64_t rows, int64_t width, DType dtype,
           int64_t offset) {
  SCOPED_TRACE(testing::Message() << "activation " << static_cast<int>(activation) << " gated "
                                  << gated << " rows " << rows << " width " << width << " "
                                  << DTypeName(dtype));
  const size_t inner = static_cast<size_t>(width), stride = inner * (gated ? 2 : 1);
  const Doubles x = RandomValues(rows * static_cast<int64_t>(stride), 1, dtype, 2.5);
  const Doubles dy = RandomValues(rows * width, 2, dtype);
  Doubles y(dy.size()), dx(x.size());
  reference::ActivationForward(activation, gated, rows, width, x.data(), y.data());
  reference::ActivationBackward(activation, gated, rows, width, x.data(), dy.data(), dx.data());
  const Result got = RunOp(activation, gated, rows, width, dtype, x, dy, offset, PoolOf(2), false);
  const double rounding = RoundingOf(dtype) + 2 * kUnit;
  const auto gate = [&](size_t row, size_t column) { return x[row * stride + column]; };
  const auto up = [&](size_t row, size_t column) {
    return gated ? x[row * stride + inner + column] : 1.0;
  };
  ExpectWithin(got.y, y, [&](size_t i) {
    const double g = std::abs(gate(i / inner, i % inner));
    return 32 * kUnit * (1 + g) * std::abs(up(i / inner, i % inner)) + rounding * std::abs(y[i]) + 1e-30;
  }, "y");
  ExpectWithin(got.dx, dx, [&](size_t i) {
    const size_t row = i / stride, column = i % stride % inner;
    const double g = std::abs(gate(row, column));
    return 32 * kUnit * (1 + g) * std::abs(dy[row * inner + column]) *
               (1 + std::abs(up(row, column))) + rounding * std::abs(dx[i]) + 1e-30;
  }, "dx");
  if (!gated) {
    EXPECT_TRUE(RunOp(activation, gated, rows, width, dtype, x, dy, offset, PoolOf(2), true) == got);
  }
  for (const int threads : {1, 3}) {
    EXPECT_TRUE(RunOp(activation, gated, rows, width, dtype, x, dy, offset, PoolOf(threads), false) ==
                got);
  }
}

TEST(Activation, AgreesWithTheReferenceOnTheGrid) {
  ForEachIsa([] {
    for (const Activation activation : kAll) {
      for (const bool gated : {false, true}) {
        for (const DType dtype : kDTypes) {
          Check(activation, gated, 1, 1, dtype, 0);
          Check(activation, gated, 3, 17, dtype, 1);
          Check(activation, gated, 1, 64, dtype, 0);
          Check(activation, gated, 39, 257, dtype, 3);
          Check(activation, gated, 20, 768, dtype, 5);
        }
      }
    }
  });
}

// From deep in the left tail to the right: the erf form keeps relative accuracy down to -5, where
// 1 + erf would have lost every digit. x^2/2 is rounded back in, so 64 units are plenty.
TEST(Activation, GeluErfKeepsRelativeAccuracyInTheTail) {
  ForEachIsa([] {
    Doubles x;
    for (double v = -5.0; v <= 5.0; v += 0.003) x.push_back(static_cast<float>(v));
    const int64_t n = static_cast<int64_t>(x.size());
    const Doubles dy(x.size(), 1.0);
    const Result got =
        RunOp(Activation::kGeluErf, false, 1, n, DType::kF32, x, dy, 0, PoolOf(1), false);
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = reference::Activate(Activation::kGeluErf, x[i]);
      EXPECT_NEAR(got.y[i], want, 64 * kUnit * std::abs(want)) << x[i];
    }
  });
}

TEST(Activation, LargeInputsGoToTheirLimits) {
  ForEachIsa([] {
    const Doubles x = {100.0, -100.0, 1e4, -1e4, 0.0, 30.0, -30.0}, dy(7, 1.0);
    for (const Activation activation : kAll) {
      const Result got = RunOp(activation, false, 1, 7, DType::kF32, x, dy, 0, PoolOf(1), false);
      const bool squared = activation == Activation::kReluSquared;
      EXPECT_EQ(got.y[0], squared ? 1e4 : 100.0);
      EXPECT_EQ(got.y[2], squared ? 1e8 : 1e4);
      for (const size_t i : {size_t{1}, size_t{3}, size_t{4}}) EXPECT_NEAR(got.y[i], 0.0, 1e-30);
      EXPECT_EQ(got.dx[0], squared ? 200.0 : 1.0);
      EXPECT_NEAR(got.dx[1], 0.0, 1e-30);
      EXPECT_NEAR(got.dx[3], 0.0, 1e-30);
    }
  });
}

// An activation that a product applies to its result and one that a later pass applies to the
// stored result must not differ: a model that serves would not compute what the one that trained did. Half of
// the rows' factors give products that bf16 has to round.
TEST(Activation, HasTheBitsOfTheProductsEpilogue) {
  std::vector<uint8_t> memory(static_cast<size_t>(GemmWorkspaceBytes(1)) + 64);
  void* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  ForEachIsa([&] {
    for (const Activation activation :
         {Activation::kGeluTanh, Activation::kGeluErf, Activation::kReluSquared}) {
      for (const DType dtype : kDTypes) {
        for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{4001}}) {
          Doubles x = RandomValues(n, 3, dtype, 3.0);
          if (n > 100) {
            const Doubles special = {0.0, -0.0, 1e-30, -1e-30, 14.0, -14.0, 300.0, -300.0,
                                     1e4, -1e4, std::nan("")};
            for (size_t i = 0; i < special.size(); ++i) x[i * 5] = Rounded(special[i], dtype);
          }
          Buffer xs(dtype, x);
          Buffer factors(dtype, Doubles{Rounded(1.1, dtype), 1.0, 1.0, Rounded(-0.7, dtype), 1.0, 1.0,
                                        Rounded(1.3, dtype), 1.0});
          // One row goes through the path of small products, eight through the tiles.
          for (const int64_t m : {int64_t{1}, int64_t{8}}) {
            SCOPED_TRACE(testing::Message() << static_cast<int>(activation) << " " << DTypeName(dtype)
                                            << " m " << m << " n " << n);
            Buffer stored(dtype, m * n), want(dtype, m * n), got(dtype, m * n), before(dtype, m * n);
            GemmArgs gemm;
            gemm.m = m;
            gemm.n = n;
            gemm.k = 1;
            gemm.a = {factors.data(), dtype, 1, false};
            gemm.b = {xs.data(), dtype, n, false};
            gemm.c = stored.data();
            gemm.c_dtype = dtype;
            gemm.ldc = n;
            Gemm(gemm, workspace, PoolOf(1));
            ActivationArgs pass;
            pass.activation = activation;
            pass.rows = m;
            pass.width = n;
            pass.dtype = dtype;
            pass.x = stored.data();
            pass.y = want.data();
            ActivationForward(pass, PoolOf(1));
            gemm.c = got.data();
            gemm.epilogue = EpilogueOf(activation).value();
            gemm.pre_activation = before.data();
            Gemm(gemm, workspace, PoolOf(1));
            EXPECT_TRUE(Same(got.Values(), want.Values()));
            EXPECT_TRUE(Same(before.Values(), stored.Values()));
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  });
}

TEST(Activation, NanIsNotHidden) {
  ForEachIsa([] {
    const Doubles x(5, std::nan("")), dy(5, 1.0);
    for (const Activation activation : kAll) {
      const Result got = RunOp(activation, false, 1, 5, DType::kF32, x, dy, 0, PoolOf(1), false);
      for (const double y : got.y) EXPECT_TRUE(std::isnan(y)) << static_cast<int>(activation);
    }
  });
}

TEST(Activation, ReferenceGradientsAreTheSlopes) {
  for (const Activation activation : kAll) {
    for (const bool gated : {false, true}) {
      const int64_t rows = 2, width = 9;
      Doubles x = RandomValues(rows * width * (gated ? 2 : 1), 1, DType::kF32, 2.0);
      const Doubles dy = RandomValues(rows * width, 2);
      Doubles dx(x.size());
      reference::ActivationBackward(activation, gated, rows, width, x.data(), dy.data(), dx.data());
      ExpectSlopes(x, dx, [&] {
        Doubles y(dy.size());
        reference::ActivationForward(activation, gated, rows, width, x.data(), y.data());
        return Dot(y, dy);
      }, "dx");
    }
  }
}

}  // namespace
}  // namespace tessera::kernels
