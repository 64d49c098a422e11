// How mosaicml-streaming 0.13 deals an epoch's places out to nodes, ranks, workers and batches.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"

namespace tessera {

// The readers of a run as mosaicml-streaming counts them.
struct MosaicWorld {
  int64_t nodes = 1;
  int64_t ranks_per_node = 1;
  int64_t workers_per_rank = 1;
  int64_t batch_size = 1;  // Samples of one rank's batch.

  int64_t ranks() const { return nodes * ranks_per_node; }
  int64_t global_batch() const { return ranks() * batch_size; }
};

enum class MosaicPartition { kOrig, kRelaxed };

struct MosaicPartitionOptions {
  MosaicPartition algorithm = MosaicPartition::kRelaxed;
  int64_t samples = 0;
  int64_t canonical_nodes = 1;
  MosaicWorld world;
  int64_t drop_first = 0;     // Samples of the epoch that were seen before.
  int64_t initial_nodes = 0;  // Nodes with which the run began; 0: these.
};

// Places in the order in which they are trained on: batch of a worker, worker, node, rank, slot. So
// consecutive runs of world.global_batch() places are the global batches. -1 is padding. Fails where
// the original package fails: node counts that don't divide each other, and the like.
Result<std::vector<int64_t>> PartitionLikeMosaic(const MosaicPartitionOptions& options);

}  // namespace tessera
