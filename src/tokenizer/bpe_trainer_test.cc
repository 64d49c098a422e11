#include "tokenizer/bpe_trainer.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "tokenizer/pretokenizer.h"

namespace tessera {
namespace {

std::vector<std::string> Corpus(uint64_t seed, int64_t documents) {
  static const char* const kSyllables[] = {"to", "ken", "iz", "er", "s", " the", " a", "\n", "  ",
                                           "aaa", "'s", "12", ".", "\xC3\xA9", "\xFF", " un"};
  const RngKey key{.seed = seed};
  std::vector<std::string> texts;
  uint64_t index = 0;
  for (int64_t d = 0; d < documents; ++d) {
    std::string text;
    for (int i = 0; i < 200; ++i) {
      // Low numbers more often, so that counts differ; ties remain.
      const auto block = key.Block(index++);
      text += kSyllables[std::min(block[0] % 16, block[1] % 16)];
    }
    texts.push_back(std::move(text));
  }
  return texts;
}

std::vector<std::string_view> Views(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

TEST(BpeTrainerTest, SameTokenizerForAnyThreadsOrderAndBatches) {
  const std::vector<std::string> texts = Corpus(1, 60);
  const auto reference = TrainBpe(Views(texts), {.vocab_size = 400, .num_threads = 1});
  ASSERT_TRUE(reference.ok()) << reference.error().message;
  for (const int threads : {2, 3}) {
    const auto tokenizer = TrainBpe(Views(texts), {.vocab_size = 400, .num_threads = threads});
    ASSERT_TRUE(tokenizer.ok());
    EXPECT_TRUE(tokenizer->ToJson() == reference->ToJson()) << threads;
  }
  BpeTrainer trainer({.vocab_size = 400, .num_threads = 2});
  for (auto it = texts.rbegin(); it != texts.rend(); ++it) {
    const std::string_view view = *it;
    trainer.Add(std::span(&view, 1));
  }
  const auto reversed = trainer.Train();
  ASSERT_TRUE(reversed.ok());
  EXPECT_TRUE(reversed->ToJson() == reference->ToJson());
}

// The definition, counted anew before every merge.
std::vector<std::string> SlowVocabulary(const std::vector<std::string>& texts, int64_t merges,
                                        const Tokenizer& bytes_only) {
  std::vector<std::vector<int32_t>> pieces;
  for (const std::string& text : texts) {
    std::vector<int64_t> ends(text.size());
    const int64_t count = ScanPieces(PreTokenizer::kGpt2, text, 0,
                                     static_cast<int64_t>(text.size()), ends.data());
    int64_t begin = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t end = ends[static_cast<size_t>(i)];
      pieces.push_back(bytes_only.Encode(std::string_view(text).substr(
          static_cast<size_t>(begin), static_cast<size_t>(end - begin))));
      begin = end;
    }
  }
  std::vector<std::string> vocabulary;
  std::map<std::string, int32_t> ids;
  for (int32_t id = 0; id < bytes_only.vocab_size(); ++id) {
    ids[vocabulary.emplace_back(bytes_only.TokenBytes(id))] = id;
  }
  const size_t target = vocabulary.size() + static_cast<size_t>(merges);
  while (vocabulary.size() < target) {
    std::map<std::pair<int32_t, int32_t>, int64_t> counts;
    for (const auto& piece : pieces) {
      for (size_t i = 0; i + 1 < piece.size(); ++i) ++counts[{piece[i], piece[i + 1]}];
    }
    auto best = counts.begin();  // The map's order breaks ties: lower left id, lower right id.
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (it->second > best->second) best = it;
    }
    const auto [left, right] = best->first;
    const std::string joined =
        vocabulary[static_cast<size_t>(left)] + vocabulary[static_cast<size_t>(right)];
    if (!ids.contains(joined)) {
      ids[joined] = static_cast<int32_t>(vocabulary.size());
      vocabulary.push_back(joined);
    }
    for (auto& piece : pieces) {
      for (size_t i = 0; i + 1 < piece.size(); ++i) {
        if (piece[i] == left && piece[i + 1] == right) {
          piece[i] = ids[joined];
          piece.erase(piece.begin() + static_cast<int64_t>(i) + 1);
        }
      }
    }
  }
  return vocabulary;
}

TEST(BpeTrainerTest, LearnsWhatTheDefinitionSays) {
  for (const uint64_t seed : {2, 3, 4}) {
    const std::vector<std::string> texts = Corpus(seed, 4);
    const auto bytes_only = TrainBpe(Views(texts), {.vocab_size = 257, .num_threads = 1});
    const auto tokenizer = TrainBpe(Views(texts), {.vocab_size = 357, .num_threads = 1});
    ASSERT_TRUE(bytes_only.ok() && tokenizer.ok());
    const std::vector<std::string> expected = SlowVocabulary(texts, 100, *bytes_only);
    for (int32_t id = 0; id < 357; ++id) {
      ASSERT_EQ(tokenizer->TokenBytes(id), expected[static_cast<size_t>(id)]) << "id " << id;
    }
  }
}

TEST(BpeTrainerTest, ReportsProgressInOrder) {
  const std::vector<std::string> texts = Corpus(1, 20);
  int64_t last = -1;
  const auto tokenizer =
      TrainBpe(Views(texts), {.vocab_size = 400, .num_threads = 1, .progress = [&](const BpeProgress& p) {
                                EXPECT_GT(p.merges_done, last);
                                EXPECT_EQ(p.merges_total, 143);
                                last = p.merges_done;
                              }});
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_GT(last, 100);
}

TEST(BpeTrainerTest, NamesTheLargestVocabularyThatTheDataAllows) {
  const std::string_view document = "abcd abcd";
  const auto tokenizer = TrainBpe(std::span(&document, 1), {.vocab_size = 1000, .num_threads = 1});
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kInvalidArgument);
  // "abcd" and " abcd": ab, abc, abcd and the space before it.
  EXPECT_NE(tokenizer.error().message.find("4 merges"), std::string::npos)
      << tokenizer.error().message;
  EXPECT_NE(tokenizer.error().message.find("261"), std::string::npos) << tokenizer.error().message;
  EXPECT_TRUE(TrainBpe(std::span(&document, 1), {.vocab_size = 261, .num_threads = 1}).ok());
  // A pair that must occur twice: the merge with the space is gone.
  const auto frequent = TrainBpe(std::span(&document, 1),
                                 {.vocab_size = 261, .min_frequency = 2, .num_threads = 1});
  ASSERT_FALSE(frequent.ok());
  EXPECT_NE(frequent.error().message.find("3 merges"), std::string::npos);
}

TEST(BpeTrainerTest, RefusesWhatCannotBeTrained) {
  const std::string_view document = "abcd";
  const auto message = [&](BpeTrainOptions options) {
    options.num_threads = 1;
    const auto result = TrainBpe(std::span(&document, 1), options);
    return result.ok() ? std::string("accepted") : result.error().message;
  };
  EXPECT_NE(message({.vocab_size = 256}).find("257"), std::string::npos);
  EXPECT_NE(message({.vocab_size = int64_t{1} << 40}).find("vocab_size"), std::string::npos);
  EXPECT_NE(message({.special_tokens = {""}}).find("empty"), std::string::npos);
  EXPECT_NE(message({.special_tokens = {"<a>", "<a>"}}).find("twice"), std::string::npos);
  EXPECT_NE(message({.special_tokens = {"\xFF\xFE"}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(message({.special_tokens = {"\xC3\xA9\xC3\xA9"}}).find("ASCII"), std::string::npos);
  const auto empty = TrainBpe({}, {.num_threads = 1});
  ASSERT_FALSE(empty.ok());
  EXPECT_NE(empty.error().message.find("empty"), std::string::npos);
}

}  // namespace
}  // namespace tessera
