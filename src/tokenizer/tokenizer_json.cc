// tokenizer.json: what Tessera supports of it is read, all else is refused by name.
#include <fmt/format.h>

#include <array>

#include "base/json.h"
#include "tokenizer/tokenizer_state.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

// The patterns as Hugging Face's files spell them.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The byte alphabet: printable bytes are the character of the same number, the other 68 take
// U+0100 and up in increasing order.
struct ByteAlphabet {
  std::array<uint32_t, 256> char_of{};
  std::array<int16_t, 0x144> byte_of{};

  constexpr ByteAlphabet() {
    for (auto& entry : byte_of) entry = -1;
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      char_of[b] = printable ? b : next++;
      byte_of[char_of[b]] = static_cast<int16_t>(b);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

std::string KeyOfBytes(std::string_view bytes) {
  std::string key;
  for (const char c : bytes) AppendUtf8(kAlphabet.char_of[static_cast<uint8_t>(c)], &key);
  return key;
}

std::string Brief(const Json& value) {
  std::string text = JsonText(value);
  if (text.size() > 80) {
    text.resize(80);
    text += "...";
  }
  return text;
}

// Reads one tokenizer.json into parts. Members are looked up by name; every refusal names the
// source, the key and the value.
class Reader {
 public:
  Reader(const Json& root, std::string_view source) : root_(root), source_(source) {}

  Result<TokenizerParts> Read() {
    if (!root_.is_object()) {
      return Corrupt(fmt::format("{}: a tokenizer.json is an object, found {}", source_,
                                 root_.type_name()));
    }
    for (const char* key : {"truncation", "padding"}) {
      if (!Get(root_, key).is_null()) {
        return Unsupported(fmt::format("{}: '{}' is set, which Tessera does not apply; set it to "
                                       "null in the file",
                                       source_, key));
      }
    }
    TESSERA_TRY(ReadAddedTokens());
    TESSERA_TRY(ReadModel());
    TESSERA_TRY(ReadNormalizer(Get(root_, "normalizer")));
    TESSERA_TRY(ReadPreTokenizer(Get(root_, "pre_tokenizer")));
    TESSERA_TRY(ReadDecoder(Get(root_, "decoder")));
    const Json& post = Get(root_, "post_processor");
    TESSERA_TRY(ReadPostProcessor(post, 0));
    parts_.post_processor_json = JsonText(post);
    return std::move(parts_);
  }

 private:
  const Json& Get(const Json& object, const char* key) const {
    static const Json kNull;
    if (!object.is_object()) return kNull;
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
  }
  std::string TypeOf(const Json& object) const {
    const Json& type = Get(object, "type");
    return type.is_string() ? type.get<std::string>() : Brief(object);
  }
  Result<bool> Bool(const Json& object, const char* key, bool missing) const {
    const Json& value = Get(object, key);
    if (value.is_null()) return missing;
    if (!value.is_boolean()) {
      return Corrupt(fmt::format("{}: '{}' must be true or false, found {}", source_, key,
                                 Brief(value)));
    }
    return value.get<bool>();
  }
  Result<int32_t> Id(const Json& value, std::string_view what) const {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
        value.get<int64_t>() > kMaxTokenId) {
      return Corrupt(fmt::format("{}: the id of {} must be an integer in 0..{}, found {}", source_,
                                 what, kMaxTokenId, Brief(value)));
    }
    return value.get<int32_t>();
  }
  Error Refuse(std::string_view where, std::string_view what) const {
    return Unsupported(fmt::format(
        "{}: {} {} is not supported; Tessera reads byte-level BPE as of GPT-2, GPT-NeoX, Llama 3, "
        "Qwen 2 and StarCoder",
        source_, where, what));
  }

  Status ReadAddedTokens() {
    const Json& list = Get(root_, "added_tokens");
    if (list.is_null()) return {};
    if (!list.is_array()) return Corrupt(fmt::format("{}: 'added_tokens' is no list", source_));
    for (const Json& entry : list) {
      AddedToken token;
      TESSERA_ASSIGN(token.content, JsonString(entry, "content", source_));
      TESSERA_ASSIGN(token.id, Id(Get(entry, "id"), "added token '" + token.content + "'"));
      TESSERA_ASSIGN(token.special, Bool(entry, "special", false));
      TESSERA_ASSIGN(token.normalized, Bool(entry, "normalized", !token.special));
      TESSERA_ASSIGN(token.lstrip, Bool(entry, "lstrip", false));
      TESSERA_ASSIGN(token.rstrip, Bool(entry, "rstrip", false));
      TESSERA_ASSIGN(const bool single_word, Bool(entry, "single_word", false));
      if (single_word) return Refuse("added token '" + token.content + "' with", "single_word");
      added_.emplace(token.content, token.id);
      parts_.added_tokens.push_back(std::move(token));
    }
    return {};
  }

  Status ReadModel() {
    const Json& model = Get(root_, "model");
    if (!model.is_object()) return Corrupt(fmt::format("{}: 'model' is missing", source_));
    // Old files leave the type out.
    if (const Json& type = Get(model, "type"); !type.is_null() && type != "BPE") {
      return Refuse("model type", TypeOf(model));
    }
    const Json& dropout = Get(model, "dropout");
    if (!dropout.is_null() && dropout != 0) return Refuse("model.dropout", Brief(dropout));
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = Get(model, key);
      if (!value.is_null() && value != "") {
        return Refuse(fmt::format("model.{}", key), Brief(value));
      }
    }
    TESSERA_ASSIGN(const bool byte_fallback, Bool(model, "byte_fallback", false));
    if (byte_fallback) return Refuse("model.byte_fallback", "true");
    TESSERA_ASSIGN(parts_.ignore_merges, Bool(model, "ignore_merges", false));
    TESSERA_TRY(ReadVocab(Get(model, "vocab")));
    return ReadMerges(Get(model, "merges"));
  }

