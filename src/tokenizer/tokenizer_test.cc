#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/test_folder.h"
#include "tokenizer/bpe_trainer.h"

namespace tessera {
namespace {

const char kProse[] =
    "The quick brown fox doesn't jump over 123 lazy dogs; the dogs don't mind.\n\n"
    "    def encode(text):\n        return text.encode(\"utf-8\")\n"
    "Na\xC3\xAFve caf\xC3\xA9 \xE2\x80\x94 \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80\xF0\x9F\x98\x80!\n";

Tokenizer Trained(int64_t vocab_size = 300, PreTokenizer kind = PreTokenizer::kGpt2,
                  std::vector<std::string> special = {"<|endoftext|>"}) {
  const std::string_view document = kProse;
  auto result = TrainBpe(std::span(&document, 1), {.vocab_size = vocab_size,
                                                    .special_tokens = std::move(special),
                                                    .pre_tokenizer = kind,
                                                    .num_threads = 1});
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return std::move(result).value();
}

// The trained tokenizer's file with one member replaced.
std::string Edited(const std::function<void(Json&)>& edit) {
  Json json = Json::parse(Trained().ToJson());
  edit(json);
  return json.dump();
}

std::string RefusalOf(const std::string& text) {
  const auto result = Tokenizer::FromJson(text, "file.json");
  if (result.ok()) return "accepted";
  return result.error().message;
}

std::string RandomBytes(uint64_t seed, int64_t size) {
  const RngKey key{.seed = seed};
  std::string text;
  for (int64_t i = 0; i < size; ++i) {
    text.push_back(static_cast<char>(key.Block(static_cast<uint64_t>(i))[0] & 0xFF));
  }
  return text;
}

TEST(TokenizerTest, DecodesWhatItEncodes) {
  for (const PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                                  PreTokenizer::kGpt2Digits}) {
    const Tokenizer tokenizer = Trained(300, kind);
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(kProse)), kProse);
    EXPECT_TRUE(tokenizer.Encode("").empty());
    const std::string spaces(10000, ' ');
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(spaces)), spaces);
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const std::string bytes = RandomBytes(seed, static_cast<int64_t>(seed * 7));
      EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(bytes)), bytes);
    }
  }
}

TEST(TokenizerTest, MergesMakeTextShorter) {
  const Tokenizer tokenizer = Trained();
  EXPECT_EQ(tokenizer.vocab_size(), 300);
  EXPECT_LT(tokenizer.Encode(kProse).size(), sizeof(kProse) - 1);
  EXPECT_EQ(Trained(257).Encode(kProse).size(), sizeof(kProse) - 1);
}

// The merge rule written down directly: the lowest rank first, the leftmost of equals.
std::vector<int32_t> SlowMerge(const Tokenizer& tokenizer, std::string_view piece) {
  const Json model = Json::parse(tokenizer.ToJson())["model"];
  std::vector<std::pair<int32_t, int32_t>> merges;
  for (const auto& entry : model["merges"]) {
    const auto text = entry.get<std::string>();
    const size_t space = text.find(' ');
    merges.emplace_back(model["vocab"][text.substr(0, space)].get<int32_t>(),
                        model["vocab"][text.substr(space + 1)].get<int32_t>());
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(*tokenizer.TokenId(std::string_view(&c, 1)));
  for (const auto& [left, right] : merges) {
    const auto joined = tokenizer.TokenId(std::string(tokenizer.TokenBytes(left)) +
                                          std::string(tokenizer.TokenBytes(right)));
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      if (ids[i] == left && ids[i + 1] == right) {
        ids[i] = *joined;
        ids.erase(ids.begin() + static_cast<int64_t>(i) + 1);
      }
    }
  }
  return ids;
}

TEST(TokenizerTest, LongAndShortPiecesFollowTheSameMergeRule) {
  // One piece of letters only, so that merges across all of it are possible; the lengths lie on
  // both sides of the switches between cache, array and heap.
  std::string letters;
  const RngKey key{.seed = 5};
  for (uint64_t i = 0; i < 4000; ++i) letters.push_back("abc"[key.Block(i)[0] % 3]);
  const std::string_view document = letters;
  const auto tokenizer = TrainBpe(std::span(&document, 1), {.vocab_size = 400, .num_threads = 1});
  ASSERT_TRUE(tokenizer.ok());
  int64_t offset = 0;
  for (const int64_t length : {1, 2, 3, 7, 8, 14, 15, 16, 17, 31, 32, 33, 34, 64, 127, 128, 129,
                               130, 300}) {
    for (int repeat = 0; repeat < 3; ++repeat) {  // The second time it comes from the cache.
      const std::string piece = letters.substr(static_cast<size_t>(offset),
                                               static_cast<size_t>(length));
      EXPECT_EQ(tokenizer->Encode(piece), SlowMerge(*tokenizer, piece)) << length;
    }
    offset += length;
  }
}

