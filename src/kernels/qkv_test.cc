#include "kernels/qkv.h"

#include <numbers>

#include "kernels/op_test_support.h"
#include "kernels/reference/qkv.h"

namespace tessera::kernels {
namespace {

struct Case {
  int64_t rows = 0, length = 0, heads = 0, kv_heads = 0, head_size = 0;
  DType dtype = DType::kF32;
  QkNorm norm = QkNorm::kNone;
  double clip = 0;
  int64_t rotary = 0;
  bool interleaved = false, gains = true, biases = false;
  int64_t first_position = 0, offset = 0;
  bool alias = false;  // out over in (where allowed) and din over dout

  int64_t row_size() const { return (heads + 2 * kv_heads) * head_size; }
  int64_t q_gains() const { return norm == QkNorm::kLayerNormFull ? heads * head_size : head_size; }
  int64_t k_gains() const {
    return norm == QkNorm::kLayerNormFull ? kv_heads * head_size : head_size;
  }
};

std::string Name(const Case& c) {
  return testing::PrintToString(c.rows) + "x" + std::to_string(c.heads) + "/" +
         std::to_string(c.kv_heads) + "x" + std::to_string(c.head_size) + " norm " +
         std::to_string(static_cast<int>(c.norm)) + " rotary " + std::to_string(c.rotary) +
         (c.interleaved ? " interleaved " : " halves ") + std::string(DTypeName(c.dtype));
}

struct Inputs {
  Doubles in, dout, q_gain, k_gain, q_bias, k_bias, cos, sin;
};
Inputs InputsOf(const Case& c) {
  const int64_t n = c.rows * c.row_size();
  RopeTableOptions table;
  table.positions = c.length + c.first_position;
  table.rotary_size = c.rotary;
  Floats cos(static_cast<size_t>(table.positions * c.rotary / 2)), sin(cos);
  FillRopeTable(table, cos.data(), sin.data());
  return {RandomValues(n, 1, c.dtype),     RandomValues(n, 2, c.dtype),
          RandomValues(c.q_gains(), 3),    RandomValues(c.k_gains(), 4),
          RandomValues(c.q_gains(), 5),    RandomValues(c.k_gains(), 6),
          ToDoubles(cos),                  ToDoubles(sin)};
}

struct Outputs {
  Doubles out, din, dq_gain, dk_gain, dq_bias, dk_bias;
  bool operator==(const Outputs&) const = default;
};

Outputs RunOp(const Case& c, const Inputs& in, ThreadPool& pool, int64_t cut) {
  const int64_t row = c.row_size(), n = c.rows * row;
  Buffer x(c.dtype, in.in, c.offset), out(c.dtype, n, c.offset), dout(c.dtype, in.dout, c.offset),
      din(c.dtype, n, c.offset);
  Floats q_gain = ToFloats(in.q_gain), k_gain = ToFloats(in.k_gain), q_bias = ToFloats(in.q_bias),
         k_bias = ToFloats(in.k_bias), cos = ToFloats(in.cos), sin = ToFloats(in.sin);
  Buffer dq_gain(DType::kF32, c.q_gains()), dk_gain(DType::kF32, c.k_gains()),
      dq_bias(DType::kF32, c.q_gains()), dk_bias(DType::kF32, c.k_gains());
  const auto floats = [](Buffer& b) { return static_cast<float*>(b.data()); };
  const bool in_place = c.alias && c.norm == QkNorm::kNone && c.clip == 0;
  for (const bool backward : {true, false}) {  // backward first, as forward may overwrite in
    for (int64_t first = 0; first < c.rows; first += cut) {
      QkvBackwardArgs back;
      QkvArgs& args = back.forward;
      args.rows = std::min(cut, c.rows - first);
      args.length = c.length;
      args.first_position = c.first_position;
      args.heads = c.heads;
      args.kv_heads = c.kv_heads;
      args.head_size = c.head_size;
      args.dtype = c.dtype;
      args.in = x.At(first * row);
      args.out = in_place ? x.At(first * row) : out.At(first * row);
      args.clip = static_cast<float>(c.clip);
      args.norm = c.norm;
      const bool normed = c.norm != QkNorm::kNone;
      if (c.gains && normed) {
        args.q_gain = q_gain.data();
        args.k_gain = k_gain.data();
        back.dq_gain = floats(dq_gain);
        back.dk_gain = floats(dk_gain);
      }
      if (c.biases && normed) {
        args.q_bias = q_bias.data();
        args.k_bias = k_bias.data();
        back.dq_bias = floats(dq_bias);
        back.dk_bias = floats(dk_bias);
      }
      args.rotary_size = c.rotary;
      args.rotary_interleaved = c.interleaved;
      args.cos = cos.data();
      args.sin = sin.data();
      back.dout = dout.At(first * row);
      back.din = c.alias ? dout.At(first * row) : din.At(first * row);
      backward ? QkvBackward(back, pool) : QkvForward(args, pool);
    }
  }
  for (const Buffer* b : {&x, &out, &dout, &din, &dq_gain, &dk_gain, &dq_bias, &dk_bias}) {
    EXPECT_TRUE(b->GuardsIntact());
  }
  return {in_place ? x.Values() : out.Values(), c.alias ? dout.Values() : din.Values(),
          dq_gain.Values(), dk_gain.Values(), dq_bias.Values(), dk_bias.Values()};
}

reference::QkvInputs ReferenceInputs(const Case& c, const Inputs& in) {
  reference::QkvInputs r;
  r.rows = c.rows;
  r.length = c.length;
  r.first_position = c.first_position;
  r.heads = c.heads;
  r.kv_heads = c.kv_heads;
  r.head_size = c.head_size;
  r.in = in.in.data();
  r.clip = double{static_cast<float>(c.clip)};
  r.norm = c.norm;
  r.eps = double{1e-5f};
  if (c.gains && c.norm != QkNorm::kNone) {
    r.q_gain = in.q_gain.data();
    r.k_gain = in.k_gain.data();
  }
  if (c.biases && c.norm != QkNorm::kNone) {
    r.q_bias = in.q_bias.data();
    r.k_bias = in.k_bias.data();
  }
  r.rotary_size = c.rotary;
  r.rotary_interleaved = c.interleaved;
  r.cos = in.cos.data();
  r.sin = in.sin.data();
  return r;
}

double LargestOf(const Doubles& v) {
  double largest = 0;
  for (const double x : v) largest = std::max(largest, std::abs(x));
  return largest;
}

void CheckCase(const Case& c) {
  SCOPED_TRACE(Name(c));
  const Inputs in = InputsOf(c);
  const Outputs got = RunOp(c, in, PoolOf(2), c.rows);
  const reference::QkvInputs r = ReferenceInputs(c, in);
  Doubles out(in.in.size()), din(out), dq_gain(in.q_gain.size()), dk_gain(in.k_gain.size()),
      dq_bias(dq_gain), dk_bias(dk_gain);
  const bool gains = c.gains && c.norm != QkNorm::kNone;
  const bool biases = c.biases && c.norm != QkNorm::kNone;
  reference::QkvForward(r, out.data());
  reference::QkvBackward(r, in.dout.data(), din.data(),
                         {gains ? dq_gain.data() : nullptr, gains ? dk_gain.data() : nullptr,
                          biases ? dq_bias.data() : nullptr, biases ? dk_bias.data() : nullptr});
  // As for the norms: sums err by a chain of roundings, in units of the largest normalised value
  // (sqrt of the unit's size at most, 6 deviations here); a rotation adds two products.
  const bool full = c.norm == QkNorm::kLayerNormFull;
  const double unit_size = static_cast<double>(c.head_size * (full ? c.heads : 1));
  const double chain = (ChainOf(static_cast<int64_t>(unit_size)) + 12) * kUnit;
  const double spread = std::min(std::sqrt(unit_size), 6.0);
  const double gain_size = gains ? std::max(LargestOf(in.q_gain), LargestOf(in.k_gain)) : 1.0;
  const double bias_size = biases ? std::max(LargestOf(in.q_bias), LargestOf(in.k_bias)) : 0.0;
  const double rounding = RoundingOf(c.dtype) + 2 * kUnit;
  const bool normed = c.norm != QkNorm::kNone;
  const double value = normed ? gain_size * spread * spread + bias_size : LargestOf(in.in);
  ExpectWithin(got.out, out, [&](size_t i) {
    return 2 * chain * value + rounding * std::abs(out[i]);
  }, "out");
  // rstd of the smallest unit scales gradients.
  double rstd = 1;
  if (c.norm == QkNorm::kRmsPerHead) {
    for (size_t i = 0; i < in.in.size(); i += static_cast<size_t>(c.head_size)) {
      double square = 0;
      for (size_t j = i; j < i + static_cast<size_t>(c.head_size); ++j) square += in.in[j] * in.in[j];
      rstd = std::max(rstd, 1 / std::sqrt(square / static_cast<double>(c.head_size) + 1e-5));
    }
  } else if (full) {
    rstd = 3;  // of 17 or more standard normal values
  }
  const double gradient = 1.5 * LargestOf(in.dout) * (normed ? gain_size * spread * spread * rstd : 1);
  ExpectWithin(got.din, din, [&](size_t i) {
    return 4 * chain * gradient + rounding * std::abs(din[i]);
  }, "din");
  const double terms = static_cast<double>(c.rows * (full ? 1 : c.heads));
  const double term = 1.5 * LargestOf(in.dout) * spread * spread;
  const double bound = terms * term * (terms * kUnit + 4 * chain);
  const auto flat = [&](size_t) { return bound; };
  ExpectWithin(got.dq_gain, dq_gain, flat, "dq_gain");
  ExpectWithin(got.dk_gain, dk_gain, flat, "dk_gain");
  ExpectWithin(got.dq_bias, dq_bias, flat, "dq_bias");
  ExpectWithin(got.dk_bias, dk_bias, flat, "dk_bias");
}

TEST(Qkv, AgreesWithTheReferenceOnTheGrid) {
  ForEachIsa([] {
    for (const DType dtype : kDTypes) {
      for (const QkNorm norm : {QkNorm::kNone, QkNorm::kRmsPerHead, QkNorm::kLayerNormFull}) {
        const bool full = norm == QkNorm::kLayerNormFull;
        for (const double clip : {0.0, 1.25}) {
          CheckCase({1, 1, 2, 1, 32, dtype, norm, clip, 32, false, true, full});
          CheckCase({12, 6, 4, 2, 40, dtype, norm, clip, 24, false, true, full, 3, 1, true});
          CheckCase({12, 6, 4, 2, 40, dtype, norm, clip, 24, true, true, full, 3, 1, true});
          CheckCase({9, 9, 3, 3, 17, dtype, norm, clip, 10, true, false, false, 0, 5});
          CheckCase({21, 7, 6, 1, 64, dtype, norm, clip, 0, false, true, false, 0, 3, true});
          CheckCase({4, 4, 2, 2, 128, dtype, norm, clip, 128, false, true, full});
          CheckCase({3, 3, 100, 50, 16, dtype, norm, clip, 16, false, true, false});  // more than are taken at once
        }
      }
    }
  });
}

TEST(Qkv, BitsDependNeitherOnThreadsNorOnCutsNorOnAliasing) {
  ForEachIsa([] {
    for (const QkNorm norm : {QkNorm::kNone, QkNorm::kRmsPerHead, QkNorm::kLayerNormFull}) {
      for (const bool interleaved : {false, true}) {
        // More rows than one chunk of statistics (2048 units) when normed per head.
        Case c = {450, 10, 4, 2, 24, DType::kF32, norm, 0, 16, interleaved, true,
                  norm == QkNorm::kLayerNormFull};
        const Inputs in = InputsOf(c);
        const Outputs want = RunOp(c, in, PoolOf(1), c.rows);
        for (const int threads : {1, 2, 3}) {
          for (const int64_t cut : {int64_t{450}, int64_t{130}}) {
            for (const bool alias : {false, true}) {
              c.alias = alias;
              EXPECT_TRUE(RunOp(c, in, PoolOf(threads), cut) == want)
                  << Name(c) << " " << threads << " " << cut << " " << alias;
            }
          }
        }
      }
    }
  });
}

TEST(Qkv, ReferenceGradientsAreTheSlopes) {
  for (const QkNorm norm : {QkNorm::kNone, QkNorm::kRmsPerHead, QkNorm::kLayerNormFull}) {
    for (const bool interleaved : {false, true}) {
      const Case c = {3, 3, 2, 1, 6, DType::kF32, norm, 1.1, 4, interleaved, true, true};
      Inputs in = InputsOf(c);
      const reference::QkvInputs r = ReferenceInputs(c, in);
      Doubles din(in.in.size()), dq_gain(in.q_gain.size()), dk_gain(in.k_gain.size()),
          dq_bias(dq_gain), dk_bias(dk_gain);
      reference::QkvBackward(r, in.dout.data(), din.data(),
                             {dq_gain.data(), dk_gain.data(), dq_bias.data(), dk_bias.data()});
      const auto loss = [&] {
        Doubles out(in.in.size());
        reference::QkvForward(r, out.data());
        return Dot(out, in.dout);
      };
      ExpectSlopes(in.in, din, loss, "din");
      if (norm == QkNorm::kNone) continue;
      ExpectSlopes(in.q_gain, dq_gain, loss, "dq_gain");
      ExpectSlopes(in.k_gain, dk_gain, loss, "dk_gain");
      if (norm != QkNorm::kLayerNormFull) continue;
      ExpectSlopes(in.q_bias, dq_bias, loss, "dq_bias");
      ExpectSlopes(in.k_bias, dk_bias, loss, "dk_bias");
    }
  }
}

TEST(RopeTable, HoldsTheAnglesOfEachPosition) {
  RopeTableOptions options;
  options.positions = 100;
  options.rotary_size = 8;
  Floats cos(400), sin(400);
  FillRopeTable(options, cos.data(), sin.data());
  for (int64_t i = 0; i < 4; ++i) {
    const double theta = std::pow(10000.0, -static_cast<double>(i) / 4.0);
    for (int64_t p = 0; p < 100; ++p) {
      const size_t at = static_cast<size_t>(p * 4 + i);
      EXPECT_NEAR(cos[at], std::cos(static_cast<double>(p) * theta), kUnit);
      EXPECT_NEAR(sin[at], std::sin(static_cast<double>(p) * theta), kUnit);
    }
  }
}

// Llama 3.1: base 500,000, factor 8, wavelengths above 8192 slowed 8 times, below 2048 kept.
TEST(RopeTable, ScalesLongWavelengthsOnly) {
  RopeTableOptions plain;
  plain.positions = 2;
  plain.rotary_size = 128;
  plain.base = 500000.0;
  RopeTableOptions scaled = plain;
  scaled.factor = 8.0;
  Floats cos(128), plain_sin(128), sin(128);
  FillRopeTable(plain, cos.data(), plain_sin.data());
  FillRopeTable(scaled, cos.data(), sin.data());
  int64_t between = 0;
  for (size_t i = 0; i < 64; ++i) {
    const double angle = std::asin(double{plain_sin[64 + i]}), got = std::asin(double{sin[64 + i]});
    const double wavelength = 2 * std::numbers::pi / std::pow(500000.0, -static_cast<double>(i) / 64);
    if (wavelength < 2048) {
      EXPECT_EQ(plain_sin[64 + i], sin[64 + i]);
    } else if (wavelength > 8192) {
      EXPECT_NEAR(got, angle / 8, 4 * kUnit * angle);
    } else {
      ++between;
      EXPECT_LT(got, angle);
      EXPECT_GT(got, angle / 8);
    }
  }
  EXPECT_GT(between, 0);
}

}  // namespace
}  // namespace tessera::kernels
