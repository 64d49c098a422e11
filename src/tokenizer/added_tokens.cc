#include "tokenizer/added_tokens.h"

#include <cstring>

#include "tokenizer/unicode_tables.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

bool IsSpaceChar(uint32_t code_point) {
  if (code_point == Utf8Char::kInvalid) return false;
  const int c = unicode::ClassAndFlags(code_point) & unicode::kClassMask;
  return c == unicode::kSpace || c == unicode::kNewline;
}

}  // namespace

void AddedTokenMatcher::Add(std::string_view content, int32_t index) {
  int32_t* link = nullptr;
  int32_t node = -1;
  for (size_t i = 0; i < content.size(); ++i) {
    const auto byte = static_cast<uint8_t>(content[i]);
    if (i == 0) {
      if (roots_[byte] < 0) {
        ++distinct_roots_;
        single_root_ = byte;
      }
      link = &roots_[byte];
    } else {
      link = &nodes_[static_cast<size_t>(node)].child;
      while (*link >= 0 && nodes_[static_cast<size_t>(*link)].byte != byte) {
        link = &nodes_[static_cast<size_t>(*link)].sibling;
      }
    }
    if (*link < 0) {
      *link = static_cast<int32_t>(nodes_.size());
      node = *link;
      nodes_.push_back({byte, -1, -1, -1});
    } else {
      node = *link;
    }
  }
  nodes_[static_cast<size_t>(node)].index = index;
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, int64_t begin, int64_t* end) const {
  const auto size = static_cast<int64_t>(text.size());
  int32_t found = -1;
  int32_t node = roots_[static_cast<uint8_t>(text[static_cast<size_t>(begin)])];
  for (int64_t i = begin; node >= 0;) {
    const Node& here = nodes_[static_cast<size_t>(node)];
    ++i;
    if (here.index >= 0) {
      found = here.index;
      *end = i;
    }
    if (i == size) break;
    const auto byte = static_cast<uint8_t>(text[static_cast<size_t>(i)]);
    node = here.child;
    while (node >= 0 && nodes_[static_cast<size_t>(node)].byte != byte) {
      node = nodes_[static_cast<size_t>(node)].sibling;
    }
  }
  return found;
}

AddedTokenMatcher::Match AddedTokenMatcher::Find(std::string_view text, int64_t begin) const {
  const auto size = static_cast<int64_t>(text.size());
  if (nodes_.empty()) return {size, size, -1};
  for (int64_t i = begin; i < size; ++i) {
    if (distinct_roots_ == 1) {
      const void* hit = std::memchr(text.data() + i, single_root_, static_cast<size_t>(size - i));
      if (hit == nullptr) break;
      i = static_cast<const char*>(hit) - text.data();
    } else if (roots_[static_cast<uint8_t>(text[static_cast<size_t>(i)])] < 0) {
      continue;
    }
    int64_t end = i;
    if (const int32_t index = LongestAt(text, i, &end); index >= 0) return {i, end, index};
  }
  return {size, size, -1};
}

int64_t LeadingSpaceBytes(std::string_view text) {
  const auto* const base = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = base + text.size();
  const uint8_t* p = base;
  while (p < end) {
    const Utf8Char c = DecodeUtf8(p, end);
    if (!IsSpaceChar(c.code_point)) break;
    p += c.length;
  }
  return p - base;
}

int64_t TrailingSpaceBytes(std::string_view text) {
  const auto* const base = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = base + text.size();
  const uint8_t* p = end;
  while (p > base) {
    // Back to the lead byte of the character that ends at p.
    const uint8_t* start = p - 1;
    while (start > base && p - start < 4 && (*start & 0xC0) == 0x80) --start;
    const Utf8Char c = DecodeUtf8(start, end);
    if (start + c.length != p || !IsSpaceChar(c.code_point)) break;
    p = start;
  }
  return end - p;
}

}  // namespace tessera
