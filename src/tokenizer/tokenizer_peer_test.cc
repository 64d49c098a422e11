// Beside Hugging Face's tokenizers (tests/peers/tokenizer_peer.py): they load our files, we load
// theirs, both encode the same 10 MB identically, and both trainers learn the same merges.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/test_folder.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

constexpr int64_t kDocumentBytes = 10 << 20;

// What Python's decode(errors="replace") does to invalid bytes, one U+FFFD a byte.
std::string Repaired(std::string_view text) {
  std::string out;
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    AppendUtf8(c.code_point == Utf8Char::kInvalid ? 0xFFFD : c.code_point, &out);
    p += c.length;
  }
  return out;
}

// Characters of every class, emoji sequences, long runs of spaces, special tokens, broken bytes.
std::string RandomDocument(uint64_t seed) {
  static const std::vector<std::string> parts = {
      " ", "  ", "\n", "\n\n", "\t", "\r\n", "the", " of", "Word", "'s", "'LL", "'\xC5\xBF", "don't",
      "12", " 3456", "...", " --", "(", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>",
      "<mask>", " <mask> ", "<sep>", " <sep>\n ", " <both> ", "<|padding|>", " zqxjkv",
      "Zyxwvutsrqpo", "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB", "\xF0\x9F\x87\xA9\xF0\x9F\x87\xAA",
      "e\xCC\x81\xCC\xA7", "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xFF\xFE", "\xE4\xBD", "\xC2\xA0",
      "\xE3\x80\x80", "\xC2\xBD", "\xD9\xA3\xD9\xA4", "\xE0\xA5\x87", "\xE2\x84\xAB"};
  const RngKey key{.seed = seed};
  std::string text;
  const uint64_t length = 20 + key.Block(0)[0] % 400;
  for (uint64_t i = 1; i <= length; ++i) {
    const auto block = key.Block(i);
    switch (block[1] % 16) {
      case 0:
        AppendUtf8(block[2] % 0xD800, &text);
        break;
      case 1: {
        const uint32_t c = block[2] % 0x110000;
        AppendUtf8(c >= 0xD800 && c < 0xE000 ? 0x1F600 : c, &text);
        break;
      }
      case 2:
        text.append(block[2] % 40, ' ');
        break;
      default:
        text += parts[block[0] % parts.size()];
    }
  }
  return text;
}

std::string Packed(const std::vector<std::string>& documents) {
  std::string out;
  for (const std::string& text : documents) {
    const auto size = static_cast<uint32_t>(text.size());
    out.append(reinterpret_cast<const char*>(&size), 4);
    out += text;
  }
  return out;
}

std::vector<std::vector<int32_t>> ReadIds(const std::filesystem::path& path) {
  const auto data = ReadFile(path);
  EXPECT_TRUE(data.ok());
  std::vector<std::vector<int32_t>> all;
  for (size_t at = 0; data.ok() && at < data->size();) {
    uint32_t count = 0;
    std::memcpy(&count, data->data() + at, 4);
    std::vector<int32_t> ids(count);
    std::memcpy(ids.data(), data->data() + at + 4, count * size_t{4});
    at += 4 + count * size_t{4};
    all.push_back(std::move(ids));
  }
  return all;
}

// All documents where the script encoded all, otherwise every fifth.
void ExpectSameIds(const Tokenizer& tokenizer, const std::vector<std::string>& documents,
                   const std::vector<std::vector<int32_t>>& theirs, const std::string& name) {
  const size_t step = name == "ours_gpt2" || name == "theirs_llama3_style" ? 1 : 5;
  ASSERT_EQ(theirs.size(), (documents.size() + step - 1) / step) << name;
  for (size_t d = 0; d < theirs.size(); ++d) {
    const std::vector<int32_t> ours = tokenizer.Encode(documents[d * step]);
    if (ours == theirs[d]) continue;
    size_t i = 0;
    while (i < ours.size() && i < theirs[d].size() && ours[i] == theirs[d][i]) ++i;
    const auto around = [&](const std::vector<int32_t>& ids) {
      std::string text;
      for (size_t k = i < 2 ? 0 : i - 2; k < ids.size() && k < i + 4; ++k) {
        text += std::to_string(ids[k]) + Json(std::string(tokenizer.TokenBytes(ids[k])))
                                             .dump(-1, ' ', true, Json::error_handler_t::replace) + " ";
      }
      return text;
    };
    FAIL() << name << ": document " << d * step << " differs at token " << i << "\n  ours   "
           << around(ours) << "\n  theirs " << around(theirs[d]);
  }
}

