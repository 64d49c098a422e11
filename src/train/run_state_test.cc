#include "train/run_state.h"

#include <gtest/gtest.h>

#include "train/run_data.h"

namespace tessera {
namespace {

RunState SomeState() {
  RunState state;
  state.progress = {.step = 40, .tokens = 81'920, .epochs = 1.0 / 3, .seconds = 12.345678901234567};
  state.updates = 38;
  state.skipped_steps = 2;
  state.replaced_samples = 7;
  state.nonfinite_in_row = 1;
  state.loader = {.epoch = 3, .sample = 123'456'789'012};
  state.sequence_length = 256;
  state.batch_size = 8;
  state.average_started = true;
  state.last_eval_step = 32;
  state.last_eval = {{"loss", 2.5}};
  state.last_loss = 3.1;
  state.seed = ~uint64_t{0};
  state.virtual_ranks = 4;
  state.optimizer = UpdateRule::kMuon;
  state.precision = Precision::kAmpBf16;
  state.compute = kernels::Compute::kBf16;
  state.data_fingerprint = "abc";
  state.tokenizer_fingerprint = "def";
  return state;
}

TEST(RunState, SurvivesItsTextExactly) {
  const Json json = RunStateToJson(SomeState());
  const auto parsed = ParseJson(json.dump(), "state.json");
  ASSERT_TRUE(parsed.ok());
  const auto state = RunStateFromJson(*parsed, "state.json");
  ASSERT_TRUE(state.ok()) << state.error().message;
  EXPECT_EQ(RunStateToJson(*state), json);
  EXPECT_EQ(state->progress.epochs, 1.0 / 3);
  EXPECT_EQ(state->seed, ~uint64_t{0});
}

TEST(RunState, MissingAndWrongMembersAreNamed) {
  const Json good = RunStateToJson(SomeState());
  for (const auto& [key, value] : good.items()) {
    if (key == "last_eval" || key == "last_loss") continue;
    Json bad = good;
    bad.erase(key);
    // Checkpoints of before it was counted are read.
    EXPECT_EQ(RunStateFromJson(bad, "state.json").ok(), key == "replaced_samples") << key;
    bad[key] = Json::array();
    EXPECT_FALSE(RunStateFromJson(bad, "state.json").ok()) << key;
  }
  for (const char* key : {"step", "tokens", "batch_size", "sequence_length"}) {
    Json bad = good;
    bad[key] = -1;
    EXPECT_FALSE(RunStateFromJson(bad, "state.json").ok()) << key;
  }
  Json bad = good;
  bad["optimizer"] = "sgd";
  const auto wrong = RunStateFromJson(bad, "state.json");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("sgd"), std::string::npos);
}

TEST(RunState, PositionIsKeptByTokensWhenTheLengthChanges) {
  const LoaderState at = {.epoch = 1, .sample = 10};
  EXPECT_EQ(ConvertLoaderState(at, 32, 32, 100), at);
  EXPECT_EQ(ConvertLoaderState(at, 32, 64, 50), (LoaderState{.epoch = 1, .sample = 5}));
  EXPECT_EQ(ConvertLoaderState(at, 32, 48, 67), (LoaderState{.epoch = 1, .sample = 7}));
  EXPECT_EQ(ConvertLoaderState({.epoch = 1, .sample = 99}, 16, 64, 25),
            (LoaderState{.epoch = 2, .sample = 0}));
  const LoaderState far = {.epoch = 0, .sample = int64_t{1} << 60};
  EXPECT_EQ(ConvertLoaderState(far, 1024, 2048, int64_t{1} << 61).sample, int64_t{1} << 59);
}

TEST(SetVocabSize, FillsOrChecks) {
  ModelConfig model;
  EXPECT_FALSE(SetVocabSize(&model, 0).ok());
  ASSERT_TRUE(SetVocabSize(&model, 300).ok());
  EXPECT_EQ(model.vocab_size, 300);
  EXPECT_FALSE(SetVocabSize(&model, 301).ok());
  model.vocab_size = 320;
  EXPECT_TRUE(SetVocabSize(&model, 300).ok());
  EXPECT_EQ(model.vocab_size, 320) << "more rows than tokens are allowed";
}

}  // namespace
}  // namespace tessera
