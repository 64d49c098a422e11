#include "base/log.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

class LogTest : public ::testing::Test {
 protected:
  void SetUp() override { former_ = CurrentLogLevel(); }
  void TearDown() override {
    SetLogLevel(former_);
    SetLogRank(-1);
    SetLogStep(-1);
  }

 private:
  LogLevel former_ = LogLevel::kInfo;
};

TEST_F(LogTest, LineHasTimeLevelAndTheFieldsThatAreSet) {
  EXPECT_EQ(FormatLogLine(LogLevel::kWarning, "text", 3661), "01:01:01 W text");
  SetLogStep(120);
  EXPECT_EQ(FormatLogLine(LogLevel::kInfo, "text", 0), "00:00:00 I [step 120] text");
  SetLogRank(3);
  EXPECT_EQ(FormatLogLine(LogLevel::kError, "text", 0), "00:00:00 E [rank 3 step 120] text");
  SetLogStep(-1);
  EXPECT_EQ(FormatLogLine(LogLevel::kDebug, "text", 0), "00:00:00 D [rank 3] text");
}

TEST_F(LogTest, LevelsBelowTheCurrentOneAreSilent) {
  SetLogLevel(LogLevel::kWarning);
  ::testing::internal::CaptureStderr();
  LogDebug("a {}", 1);
  LogInfo("b {}", 2);
  LogWarning("c {}", 3);
  LogError("d {}", 4);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find(" I "), std::string::npos) << text;
  EXPECT_NE(text.find(" W c 3\n"), std::string::npos) << text;
  EXPECT_NE(text.find(" E d 4\n"), std::string::npos) << text;
  SetLogLevel(LogLevel::kOff);
  ::testing::internal::CaptureStderr();
  LogError("e");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(LogTest, LevelNamesAreExact) {
  EXPECT_EQ(ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_EQ(ParseLogLevel("off"), LogLevel::kOff);
  EXPECT_EQ(ParseLogLevel("Debug"), std::nullopt);
  EXPECT_EQ(ParseLogLevel(""), std::nullopt);
}

}  // namespace
}  // namespace tessera
