// Finds added tokens in text: leftmost, the longest of those that begin at the same place.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace tessera {

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() { roots_.fill(-1); }
  // `index` is what Find reports for this content, which is not empty.
  void Add(std::string_view content, int32_t index);
  bool empty() const { return nodes_.empty(); }

  struct Match {
    int64_t begin, end;
    int32_t index;  // -1: no match up to the end of the text.
  };
  // The first match at or after `begin`.
  Match Find(std::string_view text, int64_t begin) const;

 private:
  struct Node {
    uint8_t byte;
    int32_t index = -1;  // Of the token that ends here.
    int32_t child = -1, sibling = -1;
  };
  int32_t LongestAt(std::string_view text, int64_t begin, int64_t* end) const;

  std::vector<Node> nodes_;  // A trie.
  std::array<int32_t, 256> roots_;
  int distinct_roots_ = 0;
  uint8_t single_root_ = 0;
};

// Bytes of the white space that ends (or begins) the text, for lstrip and rstrip.
int64_t TrailingSpaceBytes(std::string_view text);
int64_t LeadingSpaceBytes(std::string_view text);

}  // namespace tessera
