#include "tokenizer/nfc.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tokenizer/unicode_tables.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr uint32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr uint32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;
constexpr uint32_t kInvalidByte = 0x80000000u;  // Marks an invalid byte; the byte is in the low 8.

struct Symbol {
  uint32_t value;
  uint8_t combining;
};

uint8_t CombiningClassOf(uint32_t c) {
  const auto* const end = unicode::kCombiningClasses + unicode::kCombiningClassCount;
  const auto* const it = std::lower_bound(
      unicode::kCombiningClasses, end, c,
      [](const unicode::CombiningClass& entry, uint32_t key) { return entry.code_point < key; });
  return it != end && it->code_point == c ? it->value : uint8_t{0};
}

void Decompose(uint32_t c, std::vector<Symbol>* out) {
  if (c >= kSBase && c < kSBase + kSCount) {
    const uint32_t s = c - kSBase;
    out->push_back({kLBase + s / (kVCount * kTCount), 0});
    out->push_back({kVBase + s % (kVCount * kTCount) / kTCount, 0});
    if (s % kTCount != 0) out->push_back({kTBase + s % kTCount, 0});
    return;
  }
  const auto* const end = unicode::kDecompositions + unicode::kDecompositionCount;
  const auto* const it = std::lower_bound(
      unicode::kDecompositions, end, c,
      [](const unicode::Decomposition& entry, uint32_t key) { return entry.code_point < key; });
  if (it == end || it->code_point != c) {
    out->push_back({c, CombiningClassOf(c)});
    return;
  }
  for (int i = 0; i < it->length; ++i) {
    const uint32_t part = unicode::kDecompositionData[it->offset + i];
    out->push_back({part, CombiningClassOf(part)});
  }
}

// The composite of a pair, or 0.
uint32_t Compose(uint32_t first, uint32_t second) {
  if (first >= kLBase && first < kLBase + kLCount && second >= kVBase &&
      second < kVBase + kVCount) {
    return kSBase + ((first - kLBase) * kVCount + (second - kVBase)) * kTCount;
  }
  if (first >= kSBase && first < kSBase + kSCount && (first - kSBase) % kTCount == 0 &&
      second > kTBase && second < kTBase + kTCount) {
    return first + (second - kTBase);
  }
  const auto* const end = unicode::kCompositions + unicode::kCompositionCount;
  const auto* const it = std::lower_bound(
      unicode::kCompositions, end, std::pair(first, second),
      [](const unicode::Composition& entry, const std::pair<uint32_t, uint32_t>& key) {
        return std::pair(entry.first, entry.second) < key;
      });
  return it != end && it->first == first && it->second == second ? it->composite : 0;
}

}  // namespace

bool MayNeedNfc(std::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  while (p < end) {
    if (*p < 0x80) {
      ++p;
      continue;
    }
    const Utf8Char c = DecodeUtf8(p, end);
    if (c.code_point != Utf8Char::kInvalid &&
        (unicode::ClassAndFlags(c.code_point) & unicode::kNfcFlag) != 0) {
      return true;
    }
    p += c.length;
  }
  return false;
}

std::string NormalizeNfc(std::string_view text) {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size() + 16);
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    if (c.code_point == Utf8Char::kInvalid) {
      symbols.push_back({kInvalidByte | *p, 0});
    } else if (c.code_point < 0xC0) {
      symbols.push_back({c.code_point, 0});
    } else {
      Decompose(c.code_point, &symbols);
    }
    p += c.length;
  }
  // Canonical order: runs of combining characters sorted by class, stable.
  for (size_t i = 0; i < symbols.size();) {
    if (symbols[i].combining == 0) {
      ++i;
      continue;
    }
    size_t j = i;
    while (j < symbols.size() && symbols[j].combining != 0) ++j;
    std::stable_sort(symbols.begin() + static_cast<int64_t>(i),
                     symbols.begin() + static_cast<int64_t>(j),
                     [](const Symbol& a, const Symbol& b) { return a.combining < b.combining; });
    i = j;
  }
  // Composition: each character joins the last starter unless something between blocks it.
  std::vector<Symbol> composed;
  composed.reserve(symbols.size());
  int64_t starter = -1;
  for (const Symbol& symbol : symbols) {
    if (starter >= 0) {
      const Symbol& last = composed.back();
      const bool adjacent = static_cast<int64_t>(composed.size()) - 1 == starter;
      const bool blocked = !adjacent && last.combining >= symbol.combining;
      if (!blocked) {
        Symbol& base = composed[static_cast<size_t>(starter)];
        if (const uint32_t c = Compose(base.value, symbol.value); c != 0) {
          base.value = c;
          continue;
        }
      }
    }
    if (symbol.combining == 0) starter = static_cast<int64_t>(composed.size());
    composed.push_back(symbol);
  }
  std::string out;
  out.reserve(text.size());
  for (const Symbol& symbol : composed) {
    if ((symbol.value & kInvalidByte) != 0) {
      out.push_back(static_cast<char>(symbol.value & 0xFF));
    } else {
      AppendUtf8(symbol.value, &out);
    }
  }
  return out;
}

}  // namespace tessera
