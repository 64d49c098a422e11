#include "kernels/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "kernels/reference/attention.h"

namespace tessera::kernels {
namespace {

constexpr RngKey kData = {.seed = 7, .purpose = RngPurpose::kCalibration, .stream = 3};
constexpr RngKey kDropout = {.seed = 11, .purpose = RngPurpose::kDropout, .stream = 0x500000002ull};

// Aligned scratch, with a guard behind it that must stay as it is.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)),
        data_(
            static_cast<unsigned char*>(std::aligned_alloc(64, (bytes_ + kGuard + 63) / 64 * 64))) {
    // Signalling garbage: kernels must not rely on what was there.
    std::memset(data_.get(), 0xff, bytes_);
    std::memset(data_.get() + bytes_, 0x5a, kGuard);
  }
  ~Workspace() {
    for (size_t i = 0; i < kGuard; ++i) EXPECT_EQ(data_.get()[bytes_ + i], 0x5a);
  }
  void* get() { return data_.get(); }

 private:
  static constexpr size_t kGuard = 256;
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<unsigned char, Free> data_;
};

// Values of a tensor in fp32 or bf16, read back as double.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, int64_t n) : dtype_(dtype), n_(n) {
    bytes_.assign(static_cast<size_t>(n * DTypeBytes(dtype)), 0xee);
  }
  void Set(int64_t i, double value) {
    const float x = static_cast<float>(value);
    if (dtype_ == DType::kBf16) {
      reinterpret_cast<bf16*>(bytes_.data())[i] = ToBf16(x);
    } else {
      reinterpret_cast<float*>(bytes_.data())[i] = x;
    }
  }
  double At(int64_t i) const {
    return dtype_ == DType::kBf16
               ? static_cast<double>(ToFloat(reinterpret_cast<const bf16*>(bytes_.data())[i]))
               : static_cast<double>(reinterpret_cast<const float*>(bytes_.data())[i]);
  }
  void* data() { return bytes_.data(); }
  void* At(int64_t i, int) { return bytes_.data() + i * DTypeBytes(dtype_); }
  int64_t size() const { return n_; }
  bool operator==(const Tensor& other) const { return bytes_ == other.bytes_; }

 private:
  DType dtype_ = DType::kF32;
  int64_t n_ = 0;
  std::vector<unsigned char> bytes_;
};

struct Case {
  int64_t batch = 1, length = 1, heads = 1, kv_heads = 1, head_size = 8;
  DType dtype = DType::kF32;
  bool causal = true;
  int64_t window = 0;
  float softcap = 0;
  bool alibi = false;
  bool documents = false;
  float dropout = 0;
  float magnitude = 1;  // standard deviation of q, k, v and dout

  std::string Name() const {
    return fmt::format("{} {} B{} T{} H{}/{} D{}{}{}{}{}{}{}", IsaName(ActiveIsa()),
                       DTypeName(dtype), batch, length, heads, kv_heads, head_size,
                       causal ? "" : " full", window > 0 ? fmt::format(" window {}", window) : "",
                       softcap > 0 ? " softcap" : "", alibi ? " alibi" : "",
                       documents ? " documents" : "", dropout > 0 ? " dropout" : "");
  }
};

