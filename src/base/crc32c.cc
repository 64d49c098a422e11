#include "base/crc32c.h"

#include <array>
#include <cstring>

namespace tessera {

namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// Table k gives the effect of a byte that has k bytes behind it ("slicing by 8").
constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    tables[0][i] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t i = 0; i < 256; ++i) {
      tables[k][i] = (tables[k - 1][i] >> 8) ^ tables[0][tables[k - 1][i] & 255];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

uint64_t Load64(const std::byte* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

// Product of two polynomials modulo the polynomial; bit 31 is x^0.
uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b >> 1) ^ ((b & 1) ? kPolynomial : 0);
  }
  return product;
}

// x^(8 * bytes) modulo the polynomial.
uint32_t ShiftOf(uint64_t bytes) {
  uint32_t result = 1u << 31;        // x^0
  uint32_t power = 1u << (31 - 8);   // x^8
  for (; bytes != 0; bytes >>= 1) {
    if (bytes & 1) result = Multiply(result, power);
    power = Multiply(power, power);
  }
  return result;
}

#if defined(__x86_64__)

constexpr int64_t kLane = 1024;  // Bytes of each of the three chains.

// The instruction has a latency of three cycles and a throughput of one, so three independent chains
// run at once and are joined by multiplication with x^(8 * kLane).
__attribute__((target("sse4.2"))) uint32_t Crc32cHardware(uint32_t crc,
                                                           std::span<const std::byte> data) {
  static const uint32_t shift = ShiftOf(kLane);
  uint64_t state = ~crc;
  const std::byte* at = data.data();
  size_t left = data.size();
  while (left >= 3 * kLane) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (int64_t i = 0; i < kLane; i += 8) {
      state = __builtin_ia32_crc32di(state, Load64(at + i));
      second = __builtin_ia32_crc32di(second, Load64(at + i + kLane));
      third = __builtin_ia32_crc32di(third, Load64(at + i + 2 * kLane));
    }
    state = Multiply(shift, static_cast<uint32_t>(state)) ^ second;
    state = Multiply(shift, static_cast<uint32_t>(state)) ^ third;
    at += 3 * kLane;
    left -= 3 * kLane;
  }
  for (; left >= 8; left -= 8, at += 8) state = __builtin_ia32_crc32di(state, Load64(at));
  uint32_t tail = static_cast<uint32_t>(state);
  for (; left > 0; --left, ++at) tail = __builtin_ia32_crc32qi(tail, static_cast<uint8_t>(*at));
  return ~tail;
}

#endif

}  // namespace

uint32_t Crc32cPortable(uint32_t crc, std::span<const std::byte> data) {
  uint32_t state = ~crc;
  const std::byte* at = data.data();
  size_t left = data.size();
  for (; left >= 8; left -= 8, at += 8) {
    const uint64_t word = Load64(at) ^ state;  // Little-endian.
    state = 0;
    for (size_t k = 0; k < 8; ++k) state ^= kTables[7 - k][(word >> (8 * k)) & 255];
  }
  for (; left > 0; --left, ++at) {
    state = (state >> 8) ^ kTables[0][(state ^ static_cast<uint8_t>(*at)) & 255];
  }
  return ~state;
}

uint32_t Crc32c(uint32_t crc, std::span<const std::byte> data) {
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  if (hardware) return Crc32cHardware(crc, data);
#endif
  return Crc32cPortable(crc, data);
}

uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, int64_t bytes_b) {
  return Multiply(ShiftOf(static_cast<uint64_t>(bytes_b)), crc_a) ^ crc_b;
}

}  // namespace tessera