  Status ReadVocab(const Json& vocab) {
    if (!vocab.is_object()) return Corrupt(fmt::format("{}: 'model.vocab' is no object", source_));
    for (const auto& item : vocab.items()) {
      TESSERA_ASSIGN(const int32_t id, Id(item.value(), "vocabulary entry '" + item.key() + "'"));
      const auto index = static_cast<size_t>(id);
      if (index >= parts_.vocab.size()) parts_.vocab.resize(index + 1);
      if (parts_.vocab[index]) {
        return Corrupt(fmt::format("{}: id {} is given to two vocabulary entries, one of them '{}'",
                                   source_, id, item.key()));
      }
      std::optional<std::string> bytes = BytesOfVocabularyKey(item.key());
      const bool added = bytes && *bytes != item.key() && IsAdded(item.key(), id);
      if (!bytes || bytes->empty() || added) {
        parts_.plain_ids.push_back(id);
        parts_.vocab[index] = item.key();
      } else {
        parts_.vocab[index] = std::move(*bytes);
        ids_.emplace(item.key(), id);
      }
    }
    return {};
  }

  bool IsAdded(const std::string& content, int32_t id) const {
    const auto it = added_.find(content);
    return it != added_.end() && it->second == id;
  }

  Status ReadMerges(const Json& merges) {
    if (!merges.is_array()) return Corrupt(fmt::format("{}: 'model.merges' is no list", source_));
    parts_.merges.reserve(merges.size());
    for (const Json& entry : merges) {
      std::string left, right;
      if (entry.is_string()) {
        const auto& text = entry.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos) {
          left = text.substr(0, space);
          right = text.substr(space + 1);
        }
      } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                 entry[1].is_string()) {
        left = entry[0].get<std::string>();
        right = entry[1].get<std::string>();
      }
      const auto left_id = ids_.find(left);
      const auto right_id = ids_.find(right);
      if (left_id == ids_.end() || right_id == ids_.end()) {
        return Corrupt(fmt::format("{}: merge {} is {}, which is no pair of vocabulary entries",
                                   source_, parts_.merges.size(), Brief(entry)));
      }
      parts_.merges.emplace_back(left_id->second, right_id->second);
    }
    return {};
  }

  Status ReadNormalizer(const Json& normalizer) {
    if (normalizer.is_null()) return {};
    if (TypeOf(normalizer) == "NFC") {
      parts_.normalizer = Normalizer::kNfc;
      return {};
    }
    if (const Json& list = Get(normalizer, "normalizers");
        TypeOf(normalizer) == "Sequence" && list.is_array() && list.size() <= 1) {
      return list.empty() ? Status() : ReadNormalizer(list[0]);
    }
    return Refuse("normalizer", TypeOf(normalizer));
  }

  // ByteLevel; *use_regex tells whether it also applies the GPT-2 pattern.
  Status ReadByteLevel(const Json& step, bool* use_regex) const {
    if (TypeOf(step) != "ByteLevel") return Refuse("pre-tokenizer", TypeOf(step));
    TESSERA_ASSIGN(const bool add_prefix_space, Bool(step, "add_prefix_space", true));
    if (add_prefix_space) return Refuse("pre-tokenizer ByteLevel with", "add_prefix_space");
    TESSERA_ASSIGN(*use_regex, Bool(step, "use_regex", true));
    return {};
  }

  Status ReadPreTokenizer(const Json& step) {
    if (step.is_null()) return Refuse("pre-tokenizer", "null");
    bool use_regex = false;
    if (TypeOf(step) != "Sequence") {
      TESSERA_TRY(ReadByteLevel(step, &use_regex));
      if (!use_regex) return Refuse("pre-tokenizer ByteLevel alone with", "use_regex false");
      parts_.pre_tokenizer = PreTokenizer::kGpt2;
      return {};
    }
    const Json& list = Get(step, "pretokenizers");
    if (!list.is_array() || list.empty() || list.size() > 2) {
      return Refuse("pre-tokenizer Sequence", Brief(list));
    }
    if (list.size() == 1) {
      return TypeOf(list[0]) == "Sequence" ? Status(Refuse("pre-tokenizer", "nested Sequence"))
                                           : ReadPreTokenizer(list[0]);
    }
    TESSERA_TRY(ReadByteLevel(list[1], &use_regex));
    const Json& first = list[0];
    if (TypeOf(first) == "Digits") {
      TESSERA_ASSIGN(const bool individual, Bool(first, "individual_digits", false));
      if (!individual || !use_regex) {
        return Refuse("pre-tokenizer Digits", "without individual_digits or without use_regex");
      }
      parts_.pre_tokenizer = PreTokenizer::kGpt2Digits;
      return {};
    }
    if (TypeOf(first) != "Split") return Refuse("pre-tokenizer", TypeOf(first));
    TESSERA_ASSIGN(const bool invert, Bool(first, "invert", false));
    const Json& behavior = Get(first, "behavior");
    const Json& pattern = Get(Get(first, "pattern"), "Regex");
    // All patterns match every character, so that Removed with invert cuts as Isolated does.
    if (!((behavior == "Isolated" && !invert) || (behavior == "Removed" && invert))) {
      return Refuse("pre-tokenizer Split with behavior", Brief(behavior));
    }
    if (use_regex) return Refuse("pre-tokenizer Split followed by ByteLevel with", "use_regex");
    if (pattern == kGpt2Pattern) {
      parts_.pre_tokenizer = PreTokenizer::kGpt2;
    } else if (pattern == kLlama3Pattern) {
      parts_.pre_tokenizer = PreTokenizer::kLlama3;
    } else if (pattern == kQwen2Pattern) {
      parts_.pre_tokenizer = PreTokenizer::kQwen2;
    } else {
      return Refuse("pre-tokenizer Split with the pattern", Brief(pattern));
    }
    return {};
  }

  Status ReadDecoder(const Json& decoder) const {
    if (decoder.is_null() || TypeOf(decoder) == "ByteLevel") return {};
    return Refuse("decoder", TypeOf(decoder));
  }

  // ByteLevel changes offsets only. Of a template, the part for a single text is kept.
  Status ReadPostProcessor(const Json& post, int depth) {
    if (post.is_null() || TypeOf(post) == "ByteLevel") return {};
    if (TypeOf(post) == "Sequence" && depth == 0) {
      const Json& list = Get(post, "processors");
      if (!list.is_array()) return Refuse("post-processor", Brief(post));
      for (const Json& entry : list) TESSERA_TRY(ReadPostProcessor(entry, depth + 1));
      return {};
    }
    const Json& single = Get(post, "single");
    if (TypeOf(post) != "TemplateProcessing" || !single.is_array()) {
      return Refuse("post-processor", TypeOf(post));
    }
    bool after = false;
    for (const Json& entry : single) {
      if (!Get(entry, "Sequence").is_null()) {
        after = true;
        continue;
      }
      const Json& name = Get(Get(entry, "SpecialToken"), "id");
      if (!name.is_string()) return Refuse("post-processor template", Brief(entry));
      const Json& definition = Get(Get(post, "special_tokens"), name.get<std::string>().c_str());
      const Json& ids = Get(definition, "ids");
      if (!ids.is_array()) {
        return Corrupt(fmt::format("{}: the post-processor's template uses {}, which its "
                                   "special_tokens do not define",
                                   source_, Brief(name)));
      }
      for (const Json& value : ids) {
        TESSERA_ASSIGN(const int32_t id, Id(value, Brief(name)));
        (after ? parts_.template_suffix : parts_.template_prefix).push_back(id);
      }
    }
    return {};
  }

  const Json& root_;
  std::string source_;
  TokenizerParts parts_;
  std::unordered_map<std::string, int32_t> added_;  // Added tokens by content.
  std::unordered_map<std::string, int32_t> ids_;    // Vocabulary by key as in the file.
};