// A call on packed [B*T, (H + 2 Hkv) D] inputs with padding behind each token.
struct Call {
  explicit Call(const Case& the_case, int64_t first_sequence = 0) : c(the_case) {
    const int64_t tokens = c.batch * c.length;
    stride = (c.heads + 2 * c.kv_heads) * c.head_size + 8;
    out_stride = c.heads * c.head_size + 8;
    qkv = Tensor(c.dtype, tokens * stride);
    dqkv = Tensor(c.dtype, tokens * stride);
    out = Tensor(c.dtype, tokens * out_stride);
    dout = Tensor(c.dtype, tokens * out_stride);
    lse.assign(static_cast<size_t>(c.batch * c.heads * c.length), 0.0f);
    for (int64_t i = 0; i < qkv.size(); ++i) {
      qkv.Set(i, static_cast<double>(c.magnitude * kData.Normal(static_cast<uint64_t>(
                                                       first_sequence * c.length * stride + i))));
    }
    for (int64_t i = 0; i < dout.size(); ++i) {
      dout.Set(i, static_cast<double>(
                      c.magnitude * kData.Normal((1ull << 40) +
                                                 static_cast<uint64_t>(
                                                     first_sequence * c.length * out_stride + i))));
    }
    slopes.resize(static_cast<size_t>(c.heads));
    FillAlibiSlopes(c.heads, 8.0f, slopes.data());
    // Documents of 1 to about 40 tokens, other cuts in each sequence.
    for (int64_t b = 0; b < c.batch; ++b) {
      int64_t start = 0;
      for (int64_t i = 0; i < c.length; ++i) {
        if (kData.Uniform((1ull << 41) +
                          static_cast<uint64_t>((first_sequence + b) * c.length + i)) < 0.05f) {
          start = i;
        }
        starts.push_back(static_cast<int32_t>(start));
      }
    }
    shape.batch = c.batch;
    shape.length = c.length;
    shape.heads = c.heads;
    shape.kv_heads = c.kv_heads;
    shape.head_size = c.head_size;
    shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
    shape.causal = c.causal;
    shape.window = c.window;
    shape.softcap = c.softcap;
    shape.alibi_slopes = c.alibi ? slopes.data() : nullptr;
    shape.segment_start = c.documents ? starts.data() : nullptr;
    shape.dropout = c.dropout;
    shape.dropout_key = kDropout;
    shape.first_sequence = first_sequence;
  }

  AttentionForwardArgs ForwardArgs() {
    AttentionForwardArgs args;
    args.shape = shape;
    args.dtype = c.dtype;
    args.q = qkv.data();
    args.k = qkv.At(c.heads * c.head_size, 0);
    args.v = qkv.At((c.heads + c.kv_heads) * c.head_size, 0);
    args.q_stride = args.kv_stride = stride;
    args.out = out.data();
    args.out_stride = out_stride;
    args.lse = lse.data();
    return args;
  }

  void Run(int threads, bool backward = true) {
    ThreadPool pool(threads);
    Workspace workspace(AttentionWorkspaceBytes(shape, threads));
    AttentionBackwardArgs args;
    args.forward = ForwardArgs();
    AttentionForward(args.forward, workspace.get(), pool);
    if (!backward) return;
    args.dout = dout.data();
    args.dq = dqkv.data();
    args.dk = dqkv.At(c.heads * c.head_size, 0);
    args.dv = dqkv.At((c.heads + c.kv_heads) * c.head_size, 0);
    AttentionBackward(args, workspace.get(), pool);
  }

  // Gathers columns [first, first + width) of every token.
  static std::vector<double> Columns(const Tensor& x, int64_t x_stride, int64_t first,
                                     int64_t width) {
    std::vector<double> values;
    for (int64_t row = 0; row < x.size() / x_stride; ++row) {
      for (int64_t i = 0; i < width; ++i) values.push_back(x.At(row * x_stride + first + i));
    }
    return values;
  }
  std::vector<double> Part(const Tensor& x, int part) const {
    const int64_t q_width = c.heads * c.head_size, kv_width = c.kv_heads * c.head_size;
    return Columns(x, stride, part == 0 ? 0 : q_width + (part - 1) * kv_width,
                   part == 0 ? q_width : kv_width);
  }
  reference::AttentionProblem Problem() const {
    return {shape, c.length, {}, Part(qkv, 0), Part(qkv, 1), Part(qkv, 2)};
  }

  Case c;
  int64_t stride, out_stride;
  Tensor qkv, dqkv, out, dout;
  std::vector<float> lse, slopes;
  std::vector<int32_t> starts;
  AttentionShape shape;
};

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(x.size(), 1)));
}

// Relative error of one rounding to the storage type.
double Unit(DType dtype) { return dtype == DType::kBf16 ? 0x1p-8 : 0x1p-24; }

