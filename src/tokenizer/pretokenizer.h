// Cuts text into the pieces of a pre-tokenizer, by hand-written rules in place of a regex engine.
#pragma once

#include <cstdint>
#include <string_view>

#include "tokenizer/tokenizer.h"

namespace tessera {

// Writes the ends (byte offsets into `text`) of up to `max_pieces` consecutive pieces that begin at
// `begin`, and returns how many. Pieces are never empty and cover the text without gaps; look-ahead
// ends where `text` ends.
//
// The rules, by class of character (L letter, N number, S white space but CR and LF, NL CR or LF,
// P all else, each invalid byte one P); the first that fits at a piece's start is taken:
//   kGpt2    '(s|t|re|ve|m|ll|d)   ' '?L+   ' '?N+   ' '?P+   \s+ without its last if text follows
//   kLlama3  the contractions in any case   [P or S]?L+   N{1,3}   ' '?P+NL*
//            a run of white space up to its last NL   \s+ as above
int64_t ScanPieces(PreTokenizer kind, std::string_view text, int64_t begin, int64_t max_pieces,
                   int64_t* ends);

}  // namespace tessera
