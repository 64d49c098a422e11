#include "base/progress.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace tessera {
namespace {

// A stream that is no terminal, and what was written to it.
class Sink {
 public:
  ~Sink() { std::fclose(file_); }
  std::FILE* file() const { return file_; }
  std::string Text() const {
    std::fflush(file_);
    std::rewind(file_);
    std::string text;
    for (int c = std::fgetc(file_); c != EOF; c = std::fgetc(file_)) {
      text.push_back(static_cast<char>(c));
    }
    return text;
  }

 private:
  std::FILE* file_ = std::tmpfile();
};

TEST(ProgressTest, LineShowsShareRateAndTimeLeft) {
  ProgressMeter progress("tokenizing", {.total = 20 << 20,
                                   .unit = ProgressUnit::kBytes,
                                   .noun = {},
                                   .mode = ProgressMode::kSilent});
  progress.Update(5 << 20);
  EXPECT_EQ(progress.Line(10), "tokenizing  25% | 5.0 MiB of 20.0 MiB | 512.0 KiB/s | 30s left");
  progress.Update(20 << 20);
  EXPECT_EQ(progress.Line(40), "tokenizing 100% | 20.0 MiB of 20.0 MiB | 512.0 KiB/s | 0.0s left");
}

TEST(ProgressTest, LineWithoutATotalShowsOnlyCountAndRate) {
  ProgressMeter progress("reading", {.noun = "documents", .mode = ProgressMode::kSilent});
  EXPECT_EQ(progress.Line(0), "reading | 0 documents | 0/s");
  progress.Add(1500);
  EXPECT_EQ(progress.Line(2), "reading | 1.5k documents | 750/s");
}

TEST(ProgressTest, NothingDoneHasNoTimeLeft) {
  const ProgressMeter progress("x", {.total = 10, .noun = {}, .mode = ProgressMode::kSilent});
  EXPECT_EQ(progress.Line(5), "x   0% | 0 of 10 | 0/s");
}

TEST(ProgressTest, ShareIsRoundedDownAndNeverAboveAll) {
  ProgressMeter progress("x", {.total = 1000, .noun = {}, .mode = ProgressMode::kSilent});
  progress.Update(999);
  EXPECT_EQ(progress.Line(1).rfind("x  99% |", 0), 0u);
  progress.Update(1200);
  EXPECT_EQ(progress.Line(1).rfind("x 100% |", 0), 0u);
}

TEST(ProgressTest, PlainPrintsLinesEveryIntervalAndTheLastOnce) {
  const Sink sink;
  {
    ProgressMeter often("a", {.total = 2,
                         .noun = {},
                         .mode = ProgressMode::kPlain,
                         .plain_interval_s = 0,
                         .stream = sink.file()});
    often.Add(1);
    often.Add(1);
    often.Finish();
    often.Finish();
    often.Add(1);
  }
  const std::string text = sink.Text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos) << text;
}

TEST(ProgressTest, PlainStaysQuietWithinItsInterval) {
  const Sink sink;
  {
    ProgressMeter rare("a", {.total = 2,
                        .noun = {},
                        .mode = ProgressMode::kPlain,
                        .plain_interval_s = 1000,
                        .stream = sink.file()});
    rare.Add(1);
  }
  EXPECT_EQ(sink.Text(), "");
}

TEST(ProgressTest, AFileIsNoTerminal) {
  const Sink sink;
  EXPECT_FALSE(LiveLine(ProgressMode::kAuto, 10, sink.file()).live());
}

TEST(LiveLineTest, RedrawsInPlaceCutToTheWidth) {
  const Sink sink;
  {
    LiveLine line(ProgressMode::kLive, 10, sink.file());
    // 80 columns where the width is unknown, one kept free; two-byte letters count once.
    std::string wide;
    for (int i = 0; i < 100; ++i) wide += "\xc3\xa9";
    line.Show(wide);
    line.Show("too soon");
    line.Print("kept");
  }
  std::string expected = "\r\x1b[K";
  for (int i = 0; i < 79; ++i) expected += "\xc3\xa9";
  expected += "\r\x1b[Kkept\n";
  EXPECT_EQ(sink.Text(), expected);
}

TEST(LiveLineTest, AnOpenLineIsEndedWhenTheObjectGoes) {
  const Sink sink;
  { LiveLine(ProgressMode::kLive, 10, sink.file()).Show("x"); }
  EXPECT_EQ(sink.Text(), "\r\x1b[Kx\n");
}

TEST(LiveLineTest, SilentIsNeverDue) {
  const Sink sink;
  {
    LiveLine line(ProgressMode::kSilent, 0, sink.file());
    EXPECT_FALSE(line.Due());
    line.Show("x");
    line.Print("y");
  }
  EXPECT_EQ(sink.Text(), "");
}

TEST(ProgressTest, ManyThreadsAddUp) {
  const Sink sink;
  ProgressMeter progress("a", {.total = 40'000,
                          .noun = {},
                          .mode = ProgressMode::kLive,
                          .plain_interval_s = 0,
                          .stream = sink.file()});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) progress.Add(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(progress.done(), 40'000);
}

}  // namespace
}  // namespace tessera