TEST(TokenizerPeerTest, AgreesWithHuggingFaceTokenizers) {
  const std::string python = TESSERA_SOURCE_DIR "/.venv/bin/python";
  if (std::system((python + " -c 'import tokenizers' >/dev/null 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "no Python with tokenizers at .venv/bin/python";
  }
  const TestFolder folder;
  std::vector<std::string> documents;
  int64_t bytes = 0;
  if (const auto paths = ExpandFiles("/usr/share/doc/python3*/html/_sources/**/*.txt"); paths.ok()) {
    for (const std::string& path : *paths) {
      if (bytes > kDocumentBytes / 2) break;
      const auto text = ReadFile(path);
      if (!text.ok()) continue;
      documents.push_back(Repaired(*text));
      bytes += static_cast<int64_t>(text->size());
    }
  }
  for (uint64_t seed = 0; bytes < kDocumentBytes; ++seed) {
    documents.push_back(Repaired(RandomDocument(seed)));
    bytes += static_cast<int64_t>(documents.back().size());
  }
  // Training sees every tenth document: prose and noise.
  std::vector<std::string> sample;
  for (size_t d = 0; d < documents.size(); d += 10) sample.push_back(documents[d]);
  const std::vector<std::string_view> views(sample.begin(), sample.end());
  folder.Write("documents.bin", Packed(documents));
  folder.Write("train.bin", Packed(sample));
  std::vector<std::pair<std::string, Tokenizer>> ours;
  for (const PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                                  PreTokenizer::kGpt2Digits}) {
    auto tokenizer = TrainBpe(views, {.vocab_size = 3000, .pre_tokenizer = kind});
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    const std::string name(PreTokenizerName(kind));
    ASSERT_TRUE(tokenizer->Save(folder / ("ours_" + name + ".json")).ok());
    ours.emplace_back(name, *tokenizer);
  }
  ASSERT_EQ(std::system((python + " " TESSERA_SOURCE_DIR "/tests/peers/tokenizer_peer.py " +
                         folder.path().string()).c_str()),
            0);

  for (const auto& [name, tokenizer] : ours) {
    ExpectSameIds(tokenizer, documents, ReadIds(folder / ("ours_" + name + ".ids")), "ours_" + name);
    const auto theirs = Tokenizer::Load(folder / ("theirs_" + name + ".json"));
    ASSERT_TRUE(theirs.ok()) << theirs.error().message;
    ASSERT_EQ(theirs->vocab_size(), tokenizer.vocab_size());
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      ASSERT_EQ(theirs->TokenBytes(id), tokenizer.TokenBytes(id)) << name << " id " << id;
    }
    EXPECT_EQ(theirs->merge_count(), tokenizer.merge_count()) << name;
  }
  for (const char* name : {"gpt2", "llama3_style", "neox_style", "strips_style"}) {
    const std::string full = std::string("theirs_") + name;
    const auto theirs = Tokenizer::Load(folder / (full + ".json"));
    ASSERT_TRUE(theirs.ok()) << theirs.error().message;
    ExpectSameIds(*theirs, documents, ReadIds(folder / (full + ".ids")), full);
    // What we save of their file is the same tokenizer.
    const auto again = Tokenizer::FromJson(theirs->ToJson(), full);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(again->fingerprint(), theirs->fingerprint());
    EXPECT_EQ(again->Encode(documents.back()), theirs->Encode(documents.back()));
  }
  const auto llama = Tokenizer::Load(folder / "theirs_llama3_style.json");
  ASSERT_TRUE(llama.ok());
  ASSERT_EQ(llama->template_prefix().size(), 1u);
  EXPECT_EQ(llama->template_prefix()[0], llama->TokenId("<|begin_of_text|>"));
}

}  // namespace
}  // namespace tessera
