// Unicode character classes for pre-tokenizers, and the data of normalization form C.
#pragma once

#include <cstdint>

namespace tessera::unicode {

enum CharClass : uint8_t {
  kOther = 0,    // All that is none of the below, also each byte that is not valid UTF-8.
  kLetter = 1,   // \p{L}
  kNumber = 2,   // \p{N}
  kSpace = 3,    // \s but carriage return and line feed
  kNewline = 4,  // carriage return, line feed
};
constexpr uint8_t kClassMask = 7;
constexpr uint8_t kNfcFlag = 8;  // Text with this code point may not be in form C.

// Two stages of 256 code points a page: class and kNfcFlag of every code point.
extern const uint8_t kPageIndex[0x1100];
extern const uint8_t kPages[];

struct CombiningClass {
  uint32_t code_point;
  uint8_t value;
};
// Full canonical decomposition (Hangul syllables excepted): `length` code points of
// kDecompositionData from `offset`.
struct Decomposition {
  uint32_t code_point;
  uint16_t offset;
  uint16_t length;
};
struct Composition {
  uint32_t first, second, composite;
};

// Sorted by code point, or by (first, second).
extern const CombiningClass kCombiningClasses[];
extern const int64_t kCombiningClassCount;
extern const Decomposition kDecompositions[];
extern const int64_t kDecompositionCount;
extern const uint32_t kDecompositionData[];
extern const Composition kCompositions[];
extern const int64_t kCompositionCount;

inline uint8_t ClassAndFlags(uint32_t code_point) {
  return kPages[(uint32_t{kPageIndex[code_point >> 8]} << 8) | (code_point & 0xFF)];
}

}  // namespace tessera::unicode
