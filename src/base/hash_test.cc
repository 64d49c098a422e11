#include "base/hash.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

// Known answers: FIPS 180-4 examples for SHA, the xxHash specification's empty inputs.
TEST(HashTest, KnownAnswers) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha1Hex("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(Xxh3(""), 0x2d06800538d394c2u);
  EXPECT_EQ(Xxh64Hex(""), "ef46db3751d8e999");
  EXPECT_EQ(Xxh64Hex("abc"), "44bc2cf5ad770999");
}

TEST(HashTest, StreamsEqualTheWhole) {
  std::string data;
  for (int i = 0; i < 100'000; ++i) data.push_back(static_cast<char>(i * 7));
  Sha256 sha;
  Xxh3Stream xxh;
  for (size_t start = 0, piece = 1; start < data.size(); start += piece, piece = piece * 3 % 7919) {
    const std::string_view part = std::string_view(data).substr(start, piece);
    sha.Update(part);
    xxh.Update(part.data(), static_cast<int64_t>(part.size()));
  }
  EXPECT_EQ(sha.FinishHex(), Sha256Hex(data));
  EXPECT_EQ(xxh.Digest(), Xxh3(data));
}

TEST(HashTest, SeedAndEveryByteCount) {
  EXPECT_NE(Xxh3("a", 0), Xxh3("a", 1));
  EXPECT_NE(Xxh3("a"), Xxh3(std::string_view("a\0", 2)));
  const uint8_t bytes[] = {0x00, 0x0f, 0xf0, 0xff};
  EXPECT_EQ(HexOf(bytes, 4), "000ff0ff");
  EXPECT_EQ(HexOf(bytes, 0), "");
}

}  // namespace
}  // namespace tessera
