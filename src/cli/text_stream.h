// Turns the bytes of drawn tokens into text that can be shown at once: whole characters only, and
// nothing of a stop string even when it comes in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera::cli {

class TextStream {
 public:
  // Empty stop strings are ignored.
  explicit TextStream(std::vector<std::string> stops);

  // Adds a token's bytes and returns the text that is now certain. Bytes that can't become a
  // character are returned as U+FFFD. Nothing more comes once a stop string was found.
  std::string Append(std::string_view bytes);
  // The rest, at the end of the answer.
  std::string Finish();

  bool stopped() const { return stopped_; }
  const std::string& stop() const { return stop_; }  // the one that was found

 private:
  // Removes the first `count` held bytes and returns them as valid UTF-8. `last`: an incomplete
  // character at the end is given up, otherwise it stays held.
  std::string Release(size_t count, bool last);

  std::vector<std::string> stops_;
  std::string held_;
  std::string stop_;
  bool stopped_ = false;
};

}  // namespace tessera::cli
