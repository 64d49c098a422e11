#include "kernels/norm.h"

#include "kernels/op_test_support.h"
#include "kernels/reference/norm.h"

namespace tessera::kernels {
namespace {

struct Case {
  NormKind kind = NormKind::kLayerNorm;
  int64_t rows = 0, width = 0;
  DType dtype = DType::kF32;
  bool gain = true, bias = true, residual = false, accumulate = false;
  int64_t offset = 0, sequence = 0;
  bool again = true;  // backward writes y as well
  bool low_precision = false;
};

struct Outputs {
  Doubles sum, y, mean, rstd, dx, dgain, dbias;
  bool operator==(const Outputs&) const = default;
};

struct Inputs {
  Doubles x, residual, gain, bias, dy, dx, dgain, dbias;
};
Inputs InputsOf(const Case& c) {
  const int64_t n = c.rows * c.width;
  return {RandomValues(n, 1, c.dtype, 2.0), RandomValues(n, 2, c.dtype), RandomValues(c.width, 3),
          RandomValues(c.width, 4),         RandomValues(n, 5, c.dtype), RandomValues(n, 6, c.dtype),
          RandomValues(c.width, 7),         RandomValues(c.width, 8)};
}

// Forward and backward, the rows cut into calls of at most `cut`.
Outputs RunOp(const Case& c, const Inputs& in, ThreadPool& pool, int64_t cut) {
  const int64_t n = c.rows * c.width;
  Buffer x(c.dtype, in.x, c.offset), residual(c.dtype, in.residual, c.offset),
      sum(c.dtype, n, c.offset), y(c.dtype, n, c.offset), dy(c.dtype, in.dy, c.offset),
      dx(c.dtype, in.dx, c.offset), again(c.dtype, n, c.offset);
  Buffer gain(DType::kF32, in.gain, c.offset), bias(DType::kF32, in.bias, c.offset),
      dgain(DType::kF32, in.dgain, c.offset), dbias(DType::kF32, in.dbias, c.offset),
      mean(DType::kF32, c.rows), rstd(DType::kF32, c.rows);
  for (int64_t first = 0; first < c.rows; first += cut) {
    const int64_t at = first * c.width;
    NormForwardArgs forward;
    forward.kind = c.kind;
    forward.rows = std::min(cut, c.rows - first);
    forward.width = c.width;
    forward.dtype = c.dtype;
    forward.x = x.At(at);
    if (c.residual) {
      forward.residual = residual.At(at);
      forward.sum = sum.At(at);
    }
    if (c.gain) forward.gain = static_cast<const float*>(gain.data());
    if (c.bias) forward.bias = static_cast<const float*>(bias.data());
    forward.y = y.At(at);
    forward.mean = c.kind == NormKind::kLayerNorm ? static_cast<float*>(mean.At(first)) : nullptr;
    forward.rstd = static_cast<float*>(rstd.At(first));
    forward.low_precision = c.low_precision;
    NormForward(forward, pool);

    NormBackwardArgs backward;
    backward.kind = c.kind;
    backward.rows = forward.rows;
    backward.width = c.width;
    backward.dtype = c.dtype;
    backward.x = c.residual ? sum.At(at) : x.At(at);
    backward.dy = dy.At(at);
    backward.gain = forward.gain;
    backward.mean = forward.mean;
    backward.rstd = forward.rstd;
    backward.dx = dx.At(at);
    backward.accumulate_dx = c.accumulate;
    if (c.gain) backward.dgain = static_cast<float*>(dgain.data());
    if (c.bias) backward.dbias = static_cast<float*>(dbias.data());
    backward.sequence = c.sequence;
    if (c.again) backward.y = again.At(at);
    backward.bias = forward.bias;
    backward.low_precision = c.low_precision;
    std::vector<std::byte> workspace(
        static_cast<size_t>(NormBackwardWorkspaceBytes(backward.rows, c.width, c.sequence)));
    NormBackward(backward, workspace.data(), pool);
  }
  for (const Buffer* buffer : {&x, &residual, &sum, &y, &dy, &dx, &gain, &bias, &dgain, &dbias,
                               &mean, &rstd, &again}) {
    EXPECT_TRUE(buffer->GuardsIntact());
  }
  if (c.again) {
    EXPECT_EQ(again.Values(), y.Values());
  }
  return {sum.Values(),  y.Values(),  mean.Values(), rstd.Values(),
          dx.Values(), dgain.Values(), dbias.Values()};
}

void CheckCase(const Case& c) {
  SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(c.kind) << " rows " << c.rows
                                  << " width " << c.width << " " << DTypeName(c.dtype) << " offset "
                                  << c.offset << " residual " << c.residual);
  const Inputs in = InputsOf(c);
  const Outputs got = RunOp(c, in, PoolOf(2), c.rows);
  Case other = c;
  other.again = false;
  EXPECT_TRUE(RunOp(other, in, PoolOf(2), c.rows) == got);
  other.again = other.low_precision = true;
  RunOp(other, in, PoolOf(2), c.rows);
  const size_t width = static_cast<size_t>(c.width), n = in.x.size();