void AppendQuoted(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<uint8_t>(c) < 0x20) {
      *out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

std::string PreTokenizerJson(PreTokenizer kind) {
  const auto byte_level = [](bool use_regex) {
    return fmt::format(
        R"({{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":{}}})",
        use_regex);
  };
  const auto split = [&](std::string_view pattern) {
    std::string text = R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)";
    AppendQuoted(pattern, &text);
    return text + R"(},"behavior":"Isolated","invert":false},)" + byte_level(false) + "]}";
  };
  switch (kind) {
    case PreTokenizer::kGpt2:
      break;
    case PreTokenizer::kLlama3:
      return split(kLlama3Pattern);
    case PreTokenizer::kQwen2:
      return split(kQwen2Pattern);
    case PreTokenizer::kGpt2Digits:
      return R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)" +
             byte_level(true) + "]}";
  }
  return byte_level(true);
}

}  // namespace

std::optional<std::string> BytesOfVocabularyKey(std::string_view key) {
  std::string bytes;
  const auto* p = reinterpret_cast<const uint8_t*>(key.data());
  const uint8_t* const end = p + key.size();
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    if (c.code_point >= kAlphabet.byte_of.size() || kAlphabet.byte_of[c.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[c.code_point]));
    p += c.length;
  }
  return bytes;
}

