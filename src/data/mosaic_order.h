// The sample order of mosaicml-streaming 0.13's StreamingDataset, bit for bit: the same streams,
// seeds and numbers of nodes give the same sequence of samples.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/mosaic_partition.h"
#include "data/mosaic_shuffle.h"
#include "data/stream_weights.h"

namespace tessera {

enum class BatchingMethod { kRandom, kStratified, kPerStream, kDevicePerStream };
// "random", "stratified", "per_stream", "device_per_stream"; nullopt for another name.
std::optional<BatchingMethod> BatchingMethodFromName(std::string_view name);
std::string_view BatchingMethodName(BatchingMethod method);

struct MosaicOrderOptions {
  std::vector<std::vector<int64_t>> shards;  // [streams][shards]: samples of each shard.
  std::vector<StreamWeight> weights;         // [streams]
  int64_t epoch_size = 0;                    // 0: not given.
  bool shuffle = true;
  MosaicShuffle algorithm = MosaicShuffle::kPy1e;
  uint64_t seed = 9176;
  int64_t block_size = 0;       // 0: max(4,000,000 / canonical nodes, 2^18).
  int64_t canonical_nodes = 0;  // 0: the nodes (64 times as many for py1s and py2s).
  MosaicPartition partition = MosaicPartition::kRelaxed;
  int64_t initial_nodes = 0;  // Of a run that is resumed; 0: this is its begin.
  MosaicWorld world;
  bool fixed_sampling = false;  // sampling_method fixed: the same samples in every epoch.
  int64_t sampling_granularity = 1;
  BatchingMethod batching = BatchingMethod::kRandom;
};

// An epoch's samples as they are trained on: batch of a worker, worker, node, rank, slot.
struct MosaicEpoch {
  MosaicWorld world;
  // Samples of all streams behind each other; -1 is padding. Global batch b is the places
  // [b * world.global_batch(), ...).
  std::vector<int64_t> samples;

  int64_t batches() const { return static_cast<int64_t>(samples.size()) / world.global_batch(); }
  // One rank's samples, as its DataLoader yields them.
  std::vector<int64_t> OfRank(int64_t rank) const;
};

// Fills in what is derived (canonical nodes, block size, choose of each stream); errors name values.
Result<MosaicOrderOptions> ResolveMosaicOrder(MosaicOrderOptions options);

// From resolved options. Memory: about 24 bytes a sample while it is made, 8 after.
// `sample_in_epoch`: samples seen before, for a run that is resumed.
Result<MosaicEpoch> MakeMosaicEpoch(const MosaicOrderOptions& options, int64_t epoch,
                                    int64_t sample_in_epoch = 0);

}  // namespace tessera
