// Arbitrary bytes as an MDS shard of up to 255 samples with columns of many encodings.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "data/mds_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  if (size < 2) return 0;
  MdsShard shard;
  shard.samples = data[0];
  const char* const encodings[] = {"ndarray", "ndarray:uint16", "str", "json", "bytes", "int",
                                   "ndarray:int64:2,3", "str_int", "float16", "ndarray:float64"};
  const size_t columns = 1 + data[1] % 4;
  for (size_t i = 0; i < columns; ++i) {
    MdsColumn column;
    column.name = std::string(1, static_cast<char>('a' + i));
    column.encoding = encodings[(data[1] / 4 + 3 * i) % std::size(encodings)];
    column.fixed_size = MdsFixedSize(column.encoding).value_or(0);
    shard.columns.push_back(column);
  }
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  shard.raw = {.basename = "fuzz.mds", .bytes = static_cast<int64_t>(bytes.size()), .hashes = {}};
  const Result<MdsShardFile> file = MdsShardFile::FromMemory(bytes, shard);
  if (!file.ok()) return 0;
  std::vector<std::string_view> values;
  int32_t ids[64];
  for (int64_t i = 0; i < shard.samples; ++i) {
    const Result<std::string_view> sample = file->Sample(i);
    if (!sample.ok() || !SplitMdsSample(shard, *sample, &values).ok()) continue;
    for (size_t c = 0; c < columns; ++c) {
      const std::string& encoding = shard.columns[c].encoding;
      (void)MdsValueToJson(encoding, values[c]).ok();
      const Result<MdsTokens> tokens = ParseMdsTokens(encoding, values[c]);
      if (tokens.ok()) (void)CopyMdsTokens(*tokens, 0, std::min<int64_t>(64, tokens->count), ids);
    }
  }
  return 0;
}