TEST(TokenizerTest, SpecialTokensAreOneIdOrPlainText) {
  const Tokenizer tokenizer = Trained(300, PreTokenizer::kGpt2, {"<|endoftext|>", "<|end"});
  const std::string text = "a<|endoftext|>b<|end c";
  std::vector<int32_t> expected = {*tokenizer.TokenId("a"), 0, *tokenizer.TokenId("b"), 1};
  for (const int32_t id : tokenizer.Encode(" c")) expected.push_back(id);
  EXPECT_EQ(tokenizer.Encode(text), expected);
  const std::vector<int32_t> plain = tokenizer.Encode(text, SpecialTokens::kAsText);
  for (const int32_t id : plain) EXPECT_FALSE(tokenizer.IsSpecial(id));
  EXPECT_EQ(tokenizer.Decode(plain), text);
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text), true), "ab c");
  EXPECT_EQ(tokenizer.eos_id(), 0);
}

TEST(TokenizerTest, SavesAndLoadsTheSameTokenizer) {
  const TestFolder folder;
  for (const PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                                  PreTokenizer::kGpt2Digits}) {
    const Tokenizer tokenizer = Trained(300, kind);
    ASSERT_TRUE(tokenizer.Save(folder.path()).ok());
    const auto loaded = Tokenizer::Load(folder.path());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    EXPECT_TRUE(loaded->ToJson() == tokenizer.ToJson());
    EXPECT_EQ(loaded->fingerprint(), tokenizer.fingerprint());
    EXPECT_EQ(loaded->pre_tokenizer(), kind);
    EXPECT_EQ(loaded->Encode(kProse), tokenizer.Encode(kProse));
  }
}

TEST(TokenizerTest, FingerprintIgnoresTheFormOfTheFile) {
  const std::string compact = Edited([](Json&) {});
  EXPECT_EQ(Tokenizer::FromJson(compact, "x")->fingerprint(), Trained().fingerprint());
  const std::string other = Edited([](Json& json) { json["model"]["ignore_merges"] = true; });
  EXPECT_NE(Tokenizer::FromJson(other, "x")->fingerprint(), Trained().fingerprint());
}

TEST(TokenizerTest, ThreadsMayShareATokenizer) {
  const Tokenizer tokenizer = Trained();
  const Tokenizer other = Trained(280);
  const std::vector<int32_t> expected = tokenizer.Encode(kProse);
  const std::vector<int32_t> expected_other = other.Encode(kProse);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(tokenizer.Encode(kProse), expected);
        EXPECT_EQ(other.Encode(kProse), expected_other);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(TokenizerTest, AddedTokensSwallowSpaceAsAsked) {
  const std::string text = Edited([](Json& json) {
    json["added_tokens"].push_back({{"id", 300}, {"content", "<m>"}, {"special", true},
                                    {"lstrip", true}, {"rstrip", true}, {"normalized", false}});
    json["added_tokens"].push_back({{"id", 301}, {"content", "   "}, {"special", false},
                                    {"lstrip", false}, {"rstrip", false}, {"normalized", true}});
  });
  const auto tokenizer = Tokenizer::FromJson(text, "x");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->vocab_size(), 302);
  const int32_t a = *tokenizer->TokenId("a");
  EXPECT_EQ(tokenizer->Encode("a  \xC2\xA0<m>\n a"), (std::vector<int32_t>{a, 300, a}));
  EXPECT_EQ(tokenizer->Encode("a   a"), (std::vector<int32_t>{a, 301, a}));
  EXPECT_EQ(tokenizer->Encode("a   a", SpecialTokens::kAsText),
            (std::vector<int32_t>{a, 301, a}));
}

TEST(TokenizerTest, NormalizesToFormC) {
  const std::string text = Edited([](Json& json) { json["normalizer"] = {{"type", "NFC"}}; });
  const auto tokenizer = Tokenizer::FromJson(text, "x");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("cafe\xCC\x81 \xFF")), "caf\xC3\xA9 \xFF");
}