// `rms` bounds the root-mean-square error before the result is rounded to `dtype`.
void ExpectClose(const std::vector<double>& got, const std::vector<double>& want, double rms,
                 DType dtype, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  std::vector<double> difference(got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    difference[i] = got[i] - want[i];
    ASSERT_TRUE(std::isfinite(got[i])) << what << " element " << i;
    // Errors are near normal; 12 deviations leave room for the few rows whose probabilities or
    // gradients are much larger than the average.
    ASSERT_LE(std::abs(difference[i]), 12 * rms + Unit(dtype) * std::abs(want[i]))
        << what << " element " << i << " got " << got[i] << " want " << want[i];
  }
  EXPECT_LE(Norm(difference), rms + Unit(dtype) * Norm(want)) << what;
}

// Bounds on the root-mean-square error before the last rounding. Let u = 2^-24.
// - A score is a chain of D + 1 roundings of products of size |q k| scale ~ sqrt(D) scale m^2 = m^2
//   (m: magnitude of the inputs), growing like a random walk: error ~ u sqrt(D) m^2; the
//   exponential adds 2^-22 and its argument (at most |max score| ~ 4 m^2 above the maximum) u 4
//   m^2, all of them relative errors of a probability. eps_p = u (sqrt(D) m^2 + 4 + 4 m^2).
// - out is a mean of values with these weights, kept as a chain of T roundings: relative error
//   eps_p + u sqrt(T), of the size of V (m).
// - lse has the error of the largest score and of the sum's chain, absolute.
// - dV is a sum of T such terms, relative to its own size. dS = P (dP - Delta): both brackets have
//   the size of |dO V| ~ sqrt(D) m^2 and cancel in rows with few keys, so the error is measured
//   against that size: u sqrt(D) sqrt(D) m^2 P, and the LSE that entered as fp32 adds u |lse| P.
//   dQ and dK sum dS over up to T keys or queries against values of size m.
//   In bf16, O enters Delta rounded: 2^-9 relative of O, so dS gains 2^-9 |dO O| P.
struct Bounds {
  double out, lse, dq, dk, dv;
};
Bounds MakeBounds(const Case& c) {
  const double u = 0x1p-24,
               m2 = static_cast<double>(c.magnitude) * static_cast<double>(c.magnitude);
  const double m = static_cast<double>(c.magnitude);
  const double depth = std::sqrt(static_cast<double>(c.head_size));
  const double length = std::sqrt(static_cast<double>(c.length));
  const double group = std::sqrt(static_cast<double>(c.heads) / static_cast<double>(c.kv_heads));
  // ALiBi adds up to T/2 to the arguments, rounded in fp32.
  const double bias = c.alibi ? static_cast<double>(c.length) : 0.0;
  const double eps_p = u * (depth * m2 + 4 + 4 * m2 + bias);
  const double drop = c.dropout > 0 ? 1 / (1 - static_cast<double>(c.dropout)) : 1;
  Bounds b;
  b.out = (eps_p + u * length) * m * drop;
  b.lse = eps_p + u * (length + 8 + bias);
  // One row's |P|_2 is at most 1.
  const double brackets = depth * m2 * drop;
  const double ds =
      (eps_p + u * (depth + length)) * brackets + (c.dtype == DType::kBf16 ? 0x1p-9 * brackets : 0);
  const double scale = 1 / depth;
  b.dq = ds * scale * m;
  // Each key is met by up to T rows of each head of the group; their |P|_2 over rows is about
  // sqrt(group) for the average key.
  b.dk = ds * scale * m * group;
  b.dv = (eps_p + u * length) * m * group * drop;
  return b;
}

