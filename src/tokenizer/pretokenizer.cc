#include "tokenizer/pretokenizer.h"

#include <array>
#include <bit>
#include <cstring>

#include "tokenizer/unicode_tables.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

using unicode::kLetter;
using unicode::kNewline;
using unicode::kNumber;
using unicode::kOther;
using unicode::kSpace;

constexpr uint8_t kHigh = 0xFF;  // First byte of a character outside ASCII, or an invalid byte.

constexpr std::array<uint8_t, 256> MakeByteClasses() {
  std::array<uint8_t, 256> classes{};
  for (size_t b = 0; b < 256; ++b) {
    if (b >= 0x80) {
      classes[b] = kHigh;
    } else if ((b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z')) {
      classes[b] = kLetter;
    } else if (b >= '0' && b <= '9') {
      classes[b] = kNumber;
    } else if (b == '\n' || b == '\r') {
      classes[b] = kNewline;
    } else if (b == ' ' || (b >= 0x09 && b <= 0x0C)) {
      classes[b] = kSpace;
    } else {
      classes[b] = kOther;
    }
  }
  return classes;
}
constexpr std::array<uint8_t, 256> kByteClass = MakeByteClasses();

struct ClassLength {
  uint8_t char_class;
  int32_t length;
};

ClassLength HighClassAt(const uint8_t* p, const uint8_t* end) {
  const Utf8Char c = DecodeUtf8(p, end);
  if (c.code_point == Utf8Char::kInvalid) return {kOther, 1};
  return {static_cast<uint8_t>(unicode::ClassAndFlags(c.code_point) & unicode::kClassMask),
          c.length};
}

inline ClassLength ClassAt(const uint8_t* p, const uint8_t* end) {
  const uint8_t c = kByteClass[*p];
  if (c != kHigh) [[likely]] return {c, 1};
  return HighClassAt(p, end);
}

// Number of ASCII letters at the start of 8 bytes (little-endian word). No carry crosses a byte:
// both sums stay below 0x100.
inline int LetterPrefix(uint64_t word) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  const uint64_t lower = (word & (kOnes * 0x7F)) | (kOnes * 0x20);
  const uint64_t from_a = lower + kOnes * (0x80 - 'a');
  const uint64_t past_z = lower + kOnes * (0x80 - 'z' - 1);
  const uint64_t not_letter = ~(from_a & ~past_z & ~word) & (kOnes * 0x80);
  return not_letter == 0 ? 8 : std::countr_zero(not_letter) >> 3;
}

// The end of a run of one class.
template <uint8_t kClass>
inline const uint8_t* SkipRun(const uint8_t* p, const uint8_t* end) {
  if constexpr (kClass == kLetter && std::endian::native == std::endian::little) {
    while (end - p >= 8) {
      uint64_t word;
      std::memcpy(&word, p, 8);
      const int letters = LetterPrefix(word);
      p += letters;
      if (letters == 8) continue;
      if (*p < 0x80) return p;
      const ClassLength c = HighClassAt(p, end);
      if (c.char_class != kLetter) return p;
      p += c.length;
    }
  }
  while (p < end) {
    const ClassLength c = ClassAt(p, end);
    if (c.char_class != kClass) break;
    p += c.length;
  }
  return p;
}

// Bytes of the contraction at an apostrophe, or 0. In any case, U+017F (long s) folds to s.
template <bool kAnyCase>
inline int ContractionLength(const uint8_t* p, const uint8_t* end) {
  if (end - p < 2) return 0;
  const auto fold = [](uint8_t c) {
    return kAnyCase && c >= 'A' && c <= 'Z' ? static_cast<uint8_t>(c + 32) : c;
  };
  const uint8_t c1 = fold(p[1]);
  if (c1 == 's' || c1 == 't' || c1 == 'm' || c1 == 'd') return 2;
  if (end - p < 3) return 0;
  if (kAnyCase && p[1] == 0xC5 && p[2] == 0xBF) return 3;
  const uint8_t c2 = fold(p[2]);
  if ((c2 == 'e' && (c1 == 'r' || c1 == 'v')) || (c1 == 'l' && c2 == 'l')) return 3;
  return 0;
}

struct SpaceRun {
  const uint8_t* end;
  const uint8_t* last;          // Start of the run's last character.
  const uint8_t* after_newline; // Past the last CR or LF, or null.
  ClassLength next;             // What follows; meaningless at the end of the text.
};

inline SpaceRun SkipSpace(const uint8_t* p, const uint8_t* end) {
  SpaceRun run{p, p, nullptr, {kOther, 0}};
  while (run.end < end) {
    const ClassLength c = ClassAt(run.end, end);
    if (c.char_class != kSpace && c.char_class != kNewline) {
      run.next = c;
      break;
    }
    run.last = run.end;
    run.end += c.length;
    if (c.char_class == kNewline) run.after_newline = run.end;
  }
  return run;
}

