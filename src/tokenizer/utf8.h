// Decoding of UTF-8 in which every byte that is not part of a valid sequence stands for itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

// One decoded character: `length` bytes, or an invalid byte (length 1, code_point kInvalid).
struct Utf8Char {
  static constexpr uint32_t kInvalid = 0xFFFFFFFFu;
  uint32_t code_point;
  int32_t length;
};

// The character at `p` (p < end). Overlong forms, surrogates and values above U+10FFFF are invalid.
inline Utf8Char DecodeUtf8(const uint8_t* p, const uint8_t* end) {
  const uint32_t b0 = p[0];
  if (b0 < 0x80) return {b0, 1};
  const auto tail = [&](int i) { return (p[i] & 0xC0) == 0x80; };
  if (b0 >= 0xC2 && b0 <= 0xDF) {
    if (end - p >= 2 && tail(1)) return {((b0 & 0x1F) << 6) | (p[1] & 0x3Fu), 2};
  } else if ((b0 & 0xF0) == 0xE0) {
    if (end - p >= 3 && tail(1) && tail(2)) {
      const uint32_t c = ((b0 & 0x0F) << 12) | ((p[1] & 0x3Fu) << 6) | (p[2] & 0x3Fu);
      if (c >= 0x800 && (c < 0xD800 || c > 0xDFFF)) return {c, 3};
    }
  } else if (b0 >= 0xF0 && b0 <= 0xF4) {
    if (end - p >= 4 && tail(1) && tail(2) && tail(3)) {
      const uint32_t c = ((b0 & 0x07) << 18) | ((p[1] & 0x3Fu) << 12) | ((p[2] & 0x3Fu) << 6) |
                         (p[3] & 0x3Fu);
      if (c >= 0x10000 && c <= 0x10FFFF) return {c, 4};
    }
  }
  return {Utf8Char::kInvalid, 1};
}

inline void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

inline bool IsValidUtf8(std::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    if (c.code_point == Utf8Char::kInvalid) return false;
    p += c.length;
  }
  return true;
}

}  // namespace tessera