void Check(const Case& c) {
  SCOPED_TRACE(c.Name());
  Call call(c);
  call.Run(2);
  const reference::AttentionProblem problem = call.Problem();
  const std::vector<double> dout =
      Call::Columns(call.dout, call.out_stride, 0, c.heads * c.head_size);
  const reference::AttentionOutput want = reference::AttentionForward(problem);
  const reference::AttentionGradients gradients = reference::AttentionBackward(problem, dout);
  const Bounds bounds = MakeBounds(c);
  ExpectClose(Call::Columns(call.out, call.out_stride, 0, c.heads * c.head_size), want.out,
              bounds.out, c.dtype, "out");
  ExpectClose({call.lse.begin(), call.lse.end()}, want.lse, bounds.lse, DType::kF32, "lse");
  ExpectClose(call.Part(call.dqkv, 0), gradients.dq, bounds.dq, c.dtype, "dq");
  ExpectClose(call.Part(call.dqkv, 1), gradients.dk, bounds.dk, c.dtype, "dk");
  ExpectClose(call.Part(call.dqkv, 2), gradients.dv, bounds.dv, c.dtype, "dv");
  // The padding between rows is nobody's.
  for (int64_t t = 0; t < c.batch * c.length; ++t) {
    for (int64_t i = 1; i <= 8; ++i) {
      const Tensor untouched(c.dtype, 1);
      ASSERT_EQ(call.out.At((t + 1) * call.out_stride - i), untouched.At(0));
      ASSERT_EQ(call.dqkv.At((t + 1) * call.stride - i), untouched.At(0));
    }
  }
}

// Runs `fn` under every instruction set that this machine has.
template <class Fn>
void OnEveryIsa(const Fn& fn) {
  const Isa before = ActiveIsa();
  for (const Isa isa : SupportedIsas()) {
    SetActiveIsa(isa);
    fn();
  }
  SetActiveIsa(before);
}

TEST(Attention, MatchesTheReferenceForEveryLengthAndHeadSize) {
  OnEveryIsa([] {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const int64_t length : {1, 2, 3, 17, 64, 65, 130}) {
        for (const int64_t head_size : {8, 16, 40, 64, 128}) {
          if (length >= 65 && head_size == 128) continue;  // in the next test
          Check({.length = length, .head_size = head_size, .dtype = dtype});
        }
      }
    }
  });
}

TEST(Attention, MatchesTheReferenceForWideHeadsAndSeveralChunks) {
  OnEveryIsa([] {
    Check({.length = 130, .head_size = 128});
    Check({.length = 70, .head_size = 256, .dtype = DType::kBf16});
    Check({.length = 300, .head_size = 8});
    Check({.length = 2100, .heads = 1, .kv_heads = 1, .head_size = 8, .window = 100});
    Check({.length = 150, .head_size = 136, .documents = true});
  });
}

TEST(Attention, MatchesTheReferenceForGroupsAndBatches) {
  OnEveryIsa([] {
    Check({.batch = 2, .length = 40, .heads = 4, .kv_heads = 2, .head_size = 16});
    Check({.batch = 3,
           .length = 33,
           .heads = 3,
           .kv_heads = 1,
           .head_size = 24,
           .dtype = DType::kBf16});
    Check({.batch = 2, .length = 70, .heads = 5, .kv_heads = 5, .head_size = 8});
    Check({.length = 100, .heads = 8, .kv_heads = 1, .head_size = 32, .causal = false});
  });
}

TEST(Attention, MatchesTheReferenceForEveryMaskAndBias) {
  OnEveryIsa([] {
    for (int features = 0; features < 64; ++features) {
      Case c = {.batch = 2, .length = 97, .heads = 2, .kv_heads = 1, .head_size = 16};
      c.causal = (features & 1) == 0;
      c.window = (features & 2) != 0 ? 20 : 0;
      c.softcap = (features & 4) != 0 ? 1.5f : 0.0f;
      c.alibi = (features & 8) != 0;
      c.documents = (features & 16) != 0;
      c.dropout = (features & 32) != 0 ? 0.25f : 0.0f;
      c.dtype = (features % 3) == 0 ? DType::kBf16 : DType::kF32;
      Check(c);
    }
  });
}

