#include "base/signals.h"

#include <gtest/gtest.h>
#include <signal.h>

namespace tessera {
namespace {

class SignalsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    ClearStopRequest();
  }
  void TearDown() override { ClearStopRequest(); }
};
using SignalsDeathTest = SignalsTest;

TEST_F(SignalsTest, FirstSignalAsksForAStop) {
  const StopSignals handlers;
  EXPECT_FALSE(StopRequested());
  EXPECT_EQ(StopSignal(), 0);
  ::raise(SIGINT);
  EXPECT_TRUE(StopRequested());
  EXPECT_EQ(StopSignal(), SIGINT);
  ClearStopRequest();
  EXPECT_FALSE(StopRequested());
}

TEST_F(SignalsTest, RepeatedSigtermIsTheSameRequest) {
  const StopSignals handlers;
  ::raise(SIGTERM);
  ::raise(SIGTERM);
  ::raise(SIGTERM);
  EXPECT_TRUE(StopRequested());
  EXPECT_EQ(StopSignal(), SIGTERM);
}

TEST_F(SignalsTest, RequestFromWithinHasNoSignal) {
  RequestStop();
  EXPECT_TRUE(StopRequested());
  EXPECT_EQ(StopSignal(), 0);
}

TEST_F(SignalsTest, FormerHandlersComeBack) {
  struct sigaction before = {};
  struct sigaction during = {};
  struct sigaction after = {};
  ::sigaction(SIGINT, nullptr, &before);
  {
    const StopSignals handlers;
    ::sigaction(SIGINT, nullptr, &during);
  }
  ::sigaction(SIGINT, nullptr, &after);
  EXPECT_NE(during.sa_handler, before.sa_handler);
  EXPECT_EQ(after.sa_handler, before.sa_handler);
}

TEST_F(SignalsDeathTest, SecondCtrlCEndsAtOnce) {
  EXPECT_EXIT(
      {
        const StopSignals handlers;
        ::raise(SIGINT);
        ::raise(SIGINT);
      },
      ::testing::ExitedWithCode(130), "stopped at once");
}

TEST_F(SignalsDeathTest, CtrlCAfterSigtermEndsAtOnce) {
  EXPECT_EXIT(
      {
        const StopSignals handlers;
        ::raise(SIGTERM);
        ::raise(SIGINT);
      },
      ::testing::ExitedWithCode(130), "stopped at once");
}

}  // namespace
}  // namespace tessera
