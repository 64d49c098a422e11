#include "data/document_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "base/strings.h"

namespace tessera {

namespace {

constexpr size_t kReadBytes = size_t{1} << 18;
// Apart from every split seed that a person would choose.
constexpr uint64_t kCopiesSeed = 0x636F706965735F31ull;

double UnitHash(std::string_view identity, uint64_t seed) {
  return static_cast<double>(Xxh3(identity, seed) >> 11) * 0x1p-53;
}

// Bytes of the UTF-8 sequence at `text[i]`, 0 where it is not valid (Unicode 15, table 3-7).
size_t Utf8SequenceBytes(std::string_view text, size_t i) {
  const auto at = [&](size_t k) { return static_cast<uint8_t>(i + k < text.size() ? text[i + k] : 0); };
  const uint8_t first = at(0);
  if (first < 0x80) return 1;
  const auto continues = [&](size_t k) { return (at(k) & 0xC0) == 0x80; };
  if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (!continues(1) || !continues(2)) return 0;
    if (first == 0xE0 && at(1) < 0xA0) return 0;
    if (first == 0xED && at(1) > 0x9F) return 0;
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (first == 0xF0 && at(1) < 0x90) return 0;
    if (first == 0xF4 && at(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

// The JSON parser takes only valid UTF-8, but texts with broken bytes must come through unchanged.
// Each broken byte b travels as the private character U+10FF00 + b, whose UTF-8 is F4 8F BC..BF xx.
constexpr std::string_view kEscapeLead = "\xF4\x8F";

bool IsEscaped(std::string_view text, size_t i) {
  return text.substr(i, 2) == kEscapeLead && i + 3 < text.size() &&
         static_cast<uint8_t>(text[i + 2]) >= 0xBC;
}

// nullopt where nothing is broken, or where the escape would be ambiguous.
std::optional<std::string> EscapeBrokenUtf8(std::string_view line) {
  std::string out;
  bool broken = false;
  for (size_t i = 0; i < line.size();) {
    const size_t bytes = Utf8SequenceBytes(line, i);
    if (bytes == 0) {
      const uint32_t code = 0x10FF00u + static_cast<uint8_t>(line[i]);
      out += "\xF4\x8F";
      out.push_back(static_cast<char>(0x80 | (code >> 6 & 63)));
      out.push_back(static_cast<char>(0x80 | (code & 63)));
      broken = true;
      ++i;
      continue;
    }
    if (IsEscaped(line, i)) return std::nullopt;
    out.append(line, i, bytes);
    i += bytes;
  }
  // "\udbff" begins the JSON escape of the same characters.
  if (line.find("\\udbff") != std::string_view::npos ||
      line.find("\\uDBFF") != std::string_view::npos) {
    return std::nullopt;
  }
  if (!broken) return std::nullopt;
  return out;
}

std::string UnescapeBrokenUtf8(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (IsEscaped(text, i)) {
      out.push_back(static_cast<char>((text[i + 2] & 3) << 6 | (text[i + 3] & 63)));
      i += 4;
    } else {
      out.push_back(text[i++]);
    }
  }
  return out;
}

}  // namespace

bool InValidation(std::string_view identity, double fraction, uint64_t seed) {
  return UnitHash(identity, seed) < fraction;
}

int64_t CopiesOf(std::string_view identity, double weight) {
  const double whole = std::floor(weight);
  return static_cast<int64_t>(whole) + (UnitHash(identity, kCopiesSeed) < weight - whole ? 1 : 0);
}

RecordReader::RecordReader(const SourceListing& listing, int64_t source_index,
                           int64_t max_record_bytes)
    : listing_(listing), source_index_(source_index), max_record_bytes_(max_record_bytes) {
  buffer_.resize(kReadBytes);
}

RecordReader::~RecordReader() = default;

void RecordReader::CloseFile() {
  file_hashes_.push_back(stream_->stored_hash());
  stream_.reset();
  buffer_begin_ = buffer_end_ = 0;
}

Result<bool> RecordReader::Next(RawRecord* record) {
  record->source = source_index_;
  record->content.clear();
  while (true) {
    if (stream_ != nullptr) {
      TESSERA_ASSIGN(const bool found, NextLine(record));
      if (found) return true;
      CloseFile();
    }
    if (next_file_ == static_cast<int64_t>(listing_.files.size())) return false;
    const SourceFile& file = listing_.files[static_cast<size_t>(next_file_++)];
    TESSERA_ASSIGN(stream_, InputStream::OpenFile(file.path));
    record->file = next_file_ - 1;
    line_ = 0;
    if (file.jsonl) continue;
    TESSERA_ASSIGN(record->content, ReadAll(*stream_, max_record_bytes_, file.path));
    stored_bytes_ += stream_->stored_bytes();
    record->line = 0;
    CloseFile();
    return true;
  }
}

Result<bool> RecordReader::NextLine(RawRecord* record) {
  const SourceFile& file = listing_.files[static_cast<size_t>(next_file_ - 1)];
  record->file = next_file_ - 1;
  bool any = false;
  while (true) {
    if (buffer_begin_ == buffer_end_) {
      const int64_t before = stream_->stored_bytes();
      TESSERA_ASSIGN(const int64_t got,
                     stream_->Read(buffer_.data(), static_cast<int64_t>(buffer_.size())));
      stored_bytes_ += stream_->stored_bytes() - before;
      buffer_begin_ = 0;
      buffer_end_ = static_cast<size_t>(got);
      if (got == 0) {
        if (any) record->line = ++line_;
        return any;  // A last line without its newline.
      }
    }
    const char* begin = buffer_.data() + buffer_begin_;
    const size_t available = buffer_end_ - buffer_begin_;
    const void* newline = std::memchr(begin, '\n', available);
    const size_t bytes =
        newline != nullptr ? static_cast<size_t>(static_cast<const char*>(newline) - begin) : available;
    if (static_cast<int64_t>(record->content.size() + bytes) > max_record_bytes_) {
      return InvalidArgument(fmt::format("'{}' line {} is longer than {}, the most that one document "
                                         "may have",
                                         file.path, line_ + 1, FormatBytes(max_record_bytes_)));
    }
    record->content.append(begin, bytes);
    buffer_begin_ += bytes;
    any = true;
    if (newline == nullptr) continue;
    ++buffer_begin_;
    record->line = ++line_;
    if (!Trim(record->content).empty()) return true;
    record->content.clear();  // A blank line is no document.
    any = false;
  }
}

Result<Document> ParseRecord(RawRecord record, const SourceConfig& source, const SourceFile& file) {
  if (record.line == 0) return Document{file.identity, std::move(record.content)};
  const std::string where = fmt::format("'{}' line {}", file.path, record.line);
  const std::optional<std::string> escaped = EscapeBrokenUtf8(record.content);
  TESSERA_ASSIGN(const Json json, ParseJson(escaped ? *escaped : record.content, where));
  TESSERA_ASSIGN(std::string text, JsonString(json, source.text_field, where));
  Document document{fmt::format("{}#{}", file.identity, record.line), std::move(text)};
  if (const auto id = json.find(source.id_field); id != json.end()) {
    if (id->is_string()) {
      document.identity = fmt::format("{}#{}", file.identity, id->get<std::string>());
    } else if (id->is_number_integer()) {
      document.identity = fmt::format("{}#{}", file.identity, id->dump());
    }
  }
  if (escaped) {
    document.text = UnescapeBrokenUtf8(document.text);
    document.identity = UnescapeBrokenUtf8(document.identity);
  }
  return document;
}

}  // namespace tessera
