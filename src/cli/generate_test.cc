// The generate command as a person runs it: on a checkpoint of a tiny model that knows one
// sentence.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/test_folder.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "model/engine.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

namespace tessera {
namespace {

// With a character of two bytes, each of which is a token here.
constexpr std::string_view kSentence =
    "the quick brown fox jumps \xC3\xBC"
    "ber lazy dogs";

struct Output {
  int code = -1;
  std::string text;    // standard output
  std::string errors;  // standard error
};

std::string ReadAll(std::FILE* file) {
  std::string text;
  std::array<char, 4096> piece;
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), file))
    text.append(piece.data(), n);
  return text;
}

class GenerateCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TestFolder();
    BpeTrainOptions bytes;
    bytes.vocab_size = 257;
    const std::vector<std::string_view> documents = {kSentence};
    auto tokenizer = TrainBpe(documents, bytes);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    const int32_t eos = tokenizer->eos_id().value();
    std::vector<int32_t> tokens = {eos};
    tokenizer->Encode(kSentence, &tokens);
    std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
    targets.push_back(eos);

    ModelConfig config = NamedModel("gpt2-tiny").value();
    config.vocab_size = 260;  // some rows of padding
    ThreadPool pool(1);
    PlanOptions options;
    options.sequence_length = static_cast<int64_t>(tokens.size());
    auto plan = BuildPlan(config, options);
    ASSERT_TRUE(plan.ok());
    auto engine = Engine::Create(*plan, pool);
    ASSERT_TRUE(engine.ok());
    (*engine)->InitializeWeights(1);
    const StepBatch batch{1, tokens.data(), targets.data(), nullptr};
    double loss = 0;
    for (int64_t step = 1; step <= 150; ++step) {
      loss = (*engine)->ForwardBackward(batch, {}, 1, step).loss;
      UpdateOptions update;
      update.step = step;
      update.lr = 1e-2;
      update.grad_clip = 1;
      (*engine)->Update(update);
    }
    ASSERT_LT(loss, 0.05);  // it knows the sentence

    CheckpointContents contents;
    contents.step = 150;
    CheckpointTensorFile weights{kWeightsFile, {}, {{"format", "pt"}}};
    for (const Parameter& p : (*engine)->parameters()) {
      weights.tensors.push_back({p.spec.name, DType::kF32, p.spec.shape(), p.value});
    }
    contents.tensors.push_back(weights);
    contents.texts.push_back({kModelConfigFile, ModelConfigToJson(config).dump()});
    contents.texts.push_back({kTokenizerFile, tokenizer->ToJson()});
    auto store = CheckpointStore::Open(folder_->path() / "run");
    ASSERT_TRUE(store.ok());
    ASSERT_TRUE(store->Save(contents).ok());

    config.max_seq_len = 63;  // no longer what the weights have
    contents.texts[0].content = ModelConfigToJson(config).dump();
    auto wrong_shape = CheckpointStore::Open(folder_->path() / "wrong_shape");
    ASSERT_TRUE(wrong_shape->Save(contents).ok());
    config.max_seq_len = 64;
    config.vocab_size = 200;
    contents.texts[0].content = ModelConfigToJson(config).dump();
    auto small = CheckpointStore::Open(folder_->path() / "small_vocabulary");
    ASSERT_TRUE(small->Save(contents).ok());
    contents.texts.pop_back();
    auto without = CheckpointStore::Open(folder_->path() / "no_tokenizer");
    ASSERT_TRUE(without->Save(contents).ok());
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  static Output Run(const std::string& model, const std::string& arguments) {
    const std::string errors = (folder_->path() / "stderr").string();
    const std::string command = std::string(TESSERA_BINARY) + " generate " +
                                (folder_->path() / model).string() + " " + arguments + " 2>" +
                                errors;
    Output out;
    std::FILE* pipe = popen(command.c_str(), "r");
    out.text = ReadAll(pipe);
    out.code = WEXITSTATUS(pclose(pipe));
    std::FILE* file = std::fopen(errors.c_str(), "r");
    out.errors = ReadAll(file);
    std::fclose(file);
    return out;
  }

  static TestFolder* folder_;
};
TestFolder* GenerateCommand::folder_ = nullptr;

