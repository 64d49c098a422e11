// The shuffles of mosaicml-streaming 0.13, bit for bit: which sample stands at each place of an epoch.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera {

enum class MosaicShuffle { kNaive, kPy1s, kPy2s, kPy1br, kPy1e };

// "naive", "py1s", "py2s", "py1br", "py1e"; nullopt for another name.
std::optional<MosaicShuffle> MosaicShuffleFromName(std::string_view name);

struct MosaicShuffleOptions {
  MosaicShuffle algorithm = MosaicShuffle::kPy1e;
  int64_t canonical_nodes = 1;
  uint64_t seed = 9176;
  int64_t epoch = 0;
  int64_t block_size = 1 << 18;  // Samples; for py1br and py1e.
};

// `units` are sizes, all above 0, of the pieces that are moved as a whole before samples are: shards,
// or their copies where streams repeat. Returns the sample at each place, 8 bytes a sample and as much
// again while it is made. Fails where a canonical node gets no sample (py1e) and where block_size
// leaves no choice.
Result<std::vector<int64_t>> ShuffleLikeMosaic(std::span<const int64_t> units,
                                               const MosaicShuffleOptions& options);

}  // namespace tessera
