#include "data/permutation.h"

#include <bit>

#include "base/error.h"
#include "base/rng.h"

namespace tessera {

namespace {

// Four rounds make a Luby-Rackoff pseudorandom permutation; small domains need more to mix.
constexpr int kRounds = 8;

constexpr uint64_t LowMask(int bits) {
  return bits == 0 ? 0 : ~uint64_t{0} >> (64 - bits);
}

}  // namespace

Permutation::Permutation(int64_t n, uint64_t seed, uint64_t stream)
    : size_(static_cast<uint64_t>(n)), stream_(stream) {
  TESSERA_CHECK(n >= 1, "a permutation needs at least one element");
  const int bits = static_cast<int>(std::bit_width(size_ - 1));
  low_bits_ = (bits + 1) / 2;
  high_bits_ = bits - low_bits_;
  key_ = RngKey{.seed = seed, .purpose = RngPurpose::kShuffle}.Mixed();
}

uint64_t Permutation::Round(int round, uint64_t half) const {
  // n < 2^63, so a half has at most 32 bits.
  const auto block =
      Philox({static_cast<uint32_t>(half), static_cast<uint32_t>(round),
              static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
             key_);
  return block[0];
}

uint64_t Permutation::Encrypt(uint64_t value) const {
  uint64_t low = value & LowMask(low_bits_);
  uint64_t high = value >> low_bits_;
  for (int round = 0; round < kRounds; round += 2) {
    low ^= Round(round, high) & LowMask(low_bits_);
    high ^= Round(round + 1, low) & LowMask(high_bits_);
  }
  return high << low_bits_ | low;
}

uint64_t Permutation::Decrypt(uint64_t value) const {
  uint64_t low = value & LowMask(low_bits_);
  uint64_t high = value >> low_bits_;
  for (int round = kRounds - 2; round >= 0; round -= 2) {
    high ^= Round(round + 1, low) & LowMask(high_bits_);
    low ^= Round(round, high) & LowMask(low_bits_);
  }
  return high << low_bits_ | low;
}

int64_t Permutation::Forward(int64_t position) const {
  uint64_t value = Encrypt(static_cast<uint64_t>(position));
  while (value >= size_) value = Encrypt(value);
  return static_cast<int64_t>(value);
}

int64_t Permutation::Inverse(int64_t value) const {
  uint64_t position = Decrypt(static_cast<uint64_t>(value));
  while (position >= size_) position = Decrypt(position);
  return static_cast<int64_t>(position);
}

}  // namespace tessera
