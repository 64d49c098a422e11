// Byte-level byte-pair encoding: text to token ids and back, read from and written to the
// `tokenizer.json` of Hugging Face's tokenizers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

// The rule that cuts text into pieces; byte pairs never merge across pieces.
enum class PreTokenizer {
  kGpt2,        // GPT-2, GPT-NeoX, MPT: the pattern of ByteLevel.
  kLlama3,      // Llama 3, cl100k: digits in groups of up to three.
  kQwen2,       // As kLlama3 with each digit alone.
  kGpt2Digits,  // StarCoder, SmolLM: each digit alone, then kGpt2 between them.
};
// "gpt2", "llama3", "qwen2", "gpt2_digits".
std::string_view PreTokenizerName(PreTokenizer kind);
std::optional<PreTokenizer> PreTokenizerFromName(std::string_view name);

enum class Normalizer { kNone, kNfc };

// What Encode does with a special token's content inside the text. Text from people that must not
// forge control tokens is encoded with kAsText; non-special added tokens are matched either way.
enum class SpecialTokens { kParse, kAsText };

// A string that is cut out of the text before pre-tokenization and becomes one id.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = true;      // Left out by Decode when special tokens are skipped.
  bool normalized = false;  // Matched after the normalizer instead of before.
  bool lstrip = false;      // Swallows white space on its left.
  bool rstrip = false;      // Swallows white space on its right.
};

// All that defines a tokenizer; checked by Tokenizer::Create.
struct TokenizerParts {
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  Normalizer normalizer = Normalizer::kNone;
  bool ignore_merges = false;  // A piece that is itself in the vocabulary is one token.
  // Raw bytes of each id; nullopt where the vocabulary has no such id (an added token may).
  std::vector<std::optional<std::string>> vocab;
  // Ids whose vocabulary key is plain text that the byte alphabet can't spell; they never merge.
  std::vector<int32_t> plain_ids;
  // Pairs of ids in the order of their rank. The joined bytes must be in the vocabulary.
  std::vector<std::pair<int32_t, int32_t>> merges;
  std::vector<AddedToken> added_tokens;
  // As nlohmann::json prints it: keys sorted, no spaces.
  std::string post_processor_json = "null";
  // Ids that the post-processor's template puts before and after a single text.
  std::vector<int32_t> template_prefix;
  std::vector<int32_t> template_suffix;
};

struct TokenizerState;

// Immutable and cheap to copy (copies share the tables); every const method is thread-safe.
class Tokenizer {
 public:
  // A tokenizer.json, or a folder that holds one.
  static Result<Tokenizer> Load(const std::filesystem::path& path);
  // `source` names the text in errors.
  static Result<Tokenizer> FromJson(std::string_view text, std::string_view source);
  static Result<Tokenizer> Create(TokenizerParts parts, std::string_view source);

  // Writes tokenizer.json atomically. A path that is a folder gets the file inside it.
  Status Save(const std::filesystem::path& path) const;
  // Canonical: depends on what the tokenizer does, not on the file that it came from.
  std::string ToJson() const;
  // SHA-256 of ToJson, in hex. Datasets and checkpoints record it.
  const std::string& fingerprint() const;

  int64_t vocab_size() const;  // Highest id + 1.
  int64_t merge_count() const;
  PreTokenizer pre_tokenizer() const;
  Normalizer normalizer() const;
  bool ignore_merges() const;
  const std::vector<AddedToken>& added_tokens() const;
  // Ids that the file's post-processor puts around a text (Llama 3: <|begin_of_text|>). Encode
  // does not add them.
  std::span<const int32_t> template_prefix() const;
  std::span<const int32_t> template_suffix() const;

  // An added token by its content, otherwise a vocabulary entry by its raw bytes.
  std::optional<int32_t> TokenId(std::string_view content) const;
  // <|endoftext|>, <|end_of_text|>, </s> or another customary name, where there is one.
  std::optional<int32_t> eos_id() const;
  bool IsSpecial(int32_t id) const;
  // Raw bytes of a token; a character may be spread over several tokens. Empty for an id that
  // does not exist.
  std::string_view TokenBytes(int32_t id) const;

  // Appends the ids of `text` to *ids. `text` may hold any bytes: each byte that is not part of
  // valid UTF-8 counts as one symbol character and survives Decode. Keeps a cache of pieces
  // per calling thread.
  void Encode(std::string_view text, std::vector<int32_t>* ids,
              SpecialTokens mode = SpecialTokens::kParse) const;
  std::vector<int32_t> Encode(std::string_view text,
                              SpecialTokens mode = SpecialTokens::kParse) const;
  // The tokens' bytes in order: Decode(Encode(text)) == text where no normalizer changes the text.
  // Ids that do not exist add nothing. The bytes need not be valid UTF-8.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

 private:
  friend class Encoder;
  explicit Tokenizer(std::shared_ptr<const TokenizerState> state) : state_(std::move(state)) {}
  std::shared_ptr<const TokenizerState> state_;
};

// Encodes with a cache of its own, for loops that want to say when a cache begins and ends.
// One thread at a time.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  ~Encoder();
  Encoder(Encoder&& other) noexcept;
  Encoder& operator=(Encoder&& other) noexcept;

  void Encode(std::string_view text, std::vector<int32_t>* ids,
              SpecialTokens mode = SpecialTokens::kParse);

 private:
  struct Work;
  std::unique_ptr<Work> work_;
};

}  // namespace tessera
