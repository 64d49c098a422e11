// How much of each stream an epoch takes: proportion, repeat or choose, in the sense of
// mosaicml-streaming.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"

namespace tessera {

// At most one is set. Proportions are relative to each other and can't be mixed with the others.
struct StreamWeight {
  std::optional<double> proportion = {};  // Share of the epoch.
  std::optional<double> repeat = {};      // Times the stream's size.
  std::optional<int64_t> choose = {};     // Samples.
};

struct StreamShare {
  int64_t choose = 0;     // Samples of an epoch.
  double proportion = 0;  // Of the epoch.
};

// Shares of streams with `samples` samples each. `epoch_size` 0: derived. `seed` decides which streams
// get the samples that rounding leaves over, as NumPy's generator would.
Result<std::vector<StreamShare>> DeriveStreamShares(std::span<const StreamWeight> weights,
                                                    std::span<const int64_t> samples,
                                                    int64_t epoch_size, uint64_t seed);

// Samples that each shard gives to an epoch which takes `choose` of the stream: whole repeats, and for
// the rest picks of `granularity` samples in a random order of (seed).
std::vector<int64_t> ChoosePerShard(std::span<const int64_t> shards, int64_t choose,
                                    int64_t granularity, uint64_t seed);

}  // namespace tessera
