#include "tokenizer/pretokenizer.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "tokenizer/unicode_tables.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

// A slow matcher for the few regex features that the patterns need, written from the meaning of
// those features and not from the scanner's rules: alternatives in order, greedy repetition with
// backtracking, one negative look-ahead.
struct Char {
  uint32_t code_point;
  uint8_t char_class;
  int64_t end;  // Byte offset behind it.
};

std::vector<Char> CharsOf(std::string_view text) {
  std::vector<Char> chars;
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  int64_t offset = 0;
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    offset += c.length;
    p += c.length;
    const uint8_t char_class =
        c.code_point == Utf8Char::kInvalid
            ? uint8_t{unicode::kOther}
            : static_cast<uint8_t>(unicode::ClassAndFlags(c.code_point) & unicode::kClassMask);
    chars.push_back({c.code_point, char_class, offset});
  }
  return chars;
}

using Predicate = bool (*)(const Char&);
struct Atom {
  Predicate matches;
  int64_t min = 1, max = 1;
  bool not_before_text = false;  // (?!\S) behind it.
};
using Sequence = std::vector<Atom>;

bool L(const Char& c) { return c.char_class == unicode::kLetter; }
bool N(const Char& c) { return c.char_class == unicode::kNumber; }
bool S(const Char& c) {
  return c.char_class == unicode::kSpace || c.char_class == unicode::kNewline;
}
bool Symbol(const Char& c) { return !S(c) && !L(c) && !N(c); }
bool CrLf(const Char& c) { return c.code_point == '\n' || c.code_point == '\r'; }
bool Blank(const Char& c) { return c.code_point == ' '; }
bool Prefix(const Char& c) { return !CrLf(c) && !L(c) && !N(c); }

// The end (in characters) of the first match of the atoms from `atom` at `at`, or -1.
int64_t MatchFrom(const std::vector<Char>& chars, const Sequence& atoms, size_t atom, int64_t at) {
  const auto size = static_cast<int64_t>(chars.size());
  if (atom == atoms.size()) return at;
  const Atom& here = atoms[atom];
  int64_t count = 0;
  while (count < here.max && at + count < size &&
         here.matches(chars[static_cast<size_t>(at + count)])) {
    ++count;
  }
  for (; count >= here.min; --count) {
    const int64_t next = at + count;
    if (here.not_before_text && next < size && !S(chars[static_cast<size_t>(next)])) continue;
    if (const int64_t end = MatchFrom(chars, atoms, atom + 1, next); end >= 0) return end;
  }
  return -1;
}

int64_t MatchContraction(const std::vector<Char>& chars, int64_t at, bool any_case) {
  for (const std::string_view word : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    bool equal = at + static_cast<int64_t>(word.size()) <= static_cast<int64_t>(chars.size());
    for (size_t i = 0; equal && i < word.size(); ++i) {
      uint32_t c = chars[static_cast<size_t>(at) + i].code_point;
      if (any_case && c >= 'A' && c <= 'Z') c += 32;
      if (any_case && c == 0x17F) c = 's';
      equal = c == static_cast<uint8_t>(word[i]);
    }
    if (equal) return at + static_cast<int64_t>(word.size());
  }
  return -1;
}

std::vector<int64_t> SlowPieces(PreTokenizer kind, std::string_view text) {
  constexpr int64_t kMany = int64_t{1} << 40;
  const bool cl100k = kind == PreTokenizer::kLlama3 || kind == PreTokenizer::kQwen2;
  const Sequence tail_space = {{S, 1, kMany, true}};
  const std::vector<Sequence> gpt2 = {{{Blank, 0, 1}, {L, 1, kMany}},
                                      {{Blank, 0, 1}, {N, 1, kMany}},
                                      {{Blank, 0, 1}, {Symbol, 1, kMany}},
                                      tail_space,
                                      {{S, 1, kMany}}};
  const std::vector<Sequence> llama = {{{Prefix, 0, 1}, {L, 1, kMany}},
                                       {{N, 1, kind == PreTokenizer::kQwen2 ? 1 : 3}},
                                       {{Blank, 0, 1}, {Symbol, 1, kMany}, {CrLf, 0, kMany}},
                                       {{S, 0, kMany}, {CrLf, 1, kMany}},
                                       tail_space,
                                       {{S, 1, kMany}}};
  // Stretches that the pattern sees apart: with single digits, each number character is its own.
  const std::vector<Char> all = CharsOf(text);
  std::vector<std::vector<Char>> stretches(1);
  for (const Char& c : all) {
    if (kind == PreTokenizer::kGpt2Digits && N(c)) {
      stretches.push_back({c});
      stretches.emplace_back();
    } else {
      stretches.back().push_back(c);
    }
  }
  std::vector<int64_t> ends;
  for (const std::vector<Char>& chars : stretches) {
    for (int64_t at = 0; at < static_cast<int64_t>(chars.size());) {
      int64_t end = MatchContraction(chars, at, cl100k);
      for (const Sequence& sequence : cl100k ? llama : gpt2) {
        if (end < 0) end = MatchFrom(chars, sequence, 0, at);
      }
      EXPECT_GT(end, at);
      if (end <= at) return {};
      ends.push_back(chars[static_cast<size_t>(end - 1)].end);
      at = end;
    }
  }
  return ends;
}

