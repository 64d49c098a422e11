#include "train/duration.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

TEST(Duration, ParsesEveryUnit) {
  const struct {
    const char* text;
    Duration expected;
  } cases[] = {{"2000ba", {2000, TimeUnit::kBatch}}, {"10_000_000tok", {1e7, TimeUnit::kToken}},
               {"1e9tok", {1e9, TimeUnit::kToken}},  {"1ep", {1, TimeUnit::kEpoch}},
               {"2.5ep", {2.5, TimeUnit::kEpoch}},   {"180sec", {180, TimeUnit::kSecond}},
               {"180s", {180, TimeUnit::kSecond}},   {"3min", {180, TimeUnit::kSecond}},
               {"1.5h", {5400, TimeUnit::kSecond}},  {"0.1dur", {0.1, TimeUnit::kFraction}},
               {" 5 ba ", {5, TimeUnit::kBatch}}};
  for (const auto& c : cases) {
    const Result<Duration> duration = ParseDuration(c.text);
    ASSERT_TRUE(duration.ok()) << c.text << ": " << duration.error().message;
    EXPECT_EQ(*duration, c.expected) << c.text;
  }
}

TEST(Duration, RefusesWhatIsNoDurationAndSaysWhy) {
  const struct {
    const char* text;
    const char* says;
  } cases[] = {{"", "not a length"},
               {"ba", "not a length"},
               {"100", "no unit"},
               {"100steps", "steps"},
               {"-5ba", "between 0"},
               {"1.5ba", "whole number"},
               {"0.5tok", "whole number"},
               {"1.1dur", "whole run"},
               {"nanba", "not a length"},
               {"1e300tok", "2^53"},
               {"5 ba x", "not a length"},
               {"infsec", "not a length"},
               {"5BA", "BA"},
               {"1sp", "'sp'"}};
  for (const auto& c : cases) {
    const Result<Duration> duration = ParseDuration(c.text);
    ASSERT_FALSE(duration.ok()) << c.text;
    EXPECT_NE(duration.error().message.find(c.says), std::string::npos)
        << c.text << ": " << duration.error().message;
  }
}

TEST(Duration, WritesWhatItReads) {
  for (const char* text :
       {"2000ba", "10000000tok", "2.5ep", "180sec", "0.1dur", "0.333dur", "0ba"}) {
    const Result<Duration> duration = ParseDuration(text);
    ASSERT_TRUE(duration.ok());
    EXPECT_EQ(FormatDuration(*duration), text);
  }
  const Duration odd = {1.0 / 3.0, TimeUnit::kEpoch};
  EXPECT_EQ(*ParseDuration(FormatDuration(odd)), odd);
}

TEST(Duration, ResolvesSharesOfTheRun) {
  EXPECT_EQ(ResolveFraction({0.1, TimeUnit::kFraction}, {2000, TimeUnit::kBatch}),
            (Duration{200, TimeUnit::kBatch}));
  EXPECT_EQ(ResolveFraction({0.1, TimeUnit::kFraction}, {7, TimeUnit::kBatch}),
            (Duration{1, TimeUnit::kBatch}));
  EXPECT_EQ(ResolveFraction({0.25, TimeUnit::kFraction}, {90, TimeUnit::kSecond}),
            (Duration{22.5, TimeUnit::kSecond}));
  EXPECT_EQ(ResolveFraction({3, TimeUnit::kEpoch}, {7, TimeUnit::kBatch}),
            (Duration{3, TimeUnit::kEpoch}));
}

TEST(Duration, IsDueAtEveryMultiple) {
  const auto at = [](int64_t step, double seconds) {
    return Progress{.step = step, .tokens = step * 100, .epochs = 0, .seconds = seconds};
  };
  const Duration five = {5, TimeUnit::kBatch};
  EXPECT_FALSE(IsDue(at(3, 0), at(4, 0), five));
  EXPECT_TRUE(IsDue(at(4, 0), at(5, 0), five));
  EXPECT_FALSE(IsDue(at(5, 0), at(6, 0), five));
  // A step of 100 tokens passes 450 between its start at 400 and its end at 500.
  EXPECT_TRUE(IsDue(at(4, 0), at(5, 0), {450, TimeUnit::kToken}));
  EXPECT_TRUE(IsDue(at(4, 29.5), at(5, 31.0), {10, TimeUnit::kSecond}));
  EXPECT_FALSE(IsDue(at(4, 31.0), at(5, 32.5), {10, TimeUnit::kSecond}));
  EXPECT_FALSE(IsDue(at(0, 0), at(5, 50), {}));
  EXPECT_TRUE(HasReached(at(5, 0), five));
  EXPECT_FALSE(HasReached(at(4, 0), five));
}

}  // namespace
}  // namespace tessera
