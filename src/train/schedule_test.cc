#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace tessera {
namespace {

constexpr Duration Batches(double n) { return {n, TimeUnit::kBatch}; }

Progress AtStep(int64_t step) {
  return {.step = step,
          .tokens = step * 4096,
          .epochs = static_cast<double>(step) / 500,
          .seconds = static_cast<double>(step) * 0.25};
}

Schedule Make(const ScheduleConfig& config, Duration max_duration = Batches(1000)) {
  Result<Schedule> schedule = Schedule::Create(config, max_duration);
  EXPECT_TRUE(schedule.ok()) << schedule.error().message;
  return *schedule;
}

// Golden values below were computed in Python from the formulas as Composer and llm-foundry state
// them. The results of a handful of double operations agree to a few units in the last place of 1.
constexpr double kTolerance = 1e-14;

TEST(Schedule, ConstantWithWarmup) {
  const Schedule schedule = Make({.kind = ScheduleKind::kConstant, .t_warmup = Batches(8)});
  EXPECT_EQ(schedule.Multiplier(AtStep(1)), 0.125);
  EXPECT_EQ(schedule.Multiplier(AtStep(4)), 0.5);
  EXPECT_EQ(schedule.Multiplier(AtStep(8)), 1.0);
  EXPECT_EQ(schedule.Multiplier(AtStep(5000)), 1.0);
  EXPECT_EQ(Make({.kind = ScheduleKind::kConstant}).Multiplier(AtStep(1)), 1.0);
}

TEST(Schedule, LinearDecayMatchesComposer) {
  const Schedule schedule =
      Make({.kind = ScheduleKind::kLinear, .t_warmup = Batches(100), .alpha_f = 0.1});
  const struct {
    int64_t step;
    double expected;
  } golden[] = {{1, 0.01},   {50, 0.5},    {99, 0.99},  {100, 1.0}, {101, 0.999},
                {550, 0.55}, {775, 0.325}, {1000, 0.1}, {2000, 0.1}};
  for (const auto& g : golden) {
    EXPECT_NEAR(schedule.Multiplier(AtStep(g.step)), g.expected, kTolerance) << g.step;
  }
}

TEST(Schedule, CosineMatchesComposer) {
  const Schedule schedule =
      Make({.kind = ScheduleKind::kCosine, .t_warmup = Batches(100), .alpha_f = 0.1});
  const struct {
    int64_t step;
    double expected;
  } golden[] = {{1, 0.01},
                {99, 0.99},
                {100, 1.0},
                {101, 0.9999972584460056},
                {325, 0.8681980515339464},
                {550, 0.55},
                {700, 0.3250000000000001},
                {999, 0.10000274155399433},
                {1000, 0.1},
                {1500, 0.1}};
  for (const auto& g : golden) {
    EXPECT_NEAR(schedule.Multiplier(AtStep(g.step)), g.expected, kTolerance) << g.step;
  }
}

TEST(Schedule, InverseSqrtMatchesLlmFoundry) {
  const Schedule schedule = Make({.kind = ScheduleKind::kInverseSqrt,
                                  .t_warmup = Batches(100),
                                  .alpha_f = 0.05,
                                  .t_scale = Batches(200),
                                  .t_cooldown = Batches(150),
                                  .alpha_f_cooldown = 0.01});
  const struct {
    int64_t step;
    double expected;
  } golden[] = {{10, 0.1},
                {100, 1.0},
                {101, 0.9976338693022513},
                {300, 0.7217514421272201},
                {700, 0.525},
                {850, 0.48588989435406726},
                {851, 0.48271729505837346},
                {925, 0.24794494717703364},
                {1000, 0.010000000000000009},
                {1200, 0.010000000000000009}};
  for (const auto& g : golden) {
    EXPECT_NEAR(schedule.Multiplier(AtStep(g.step)), g.expected, kTolerance) << g.step;
  }
}

TEST(Schedule, WarmupStableDecay) {
  const Schedule linear = Make({.kind = ScheduleKind::kWarmupStableDecay,
                                .t_warmup = Batches(20),
                                .alpha_f = 0.2,
                                .t_decay = {0.4, TimeUnit::kFraction}});
  const Schedule root = Make({.kind = ScheduleKind::kWarmupStableDecay,
                              .t_warmup = Batches(20),
                              .t_decay = {0.4, TimeUnit::kFraction},
                              .decay_shape = DecayShape::kSqrt});
  EXPECT_NEAR(linear.Multiplier(AtStep(5)), 0.25, kTolerance);
  EXPECT_EQ(linear.Multiplier(AtStep(20)), 1.0);
  EXPECT_EQ(linear.Multiplier(AtStep(600)), 1.0);
  EXPECT_NEAR(linear.Multiplier(AtStep(700)), 0.8, kTolerance);
  EXPECT_NEAR(linear.Multiplier(AtStep(1000)), 0.2, kTolerance);
  EXPECT_NEAR(linear.Multiplier(AtStep(1100)), 0.2, kTolerance);
  EXPECT_NEAR(root.Multiplier(AtStep(700)), 0.5, kTolerance);
  EXPECT_NEAR(root.Multiplier(AtStep(1000)), 0.0, kTolerance);
  EXPECT_EQ(Make({.kind = ScheduleKind::kWarmupStableDecay}).Multiplier(AtStep(1000)), 1.0);
}

// The same curve, whichever clock counts: 1000 steps are 4,096,000 tokens, 2 epochs, 250 seconds.
TEST(Schedule, CountsStepsTokensEpochsOrSeconds) {
  const Duration totals[] = {
      Batches(1000), {4096000, TimeUnit::kToken}, {2, TimeUnit::kEpoch}, {250, TimeUnit::kSecond}};
  const ScheduleConfig config = {
      .kind = ScheduleKind::kCosine, .t_warmup = {0.1, TimeUnit::kFraction}, .alpha_f = 0.1};
  const Schedule by_steps = Make(config);
  for (const Duration& total : totals) {
    const Schedule schedule = Make(config, total);
    for (int64_t step = 1; step <= 1000; step += 37) {
      // epochs = step / 500 is rounded once, which moves the multiplier by less than 1e-15 * pi.
      EXPECT_NEAR(schedule.Multiplier(AtStep(step)), by_steps.Multiplier(AtStep(step)), kTolerance);
    }
  }
}

TEST(Schedule, AWarmupInStepsGoesWithARunInSeconds) {
  const Schedule schedule = Make({.kind = ScheduleKind::kWarmupStableDecay,
                                  .t_warmup = Batches(10),
                                  .t_decay = {50, TimeUnit::kSecond}},
                                 {180, TimeUnit::kSecond});
  EXPECT_NEAR(schedule.Multiplier({.step = 3, .seconds = 0.9}), 0.3, kTolerance);
  EXPECT_EQ(schedule.Multiplier({.step = 300, .seconds = 130}), 1.0);
  EXPECT_NEAR(schedule.Multiplier({.step = 600, .seconds = 155}), 0.5, kTolerance);
}

// The convention of Progress: with warm-up no update is spent at a rate of zero.
TEST(Schedule, TheFirstUpdateMoves) {
  for (ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine,
                            ScheduleKind::kInverseSqrt, ScheduleKind::kWarmupStableDecay}) {
    const Schedule schedule = Make(
        {.kind = kind, .t_warmup = Batches(50), .t_scale = Batches(50), .t_decay = Batches(50)});
    EXPECT_NEAR(schedule.Multiplier(AtStep(1)), 0.02, kTolerance) << ScheduleKindName(kind);
  }
}

