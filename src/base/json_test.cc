#include "base/json.h"

#include <gtest/gtest.h>

#include <string>

#include "base/test_folder.h"

namespace tessera {
namespace {

TEST(JsonTest, BrokenTextIsCorruptAndNamesItsSource) {
  for (const char* text : {"", "{", "{\"a\":}", "[1,]", "nul", "{} {}", "\"\\ud800\"", "\"open"}) {
    const auto parsed = ParseJson(text, "x.json");
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(parsed.error().message.rfind("x.json:", 0), 0u) << parsed.error().message;
  }
}

TEST(JsonTest, ErrorsTellThePlaceAndWhetherTheFileWasCutOff) {
  const std::string wrong = ParseJson("{\n\"a\": x}", "f").error().message;
  EXPECT_NE(wrong.find("line 2, column 6"), std::string::npos) << wrong;
  EXPECT_EQ(wrong.find("json.exception"), std::string::npos) << wrong;
  EXPECT_EQ(wrong.find("cut off"), std::string::npos) << wrong;
  for (const char* text : {"", "{\"a\": [1, 2", "{\"a\": \"b"}) {
    const std::string cut = ParseJson(text, "f").error().message;
    EXPECT_NE(cut.find("cut off"), std::string::npos) << cut;
  }
}

TEST(JsonTest, DepthIsBoundedOutsideOfStrings) {
  const std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_TRUE(ParseJson(deep, "x").ok());
  EXPECT_FALSE(ParseJson("[" + deep + "]", "x").ok());
  // A million levels must not exhaust the stack.
  EXPECT_FALSE(ParseJson(std::string(1'000'000, '['), "x").ok());
  EXPECT_TRUE(ParseJson("\"" + std::string(1000, '[') + "\\\"[\"", "x").ok());
}

TEST(JsonTest, MembersAreTypedAndErrorsSayWhatWasFound) {
  const Json object =
      ParseJson(R"({"i": 3, "d": 1.5, "s": "t", "big": 18446744073709551615})", "x").value();
  EXPECT_EQ(JsonInt(object, "i", "x").value(), 3);
  EXPECT_EQ(JsonNumber(object, "d", "x").value(), 1.5);
  EXPECT_EQ(JsonNumber(object, "i", "x").value(), 3.0);
  EXPECT_EQ(JsonString(object, "s", "x").value(), "t");
  EXPECT_FALSE(JsonInt(object, "big", "x").ok());
  EXPECT_EQ(JsonInt(object, "d", "x").error().message,
            "x: key 'd' must be an integer, found 1.5");
  EXPECT_NE(JsonString(object, "none", "x").error().message.find("'none' is missing"),
            std::string::npos);
  EXPECT_FALSE(JsonInt(Json::array(), "i", "x").ok());
}

TEST(JsonTest, ReadsAFileWithinItsLimit) {
  const TestFolder folder;
  const auto file = folder.Write("a.json", R"({"a": [1, 2]})");
  EXPECT_EQ(ReadJsonFile(file).value()["a"].size(), 2u);
  EXPECT_FALSE(ReadJsonFile(file, 5).ok());
  EXPECT_EQ(ReadJsonFile(folder / "none").error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace tessera
