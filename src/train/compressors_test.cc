#include "train/compressors.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/files.h"
#include "base/rng.h"
#include "base/test_folder.h"

namespace tessera {
namespace {

std::string SomeText(size_t words) {
  const std::vector<std::string> vocabulary = {"stone", "river",  "letter",
                                               "tower", "friend", "small"};
  const RngKey rng{.seed = 1, .purpose = RngPurpose::kSampling, .stream = 2};
  std::string text;
  for (size_t i = 0; i < words; ++i) {
    text += vocabulary[rng.Block(i)[0] % vocabulary.size()] + (i % 11 == 10 ? ".\n" : " ");
  }
  return text;
}

// Bytes that a program writes for a file, or -1 where it is not installed.
int64_t ProgramBytes(const std::string& program, const TestFolder& folder) {
  const std::string out = (folder / "out").string();
  const std::string command =
      "cat " + (folder / "text").string() + " | " + program + " > " + out + " 2>/dev/null";
  if (std::system(command.c_str()) != 0) return -1;
  return FileBytes(out).value();
}

TEST(Compressors, GiveTheSizesOfThePrograms) {
  const TestFolder folder;
  const std::string text = SomeText(60'000);
  folder.Write("text", text);
  const auto result = CompressText(text);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->bytes, static_cast<int64_t>(text.size()));
  const int64_t gzip = ProgramBytes("gzip -9", folder);
  const int64_t xz = ProgramBytes("xz -9e -T1", folder);
  if (gzip < 0 || xz < 0) GTEST_SKIP() << "needs the programs gzip and xz";
  // gzip's own deflate and zlib's differ in details of their lazy matching, by far less than 1%.
  EXPECT_NEAR(static_cast<double>(result->gzip_bytes), static_cast<double>(gzip),
              0.01 * static_cast<double>(gzip));
  // The same encoder; a few bytes for the size of blocks and the dictionary.
  EXPECT_NEAR(static_cast<double>(result->xz_bytes), static_cast<double>(xz), 64);
}

TEST(Compressors, SmallAndEmptyText) {
  const auto one = CompressText("x");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->bytes, 1);
  EXPECT_GT(one->gzip_bits_per_byte(), 8);
  EXPECT_FALSE(CompressText("").ok());
}

}  // namespace
}  // namespace tessera
