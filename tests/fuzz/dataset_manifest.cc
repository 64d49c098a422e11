// Arbitrary bytes as a dataset's dataset.json. What is accepted reads the same when written again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "data/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<DatasetInfo> info = ParseDatasetInfo(text, "fuzz");
  if (!info.ok()) return 0;
  if (info->eos_id < 0 || info->eos_id >= info->vocab_size || info->train.tokens < 0) std::abort();
  const std::string written = DatasetInfoToJson(*info).dump();
  const Result<DatasetInfo> again = ParseDatasetInfo(written, "again");
  if (!again.ok() || DatasetInfoToJson(*again).dump() != written) std::abort();
  return 0;
}