std::vector<int64_t> FastPieces(PreTokenizer kind, std::string_view text, int64_t batch) {
  std::vector<int64_t> ends;
  std::vector<int64_t> some(static_cast<size_t>(batch));
  int64_t begin = 0;
  while (begin < static_cast<int64_t>(text.size())) {
    const int64_t count = ScanPieces(kind, text, begin, batch, some.data());
    EXPECT_GT(count, 0);
    if (count <= 0) break;
    ends.insert(ends.end(), some.begin(), some.begin() + count);
    begin = ends.back();
  }
  return ends;
}

constexpr PreTokenizer kKinds[] = {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                                   PreTokenizer::kGpt2Digits};

// Text of parts whose neighbourhood decides: every class, contractions, runs, broken UTF-8.
std::string RandomText(uint64_t seed) {
  static const std::vector<std::string> parts = {
      " ", " ", "  ", "\n", "\r\n", "\t", "\xC2\xA0", "\xE3\x80\x80", "\xC2\x85", "'", "'s", "'RE",
      "'ll", "'\xC5\xBF", "a", "Word", "zebra[", "@mark`", "{}", "\xC3\xA9", "\xD0\xB6\xD0\xB8",
      "\xE4\xBD\xA0", "1", "23", "4567", "\xD9\xA3", "\xC2\xBD", ".", "!!", "-", "_", "\x1C",
      "\xF0\x9F\x98\x80", "\xE2\x80\x8D", "e\xCC\x81", "\xFF", "\xC3", "\xE4\xBD", "\xED\xA0\x80",
      "\xF4\x90\x80\x80", "abcdefgh", "abcdefghijklmnopq"};
  const RngKey key{.seed = seed};
  std::string text;
  const uint64_t length = key.Block(0)[0] % 24;
  for (uint64_t i = 1; i <= length; ++i) {
    const auto block = key.Block(i);
    if (block[1] % 8 == 0) {
      AppendUtf8(block[2] % 0xD800, &text);
    } else {
      text += parts[block[0] % parts.size()];
    }
  }
  return text;
}

TEST(PreTokenizerTest, AgreesWithTheSlowMatcher) {
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    const std::string text = RandomText(seed);
    for (const PreTokenizer kind : kKinds) {
      ASSERT_EQ(FastPieces(kind, text, 256), SlowPieces(kind, text))
          << PreTokenizerName(kind) << " seed " << seed << " text '" << text << "'";
    }
  }
}

TEST(PreTokenizerTest, BatchesDoNotChangeThePieces) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const std::string text = RandomText(seed);
    for (const PreTokenizer kind : kKinds) {
      ASSERT_EQ(FastPieces(kind, text, 1), FastPieces(kind, text, 7));
    }
  }
}

// Each character of Unicode between letters, digits and spaces.
TEST(PreTokenizerTest, EveryCodePointAgreesWithTheSlowMatcher) {
  for (const PreTokenizer kind : kKinds) {
    std::string text;
    for (uint32_t c = 0; c < 0x110000; c += 1) {
      if (c >= 0xD800 && c < 0xE000) continue;
      // Long stretches of one class are sampled.
      if (c > 0x3400 && c < 0xD7A4 && c % 61 != 0) continue;
      if (c > 0x20000 && c % 257 != 0) continue;
      text += c % 3 == 0 ? "a" : c % 3 == 1 ? " " : "1";
      AppendUtf8(c, &text);
      if (text.size() > 4000) {
        ASSERT_EQ(FastPieces(kind, text, 256), SlowPieces(kind, text));
        text.clear();
      }
    }
  }
}

std::vector<std::string> Strings(PreTokenizer kind, std::string_view text) {
  std::vector<std::string> pieces;
  int64_t begin = 0;
  for (const int64_t end : FastPieces(kind, text, 256)) {
    pieces.emplace_back(text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    begin = end;
  }
  return pieces;
}

TEST(PreTokenizerTest, KnownPieces) {
  using V = std::vector<std::string>;
  EXPECT_EQ(Strings(PreTokenizer::kGpt2, "I'm  here 'tis 12345x!?\n\n y  "),
            (V{"I", "'m", " ", " here", " '", "tis", " 12345", "x", "!?", "\n\n", " y", "  "}));
  EXPECT_EQ(Strings(PreTokenizer::kLlama3, "I'M  here.\n\n x 12345 a\t(b"),
            (V{"I", "'M", " ", " here", ".\n\n", " x", " ", "123", "45", " a", "\t", "(b"}));
  EXPECT_EQ(Strings(PreTokenizer::kQwen2, "v12"), (V{"v", "1", "2"}));
  EXPECT_EQ(Strings(PreTokenizer::kGpt2Digits, "a  12 b"), (V{"a", "  ", "1", "2", " b"}));
}

}  // namespace
}  // namespace tessera
