#include "cli/text_stream.h"

#include <gtest/gtest.h>

namespace tessera::cli {
namespace {

TEST(TextStream, PassesTextThrough) {
  TextStream stream({});
  EXPECT_EQ(stream.Append("hello"), "hello");
  EXPECT_EQ(stream.Append(""), "");
  EXPECT_EQ(stream.Append(" w\xC3\xB6rld"), " w\xC3\xB6rld");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStream, HoldsACharacterUntilItIsWhole) {
  TextStream stream({});
  EXPECT_EQ(stream.Append("a\xF0"), "a");
  EXPECT_EQ(stream.Append("\x9F\x98"), "");
  EXPECT_EQ(stream.Append("\x80"
                          "b"),
            "\xF0\x9F\x98\x80"
            "b");
}

TEST(TextStream, ReplacesWhatCanNotBecomeACharacter) {
  TextStream stream({});
  EXPECT_EQ(stream.Append("a\xFF"
                          "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(stream.Append("\xC0"), "\xEF\xBF\xBD");                  // overlong
  EXPECT_EQ(stream.Append("\xED\xA0"), "\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(stream.Append("\xE2\x82"), "");
  EXPECT_EQ(stream.Append("x"), "\xEF\xBF\xBD\xEF\xBF\xBDx");
  EXPECT_EQ(stream.Append("\xE2\x82"), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(TextStream, NeverShowsAStopStringThatSpansTokens) {
  TextStream stream({"\n\nUser:", "END"});
  EXPECT_EQ(stream.Append("one\n"), "one");
  EXPECT_EQ(stream.Append("two"), "\ntwo");
  EXPECT_EQ(stream.Append("\n\nUs"), "");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.Append("er: more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.stop(), "\n\nUser:");
  EXPECT_EQ(stream.Append("after"), "");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStream, ShowsWhatLookedLikeAStopAndWasNone) {
  TextStream stream({"END"});
  EXPECT_EQ(stream.Append("EN"), "");
  EXPECT_EQ(stream.Append("EN"), "EN");
  EXPECT_EQ(stream.Append("T"), "ENT");
  EXPECT_EQ(stream.Append("E"), "");
  EXPECT_EQ(stream.Finish(), "E");
}

TEST(TextStream, TheEarliestStopWins) {
  TextStream stream({"late", "ear", ""});
  EXPECT_EQ(stream.Append("x ear late"), "x ");
  EXPECT_EQ(stream.stop(), "ear");
}

TEST(TextStream, StopsInsideACharactersBytesAreHandled) {
  TextStream stream({"\xE2\x82\xAC"});  // the euro sign
  EXPECT_EQ(stream.Append("5\xE2"), "5");
  EXPECT_EQ(stream.Append("\x82"), "");
  EXPECT_EQ(stream.Append("\xAC"), "");
  EXPECT_TRUE(stream.stopped());
}

}  // namespace
}  // namespace tessera::cli