TEST(Attention, LargeScoresStayFinite) {
  OnEveryIsa([] {
    // Scores of hundreds: every row's softmax is nearly one-hot, and exponents span the range.
    Check({.length = 130, .head_size = 64, .magnitude = 8});
    Check({.length = 130, .head_size = 64, .causal = false, .alibi = true, .magnitude = 4});
  });
}

TEST(Attention, RowsThatSeeNothingGiveZeros) {
  OnEveryIsa([] {
    Case c = {.length = 70, .head_size = 16, .documents = true};
    Call call(c);
    // Rows 10 to 20 may see from position 40 on only: nothing, as they come before it.
    for (size_t i = 10; i <= 20; ++i) call.starts[i] = 40;
    call.shape.segment_start = call.starts.data();
    call.Run(1);
    const reference::AttentionProblem problem = call.Problem();
    const reference::AttentionOutput want = reference::AttentionForward(problem);
    const reference::AttentionGradients gradients = reference::AttentionBackward(
        problem, Call::Columns(call.dout, call.out_stride, 0, c.head_size));
    const Bounds bounds = MakeBounds(c);
    ExpectClose(Call::Columns(call.out, call.out_stride, 0, c.head_size), want.out, bounds.out,
                c.dtype, "out");
    ExpectClose(call.Part(call.dqkv, 0), gradients.dq, bounds.dq, c.dtype, "dq");
    ExpectClose(call.Part(call.dqkv, 1), gradients.dk, bounds.dk, c.dtype, "dk");
    for (int64_t i = 0; i < c.head_size; ++i) EXPECT_EQ(call.out.At(12 * call.out_stride + i), 0);
    EXPECT_EQ(call.lse[12], -INFINITY);
  });
}

TEST(Attention, BitsDoNotDependOnThreads) {
  OnEveryIsa([] {
    const Case cases[] = {
        {.batch = 1, .length = 300, .heads = 2, .kv_heads = 1, .head_size = 16},
        {.batch = 3, .length = 530, .heads = 2, .kv_heads = 1, .head_size = 8, .dropout = 0.1f},
        {.batch = 1, .length = 2100, .head_size = 8, .dtype = DType::kBf16},
        {.batch = 3, .length = 65, .heads = 3, .kv_heads = 3, .head_size = 24, .alibi = true},
    };
    for (const Case& c : cases) {
      SCOPED_TRACE(c.Name());
      Call one(c);
      one.Run(1);
      for (const int threads : {2, 3, 5}) {
        Call many(c);
        many.Run(threads);
        EXPECT_TRUE(one.out == many.out) << threads << " threads";
        EXPECT_TRUE(one.lse == many.lse) << threads << " threads";
        EXPECT_TRUE(one.dqkv == many.dqkv) << threads << " threads";
      }
    }
  });
}

TEST(Attention, BitsDoNotDependOnHowSequencesAreGrouped) {
  OnEveryIsa([] {
    Case c = {.batch = 5,
              .length = 300,
              .heads = 2,
              .kv_heads = 2,
              .head_size = 16,
              .documents = true,
              .dropout = 0.2f};
    Call all(c);
    all.Run(2);
    int64_t first = 0;
    for (const int64_t batch : {1, 3, 1}) {
      c.batch = batch;
      Call part(c, first);
      part.Run(2);
      for (int64_t i = 0; i < part.out.size(); ++i) {
        ASSERT_EQ(part.out.At(i), all.out.At(first * c.length * part.out_stride + i));
      }
      for (int64_t i = 0; i < part.dqkv.size(); ++i) {
        ASSERT_EQ(part.dqkv.At(i), all.dqkv.At(first * c.length * part.stride + i));
      }
      first += batch;
    }
  });
}

TEST(Attention, LseMayBeNull) {
  OnEveryIsa([] {
    const Case c = {.length = 70, .head_size = 16};
    Call with(c), without(c);
    with.Run(1, false);
    AttentionForwardArgs args = without.ForwardArgs();
    args.lse = nullptr;
    ThreadPool pool(1);
    Workspace workspace(AttentionWorkspaceBytes(without.shape, 1));
    AttentionForward(args, workspace.get(), pool);
    EXPECT_TRUE(with.out == without.out);
  });
}

