#include "train/run_plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/test_folder.h"

namespace tessera {
namespace {

// Far more than any recipe needs: what is tested is the plan, not this machine.
constexpr int64_t kPlenty = int64_t{1} << 45;

RunConfig Read(const std::vector<std::string>& overrides) {
  Result<RunConfig> config = ParseRunFile(
      "max_seq_len: 64\nmax_duration: 100ba\nglobal_train_batch_size: 8\nprecision: fp32\n"
      "model: {name: gpt2_causal_lm, d_model: 32, n_heads: 4, n_layers: 2, vocab_size: 300}\n",
      "tiny.yaml", overrides);
  EXPECT_TRUE(config.ok()) << config.error().message;
  return config.ok() ? *config : RunConfig{};
}

RunPlan Plan(const RunConfig& config, RunPlanOptions options = {.measure_rates = false}) {
  ThreadPool pool(1);
  Result<RunPlan> plan = PlanRun(config, pool, options);
  EXPECT_TRUE(plan.ok()) << plan.error().message;
  return *plan;
}

TEST(RunPlan, CountsStepsAndTokens) {
  const RunPlan plan = Plan(Read({}));
  EXPECT_EQ(plan.tokens_per_step, 512);
  EXPECT_EQ(plan.steps, 100);
  EXPECT_EQ(plan.tokens, 51200);
  EXPECT_FALSE(plan.seconds.has_value());
  EXPECT_TRUE(plan.microbatch_chosen);
  EXPECT_TRUE(plan.fits.ok());
  EXPECT_EQ(plan.parameters, CountParameters(plan.plan.config));
  EXPECT_EQ(Plan(Read({"max_duration=1000tok"})).steps, 2);
  EXPECT_FALSE(Plan(Read({"max_duration=1ep"})).steps.has_value());
  EXPECT_EQ(Plan(Read({"device_train_microbatch_size=4"})).plan.options.microbatch, 4);
}

TEST(RunPlan, MeasuresTheTimeOfAStep) {
  const RunPlan plan = Plan(Read({"max_duration=7sec"}), {.measure_rates = true});
  ASSERT_TRUE(plan.step.has_value());
  EXPECT_GT(plan.step->seconds, 0);
  EXPECT_EQ(plan.seconds, 7.0);
  EXPECT_GE(plan.steps.value_or(0), 1);
  const std::string text = FormatRunPlan(plan);
  for (const char* part : {"Run tiny", "Memory", "tokens/s", "available"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in " << text;
  }
  const Json json = RunPlanToJson(plan);
  EXPECT_EQ(json.at("memory_bytes").at("total").get<int64_t>(), plan.plan.memory.total());
  EXPECT_EQ(json.at("step").at("seconds").get<double>(), plan.step->seconds);
}

// Short steps are run, long ones follow from one block; the parts add up to the whole either way.
TEST(RunPlan, TakesTheTimeFromSteps) {
  const auto expect_basis = [](const char* batch, EstimateBasis basis, const char* words) {
    const RunPlan plan =
        Plan(Read({batch, "device_train_microbatch_size=8"}), {.measure_rates = true});
    ASSERT_TRUE(plan.step.has_value());
    const StepEstimate& s = *plan.step;
    EXPECT_EQ(s.basis, basis) << batch << ": " << s.seconds << " s";
    EXPECT_NEAR(s.gemm_seconds + s.attention_seconds + s.elementwise_seconds + s.optimizer_seconds,
                s.seconds, 1e-9 * s.seconds);
    EXPECT_NEAR(s.tokens_per_s * s.seconds, static_cast<double>(plan.tokens_per_step),
                1e-9 * static_cast<double>(plan.tokens_per_step));
    EXPECT_NE(FormatRunPlan(plan).find(words), std::string::npos);
  };
  expect_basis("global_train_batch_size=8", EstimateBasis::kWholeSteps, "from steps measured now");
  expect_basis("global_train_batch_size=8388608", EstimateBasis::kOneBlock,
               "from steps of one block measured now");
}

TEST(RunPlan, SaysWhatDoesNotFit) {
  const RunPlan plan = Plan(Read({"memory_limit=1MiB"}));
  EXPECT_FALSE(plan.fits.ok());
  EXPECT_EQ(plan.fits.error().code, ErrorCode::kOutOfMemory);
  EXPECT_FALSE(RunPlanToJson(plan).at("fits").get<bool>());
  EXPECT_NE(FormatRunPlan(plan).find("Does not fit"), std::string::npos);
}

TEST(RunPlan, TakesTheVocabularyFromWhereItComes) {
  const RunConfig trained = Read({"model.vocab_size=auto", "tokenizer.train.vocab_size=500"});
  EXPECT_EQ(Plan(trained).plan.config.vocab_size, 500);
  EXPECT_TRUE(Plan(trained).vocabulary_known);
  EXPECT_FALSE(Plan(Read({"model.vocab_size=auto"})).vocabulary_known);

  const TestFolder folder;
  RunConfig missing = Read({"model.vocab_size=auto"});
  missing.tokenizer.name = (folder / "none.json").string();
  ThreadPool pool(1);
  const Result<RunPlan> plan = PlanRun(missing, pool, {.measure_rates = false});
  ASSERT_FALSE(plan.ok());
  EXPECT_NE(plan.error().message.find("none.json"), std::string::npos) << plan.error().message;
}

TEST(RunPlan, AllRecipesPlan) {
  const std::filesystem::path recipes = std::filesystem::path(TESSERA_SOURCE_DIR) / "recipes";
  int64_t planned = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(recipes)) {
    if (entry.path().extension() != ".yaml") continue;
    const Result<RunConfig> config = ReadRunFile(entry.path());
    ASSERT_TRUE(config.ok()) << config.error().message;
    const RunPlan plan = Plan(*config, {.measure_rates = false, .available_bytes = kPlenty});
    EXPECT_TRUE(plan.fits.ok()) << entry.path();
    // At least masters, gradients and one moment in fp32.
    EXPECT_GT(plan.plan.memory.total(), 12 * plan.parameters) << entry.path();
    ++planned;
  }
  EXPECT_GE(planned, 23);
}

}  // namespace
}  // namespace tessera
