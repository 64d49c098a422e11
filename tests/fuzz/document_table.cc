// Arbitrary bytes as a documents.idx, with the checksum that the content has: no fuzzer would find
// it.
#include "data/document_table.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/hash.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  // Whole words, so that the counts lie where a mapped file has them.
  std::vector<uint64_t> words(size / 8 + 1);
  std::memcpy(words.data(), data, size);
  const std::string_view content(reinterpret_cast<const char*>(words.data()), size);
  (void)DocumentTable::FromMemory(content, "fuzz").ok();
  if (size < 8 || size % 8 != 0) return 0;
  words[size / 8 - 1] = Xxh3(content.substr(0, size - 8));
  const Result<DocumentTable> table = DocumentTable::FromMemory(content, "fuzz");
  if (!table.ok()) return 0;
  int64_t tokens = 0;
  int64_t bytes = 0;
  for (int64_t i = 0; i < table->documents(); ++i) {
    tokens += table->tokens(i);
    bytes += table->bytes(i);
  }
  if (tokens != table->total_tokens() || bytes != table->total_bytes()) std::abort();
  return 0;
}