TEST_F(GenerateCommand, ContinuesAndEndsAtEndOfText) {
  for (const char* precision : {"fp32", "amp_bf16"}) {
    const Output out = Run(
        "run", std::string("-p '<|endoftext|>the quick' --temperature 0 --precision ") + precision);
    EXPECT_EQ(out.code, 0) << out.errors;
    EXPECT_EQ(out.text, std::string(kSentence.substr(9)) + "\n");
    EXPECT_NE(out.errors.find("end: stop_token"), std::string::npos) << out.errors;
  }
}

TEST_F(GenerateCommand, BeginsADocumentWithoutPrompt) {
  EXPECT_EQ(Run("run/ckpt-00000150ba", "--temperature 0").text, std::string(kSentence) + "\n");
}

TEST_F(GenerateCommand, ReportsAsJson) {
  folder_->Write("prompt", "<|endoftext|>the");
  const Output out = Run("run",
                         "--temperature 0 --json --seed 9 --stop 'fox j' --stop zzz "
                         "--prompt-file " +
                             (folder_->path() / "prompt").string());
  ASSERT_EQ(out.code, 0) << out.errors;
  const auto json = ParseJson(out.text, "output");
  ASSERT_TRUE(json.ok()) << out.text;
  EXPECT_EQ((*json)["text"], " quick brown ");
  EXPECT_EQ((*json)["finish_reason"], "stop");
  EXPECT_EQ((*json)["stop"], "fox j");
  EXPECT_EQ((*json)["prompt"], "<|endoftext|>the");
  EXPECT_EQ((*json)["prompt_tokens"], 4);
  EXPECT_EQ((*json)["step"], 150);
  EXPECT_EQ((*json)["seed"], 9);
}

TEST_F(GenerateCommand, SameSeedSameText) {
  const std::string arguments =
      "-p the --threads 1 --temperature 2 --top-p 1 --ignore-eos -n 20 --seed ";
  std::string arguments_of_two = arguments;
  arguments_of_two.replace(arguments_of_two.find("threads 1"), 9, "threads 2");
  const Output first = Run("run", arguments + "4");
  EXPECT_EQ(first.code, 0) << first.errors;
  EXPECT_EQ(first.text, Run("run", arguments_of_two + "4").text);
  EXPECT_NE(first.text, Run("run", arguments + "5").text);
}

TEST_F(GenerateCommand, FillsTheContextAndSaysSo) {
  const Output out = Run("run", "-p the --ignore-eos --top-k 3 -n 1000");
  EXPECT_EQ(out.code, 0) << out.errors;
  EXPECT_NE(out.errors.find("end: context"), std::string::npos) << out.errors;
}

TEST_F(GenerateCommand, RefusesBadInputClearly) {
  const auto expect = [](const Output& out, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(out.code, code) << out.errors;
    EXPECT_EQ(out.text, "");
    for (const std::string& part : parts) {
      EXPECT_NE(out.errors.find(part), std::string::npos) << part << " in: " << out.errors;
    }
  };
  expect(Run("nowhere", ""), 3, {"nowhere", "does not exist"});
  expect(Run("", ""), 3, {"neither a checkpoint"});
  expect(Run("no_tokenizer", ""), 3, {"--tokenizer"});
  expect(Run("small_vocabulary", ""), 2, {"257", "200"});
  expect(Run("wrong_shape", ""), 4, {"transformer.wpe.weight", "[64, 32]", "[63, 32]"});
  expect(Run("run", "-p '" + std::string(70, 'a') + "'"), 2, {"70 tokens", "64", "by 6"});
  expect(Run("run", "--top-p 0 --temperature -1"), 2, {"--top-p is 0", "--temperature is -1"});
  expect(Run("run", "-n 0"), 2, {"--max-new-tokens is 0"});
  expect(Run("run", "--prompt-file nowhere.txt"), 3, {"nowhere.txt"});
}

}  // namespace
}  // namespace tessera
