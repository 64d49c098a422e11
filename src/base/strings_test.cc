#include "base/strings.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace tessera {
namespace {

TEST(StringsTest, FormatsSizesAsPeopleReadThem) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(int64_t{312} << 30), "312.0 GiB");
  EXPECT_EQ(FormatCount(950), "950");
  EXPECT_EQ(FormatCount(12'345), "12.3k");
  EXPECT_EQ(FormatCount(4'560'000), "4.56M");
  EXPECT_EQ(FormatCount(1.23e9), "1.23B");
  EXPECT_EQ(FormatDuration(0.84), "0.8s");
  EXPECT_EQ(FormatDuration(42), "42s");
  EXPECT_EQ(FormatDuration(187), "3m07s");
  EXPECT_EQ(FormatDuration(5 * 3600 + 12 * 60), "5h12m");
  EXPECT_EQ(FormatDuration(3 * 86400 + 4 * 3600), "3d04h");
  EXPECT_EQ(FormatDuration(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(FormatDuration(-1), "?");
}

TEST(StringsTest, ParsesWholeNumbersOnly) {
  EXPECT_EQ(ParseInt("10_000"), 10000);
  EXPECT_EQ(ParseInt("-5"), -5);
  EXPECT_EQ(ParseInt("9223372036854775807"), std::numeric_limits<int64_t>::max());
  for (const char* bad : {"", " 5", "5 ", "5x", "1.5", "_1", "1_", "1__0", "9223372036854775808"}) {
    EXPECT_EQ(ParseInt(bad), std::nullopt) << "'" << bad << "'";
  }
  EXPECT_EQ(ParseDouble("1e-3"), 1e-3);
  EXPECT_EQ(ParseDouble("2_500.5"), 2500.5);
  EXPECT_EQ(ParseDouble("+.5"), 0.5);
  EXPECT_EQ(ParseDouble("-1.E2"), -100);
  EXPECT_EQ(ParseDouble("-0"), 0);
  for (const char* bad : {"", "1.5x", " 1", "1_.5", ".", "+", "-", "+-1", "-+1", "1e", "1e400",
                          "-1e400", "1e-400", "inf", "-inf", "INFINITY", "nan", "-nan", "nan(1)",
                          "0x10", "0x1p3", "1,5", "1e3 "}) {
    EXPECT_EQ(ParseDouble(bad), std::nullopt) << "'" << bad << "'";
  }
}

TEST(StringsTest, SplitsTrimsAndJoins) {
  EXPECT_EQ(Split("a,,b", ','), (std::vector<std::string_view>{"a", "", "b"}));
  EXPECT_EQ(Split("", ','), (std::vector<std::string_view>{""}));
  EXPECT_EQ(Trim(" \t a b\r\n"), "a b");
  EXPECT_EQ(Trim(" \n"), "");
  EXPECT_EQ(Join({"a", "b"}, ", "), "a, b");
  EXPECT_EQ(Join({}, ", "), "");
}

TEST(StringsTest, NearestKeyFindsTypingErrorsButNotOtherWords) {
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  const std::vector<std::string> keys = {"max_duration", "save_folder", "precision"};
  EXPECT_EQ(NearestKey("max_durations", keys), "max_duration");
  EXPECT_EQ(NearestKey("save_fodler", keys), "save_folder");
  EXPECT_EQ(NearestKey("zzz", keys), std::nullopt);
  EXPECT_EQ(NearestKey("zzz", {}), std::nullopt);
}

}  // namespace
}  // namespace tessera
