#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

namespace tessera {
namespace {

constexpr ErrorCode kAllCodes[] = {
    ErrorCode::kInvalidArgument, ErrorCode::kNotFound,  ErrorCode::kExists,
    ErrorCode::kIo,              ErrorCode::kCorrupt,   ErrorCode::kUnavailable,
    ErrorCode::kTimeout,         ErrorCode::kCancelled, ErrorCode::kOutOfMemory,
    ErrorCode::kUnsupported,     ErrorCode::kInternal};

TEST(ErrorTest, EveryCodeHasItsOwnNameAndANonZeroExitCode) {
  std::set<std::string_view> names;
  for (const ErrorCode code : kAllCodes) {
    EXPECT_TRUE(names.insert(ErrorCodeName(code)).second) << ErrorCodeName(code);
    EXPECT_NE(ErrorCodeName(code), "unknown");
    EXPECT_GT(ExitCodeFor(code), 0);
    EXPECT_LT(ExitCodeFor(code), 256);
  }
}

TEST(ErrorTest, ExitCodesAreThoseThatScriptsRelyOn) {
  EXPECT_EQ(ExitCodeFor(ErrorCode::kInvalidArgument), 2);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kNotFound), 3);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kIo), 3);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kCorrupt), 4);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kOutOfMemory), 5);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kUnavailable), 75);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kCancelled), 130);
  EXPECT_EQ(ExitCodeFor(ErrorCode::kInternal), 70);
}

TEST(ErrorTest, ContextGoesBeforeTheMessageAndKeepsTheRest) {
  Error error = NotFound("no key 'x'");
  error.retryable = true;
  const Error outer = error.WithContext("a.yaml:3");
  EXPECT_EQ(outer.message, "a.yaml:3: no key 'x'");
  EXPECT_EQ(outer.code, ErrorCode::kNotFound);
  EXPECT_TRUE(outer.retryable);
  EXPECT_EQ(outer.ToString(), "a.yaml:3: no key 'x' [not_found]");
}

TEST(ErrorTest, ErrnoPicksTheCodeAndNamesThePath) {
  EXPECT_EQ(ErrnoError("cannot open", "/x", ENOENT).code, ErrorCode::kNotFound);
  EXPECT_EQ(ErrnoError("cannot make", "/x", EEXIST).code, ErrorCode::kExists);
  const Error full = ErrnoError("cannot write", "/x", ENOSPC);
  EXPECT_EQ(full.code, ErrorCode::kIo);
  EXPECT_EQ(full.message, "cannot write '/x': No space left on device");
  EXPECT_FALSE(full.retryable);
  EXPECT_TRUE(ErrnoError("cannot read", "/x", EAGAIN).retryable);
}

Result<int> Half(int value) {
  if (value % 2 != 0) return InvalidArgument("odd");
  return value / 2;
}

Result<int> Quarter(int value) {
  TESSERA_ASSIGN(const int half, Half(value));
  TESSERA_ASSIGN(const int quarter, Half(half));
  return quarter;
}

Status CheckQuarter(int value) {
  TESSERA_TRY(Quarter(value));
  return {};
}

TEST(ResultTest, MacrosPassTheValueOnAndReturnTheFirstError) {
  EXPECT_EQ(Quarter(8).value(), 2);
  ASSERT_FALSE(Quarter(6).ok());
  EXPECT_EQ(Quarter(6).error().message, "odd");
  EXPECT_TRUE(CheckQuarter(4).ok());
  EXPECT_EQ(CheckQuarter(5).error().code, ErrorCode::kInvalidArgument);
}

TEST(ResultTest, HoldsMoveOnlyValues) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  ASSERT_TRUE(result.ok());
  const std::unique_ptr<int> value = std::move(result).value();
  EXPECT_EQ(*value, 7);
}

TEST(ErrorTest, ExceptionCarriesTheSamePayload) {
  try {
    throw ErrorException(OutOfMemory("needs 31.2 GiB"));
  } catch (const ErrorException& exception) {
    EXPECT_EQ(exception.error().code, ErrorCode::kOutOfMemory);
    EXPECT_STREQ(exception.what(), "needs 31.2 GiB [out_of_memory]");
  }
}

TEST(CheckDeathTest, FailedCheckAbortsWithTheConditionAndTheMessage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TESSERA_CHECK(1 + 1 == 2);
  EXPECT_DEATH(TESSERA_CHECK(1 + 1 == 3, "sum"), "check failed: 1 \\+ 1 == 3: sum");
}

}  // namespace
}  // namespace tessera