TEST(Attention, DropoutKeepsTheRightShareAndForwardAndBackwardAgree) {
  OnEveryIsa([] {
    // With V = 1 the output is sum of p keep / (1 - rate): mean 1, and with equal scores over T
    // keys a deviation of sqrt(rate / ((1 - rate) T)) a row.
    Case c = {.batch = 1,
              .length = 256,
              .heads = 4,
              .kv_heads = 4,
              .head_size = 8,
              .causal = false,
              .dropout = 0.3f};
    Call call(c);
    for (int64_t t = 0; t < c.length; ++t) {
      for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
        call.qkv.Set(t * call.stride + i, 0.0);
        call.qkv.Set(t * call.stride + 2 * c.heads * c.head_size + i, 1.0);
      }
    }
    call.Run(2);
    double mean = 0;
    for (int64_t t = 0; t < c.length; ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        mean += call.out.At(t * call.out_stride + h * c.head_size);
      }
    }
    const double rows = static_cast<double>(c.length * c.heads),
                 keys = static_cast<double>(c.length);
    mean /= rows;
    EXPECT_NEAR(mean, 1.0, 5 * std::sqrt(0.3 / 0.7 / (rows * keys)));
    // dV_j = sum over rows of p keep dO: with dO = 1 its total is the total of the output.
    Call ones(c);
    ones.qkv = call.qkv;
    for (int64_t i = 0; i < ones.dout.size(); ++i) ones.dout.Set(i, 1.0);
    ones.Run(2);
    double total = 0, out_total = 0;
    for (const double x : ones.Part(ones.dqkv, 2)) total += x;
    for (const double x : Call::Columns(ones.out, ones.out_stride, 0, c.heads * c.head_size)) {
      out_total += x;
    }
    // Both are sums of the same 2^18 products, each to about 2^-21 relative.
    EXPECT_NEAR(total, out_total, out_total * 0x1p-19);
  });
}

// Finite differences of the reference itself, in double: step h gives an error of h^2 times the
// third derivative plus 2^-53 / h; h = 1e-5 leaves about 1e-10, a million times below the
// gradients.
TEST(AttentionReference, GradientsAreThoseOfFiniteDifferences) {
  for (int features = 0; features < 8; ++features) {
    Case c = {.batch = 2, .length = 9, .heads = 4, .kv_heads = 2, .head_size = 8};
    c.softcap = (features & 1) != 0 ? 1.0f : 0.0f;
    c.alibi = (features & 2) != 0;
    c.dropout = (features & 4) != 0 ? 0.3f : 0.0f;
    c.window = features == 7 ? 4 : 0;
    c.causal = features != 2;
    c.documents = features >= 3;
    SCOPED_TRACE(c.Name());
    const Call call(c);
    reference::AttentionProblem problem = call.Problem();
    const std::vector<double> dout =
        Call::Columns(call.dout, call.out_stride, 0, c.heads * c.head_size);
    const auto loss = [&] {
      const std::vector<double> out = reference::AttentionForward(problem).out;
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
      return sum;
    };
    const reference::AttentionGradients g = reference::AttentionBackward(problem, dout);
    const auto compare = [&](std::vector<double>& x, const std::vector<double>& gradient) {
      for (size_t i = 0; i < x.size(); i += 13) {
        const double at = x[i], h = 1e-5;
        x[i] = at + h;
        const double above = loss();
        x[i] = at - h;
        const double below = loss();
        x[i] = at;
        ASSERT_NEAR((above - below) / (2 * h), gradient[i], 1e-8) << i;
      }
    };
    compare(problem.q, g.dq);
    compare(problem.k, g.dk);
    compare(problem.v, g.dv);
  }
}

