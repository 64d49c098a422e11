// A keyed permutation of [0, n) that is computed element by element, forward and back, in O(1)
// memory: the order of samples in an epoch.
#pragma once

#include <array>
#include <cstdint>

namespace tessera {

// A Feistel network whose round function is Philox, on the smallest power of two that holds n,
// with cycle walking back into [0, n) (Black and Rogaway, "Ciphers with arbitrary finite domains",
// 2002). Under 2 walks on average, about 0.2 microseconds an element.
class Permutation {
 public:
  // `stream` tells permutations of one seed apart, for instance the epoch. n >= 1.
  Permutation(int64_t n, uint64_t seed, uint64_t stream);

  int64_t size() const { return static_cast<int64_t>(size_); }
  int64_t Forward(int64_t position) const;
  int64_t Inverse(int64_t value) const;

 private:
  uint64_t Encrypt(uint64_t value) const;
  uint64_t Decrypt(uint64_t value) const;
  uint64_t Round(int round, uint64_t half) const;

  uint64_t size_ = 1;
  uint64_t stream_ = 0;
  std::array<uint32_t, 2> key_ = {};
  int low_bits_ = 1;   // Bits of the low half; the high half has as many or one less.
  int high_bits_ = 0;
};

}  // namespace tessera
