#include "data/numpy_random.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <unordered_set>

#include "base/error.h"

namespace tessera {

namespace {

// O'Neill, "Simple portable C++ seed entropy"; constants as in NumPy's SeedSequence.
constexpr uint32_t kInitA = 0x43b0d7e5u;
constexpr uint32_t kMultiplierA = 0x931e8875u;
constexpr uint32_t kInitB = 0x8b51f9ddu;
constexpr uint32_t kMultiplierB = 0x58f38dedu;
constexpr uint32_t kMixLeft = 0xca01f9ddu;
constexpr uint32_t kMixRight = 0x4973f715u;

// Hashes words with a constant that moves on with every call.
class WordHash {
 public:
  WordHash(uint32_t init, uint32_t multiplier) : constant_(init), multiplier_(multiplier) {}
  uint32_t operator()(uint32_t value) {
    value ^= constant_;
    constant_ *= multiplier_;
    value *= constant_;
    return value ^ (value >> 16);
  }

 private:
  uint32_t constant_;
  uint32_t multiplier_;
};

uint32_t Mix(uint32_t x, uint32_t y) {
  const uint32_t mixed = kMixLeft * x - kMixRight * y;
  return mixed ^ (mixed >> 16);
}

// The 128-bit multiplier of PCG.
constexpr unsigned __int128 PcgMultiplier() {
  return static_cast<unsigned __int128>(0x2360ED051FC65DA4ull) << 64 | 0x4385DF649FCCF645ull;
}

}  // namespace

NumpySeedSequence::NumpySeedSequence(uint64_t seed) {
  const std::array<uint32_t, 2> entropy = {static_cast<uint32_t>(seed),
                                           static_cast<uint32_t>(seed >> 32)};
  WordHash hash(kInitA, kMultiplierA);
  // A seed below 2^32 is one word; words that are missing count as 0, so both cases are one.
  for (size_t i = 0; i < pool_.size(); ++i) pool_[i] = hash(i < entropy.size() ? entropy[i] : 0);
  for (size_t from = 0; from < pool_.size(); ++from) {
    for (size_t to = 0; to < pool_.size(); ++to) {
      if (from != to) pool_[to] = Mix(pool_[to], hash(pool_[from]));
    }
  }
}

std::vector<uint32_t> NumpySeedSequence::Words32(int64_t count) const {
  WordHash hash(kInitB, kMultiplierB);
  std::vector<uint32_t> words(static_cast<size_t>(count));
  for (size_t i = 0; i < words.size(); ++i) words[i] = hash(pool_[i % pool_.size()]);
  return words;
}

std::vector<uint64_t> NumpySeedSequence::Words64(int64_t count) const {
  const std::vector<uint32_t> halves = Words32(2 * count);
  std::vector<uint64_t> words(static_cast<size_t>(count));
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = uint64_t{halves[2 * i]} | uint64_t{halves[2 * i + 1]} << 32;
  }
  return words;
}

NumpyGenerator::NumpyGenerator(uint64_t seed) {
  const std::vector<uint64_t> words = NumpySeedSequence(seed).Words64(4);
  const auto pair = [&](size_t i) {
    return static_cast<unsigned __int128>(words[i]) << 64 | words[i + 1];
  };
  increment_ = pair(2) << 1 | 1;
  state_ = increment_;  // One step from 0.
  state_ += pair(0);
  state_ = state_ * PcgMultiplier() + increment_;
}

uint64_t NumpyGenerator::Next64() {
  state_ = state_ * PcgMultiplier() + increment_;
  const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  return std::rotr(folded, static_cast<int>(state_ >> 122));
}

uint32_t NumpyGenerator::Next32() {
  if (has_half_) {
    has_half_ = false;
    return half_;
  }
  const uint64_t word = Next64();
  has_half_ = true;
  half_ = static_cast<uint32_t>(word >> 32);
  return static_cast<uint32_t>(word);
}

double NumpyGenerator::NextDouble() { return static_cast<double>(Next64() >> 11) * 0x1p-53; }

double NumpyGenerator::Uniform(double low, double high) {
  const double range = high - low;
  return low + range * NextDouble();
}