// One vocabulary entry, merge or added token a line, in the order of ids and ranks. Merges are
// written as "a b", which every version of Hugging Face's tokenizers reads.
std::string TokenizerPartsToJson(const TokenizerParts& parts, const std::vector<bool>& plain) {
  std::string out = "{\n\"version\":\"1.0\",\n\"truncation\":null,\n\"padding\":null,\n";
  out += "\"added_tokens\":[";
  const char* separator = "\n";
  for (const AddedToken& token : parts.added_tokens) {
    out += fmt::format("{}{{\"id\":{},\"content\":", separator, token.id);
    AppendQuoted(token.content, &out);
    out += fmt::format(
        R"(,"single_word":false,"lstrip":{},"rstrip":{},"normalized":{},"special":{}}})",
        token.lstrip, token.rstrip, token.normalized, token.special);
    separator = ",\n";
  }
  out += fmt::format("],\n\"normalizer\":{},\n\"pre_tokenizer\":{},\n\"post_processor\":{},\n",
                     parts.normalizer == Normalizer::kNfc ? R"({"type":"NFC"})" : "null",
                     PreTokenizerJson(parts.pre_tokenizer), parts.post_processor_json);
  out += R"("decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,)"
         R"("use_regex":true},)";
  out += fmt::format(
      "\n\"model\":{{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
      "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
      "\"byte_fallback\":false,\"ignore_merges\":{},\n\"vocab\":{{",
      parts.ignore_merges);
  const auto key_of = [&](size_t id) {
    return plain[id] ? *parts.vocab[id] : KeyOfBytes(*parts.vocab[id]);
  };
  separator = "\n";
  for (size_t id = 0; id < parts.vocab.size(); ++id) {
    if (!parts.vocab[id]) continue;
    out += separator;
    AppendQuoted(key_of(id), &out);
    out += fmt::format(":{}", id);
    separator = ",\n";
  }
  out += "},\n\"merges\":[";
  separator = "\n";
  for (const auto& [left, right] : parts.merges) {
    out += separator;
    AppendQuoted(key_of(static_cast<size_t>(left)) + " " + key_of(static_cast<size_t>(right)),
                 &out);
    separator = ",\n";
  }
  out += "]}\n}\n";
  return out;
}

Result<Tokenizer> Tokenizer::FromJson(std::string_view text, std::string_view source) {
  TESSERA_ASSIGN(const Json root, ParseJson(text, source));
  Reader reader(root, source);
  TESSERA_ASSIGN(TokenizerParts parts, reader.Read());
  return Create(std::move(parts), source);
}

}  // namespace tessera