  Doubles input = in.x;
  if (c.residual) {
    for (size_t i = 0; i < n; ++i) input[i] = Rounded(input[i] + in.residual[i], c.dtype);
    EXPECT_EQ(got.sum, input);
  }
  const reference::NormShape shape = {c.kind, c.rows, c.width, double{1e-5f}};
  const double* gain = c.gain ? in.gain.data() : nullptr;
  const double* bias = c.bias ? in.bias.data() : nullptr;
  Doubles y(n), mean(static_cast<size_t>(c.rows)), rstd(mean), dx(n);
  Doubles dgain = in.dgain, dbias = in.dbias;
  reference::NormForward(shape, input.data(), gain, bias, y.data(), mean.data(), rstd.data());
  reference::NormBackward(shape, input.data(), in.dy.data(), gain, dx.data(),
                          c.gain ? dgain.data() : nullptr, c.bias ? dbias.data() : nullptr);
  if (c.accumulate) {
    for (size_t i = 0; i < n; ++i) dx[i] += in.dx[i];
  }

  // Sums over a row err by `chain` roundings of the row's absolute values, of size rms or largest
  // |x| in units of the deviation; 8 more roundings for the element's own arithmetic.
  const double chain = (ChainOf(c.width) + 8) * kUnit, rounding = RoundingOf(c.dtype);
  Doubles largest_x(mean), largest_q(mean), xh(n);
  for (size_t i = 0; i < n; ++i) {
    const size_t row = i / width, column = i % width;
    xh[i] = (input[i] - mean[row]) * rstd[row];
    largest_x[row] = std::max(largest_x[row], std::abs(input[i]) * rstd[row]);
    largest_q[row] =
        std::max(largest_q[row], std::abs(in.dy[i] * (c.gain ? in.gain[column] : 1.0)));
  }
  const auto gain_at = [&](size_t i) { return c.gain ? std::abs(in.gain[i % width]) : 1.0; };
  ExpectWithin(got.y, y, [&](size_t i) {
    return 2 * chain * gain_at(i) * (1 + largest_x[i / width]) + (rounding + 2 * kUnit) * std::abs(y[i]) +
           2 * kUnit * (c.bias ? std::abs(in.bias[i % width]) : 0.0) + 1e-30;
  }, "y");
  ExpectWithin(got.rstd, rstd, [&](size_t r) { return 2 * chain * rstd[r] * (1 + largest_x[r]); }, "rstd");
  ExpectWithin(got.dx, dx, [&](size_t i) {
    const size_t row = i / width;
    const double size = 1 + largest_x[row];
    return 4 * chain * rstd[row] * largest_q[row] * size * size +
           (rounding + 2 * kUnit) * std::abs(dx[i]) + 2 * kUnit * std::abs(in.dx[i]) + 1e-30;
  }, "dx");
  // A chain of `rows` additions of terms |dy| (|xh| + its error).
  Doubles gain_size(width), bias_size(width);
  for (size_t column = 0; column < width; ++column) {
    gain_size[column] = std::abs(in.dgain[column]);
    bias_size[column] = std::abs(in.dbias[column]);
  }
  for (size_t i = 0; i < n; ++i) {
    gain_size[i % width] += std::abs(in.dy[i]) * (1 + largest_x[i / width]);
    bias_size[i % width] += std::abs(in.dy[i]);
  }
  const double column_chain = static_cast<double>(c.rows) * kUnit + 2 * chain;
  ExpectWithin(got.dgain, dgain, [&](size_t i) { return column_chain * gain_size[i]; }, "dgain");
  ExpectWithin(got.dbias, dbias, [&](size_t i) { return column_chain * bias_size[i]; }, "dbias");
}

TEST(Norm, AgreesWithTheReferenceOnTheGrid) {
  ForEachIsa([] {
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
      for (const DType dtype : kDTypes) {
        for (const int64_t width : {2, 3, 16, 17, 64, 257, 768}) {
          CheckCase({kind, 1, width, dtype});
          CheckCase({kind, 37, width, dtype, true, false, true, true, 3});
          CheckCase({kind, 70, width, dtype, true, true, false, true, 1});
          CheckCase({kind, 5, width, dtype, false, false, true, false, 5});
        }
      }
    }
  });
}

TEST(Norm, WidthOneOfLayerNormIsTheBias) {
  ForEachIsa([] {
    const Case c = {NormKind::kLayerNorm, 9, 1, DType::kF32};
    const Inputs in = InputsOf(c);
    const Outputs got = RunOp(c, in, PoolOf(1), c.rows);
    for (const double y : got.y) EXPECT_EQ(y, in.bias[0]);
    for (const double dx : got.dx) EXPECT_EQ(dx, 0.0);
  });
}

