// Arbitrary bytes as a gzip, zstd or xz file: the first byte chooses the magic that is put before.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "data/input_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  if (size < 1) return 0;
  const std::string magics[] = {"", "\x1f\x8b\x08", "\x28\xb5\x2f\xfd",
                                std::string("\xfd"
                                            "7zXZ\0",
                                            6)};
  const std::string stored =
      magics[data[0] % 4] + std::string(reinterpret_cast<const char*>(data) + 1, size - 1);
  Result<std::unique_ptr<InputStream>> stream = InputStream::OpenMemory(stored, "fuzz");
  if (!stream.ok()) return 0;
  char buffer[4096];
  for (int64_t read = 0; read < int64_t{1} << 22;) {
    const Result<int64_t> got = (*stream)->Read(buffer, sizeof(buffer));
    if (!got.ok() || *got == 0) break;
    if (*got < 0 || *got > static_cast<int64_t>(sizeof(buffer))) std::abort();
    read += *got;
  }
  return 0;
}
