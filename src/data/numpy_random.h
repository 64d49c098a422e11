// NumPy's Generator over PCG64, bit for bit: what mosaicml-streaming draws its sample orders from.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

// numpy.random.SeedSequence(seed): spreads a seed over any number of words.
class NumpySeedSequence {
 public:
  explicit NumpySeedSequence(uint64_t seed);
  // The first words of generate_state(n, uint32) and (n, uint64).
  std::vector<uint32_t> Words32(int64_t count) const;
  std::vector<uint64_t> Words64(int64_t count) const;

 private:
  std::array<uint32_t, 4> pool_ = {};
};

// numpy.random.default_rng(seed): PCG64 (XSL-RR, 128 bits of state). Methods carry NumPy's names and
// draw what NumPy 1.17 to 2.x draws, in the same order.
class NumpyGenerator {
 public:
  explicit NumpyGenerator(uint64_t seed);

  uint64_t Next64();
  uint32_t Next32();   // The low half of a 64-bit draw; its high half is the next one.
  double NextDouble();  // In [0, 1), 53 bits.

  // integers(low, high): uniform in [low, high). low < high.
  int64_t Integers(int64_t low, int64_t high);
  // uniform(low, high): low + (high - low) * double.
  double Uniform(double low, double high);
  // shuffle(x) of a list or of an array with one dimension.
  template <class T>
  void Shuffle(std::span<T> values) {
    for (int64_t i = static_cast<int64_t>(values.size()) - 1; i > 0; --i) {
      const uint64_t j = Interval(static_cast<uint64_t>(i));
      std::swap(values[static_cast<size_t>(i)], values[j]);
    }
  }
  template <class T>
  void Shuffle(std::vector<T>& values) {
    Shuffle(std::span<T>(values));
  }
  // permutation(n).
  std::vector<int64_t> Permutation(int64_t n);
  // choice(n, count, replace=False). 0 <= count <= n.
  std::vector<int64_t> ChooseDistinct(int64_t n, int64_t count);

 private:
  // Uniform in [0, max] by drawing under a mask until a value fits.
  uint64_t Interval(uint64_t max);
  // Uniform in [0, max] by Lemire's multiplication.
  uint64_t Bounded(uint64_t max);
  void ShuffleTail(int64_t first, std::vector<int64_t>* values);

  unsigned __int128 state_ = 0;
  unsigned __int128 increment_ = 0;
  bool has_half_ = false;
  uint32_t half_ = 0;
};

// numpy.sum of float64: pairwise in blocks of 128 with eight running sums.
double NumpySum(std::span<const double> values);

}  // namespace tessera
