// What the tests of the element-wise and row-wise ops share: buffers of either type at odd
// addresses with guards, random values, comparison with a bound, loops over instruction sets.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "base/threads.h"
#include "kernels/isa.h"
#include "tensor/dtype.h"

namespace tessera::kernels {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

inline constexpr double kUnit = 0x1p-24;     // rounding of fp32 (24 bits), relative
inline constexpr double kBf16Unit = 0x1p-8;  // rounding of bf16 (8 bits), relative
inline constexpr std::array<DType, 2> kDTypes = {DType::kF32, DType::kBf16};

// Relative error of rounding a result once to dtype.
inline double RoundingOf(DType dtype) { return dtype == DType::kBf16 ? kBf16Unit : kUnit; }

// Longest chain of additions in a reduction over n values: the narrowest set has 16 chains, joined
// by 6 additions, and short rows use one chain of n / 4.
inline double ChainOf(int64_t n) { return static_cast<double>(n) / 16.0 + 12.0; }

inline double Rounded(double v, DType dtype) {
  const float single = static_cast<float>(v);
  return dtype == DType::kBf16 ? ToFloat(ToBf16(single)) : single;
}

// Standard normal values times scale, representable in dtype.
inline Doubles RandomValues(int64_t n, uint64_t seed, DType dtype = DType::kF32,
                            double scale = 1.0) {
  const RngKey key = {seed, RngPurpose::kInit, 1};
  Doubles out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i) out[i] = Rounded(scale * key.Normal(i), dtype);
  return out;
}

inline Floats ToFloats(const Doubles& v) {
  Floats out(v.size());
  for (size_t i = 0; i < v.size(); ++i) out[i] = static_cast<float>(v[i]);
  return out;
}
inline Doubles ToDoubles(const Floats& v) { return Doubles(v.begin(), v.end()); }

// n elements of fp32 or bf16, `offset` elements past a 64-byte boundary, between guards.
class Buffer {
 public:
  Buffer(DType dtype, int64_t n, int64_t offset = 0)
      : dtype_(dtype), n_(n), bytes_(static_cast<size_t>(n * DTypeBytes(dtype)) + 4 * kGuard, 0xa5) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data()) + kGuard;
    const uintptr_t aligned = (address + 63) / 64 * 64;
    start_ = static_cast<size_t>(aligned - reinterpret_cast<uintptr_t>(bytes_.data())) +
             static_cast<size_t>(offset * DTypeBytes(dtype));
    for (int64_t i = 0; i < n; ++i) Set(i, 0.0);
  }
  Buffer(DType dtype, const Doubles& values, int64_t offset = 0)
      : Buffer(dtype, static_cast<int64_t>(values.size()), offset) {
    for (int64_t i = 0; i < n_; ++i) Set(i, values[static_cast<size_t>(i)]);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() { return bytes_.data() + start_; }
  void* At(int64_t element) { return bytes_.data() + start_ + element * DTypeBytes(dtype_); }

  Doubles Values() {
    Doubles out(static_cast<size_t>(n_));
    for (int64_t i = 0; i < n_; ++i) {
      if (dtype_ == DType::kBf16) {
        bf16 v;
        std::memcpy(&v, At(i), sizeof(v));
        out[static_cast<size_t>(i)] = ToFloat(v);
      } else {
        float v;
        std::memcpy(&v, At(i), sizeof(v));
        out[static_cast<size_t>(i)] = v;
      }
    }
    return out;
  }

  // True when nothing was written before the first or after the last element.
  bool GuardsIntact() const {
    const auto first = bytes_.begin() + static_cast<std::ptrdiff_t>(start_);
    const auto last = first + static_cast<std::ptrdiff_t>(n_ * DTypeBytes(dtype_));
    const auto is_guard = [](uint8_t byte) { return byte == 0xa5; };
    return std::all_of(bytes_.begin(), first, is_guard) &&
           std::all_of(last, bytes_.end(), is_guard);
  }

 private:
  static constexpr size_t kGuard = 128;

  void Set(int64_t i, double value) {
    const float single = static_cast<float>(value);
    if (dtype_ == DType::kBf16) {
      const bf16 v = ToBf16(single);
      std::memcpy(At(i), &v, sizeof(v));
    } else {
      std::memcpy(At(i), &single, sizeof(single));
    }
  }

  DType dtype_;
  int64_t n_;
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;
};

// |got - want| <= bound(i) for every element; reports the worst one. NaN never passes.
template <class Bound>
void ExpectWithin(const Doubles& got, const Doubles& want, Bound&& bound, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double ratio = std::abs(got[i] - want[i]) / bound(i);
    if (!(ratio <= worst)) {
      worst = ratio;
      at = i;
      if (std::isnan(ratio)) break;
    }
  }
  EXPECT_LE(worst, 1.0) << what << "[" << at << "] is " << got[at] << ", not " << want[at]
                        << " within " << bound(at);
}

// Runs fn under every instruction set of this machine and goes back to the one in use.
template <class Fn>
void ForEachIsa(Fn&& fn) {
  const Isa before = ActiveIsa();
  for (const Isa isa : SupportedIsas()) {
    SetActiveIsa(isa);
    SCOPED_TRACE(IsaName(isa));
    fn();
  }
  SetActiveIsa(before);
}

// Pools of 1, 2 and 3 threads, made once.
inline ThreadPool& PoolOf(int threads) {
  static ThreadPool one(1), two(2), three(3);
  return threads == 1 ? one : threads == 2 ? two : three;
}

// d loss / d *x by central differences; errors about 1e-10 for smooth losses of size 1.
template <class Loss>
double NumericSlope(double* x, Loss&& loss) {
  const double at = *x, h = 1e-5;
  *x = at + h;
  const double high = loss();
  *x = at - h;
  const double low = loss();
  *x = at;
  return (high - low) / (2 * h);
}

// Checks the analytic gradient of every element of x; `loss` reads x.
template <class Loss>
void ExpectSlopes(Doubles& x, const Doubles& gradient, Loss&& loss, const char* what) {
  ASSERT_EQ(x.size(), gradient.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double numeric = NumericSlope(&x[i], loss);
    EXPECT_NEAR(gradient[i], numeric, 1e-7 * (1 + std::abs(numeric))) << what << "[" << i << "]";
  }
}

inline double Dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace tessera::kernels
