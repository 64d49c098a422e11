#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

std::string Bytes(size_t count) {
  std::string bytes(count, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

// The check value of the CRC catalogue, and the vectors of RFC 3720, appendix B.4.
TEST(Crc32cTest, HasThePublishedValues) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(Crc32cTest, InstructionAndTablesAgree) {
  for (const size_t size : {1, 7, 8, 9, 63, 1024, 3071, 3072, 3073, 6151, 100'003}) {
    const std::string text = Bytes(size + 3);
    // Unaligned starts too.
    for (size_t start = 0; start < 3; ++start) {
      const auto data = std::as_bytes(std::span(text)).subspan(start, size);
      EXPECT_EQ(Crc32c(0, data), Crc32cPortable(0, data)) << size;
    }
  }
}

TEST(Crc32cTest, ExtendsAndCombines) {
  const std::string text = Bytes(20'000);
  const uint32_t whole = Crc32c(text);
  for (const size_t cut : {0, 1, 8, 4097, 19'999, 20'000}) {
    const auto data = std::as_bytes(std::span(text));
    const uint32_t head = Crc32c(0, data.first(cut));
    EXPECT_EQ(Crc32c(head, data.subspan(cut)), whole) << cut;
    EXPECT_EQ(Crc32cCombine(head, Crc32c(0, data.subspan(cut)), static_cast<int64_t>(text.size() - cut)), whole) << cut;
  }
}

}  // namespace
}  // namespace tessera
