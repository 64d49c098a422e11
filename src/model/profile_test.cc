// The profile counts what the program says that a step does, and its limits and timeline are sound.
#include "model/profile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "model/engine.h"
#include "model/program.h"

namespace tessera {
namespace {

struct Step {
  Plan plan;
  std::unique_ptr<OpProfile> profile;
};

Step CountedStep(int64_t trace_events, UpdateRule optimizer) {
  ThreadPool pool(2);
  ModelConfig config = *NamedModel("gpt2-tiny");
  config.vocab_size = 131;
  PlanOptions options;
  options.sequence_length = 24;
  options.global_batch = 4;
  options.microbatch = 2;
  options.loss_chunk_tokens = 20;  // the last chunk of 48 rows is shorter
  options.precision = Precision::kAmpBf16;
  options.optimizer = optimizer;
  options.num_threads = 2;
  Step step{*BuildPlan(config, options), std::make_unique<OpProfile>(trace_events)};
  auto engine = Engine::Create(step.plan, pool);
  EXPECT_TRUE(engine.ok());
  (*engine)->InitializeWeights(1);
  (*engine)->SetProfile(step.profile.get());
  const std::vector<int32_t> tokens(4 * 24, 3);
  (*engine)->ForwardBackward({4, tokens.data(), tokens.data(), nullptr}, {}, 1, 7);
  UpdateOptions update;
  update.lr = update.muon_lr = 1e-3;
  (*engine)->Update(update);
  return step;
}

TEST(Profile, CountsEveryOpWithTheProgramsFlops) {
  const Step step = CountedStep(0, UpdateRule::kAdamW);
  std::map<std::string, double> flops;
  for (const Op& op : step.plan.program->ops) {
    flops[std::string(OpKindName(op.kind))] += 2 * op.flops;  // two micro-batches
  }
  std::map<std::string, double> counted;
  std::map<std::string, int64_t> calls;
  for (const OpProfile::Row& row : step.profile->rows()) {
    counted[row.name] += row.work.flops;
    calls[row.name] += row.calls;
  }
  for (const auto& [name, expected] : flops) {
    // Sums of three rounded portions at most.
    EXPECT_NEAR(counted[name], expected, 1e-12 * expected) << name;
    EXPECT_GT(calls[name], 0) << name;
  }
  // 2 micro-batches x 3 chunks x logits, loss, dx, dw.
  EXPECT_EQ(calls["head+loss"], 24);
  EXPECT_EQ(calls["optimizer"], 1);  // AdamW, which rounds the bf16 weights
  EXPECT_EQ(calls["gradient norm"], 1);
}

TEST(Profile, TimelineHoldsWhatFitsAndSaysWhatWasDropped) {
  const Step whole = CountedStep(10000, UpdateRule::kMuon);
  EXPECT_EQ(whole.profile->dropped_events(), 0);
  const Json trace = whole.profile->Trace();
  int64_t ops = 0, phases = 0;
  std::set<std::string> names;
  double end_of_phase = 0;
  for (const Json& event : trace.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    EXPECT_GE(event.at("ts").get<double>(), 0);
    EXPECT_GE(event.at("dur").get<double>(), 0);
    EXPECT_EQ(event.at("args").at("step"), 7);
    names.insert(event.at("name").get<std::string>());
    if (event.at("cat") == "phase") {
      ++phases;
      end_of_phase = event.at("ts").get<double>() + event.at("dur").get<double>();
    } else {
      ++ops;
    }
  }
  EXPECT_EQ(phases, 2);
  EXPECT_GT(end_of_phase, 0);
  int64_t calls = 0;
  for (const OpProfile::Row& row : whole.profile->rows()) {
    if (row.op_class != OpClass::kPhase) calls += row.calls;
  }
  EXPECT_EQ(ops, calls);
  EXPECT_TRUE(names.contains("muon"));

  const Step cut = CountedStep(10, UpdateRule::kMuon);
  EXPECT_EQ(cut.profile->dropped_events(), calls + 2 - 10);
  EXPECT_EQ(cut.profile->Trace().at("otherData").at("dropped_events"), calls + 2 - 10);
}

TEST(Profile, HoldsEachOpAgainstTheLimitThatBinds) {
  OpProfile profile;
  const auto product = profile.AddSlot("product", "a", OpClass::kProduct);
  const auto pass = profile.AddSlot("pass", "b", OpClass::kOther);
  const auto exps = profile.AddSlot("exps", "c", OpClass::kOther);
  EXPECT_EQ(profile.AddSlot("pass", "b", OpClass::kOther), pass);
  profile.Record(product, 0, 0, 1'000'000'000, {50e9, 1e9, 0});
  profile.Record(pass, 0, 0, 500'000'000, {0, 4e9, 0});
  profile.Record(exps, 0, 0, 250'000'000, {0, 1e6, 10e9});
  const auto both = profile.AddSlot("both", "e", OpClass::kAttention);
  profile.Record(both, 0, 0, 1'000'000'000, {50e9, 1e6, 10e9});
  OpLimits limits;
  limits.gflops = 100;
  limits.vector_gops = 50;
  using Way = OpMove::Way;
  OpLimits::Rates at_once;
  at_once.read = {{1e6, 100}, {1e8, 10}};
  at_once.update = {{1e6, 120}, {1e8, 12}};
  at_once.copy = {{1e6, 50}, {1e8, 5}};
  // Another guest took the cache meanwhile.
  OpLimits::Rates later;
  later.idle_seconds = 0.01;
  later.read = {{1e6, 20}, {1e8, 10}};
  later.update = {{1e6, 24}, {1e8, 12}};
  later.copy = {{1e6, 10}, {1e8, 5}};
  limits.rates = {at_once, later};
  EXPECT_DOUBLE_EQ(OpLimits::GbpsAt(at_once.read, 1), 100);
  EXPECT_DOUBLE_EQ(OpLimits::GbpsAt(at_once.read, 1e12), 10);
  // Halfway on the logarithmic axis.
  EXPECT_NEAR(OpLimits::GbpsAt(at_once.read, 1e7), 55, 1e-9);
  // 100 GFLOP/s: half of the idle time, and ten times of it.
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e6, Way::kRead, 0.5e9}), (0.02 + 0.1) / 2, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e6, Way::kRead, 10e9}), 0.1, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e8, Way::kRead, 10e9}), 0.2, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e8}), 0.2, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e6}), 0.02, 1e-12);
  // A copy of 2 GB takes 0.4 s, of which reading the half is 0.1.
  EXPECT_NEAR(limits.MoveSeconds({1e9, 1e8, Way::kFresh}), 0.3, 1e-12);
  // An update of 2 GB takes 1/6 s, of which reading the half is 0.1.
  EXPECT_NEAR(limits.MoveSeconds({1e9, 1e8, Way::kInPlace}), 1.0 / 6 - 0.1, 1e-12);
  // Rows of 1 kB that lie anywhere.
  limits.row_read = {{1e3, 4}, {1e4, 8}};
  limits.row_update = {{1e3, 4}, {1e4, 8}};
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e8, Way::kRead, 0, 1e3}), 0.5, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e8, Way::kRead, 0, 1e5}), 0.25, 1e-12);
  EXPECT_NEAR(limits.MoveSeconds({2e9, 1e8, Way::kInPlace, 0, 1e5}), 0.25, 1e-12);
  // Of an op's bytes one part in four is in the cache.
  const auto mixed = profile.AddSlot("mixed", "d", OpClass::kOther);
  profile.AddMoves(mixed, {{30, 1e8}, {10, 1e6}});
  profile.Record(mixed, 0, 0, 500'000'000, {0, 4e9, 0});
  const Json json = ProfileToJson(profile, limits, 1, 4.0);
  std::map<std::string, Json> ops;
  for (const Json& op : json.at("ops")) ops[op.at("op").get<std::string>()] = op;
  EXPECT_EQ(ops["product"].at("limit"), "compute");
  EXPECT_NEAR(ops["product"].at("fraction_of_limit").get<double>(), 0.5, 1e-12);
  EXPECT_EQ(ops["pass"].at("limit"), "bandwidth");
  EXPECT_NEAR(ops["pass"].at("fraction_of_limit").get<double>(), 0.8, 1e-12);
  EXPECT_NEAR(ops["mixed"].at("fraction_of_limit").get<double>(), (0.3 + 0.01) / 0.5, 1e-12);
  EXPECT_EQ(ops["both"].at("limit"), "compute");
  EXPECT_NEAR(ops["both"].at("fraction_of_limit").get<double>(), 0.5 + 0.2, 1e-12);
  EXPECT_EQ(ops["exps"].at("limit"), "vector");
  EXPECT_NEAR(ops["exps"].at("fraction_of_limit").get<double>(), 0.8, 1e-12);
  EXPECT_NEAR(json.at("sums").at("other").at("share").get<double>(), 0.3125, 1e-12);
  EXPECT_NEAR(json.at("sums").at("uncounted").at("share").get<double>(), 0.1875, 1e-12);
  EXPECT_NE(FormatProfile(json).find("product"), std::string::npos);
}

