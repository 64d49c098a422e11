// What a Tokenizer shares between its copies.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe_model.h"
#include "tokenizer/tokenizer.h"

namespace tessera {

// Ids above this are refused: tables are indexed by id.
constexpr int64_t kMaxTokenId = int64_t{1} << 21;

struct TokenizerState {
  TokenizerParts parts;
  BpeModel model;
  uint64_t serial = 0;  // Distinguishes the caches of different tokenizers.
  int64_t vocab_size = 0;
  std::vector<std::string> bytes;  // By id; added tokens hold their content.
  std::vector<bool> special;       // By id.
  std::vector<bool> plain;         // By id: in parts.plain_ids.
  std::unordered_map<std::string, int32_t> added_by_content;
  // Matchers report indexes into parts.added_tokens: those matched before and after the normalizer.
  AddedTokenMatcher raw_matcher;
  AddedTokenMatcher normalized_matcher;
  std::string json;
  std::string fingerprint;
};

// The bytes that a vocabulary key spells, or nullopt when it is not in the byte alphabet.
std::optional<std::string> BytesOfVocabularyKey(std::string_view key);

// The canonical tokenizer.json of these parts (tokenizer_json.cc).
std::string TokenizerPartsToJson(const TokenizerParts& parts, const std::vector<bool>& plain);

}  // namespace tessera
