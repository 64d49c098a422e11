// Arbitrary bytes as a line of jsonl, and as a text inside one that has to come through unchanged.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "data/document_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const SourceConfig source;
  SourceFile file;
  file.path = file.identity = "fuzz";
  file.jsonl = true;
  RawRecord record;
  record.line = 1;
  record.content = text;
  (void)ParseRecord(record, source, file).ok();

  record.content = "{\"text\":\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') record.content.push_back('\\');
    if (static_cast<unsigned char>(c) < 32) {
      record.content += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      record.content.push_back(c);
    }
  }
  record.content += "\"}";
  const Result<Document> document = ParseRecord(record, source, file);
  // Refused only where broken bytes meet the characters that stand for them, or a text "\udbff".
  const bool ambiguous = text.find("\xF4\x8F") != text.npos || text.find("\\udbff") != text.npos ||
                         text.find("\\uDBFF") != text.npos;
  if (document.ok() ? document->text != text : !ambiguous) std::abort();
  return 0;
}
