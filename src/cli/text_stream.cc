#include "cli/text_stream.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace tessera::cli {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Whether `bytes` could still become a character when more bytes follow.
bool IsIncomplete(std::string_view bytes) {
  const auto first = static_cast<uint8_t>(bytes[0]);
  const size_t length = first >= 0xF0 && first <= 0xF4  ? 4
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xC2 && first < 0xE0 ? 2
                                                        : 1;
  if (bytes.size() >= length) return false;
  // Any continuation is tried with its lowest and highest values, so that overlong forms and
  // surrogates are seen before they are complete.
  for (const char fill : {'\x80', '\xBF'}) {
    std::string whole(bytes);
    whole.resize(length, fill);
    const auto* begin = reinterpret_cast<const uint8_t*>(whole.data());
    if (DecodeUtf8(begin, begin + length).code_point != Utf8Char::kInvalid) return true;
  }
  return false;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string TextStream::Append(std::string_view bytes) {
  if (stopped_) return "";
  held_ += bytes;
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t place = held_.find(stop);
    if (place < found) {
      found = place;
      stop_ = stop;
    }
  }
  if (found != std::string::npos) {
    stopped_ = true;
    std::string out = Release(found, true);
    held_.clear();
    return out;
  }
  // The longest end that may be the beginning of a stop string is held back.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (std::string_view(held_).substr(held_.size() - length) ==
          std::string_view(stop).substr(0, length)) {
        keep = length;
        break;
      }
    }
  }
  return Release(held_.size() - keep, false);
}

std::string TextStream::Finish() { return Release(held_.size(), true); }

std::string TextStream::Release(size_t count, bool last) {
  std::string out;
  size_t at = 0;
  while (at < count) {
    const auto* begin = reinterpret_cast<const uint8_t*>(held_.data());
    const Utf8Char character = DecodeUtf8(begin + at, begin + count);
    if (character.code_point == Utf8Char::kInvalid) {
      if (!last && IsIncomplete(std::string_view(held_).substr(at, count - at))) break;
      out += kReplacement;
    } else {
      out.append(held_, at, static_cast<size_t>(character.length));
    }
    at += static_cast<size_t>(character.length);
  }
  held_.erase(0, at);
  return out;
}

}  // namespace tessera::cli