struct DecodeCall {
  DecodeCall(const Case& the_case, std::vector<int64_t> past_tokens, int64_t capacity_tokens)
      : c(the_case), past(std::move(past_tokens)), capacity(capacity_tokens) {
    q_stride = c.heads * c.head_size + 8;
    q = Tensor(c.dtype, c.batch * c.length * q_stride);
    out = Tensor(c.dtype, c.batch * c.length * q_stride);
    k = Tensor(c.dtype, c.batch * capacity * c.kv_heads * c.head_size);
    v = Tensor(c.dtype, k.size());
    for (int64_t i = 0; i < q.size(); ++i) q.Set(i, Value(1, i));
    // Beyond what is filled, the cache holds NaN: nobody may read it.
    const int64_t row = c.kv_heads * c.head_size;
    for (int64_t i = 0; i < k.size(); ++i) {
      const int64_t b = i / (capacity * row), j = i / row % capacity;
      const bool filled = j < past[static_cast<size_t>(b)] + c.length;
      k.Set(i, filled ? Value(2, i) : NAN);
      v.Set(i, filled ? Value(3, i) : NAN);
    }
    slopes.resize(static_cast<size_t>(c.heads));
    FillAlibiSlopes(c.heads, 8.0f, slopes.data());
  }
  static double Value(uint64_t stream, int64_t i) {
    return static_cast<double>(kData.Normal((stream << 42) + static_cast<uint64_t>(i)));
  }
  AttentionDecodeArgs Args() {
    AttentionDecodeArgs args;
    args.shape.batch = c.batch;
    args.shape.length = c.length;
    args.shape.heads = c.heads;
    args.shape.kv_heads = c.kv_heads;
    args.shape.head_size = c.head_size;
    args.shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
    args.shape.window = c.window;
    args.shape.softcap = c.softcap;
    args.shape.alibi_slopes = c.alibi ? slopes.data() : nullptr;
    args.dtype = c.dtype;
    args.q = q.data();
    args.q_stride = q_stride;
    args.k_cache = k.data();
    args.v_cache = v.data();
    args.capacity = capacity;
    args.past = past.data();
    args.out = out.data();
    args.out_stride = q_stride;
    return args;
  }
  void Run(int threads) {
    ThreadPool pool(threads);
    const AttentionDecodeArgs args = Args();
    Workspace workspace(AttentionDecodeWorkspaceBytes(args, threads));
    AttentionDecode(args, workspace.get(), pool);
  }
  // Each sequence by itself, with as many keys as it has.
  void CheckAgainstReference() {
    for (int64_t b = 0; b < c.batch; ++b) {
      reference::AttentionProblem problem;
      problem.shape = Args().shape;
      problem.shape.batch = 1;
      problem.past = {past[static_cast<size_t>(b)]};
      problem.keys = problem.past[0] + c.length;
      const int64_t row = c.kv_heads * c.head_size;
      for (int64_t i = 0; i < problem.keys * row; ++i) {
        problem.k.push_back(k.At(b * capacity * row + i));
        problem.v.push_back(v.At(b * capacity * row + i));
      }
      std::vector<double> got;
      for (int64_t t = 0; t < c.length; ++t) {
        for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
          problem.q.push_back(q.At((b * c.length + t) * q_stride + i));
          got.push_back(out.At((b * c.length + t) * q_stride + i));
        }
      }
      const std::vector<double> want = reference::AttentionForward(problem).out;
      Case as_forward = c;
      as_forward.length = problem.keys;
      ExpectClose(got, want, MakeBounds(as_forward).out, c.dtype, fmt::format("sequence {}", b));
    }
  }

  Case c;
  std::vector<int64_t> past;
  int64_t capacity, q_stride;
  Tensor q, k, v, out;
  std::vector<float> slopes;
};