TEST(TokenizerTest, ReadsTheTemplate) {
  const std::string text = Edited([](Json& json) {
    json["post_processor"] = Json::parse(R"({"type":"Sequence","processors":[
      {"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},
      {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|endoftext|>","type_id":0}},
       {"Sequence":{"id":"A","type_id":0}}],"pair":[],
       "special_tokens":{"<|endoftext|>":{"id":"<|endoftext|>","ids":[0],"tokens":["x"]}}}]})");
  });
  const auto tokenizer = Tokenizer::FromJson(text, "x");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  ASSERT_EQ(tokenizer->template_prefix().size(), 1u);
  EXPECT_EQ(tokenizer->template_prefix()[0], 0);
  EXPECT_TRUE(tokenizer->template_suffix().empty());
}

TEST(TokenizerTest, RefusesWhatItDoesNotSupportByName) {
  const auto refusal = [](const std::function<void(Json&)>& edit) { return RefusalOf(Edited(edit)); };
  const auto expect = [](const std::string& message, std::string_view part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find("file.json"), 0u) << message;
  };
  expect(refusal([](Json& j) { j["model"]["type"] = "Unigram"; }), "Unigram");
  expect(refusal([](Json& j) { j["model"]["dropout"] = 0.1; }), "dropout");
  expect(refusal([](Json& j) { j["model"]["byte_fallback"] = true; }), "byte_fallback");
  expect(refusal([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }), "end_of_word_suffix");
  expect(refusal([](Json& j) { j["normalizer"] = {{"type", "NFKC"}}; }), "NFKC");
  expect(refusal([](Json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; }), "Metaspace");
  expect(refusal([](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }),
         "add_prefix_space");
  expect(refusal([](Json& j) { j["pre_tokenizer"] = nullptr; }), "pre-tokenizer null");
  expect(refusal([](Json& j) { j["decoder"] = {{"type", "WordPiece"}}; }), "WordPiece");
  expect(refusal([](Json& j) { j["truncation"] = {{"max_length", 5}}; }), "truncation");
  expect(refusal([](Json& j) { j["post_processor"] = {{"type", "BertProcessing"}}; }),
         "BertProcessing");
  expect(refusal([](Json& j) { j["added_tokens"][0]["single_word"] = true; }), "single_word");
  expect(refusal([](Json& j) {
           j["pre_tokenizer"] = Json::parse(
               R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\w+"},
               "behavior":"Isolated","invert":false},
               {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})");
         }),
         "\\\\w+");
}

TEST(TokenizerTest, RefusesCorruptFiles) {
  const auto refusal = [](const std::function<void(Json&)>& edit) { return RefusalOf(Edited(edit)); };
  const auto expect = [](const std::string& message, std::string_view part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect(RefusalOf("{"), "not valid JSON");
  expect(RefusalOf("[]"), "object");
  expect(RefusalOf("{}"), "'model'");
  expect(refusal([](Json& j) { j["model"].erase("vocab"); }), "model.vocab");
  expect(refusal([](Json& j) { j["model"].erase("merges"); }), "model.merges");
  expect(refusal([](Json& j) { j["model"]["vocab"]["zzz"] = 5; }), "id 5");
  expect(refusal([](Json& j) { j["model"]["vocab"]["zzz"] = 2147483647; }), "zzz");
  expect(refusal([](Json& j) { j["model"]["vocab"]["zzz"] = -1; }), "zzz");
  expect(refusal([](Json& j) { j["model"]["vocab"].erase("q"); }), "0x71");
  expect(refusal([](Json& j) { j["model"]["merges"][3] = "only_one"; }), "merge 3");
  expect(refusal([](Json& j) { j["model"]["merges"][3] = {"\xC4\xA0", "unknown"}; }), "merge 3");
  expect(refusal([](Json& j) { j["model"]["merges"][3] = "! !"; }), "merge 3");
  expect(refusal([](Json& j) { j["added_tokens"][0]["id"] = "x"; }), "<|endoftext|>");
  expect(refusal([](Json& j) { j["added_tokens"][0]["id"] = 7; }), "another");
  expect(refusal([](Json& j) { j["added_tokens"][0]["content"] = ""; }), "empty");
  expect(refusal([](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); }), "twice");
  const auto missing = Tokenizer::Load("/nonexistent/tokenizer.json");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("/nonexistent/tokenizer.json"), std::string::npos);
}

TEST(TokenizerTest, BytesThatUtf8NeverHoldsMayBeMissing) {
  // Vocabularies that were trained on text alone lack them; they are read as U+FFFD then.
  std::string text = Edited([](Json& json) { json["model"]["vocab"].erase("\xC3\xBF"); });
  const auto tokenizer = Tokenizer::FromJson(text, "x");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a\xFF")), "a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace tessera