TEST(Norm, BitsDependNeitherOnThreadsNorOnTheSequencesOfACall) {
  ForEachIsa([] {
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
      for (const DType dtype : kDTypes) {
        for (const int64_t sequence : {7, 32, 50}) {
          Case c = {kind, 3 * sequence, 257, dtype, true, true, true, true, 1};
          c.sequence = sequence;
          const Inputs in = InputsOf(c);
          const Outputs want = RunOp(c, in, PoolOf(1), c.rows);
          for (const int threads : {1, 2, 3}) {
            for (const int64_t cut : {c.rows, 2 * sequence, sequence}) {
              EXPECT_TRUE(RunOp(c, in, PoolOf(threads), cut) == want) << threads << " " << cut;
            }
          }
        }
      }
    }
  });
}

TEST(Norm, SumMayLieOverEitherInput) {
  ForEachIsa([] {
    const int64_t rows = 7, width = 45;
    const Doubles x = RandomValues(rows * width, 1), r = RandomValues(rows * width, 2);
    Doubles want;
    for (const int alias : {0, 1, 2}) {
      Buffer xs(DType::kF32, x), rs(DType::kF32, r), sum(DType::kF32, rows * width),
          y(DType::kF32, rows * width);
      NormForwardArgs args;
      args.rows = rows;
      args.width = width;
      args.x = xs.data();
      args.residual = rs.data();
      args.sum = alias == 0 ? sum.data() : alias == 1 ? xs.data() : rs.data();
      args.y = y.data();
      NormForward(args, PoolOf(2));
      if (alias == 0) want = y.Values();
      EXPECT_EQ(y.Values(), want);
    }
  });
}

// Statistics in fp32 and double may differ in the last bit, and then a value next to a tie rounds
// the other way: one step of bf16 (2 units, relative) after each of the three steps.
TEST(Norm, LowPrecisionRoundsEveryStep) {
  ForEachIsa([] {
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
      const int64_t rows = 50, width = 257;
      const Doubles x = RandomValues(rows * width, 1, DType::kBf16), gain = RandomValues(width, 2),
                    bias = RandomValues(width, 3);
      Buffer xs(DType::kBf16, x), gains(DType::kF32, gain), biases(DType::kF32, bias),
          y(DType::kBf16, rows * width);
      NormForwardArgs args;
      args.kind = kind;
      args.rows = rows;
      args.width = width;
      args.dtype = DType::kBf16;
      args.x = xs.data();
      args.gain = static_cast<const float*>(gains.data());
      args.bias = static_cast<const float*>(biases.data());
      args.y = y.data();
      args.low_precision = true;
      NormForward(args, PoolOf(2));
      Doubles want(x.size()), plain(x.size());
      const reference::NormShape shape = {kind, rows, width, double{1e-5f}};
      reference::NormForwardLowPrecision(shape, x.data(), gain.data(), bias.data(), want.data());
      reference::NormForward(shape, x.data(), gain.data(), bias.data(), plain.data(), nullptr, nullptr);
      const Doubles got = y.Values();
      ExpectWithin(got, want, [&](size_t i) {
        const double b = std::abs(bias[i % static_cast<size_t>(width)]);
        return 6 * kBf16Unit * (std::abs(want[i]) + b);
      }, "y");
      // Ties are rare, so nearly all bits agree, and rounding once gives other bits.
      int64_t different = 0, once_different = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        different += got[i] != want[i];
        once_different += got[i] != Rounded(plain[i], DType::kBf16);
      }
      EXPECT_LT(different, rows * width / 500);
      EXPECT_GT(once_different, rows * width / 20);
    }
  });
}

TEST(Norm, ReferenceGradientsAreTheSlopes) {
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
    const int64_t rows = 3, width = 7;
    const reference::NormShape shape = {kind, rows, width, 1e-3};
    Doubles x = RandomValues(rows * width, 1), gain = RandomValues(width, 2),
            bias = RandomValues(width, 3);
    const Doubles dy = RandomValues(rows * width, 4);
    Doubles dx(x.size()), dgain(gain.size()), dbias(bias.size());
    reference::NormBackward(shape, x.data(), dy.data(), gain.data(), dx.data(), dgain.data(),
                            dbias.data());
    const auto loss = [&] {
      Doubles y(x.size());
      reference::NormForward(shape, x.data(), gain.data(), bias.data(), y.data(), nullptr, nullptr);
      return Dot(y, dy);
    };
    ExpectSlopes(x, dx, loss, "dx");
    ExpectSlopes(gain, dgain, loss, "dgain");
    ExpectSlopes(bias, dbias, loss, "dbias");
  }
}

TEST(Norm, NanStaysInItsRow) {
  ForEachIsa([] {
    Doubles x = RandomValues(3 * 20, 1);
    x[25] = std::nan("");
    Buffer xs(DType::kF32, x), y(DType::kF32, 60);
    NormForwardArgs args;
    args.rows = 3;
    args.width = 20;
    args.x = xs.data();
    args.y = y.data();
    NormForward(args, PoolOf(1));
    const Doubles got = y.Values();
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 20 == 1) << i;
  });
}

}  // namespace
}  // namespace tessera::kernels