TEST(AttentionDecode, MatchesTheReference) {
  OnEveryIsa([] {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const Case cases[] = {
          {.batch = 3, .length = 1, .heads = 4, .kv_heads = 2, .head_size = 16, .dtype = dtype},
          {.batch = 3, .length = 1, .heads = 2, .kv_heads = 2, .head_size = 64, .dtype = dtype},
          {.batch = 3,
           .length = 3,
           .heads = 6,
           .kv_heads = 1,
           .head_size = 40,
           .dtype = dtype,
           .alibi = true},
          {.batch = 3,
           .length = 1,
           .heads = 8,
           .kv_heads = 1,
           .head_size = 24,
           .dtype = dtype,
           .window = 100,
           .softcap = 2.0f},
          {.batch = 3, .length = 70, .heads = 3, .kv_heads = 1, .head_size = 8, .dtype = dtype},
          {.batch = 3, .length = 1, .heads = 1, .kv_heads = 1, .head_size = 256, .dtype = dtype},
      };
      for (const Case& c : cases) {
        SCOPED_TRACE(c.Name());
        DecodeCall call(c, {0, 63, 1200}, 1300);
        call.Run(2);
        call.CheckAgainstReference();
      }
    }
  });
}

TEST(AttentionDecode, BitsDependNeitherOnThreadsNorOnTheBatch) {
  OnEveryIsa([] {
    const Case c = {.batch = 2, .length = 2, .heads = 4, .kv_heads = 2, .head_size = 16};
    DecodeCall one(c, {700, 1600}, 1700);
    one.Run(1);
    for (const int threads : {2, 3}) {
      DecodeCall many(c, {700, 1600}, 1700);
      many.Run(threads);
      EXPECT_TRUE(one.out == many.out);
    }
    // The first sequence alone.
    Case single = c;
    single.batch = 1;
    DecodeCall alone(single, {700}, 1700);
    alone.Run(2);
    for (int64_t i = 0; i < alone.out.size(); ++i) ASSERT_EQ(alone.out.At(i), one.out.At(i));
  });
}

TEST(AttentionDecode, GivesTheRowsOfForward) {
  OnEveryIsa([] {
    const Case c = {
        .batch = 1, .length = 90, .heads = 4, .kv_heads = 2, .head_size = 16, .alibi = true};
    Call forward(c);
    forward.Run(1, false);
    const std::vector<double> want =
        Call::Columns(forward.out, forward.out_stride, 0, c.heads * c.head_size);
    Case step = c;
    step.length = 1;
    for (int64_t t = 0; t < c.length; ++t) {
      DecodeCall decode(step, {t}, c.length);
      for (int64_t i = 0; i < c.heads * c.head_size; ++i) {
        decode.q.Set(i, forward.qkv.At(t * forward.stride + i));
      }
      const int64_t row = c.kv_heads * c.head_size;
      for (int64_t j = 0; j <= t; ++j) {
        for (int64_t i = 0; i < row; ++i) {
          const int64_t at = j * forward.stride + c.heads * c.head_size + i;
          decode.k.Set(j * row + i, forward.qkv.At(at));
          decode.v.Set(j * row + i, forward.qkv.At(at + row));
        }
      }
      decode.Run(1);
      const std::vector<double> got =
          Call::Columns(decode.out, decode.q_stride, 0, c.heads * c.head_size);
      for (size_t i = 0; i < got.size(); ++i) {
        // Two correct results: twice the bound of one, and the 12 deviations of ExpectClose.
        ASSERT_NEAR(got[i], want[static_cast<size_t>(t * c.heads * c.head_size) + i],
                    24 * MakeBounds(c).out);
      }
    }
  });
}

TEST(AlibiSlopes, FollowThePaperAndMpt) {
  std::vector<float> slopes(8);
  FillAlibiSlopes(8, 8.0f, slopes.data());
  for (size_t h = 0; h < 8; ++h) EXPECT_FLOAT_EQ(slopes[h], std::exp2(-static_cast<float>(h + 1)));
  // Six heads of eight slopes 2^-1 .. 2^-8: the even ones, then the odd ones.
  slopes.resize(6);
  FillAlibiSlopes(6, 8.0f, slopes.data());
  const float want[] = {0x1p-2f, 0x1p-4f, 0x1p-6f, 0x1p-8f, 0x1p-1f, 0x1p-3f};
  for (size_t h = 0; h < 6; ++h) EXPECT_FLOAT_EQ(slopes[h], want[h]);
}

}  // namespace
}  // namespace tessera::kernels