uint64_t NumpyGenerator::Interval(uint64_t max) {
  if (max == 0) return 0;
  const uint64_t mask = ~uint64_t{0} >> std::countl_zero(max);
  uint64_t value = 0;
  do {
    value = (max <= UINT32_MAX ? Next32() : Next64()) & mask;
  } while (value > max);
  return value;
}

uint64_t NumpyGenerator::Bounded(uint64_t max) {
  if (max == 0) return 0;
  if (max == UINT32_MAX) return Next32();
  if (max == UINT64_MAX) return Next64();
  if (max < UINT32_MAX) {
    const uint32_t count = static_cast<uint32_t>(max) + 1;
    uint64_t product = uint64_t{Next32()} * count;
    if (static_cast<uint32_t>(product) < count) {
      const uint32_t threshold = (UINT32_MAX - static_cast<uint32_t>(max)) % count;
      while (static_cast<uint32_t>(product) < threshold) product = uint64_t{Next32()} * count;
    }
    return product >> 32;
  }
  const uint64_t count = max + 1;
  unsigned __int128 product = static_cast<unsigned __int128>(Next64()) * count;
  if (static_cast<uint64_t>(product) < count) {
    const uint64_t threshold = (UINT64_MAX - max) % count;
    while (static_cast<uint64_t>(product) < threshold) {
      product = static_cast<unsigned __int128>(Next64()) * count;
    }
  }
  return static_cast<uint64_t>(product >> 64);
}

int64_t NumpyGenerator::Integers(int64_t low, int64_t high) {
  TESSERA_CHECK(low < high, "an empty range of integers");
  const uint64_t span = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  return static_cast<int64_t>(static_cast<uint64_t>(low) + Bounded(span - 1));
}

std::vector<int64_t> NumpyGenerator::Permutation(int64_t n) {
  std::vector<int64_t> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), int64_t{0});
  Shuffle(values);
  return values;
}

void NumpyGenerator::ShuffleTail(int64_t first, std::vector<int64_t>* values) {
  for (int64_t i = static_cast<int64_t>(values->size()) - 1; i >= first; --i) {
    const uint64_t j = Bounded(static_cast<uint64_t>(i));
    std::swap((*values)[static_cast<size_t>(i)], (*values)[j]);
  }
}

std::vector<int64_t> NumpyGenerator::ChooseDistinct(int64_t n, int64_t count) {
  TESSERA_CHECK(count >= 0 && count <= n, "more samples than there are");
  // Where much of a large population is taken, NumPy shuffles its tail.
  if (n > 10000 && count > n / 50) {
    std::vector<int64_t> values(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), int64_t{0});
    ShuffleTail(std::max<int64_t>(n - count, 1), &values);
    values.erase(values.begin(), values.end() - count);
    return values;
  }
  // Floyd's sampling, then a shuffle of what was taken.
  std::vector<int64_t> values;
  values.reserve(static_cast<size_t>(count));
  std::unordered_set<int64_t> taken;
  for (int64_t j = n - count; j < n; ++j) {
    const int64_t drawn = static_cast<int64_t>(Bounded(static_cast<uint64_t>(j)));
    values.push_back(taken.insert(drawn).second ? drawn : j);
    if (values.back() == j) taken.insert(j);
  }
  ShuffleTail(1, &values);
  return values;
}

double NumpySum(std::span<const double> values) {
  const size_t n = values.size();
  if (n < 8) return std::accumulate(values.begin(), values.end(), 0.0);
  if (n <= 128) {
    std::array<double, 8> sums = {};
    std::copy_n(values.begin(), sums.size(), sums.begin());
    size_t i = 8;
    for (; i + 8 <= n; i += 8) {
      for (size_t k = 0; k < 8; ++k) sums[k] += values[i + k];
    }
    double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                 ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    for (; i < n; ++i) sum += values[i];
    return sum;
  }
  const size_t half = n / 2 - (n / 2) % 8;
  return NumpySum(values.first(half)) + NumpySum(values.subspan(half));
}

}  // namespace tessera