TEST(Schedule, ShortTrialsOfLongRecipesEndInTheWarmUp) {
  for (const ScheduleKind kind : {ScheduleKind::kLinear, ScheduleKind::kCosine}) {
    const Result<Schedule> schedule =
        Schedule::Create({.kind = kind, .t_warmup = Batches(100)}, Batches(40));
    ASSERT_TRUE(schedule.ok()) << schedule.error().message;
    EXPECT_NEAR(schedule->Multiplier(AtStep(20)), 0.2, kTolerance);
    EXPECT_NEAR(schedule->Multiplier(AtStep(40)), 0.4, kTolerance);
  }
}

TEST(Schedule, RefusesWhatCanNotBeCompared) {
  const Duration seconds = {10, TimeUnit::kSecond};
  const struct {
    ScheduleConfig config;
    const char* says;
  } cases[] = {
      {{.kind = ScheduleKind::kCosine, .t_warmup = seconds}, "one unit"},
      {{.kind = ScheduleKind::kInverseSqrt}, "t_scale"},
      {{.kind = ScheduleKind::kInverseSqrt, .t_scale = seconds}, "one unit"},
      {{.kind = ScheduleKind::kInverseSqrt,
        .t_warmup = Batches(600),
        .t_scale = Batches(5),
        .t_cooldown = Batches(600)},
       "longer than t_max"},
      {{.kind = ScheduleKind::kWarmupStableDecay, .t_decay = seconds}, "one unit"},
      {{.kind = ScheduleKind::kWarmupStableDecay, .t_decay = Batches(2000)}, "longer than t_max"}};
  for (const auto& c : cases) {
    const Result<Schedule> schedule = Schedule::Create(c.config, Batches(1000));
    ASSERT_FALSE(schedule.ok()) << c.says;
    EXPECT_NE(schedule.error().message.find(c.says), std::string::npos) << schedule.error().message;
  }
}

}  // namespace
}  // namespace tessera
