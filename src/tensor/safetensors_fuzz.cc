// Fuzz target of the safetensors parser. With clang: -fsanitize=fuzzer,address; the unit test calls
// it with mutated files.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "tensor/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const auto header = ParseSafetensorsHeader(std::as_bytes(std::span(data, size)),
                                             static_cast<int64_t>(size), "fuzz");
  if (!header.ok()) return 0;
  // What was accepted must lie inside the file, without gaps.
  int64_t position = header->buffer_start;
  for (const SafetensorsEntry& entry : header->entries) {
    if (entry.bytes < 0 || header->buffer_start + entry.offset != position) std::abort();
    position += entry.bytes;
  }
  if (position != static_cast<int64_t>(size)) std::abort();
  return 0;
}