TEST(Profile, MeasuresLimits) {
  ThreadPool pool(1);
  OpLimitsMeter meter(pool);
  meter.Measure();
  const OpLimits limits = meter.Limits(100);
  EXPECT_EQ(limits.gflops, 100);
  ASSERT_GE(limits.rates.size(), 2u);
  EXPECT_EQ(limits.rates.front().idle_seconds, 0);
  double idle = -1;
  for (const OpLimits::Rates& rates : limits.rates) {
    EXPECT_GT(rates.idle_seconds, idle);
    idle = rates.idle_seconds;
    for (const auto* list : {&rates.read, &rates.update, &rates.copy}) {
      ASSERT_EQ(list->size(), limits.rates.front().read.size());
      ASSERT_GE(list->size(), 4u);
      for (const OpLimits::Bandwidth& one : *list) EXPECT_GT(one.gbps, 0);
    }
  }
  ASSERT_FALSE(limits.row_read.empty());
  ASSERT_EQ(limits.row_read.size(), limits.row_update.size());
  for (const OpLimits::Bandwidth& one : limits.row_read) EXPECT_GT(one.gbps, 0);
  for (const OpLimits::Bandwidth& one : limits.row_update) EXPECT_GT(one.gbps, 0);
  EXPECT_GT(limits.vector_gops, 0);
  EXPECT_GT(limits.region_us, 0);
  EXPECT_GT(limits.record_us, 0);
}

}  // namespace
}  // namespace tessera
