// Counter-based random numbers (Philox4x32-10). A value depends only on what it is for, never on
// the order of calls, the number of threads or the machine.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace tessera {

// One Philox4x32-10 block. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
inline std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter,
                                      std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// What random numbers are for; together with a seed it makes the Philox key.
enum class RngPurpose : uint32_t {
  kInit = 1,
  kDropout = 2,
  kStochasticRounding = 3,
  kSampling = 4,
  kShuffle = 5,
  kCalibration = 6,
};

// The stream of values of one (seed, purpose, stream id); `stream` is for instance the hash of a
// tensor's name, or step and layer packed into one word.
struct RngKey {
  uint64_t seed = 0;
  RngPurpose purpose = RngPurpose::kInit;
  uint64_t stream = 0;

  // Four independent 32-bit words for block `index`.
  std::array<uint32_t, 4> Block(uint64_t index) const {
    const std::array<uint32_t, 2> key = Mixed();
    return Philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                   static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                  key);
  }

  // The Philox key: the seed with the purpose folded in.
  std::array<uint32_t, 2> Mixed() const {
    uint64_t z = seed + 0x9E3779B97F4A7C15ull * (static_cast<uint64_t>(purpose) + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
  }

  // Uniform in [0, 1) with 24 bits, element `index` of the stream.
  float Uniform(uint64_t index) const {
    return static_cast<float>(Block(index >> 2)[index & 3] >> 8) * 0x1p-24f;
  }

  // Standard normal, element `index` (Box-Muller over pairs of words).
  float Normal(uint64_t index) const {
    const std::array<uint32_t, 4> block = Block(index >> 2);
    const uint64_t pair = (index >> 1) & 1;
    const double u1 = (block[2 * pair] + 1.0) * 0x1p-32;  // in (0, 1]
    const double u2 = block[2 * pair + 1] * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(u1));
    const double angle = 6.283185307179586 * u2;
    return static_cast<float>((index & 1) ? radius * std::sin(angle) : radius * std::cos(angle));
  }
};

// FNV-1a of a name, for the stream of a tensor.
constexpr uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

}  // namespace tessera
