// What the tests of attention share: cases and calls with their tensors and guards, and bounds of
// the error against the reference.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/table.h"
#include "kernels/isa.h"
#include "kernels/reference/attention.h"

namespace tessera::kernels {

// The kernels under test: those of the active set, or a variant with the bf16 dot emulated.
struct EmulatedKernels {
  std::string name;
  KernelTable table = {};
};
inline const EmulatedKernels* g_emulated = nullptr;
inline const KernelTable& Kernels() {
  return g_emulated == nullptr ? ActiveTable() : g_emulated->table;
}
inline std::string KernelsName() {
  return g_emulated == nullptr ? std::string(IsaName(ActiveIsa())) : g_emulated->name;
}

inline constexpr RngKey kData = {.seed = 7, .purpose = RngPurpose::kCalibration, .stream = 3};
inline constexpr RngKey kDropout = {
    .seed = 11, .purpose = RngPurpose::kDropout, .stream = 0x500000002ull};

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
  Compute compute = Compute::kF32;
  bool causal = true;
  int64_t window = 0;
  float softcap = 0;
  bool alibi = false;
  bool documents = false;
  float dropout = 0;
  float magnitude = 1;  // standard deviation of q, k, v and dout

  std::string Name() const {
    return fmt::format("{} {}{} B{} T{} H{}/{} D{}{}{}{}{}{}{}", KernelsName(), DTypeName(dtype),
                       compute == Compute::kBf16 ? " dot" : "", batch, length, heads, kv_heads,
                       head_size, causal ? "" : " full",
                       window > 0 ? fmt::format(" window {}", window) : "",
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
    args.compute = c.compute;
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
    Workspace workspace(Kernels().attention_workspace_bytes(shape, threads));
    AttentionBackwardArgs args;
    args.forward = ForwardArgs();
    Kernels().attention_forward(args.forward, workspace.get(), pool);
    if (!backward) return;
    args.dout = dout.data();
    args.dq = dqkv.data();
    args.dk = dqkv.At(c.heads * c.head_size, 0);
    args.dv = dqkv.At((c.heads + c.kv_heads) * c.head_size, 0);
    Kernels().attention_backward(args, workspace.get(), pool);
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

inline double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(x.size(), 1)));
}

// Relative error of one rounding to the storage type.
inline double Unit(DType dtype) { return dtype == DType::kBf16 ? 0x1p-8 : 0x1p-24; }

// `rms` bounds the root-mean-square error before the result is rounded to `dtype`.
inline void ExpectClose(const std::vector<double>& got, const std::vector<double>& want, double rms,
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
// - With bf16 dots, P and dS are rounded to bf16 before they are multiplied: errors of 2^-9 relative
//   of each, which add up like P and dS themselves. The q_scale that fp32 takes into Q is applied to
//   the sum.
struct Bounds {
  double out, lse, dq, dk, dv;
};
inline Bounds MakeBounds(const Case& c) {
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
  const double rounded = c.compute == Compute::kBf16 ? 0x1p-9 : 0;  // of an operand
  Bounds b;
  b.out = (eps_p + u * length + rounded) * m * drop;
  b.lse = eps_p + u * (length + 8 + bias);
  // One row's |P|_2 is at most 1.
  const double brackets = depth * m2 * drop;
  const double ds = (eps_p + u * (depth + length) + rounded) * brackets +
                    (c.dtype == DType::kBf16 ? 0x1p-9 * brackets : 0);
  const double scale = 1 / depth;
  b.dq = ds * scale * m;
  // Each key is met by up to T rows of each head of the group; their |P|_2 over rows is about
  // sqrt(group) for the average key.
  b.dk = ds * scale * m * group;
  b.dv = (eps_p + u * length + rounded) * m * group * drop;
  return b;
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

}  // namespace tessera::kernels