// A run of white space of which the last character belongs to what follows.
template <bool kDigitsCut>
inline const uint8_t* EndOfSpace(const SpaceRun& run, const uint8_t* p, const uint8_t* end) {
  if (run.end == end || run.last == p) return run.end;
  // A digit that stands alone ends the stretch, and with it the look-ahead.
  if (kDigitsCut && run.next.char_class == kNumber) return run.end;
  return run.last;
}

template <bool kSingleDigits>
const uint8_t* Gpt2PieceEnd(const uint8_t* p, const uint8_t* end) {
  const uint8_t* start = p;
  if (*p == ' ' && p + 1 < end) ++start;
  const ClassLength c = ClassAt(start, end);
  switch (c.char_class) {
    case kLetter:
      return SkipRun<kLetter>(start + c.length, end);
    case kNumber:
      if constexpr (kSingleDigits) {
        return start == p ? p + c.length : start;
      } else {
        return SkipRun<kNumber>(start + c.length, end);
      }
    case kOther:
      if (*p == '\'') {
        if (const int length = ContractionLength<false>(p, end); length > 0) return p + length;
      }
      return SkipRun<kOther>(start + c.length, end);
    default:
      return EndOfSpace<kSingleDigits>(SkipSpace(p, end), p, end);
  }
}

template <int kMaxDigits>
const uint8_t* Llama3PieceEnd(const uint8_t* p, const uint8_t* end) {
  const ClassLength c = ClassAt(p, end);
  const uint8_t* next = p + c.length;
  switch (c.char_class) {
    case kLetter:
      return SkipRun<kLetter>(next, end);
    case kNumber:
      for (int digits = 1; digits < kMaxDigits && next < end; ++digits) {
        const ClassLength d = ClassAt(next, end);
        if (d.char_class != kNumber) break;
        next += d.length;
      }
      return next;
    case kOther: {
      if (*p == '\'') {
        if (const int length = ContractionLength<true>(p, end); length > 0) return p + length;
      }
      if (next < end) {
        const ClassLength d = ClassAt(next, end);
        if (d.char_class == kLetter) return SkipRun<kLetter>(next + d.length, end);
      }
      return SkipRun<kNewline>(SkipRun<kOther>(next, end), end);
    }
    case kSpace: {
      if (next == end) return end;
      const ClassLength d = ClassAt(next, end);
      if (d.char_class == kLetter) return SkipRun<kLetter>(next + d.length, end);
      if (*p == ' ' && d.char_class == kOther) {
        return SkipRun<kNewline>(SkipRun<kOther>(next + d.length, end), end);
      }
      break;
    }
    default:
      break;
  }
  const SpaceRun run = SkipSpace(p, end);
  if (run.after_newline != nullptr) return run.after_newline;
  return EndOfSpace<false>(run, p, end);
}

template <const uint8_t* (*kPieceEnd)(const uint8_t*, const uint8_t*)>
int64_t Scan(std::string_view text, int64_t begin, int64_t max_pieces, int64_t* ends) {
  const auto* const base = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = base + text.size();
  const uint8_t* p = base + begin;
  int64_t count = 0;
  while (p < end && count < max_pieces) {
    p = kPieceEnd(p, end);
    ends[count++] = p - base;
  }
  return count;
}

}  // namespace

int64_t ScanPieces(PreTokenizer kind, std::string_view text, int64_t begin, int64_t max_pieces,
                   int64_t* ends) {
  switch (kind) {
    case PreTokenizer::kGpt2:
      return Scan<Gpt2PieceEnd<false>>(text, begin, max_pieces, ends);
    case PreTokenizer::kLlama3:
      return Scan<Llama3PieceEnd<3>>(text, begin, max_pieces, ends);
    case PreTokenizer::kQwen2:
      return Scan<Llama3PieceEnd<1>>(text, begin, max_pieces, ends);
    case PreTokenizer::kGpt2Digits:
      return Scan<Gpt2PieceEnd<true>>(text, begin, max_pieces, ends);
  }
  return 0;
}

std::string_view PreTokenizerName(PreTokenizer kind) {
  switch (kind) {
    case PreTokenizer::kGpt2:
      return "gpt2";
    case PreTokenizer::kLlama3:
      return "llama3";
    case PreTokenizer::kQwen2:
      return "qwen2";
    case PreTokenizer::kGpt2Digits:
      return "gpt2_digits";
  }
  return "?";
}

std::optional<PreTokenizer> PreTokenizerFromName(std::string_view name) {
  for (const PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                                  PreTokenizer::kGpt2Digits}) {
    if (PreTokenizerName(kind) == name) return kind;
  }
  return std::nullopt;
}

}  // namespace tessera
