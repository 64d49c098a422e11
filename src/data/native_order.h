// Tessera's own sample order over one or several streams: a keyed, invertible function of
// (epoch, position) in memory that does not grow with the data.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"
#include "data/mosaic_order.h"
#include "data/stream_weights.h"

namespace tessera {

struct NativeStream {
  int64_t samples = 0;
  // Consecutive samples that are kept together until blocks are shuffled, so that a block touches few
  // shards: about a shard's. 1 to 2^40.
  int64_t chunk = 1;
};

// A stream of `shards` shards.
NativeStream NativeStreamOf(int64_t samples, int64_t shards);

struct NativeOrderOptions {
  std::vector<NativeStream> streams = {};
  std::vector<StreamWeight> weights = {};  // [streams], or empty: each stream whole.
  int64_t epoch_size = 0;             // 0: derived.
  uint64_t seed = 0;
  bool shuffle = true;
  // Samples among which one may trade places with any other; 0: the whole epoch. What is read at one
  // time are the shards of a block or two.
  int64_t block_size = 0;
  BatchingMethod batching = BatchingMethod::kRandom;
  int64_t global_batch = 1;     // For batching methods other than random.
  int64_t device_batch = 1;     // For device_per_stream; divides global_batch.
  bool fixed_sampling = false;  // Every epoch takes the same part of a stream.
};

struct StreamSample {
  int64_t stream = 0;
  int64_t sample = 0;
  bool operator==(const StreamSample&) const = default;
};

// A permutation of [0, n) that moves nothing beyond its block of about `block` places (0: n).
class BlockShuffle {
 public:
  BlockShuffle(int64_t n, int64_t block, uint64_t seed, uint64_t key);
  int64_t Forward(int64_t position) const;
  int64_t Inverse(int64_t value) const;

 private:
  int64_t Boundary(int64_t block) const;
  int64_t BlockOf(int64_t position) const;

  int64_t n_;
  int64_t blocks_;
  uint64_t seed_;
  uint64_t key_;
};

// A permutation of [0, n) that moves runs of `chunk` values as a whole; the last run may be shorter.
class ChunkShuffle {
 public:
  ChunkShuffle(int64_t n, int64_t chunk, uint64_t seed, uint64_t key);
  int64_t Forward(int64_t position) const;
  int64_t Inverse(int64_t value) const;

 private:
  int64_t chunk_;
  int64_t chunks_;
  int64_t short_by_;     // What the last chunk lacks.
  int64_t short_place_;  // Where the permutation puts it.
  uint64_t seed_;
  uint64_t key_;
};

// Interleaves sequences of given lengths as evenly as whole numbers allow.
class Interleave {
 public:
  explicit Interleave(std::vector<int64_t> lengths);
  struct Place {
    int64_t sequence = 0;
    int64_t index = 0;
  };
  int64_t size() const { return sums_.back(); }
  Place At(int64_t position) const;       // O(log sequences)
  int64_t PositionOf(Place place) const;  // The inverse.

 private:
  std::vector<int64_t> sums_;  // [sequences + 1]
};

// Every sample of a stream is used once before any is used again, over the borders of epochs too
// (unless fixed_sampling). The order does not depend on how many ranks share it, and with random
// batching not on the batch size either.
class NativeOrder {
 public:
  static Result<NativeOrder> Make(NativeOrderOptions options);

  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  const NativeOrderOptions& options() const { return options_; }
  // Samples that an epoch takes of a stream.
  int64_t taken(int64_t stream) const { return taken_[static_cast<size_t>(stream)]; }

  StreamSample At(int64_t epoch, int64_t position) const;
  // The first of the run's positions (epoch * samples_per_epoch() + position) at or after `from` that
  // uses the sample; nullopt where it is not used within two passes over the stream.
  std::optional<int64_t> NextUse(const StreamSample& sample, int64_t from) const;

 private:
  explicit NativeOrder(NativeOrderOptions options) : options_(std::move(options)) {}
  Status DeriveTaken();
  Interleave::Place StreamAt(int64_t epoch, int64_t position) const;
  int64_t PositionOf(int64_t epoch, const Interleave::Place& place) const;
  bool MovesChunks(int64_t stream) const;
  BlockShuffle StreamBlocks(int64_t stream, int64_t epoch) const;
  int64_t unit() const;  // Samples that stay together between streams.

  NativeOrderOptions options_;
  std::vector<int64_t> taken_;  // [streams]: samples of an epoch.
  std::vector<int64_t> parts_;  // [streams + 1]: prefix sums of a stratified batch's composition.
  std::optional<Interleave> turns_;
  int64_t samples_per_epoch_ = 0;
};

}  // namespace tessera
