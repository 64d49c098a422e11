// Arbitrary bytes as a text, encoded by tokenizers of every kind and decoded again. The first byte
// chooses the tokenizer and how special tokens are taken.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/tokenizer.h"

using namespace tessera;

namespace {

// All bytes, some merges (also over invalid UTF-8), added tokens of each kind.
Tokenizer Make(PreTokenizer kind, Normalizer normalizer, bool strip) {
  TokenizerParts parts;
  parts.pre_tokenizer = kind;
  parts.normalizer = normalizer;
  parts.ignore_merges = kind == PreTokenizer::kLlama3;
  for (int byte = 0; byte < 256; ++byte)
    parts.vocab.emplace_back(std::string(1, static_cast<char>(byte)));
  const std::pair<std::string, std::string> merges[] = {
      {" ", " "},       {"  ", "  "}, {"t", "h"},      {"th", "e"},      {" ", "the"},
      {"e", "e"},       {"1", "2"},   {"12", "3"},     {"\xC3", "\xA9"}, {"\n", "\n"},
      {"\xFF", "\xFE"}, {"'", "s"},   {"\xCC", "\x81"}};
  for (const auto& [left, right] : merges) {
    const auto id_of = [&](const std::string& bytes) {
      for (size_t id = 0; id < parts.vocab.size(); ++id) {
        if (parts.vocab[id] == bytes) return static_cast<int32_t>(id);
      }
      std::abort();
    };
    parts.merges.emplace_back(id_of(left), id_of(right));
    parts.vocab.emplace_back(left + right);
  }
  auto next = static_cast<int32_t>(parts.vocab.size());
  parts.added_tokens = {
      {.content = "<|endoftext|>", .id = next++, .lstrip = strip, .rstrip = strip},
      {.content = "<|x", .id = next++},
      {.content = "<|x|>", .id = next++},
      {.content = "  \t", .id = next++, .special = false, .normalized = true},
      {.content = "\xC3\xA9\xC3\xA9",
       .id = next++,
       .special = false,
       .normalized = true,
       .rstrip = strip}};
  Result<Tokenizer> tokenizer = Tokenizer::Create(std::move(parts), "fuzz");
  if (!tokenizer.ok()) std::abort();
  return *tokenizer;
}

struct Case {
  Tokenizer tokenizer;
  Encoder encoder;  // With its own cache: that of the thread begins anew with each other tokenizer.
  bool exact;  // Neither a normalizer nor a stripping token takes anything away.
};

std::vector<Case>& Cases() {
  static std::vector<Case> cases = [] {
    std::vector<Case> all;
    const auto add = [&](Tokenizer tokenizer, bool exact) {
      Encoder encoder(tokenizer);
      all.push_back({std::move(tokenizer), std::move(encoder), exact});
    };
    for (const PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kLlama3,
                                    PreTokenizer::kQwen2, PreTokenizer::kGpt2Digits}) {
      add(Make(kind, Normalizer::kNone, false), true);
      add(Make(kind, Normalizer::kNfc, false), false);
      add(Make(kind, Normalizer::kNone, true), false);
    }
    return all;
  }();
  return cases;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  Case& chosen = Cases()[data[0] % Cases().size()];
  const Tokenizer& tokenizer = chosen.tokenizer;
  const SpecialTokens mode = data[0] >= 128 ? SpecialTokens::kAsText : SpecialTokens::kParse;
  // On the heap with its exact size, so that a read behind the text is seen.
  const std::unique_ptr<char[]> copy(new char[size - 1]);
  std::memcpy(copy.get(), data + 1, size - 1);
  const std::string_view text(copy.get(), size - 1);

  std::vector<int32_t> ids;
  chosen.encoder.Encode(text, &ids, mode);
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
  }
  const std::string decoded = tokenizer.Decode(ids);
  if (chosen.exact && decoded != text) std::abort();
  (void)tokenizer.Decode(ids, true);
  // What the cache of pieces remembers is what was found without it.
  std::vector<int32_t> again;
  chosen.encoder.Encode(text, &again, mode);
  if (again != ids) std::abort();

  // The bytes as ids, which may not exist.
  std::vector<int32_t> any((size - 1) / 4);
  if (!any.empty()) std::memcpy(any.data(), text.data(), 4 * any.size());
  (void)tokenizer.Decode(any);
  for (const int32_t id : any) (void)tokenizer.IsSpecial(id);
  return 0;
}
