#include "data/mosaic_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "data/numpy_random.h"

namespace tessera {

namespace {

constexpr std::array<std::pair<std::string_view, BatchingMethod>, 4> kBatchingNames = {
    {{"random", BatchingMethod::kRandom},
     {"stratified", BatchingMethod::kStratified},
     {"per_stream", BatchingMethod::kPerStream},
     {"device_per_stream", BatchingMethod::kDevicePerStream}}};

// An epoch of one or all streams before it is shuffled: copies of shards, and the samples behind.
struct Resampled {
  std::vector<int64_t> units;
  std::vector<int64_t> samples;
};

class EpochMaker {
 public:
  EpochMaker(const MosaicOrderOptions& options, const std::vector<StreamShare>& shares, int64_t epoch)
      : options_(options), shares_(shares), epoch_(epoch) {}

  Result<std::vector<int64_t>> Make(int64_t sample_in_epoch) const {
    switch (options_.batching) {
      case BatchingMethod::kRandom: return Random(sample_in_epoch);
      case BatchingMethod::kStratified: return Resume(Stratified(), sample_in_epoch);
      case BatchingMethod::kPerStream: return Resume(PerStream(), sample_in_epoch);
      case BatchingMethod::kDevicePerStream: return Resume(DevicePerStream(), sample_in_epoch);
    }
    return Internal("an unknown batching method");
  }

 private:
  size_t streams() const { return shares_.size(); }
  uint64_t EpochSeed() const { return options_.seed + static_cast<uint64_t>(epoch_); }
  // Sampling differs between epochs only where they are shuffled and balanced.
  uint64_t SamplingSeed() const {
    return options_.shuffle && !options_.fixed_sampling ? EpochSeed() : options_.seed;
  }

  // Streams [first, last): whole copies of each shard, then a part of it in ascending order.
  Resampled Resample(size_t first, size_t last) const {
    NumpyGenerator rng(options_.fixed_sampling ? options_.seed : EpochSeed());
    Resampled out;
    int64_t begin = 0;
    for (size_t stream = 0; stream < last; ++stream) {
      const std::vector<int64_t>& shards = options_.shards[stream];
      if (stream < first) {
        begin = std::accumulate(shards.begin(), shards.end(), begin);
        continue;
      }
      const std::vector<int64_t> chosen = ChoosePerShard(
          shards, shares_[stream].choose, options_.sampling_granularity, SamplingSeed());
      for (size_t i = 0; i < shards.size(); begin += shards[i], ++i) {
        if (shards[i] == 0) continue;
        for (int64_t copy = 0; copy < chosen[i] / shards[i]; ++copy) {
          out.units.push_back(shards[i]);
          for (int64_t k = 0; k < shards[i]; ++k) out.samples.push_back(begin + k);
        }
        const int64_t part = chosen[i] % shards[i];
        if (part == 0) continue;
        out.units.push_back(part);
        std::vector<int64_t> picked = rng.ChooseDistinct(shards[i], part);
        std::sort(picked.begin(), picked.end());
        for (const int64_t k : picked) out.samples.push_back(begin + k);
      }
    }
    return out;
  }

  // Puts the samples of a resampled epoch in the place of a partition's places.
  Status Fill(const Resampled& resampled, int64_t block_size, std::vector<int64_t>* places) const {
    std::vector<int64_t> shuffle;
    if (options_.shuffle) {
      TESSERA_ASSIGN(shuffle, ShuffleLikeMosaic(resampled.units,
                                                {.algorithm = options_.algorithm,
                                                 .canonical_nodes = options_.canonical_nodes,
                                                 .seed = options_.seed,
                                                 .epoch = epoch_,
                                                 .block_size = block_size}));
    }
    for (int64_t& place : *places) {
      if (place < 0) continue;
      if (options_.shuffle) place = shuffle[static_cast<size_t>(place)];
      place = resampled.samples[static_cast<size_t>(place)];
    }
    return {};
  }

  Result<std::vector<int64_t>> Random(int64_t sample_in_epoch) const {
    const Resampled resampled = Resample(0, streams());
    TESSERA_ASSIGN(std::vector<int64_t> places,
                   PartitionLikeMosaic({.algorithm = options_.partition,
                                        .samples = static_cast<int64_t>(resampled.samples.size()),
                                        .canonical_nodes = options_.canonical_nodes,
                                        .world = options_.world,
                                        .drop_first = sample_in_epoch,
                                        .initial_nodes = options_.initial_nodes}));
    TESSERA_TRY(Fill(resampled, options_.block_size, &places));
    return places;
  }

  // One stream's samples in the order of training, for readers `world`.
  Result<std::vector<int64_t>> OfStream(size_t stream, const MosaicWorld& world) const {
    const Resampled resampled = Resample(stream, stream + 1);
    if (resampled.samples.empty()) {
      return InvalidArgument(fmt::format("stream {} gives no samples to an epoch; leave it out, or use "
                                         "batching_method random",
                                         stream));
    }
    TESSERA_ASSIGN(std::vector<int64_t> places,
                   PartitionLikeMosaic({.algorithm = options_.partition,
                                        .samples = static_cast<int64_t>(resampled.samples.size()),
                                        .canonical_nodes = options_.canonical_nodes,
                                        .world = world,
                                        .drop_first = 0,
                                        .initial_nodes = options_.initial_nodes}));
    const double share = static_cast<double>(options_.block_size) * shares_[stream].proportion;
    TESSERA_TRY(Fill(resampled, static_cast<int64_t>(share), &places));
    return places;
  }

  // Rows of `width` that hold no padding.
  static int64_t FullRows(const std::vector<int64_t>& samples, int64_t width) {
    int64_t full = 0;
    for (size_t at = 0; at + static_cast<size_t>(width) <= samples.size();
         at += static_cast<size_t>(width)) {
      const auto row = samples.begin() + static_cast<std::ptrdiff_t>(at);
      full += std::none_of(row, row + width, [](int64_t sample) { return sample < 0; });
    }
    return full;
  }

  // Samples of each stream in every global batch: its proportion rounded down, and one more for those
  // that rounding took most from (the later stream where two are equal).
  Result<std::vector<int64_t>> BatchParts() const {
    const int64_t global = options_.world.global_batch();
    std::vector<int64_t> parts;
    std::vector<double> lost;
    int64_t missing = global;
    for (const StreamShare& share : shares_) {
      const double exact = share.proportion * static_cast<double>(global);
      parts.push_back(static_cast<int64_t>(exact));
      lost.push_back(exact - static_cast<double>(parts.back()));
      missing -= parts.back();
    }
    std::vector<size_t> by_loss(streams());
    std::iota(by_loss.begin(), by_loss.end(), size_t{0});
    std::stable_sort(by_loss.begin(), by_loss.end(),
                     [&](size_t a, size_t b) { return lost[a] < lost[b]; });
    for (auto it = by_loss.rbegin(); it != by_loss.rend() && missing > 0; ++it, --missing) ++parts[*it];
    for (size_t i = 0; i < streams(); ++i) {
      if (parts[i] < 1) {
        return InvalidArgument(fmt::format(
            "stream {} has no sample in a global batch of {}: raise its proportion ({:.6f}) or the "
            "batch, or use batching_method random",
            i, global, shares_[i].proportion));
      }
    }
    return parts;
  }

  Result<std::vector<int64_t>> Stratified() const {
    TESSERA_ASSIGN(const std::vector<int64_t> parts, BatchParts());
    // Batches of one sample on one node, so that the order does not depend on the world's shape.
    MosaicWorld world = options_.world;
    world.nodes = 1;
    world.batch_size = 1;
    std::vector<std::vector<int64_t>> streams_samples;
    int64_t batches = INT64_MAX;
    for (size_t i = 0; i < streams(); ++i) {
      TESSERA_ASSIGN(std::vector<int64_t> samples, OfStream(i, world));
      batches = std::min(batches, FullRows(samples, parts[i]));
      streams_samples.push_back(std::move(samples));
    }
    std::vector<int64_t> out;
    for (int64_t batch = 0; batch < batches; ++batch) {
      for (size_t i = 0; i < streams(); ++i) {
        const auto row = streams_samples[i].begin() + static_cast<std::ptrdiff_t>(batch * parts[i]);
        out.insert(out.end(), row, row + parts[i]);
      }
    }
    return out;
  }

  // The order in which streams take turns, given how many batches each has.
  static std::vector<size_t> Turns(const std::vector<int64_t>& batches, NumpyGenerator* rng) {
    std::vector<size_t> turns;
    for (size_t i = 0; i < batches.size(); ++i) {
      turns.insert(turns.end(), static_cast<size_t>(batches[i]), i);
    }
    rng->Shuffle(turns);
    return turns;
  }

  Result<std::vector<int64_t>> PerStream() const {
    const int64_t global = options_.world.global_batch();
    std::vector<std::vector<int64_t>> samples;
    std::vector<int64_t> batches;
    for (size_t i = 0; i < streams(); ++i) {
      TESSERA_ASSIGN(samples.emplace_back(), OfStream(i, options_.world));
      batches.push_back(FullRows(samples.back(), global));
      if (batches.back() == 0) {
        return InvalidArgument(fmt::format(
            "stream {} has too few samples for one global batch of {}: raise its share or make batches "
            "smaller",
            i, global));
      }
    }
    NumpyGenerator rng(SamplingSeed());
    return Deal(samples, Turns(batches, &rng), global);
  }

  // Batches of `width` from the streams in turn, each stream's in their own order.
  static std::vector<int64_t> Deal(const std::vector<std::vector<int64_t>>& samples,
                                   const std::vector<size_t>& turns, int64_t width) {
    std::vector<int64_t> used(samples.size(), 0);
    std::vector<int64_t> out;
    out.reserve(turns.size() * static_cast<size_t>(width));
    for (const size_t stream : turns) {
      const auto row =
          samples[stream].begin() + static_cast<std::ptrdiff_t>(width * used[stream]++);
      out.insert(out.end(), row, row + width);
    }
    return out;
  }

  Result<std::vector<int64_t>> DevicePerStream() const {
    const int64_t canonical = options_.canonical_nodes;
    const int64_t nodes = options_.world.nodes;
    const int64_t width = options_.world.batch_size;
    if (canonical % nodes != 0) {
      return InvalidArgument(fmt::format(
          "batching_method device_per_stream: {} canonical nodes must be a multiple of {} nodes",
          canonical, nodes));
    }
    MosaicWorld world = options_.world;
    world.nodes = canonical;
    world.batch_size = 1;
    // [nodes][streams]: the samples of the node's canonical nodes, in the order of training.
    std::vector<std::vector<std::vector<int64_t>>> own(static_cast<size_t>(nodes));
    for (size_t i = 0; i < streams(); ++i) {
      const double block = static_cast<double>(options_.block_size) * shares_[i].proportion;
      if (options_.shuffle && static_cast<int64_t>(block) == 0) {
        return InvalidArgument(fmt::format(
            "stream {} has no part in a shuffle_block_size of {}: raise that or its proportion", i,
            options_.block_size));
      }
      TESSERA_ASSIGN(const std::vector<int64_t> samples, OfStream(i, world));
      const int64_t ranks = world.ranks_per_node;
      const int64_t per_node = canonical / nodes * ranks;
      for (auto& node : own) node.emplace_back();
      for (size_t at = 0; at < samples.size(); ++at) {
        const size_t node =
            static_cast<size_t>(static_cast<int64_t>(at) % (canonical * ranks) / per_node);
        own[node][i].push_back(samples[at]);
      }
    }
    NumpyGenerator rng(SamplingSeed());
    std::vector<std::vector<int64_t>> dealt;
    int64_t longest = 0;
    std::vector<std::vector<int64_t>> batches(own.size());
    for (size_t node = 0; node < own.size(); ++node) {
      for (size_t i = 0; i < streams(); ++i) {
        batches[node].push_back(FullRows(own[node][i], width));
        if (batches[node].back() == 0) {
          return InvalidArgument(fmt::format(
              "stream {} has too few samples on node {} for one batch of {}: raise its share or make "
              "batches smaller",
              i, node, width));
        }
      }
      longest = std::max(longest, std::accumulate(batches[node].begin(), batches[node].end(),
                                                  int64_t{0}));
    }
    const int64_t devices = options_.world.ranks();
    longest += devices - longest % devices;
    for (size_t node = 0; node < own.size(); ++node) {
      dealt.push_back(Deal(own[node], Turns(batches[node], &rng), width));
      dealt.back().resize(static_cast<size_t>(longest * width), -1);
    }
    std::vector<int64_t> out;
    out.reserve(static_cast<size_t>(longest * width * nodes));
    for (int64_t batch = 0; batch < longest; ++batch) {
      for (const std::vector<int64_t>& node : dealt) {
        const auto row = node.begin() + static_cast<std::ptrdiff_t>(batch * width);
        out.insert(out.end(), row, row + width);
      }
    }
    return out;
  }

  // Goes on behind the last global batch that was finished; fills up the last round of workers.
  Result<std::vector<int64_t>> Resume(Result<std::vector<int64_t>> made,
                                      int64_t sample_in_epoch) const {
    if (!made.ok()) return made;
    std::vector<int64_t> samples = std::move(made).value();
    const int64_t global = options_.world.global_batch();
    const int64_t seen = std::min(sample_in_epoch / global * global,
                                  static_cast<int64_t>(samples.size()));
    samples.erase(samples.begin(), samples.begin() + seen);
    const size_t round = static_cast<size_t>(global * options_.world.workers_per_rank);
    samples.resize((samples.size() + round - 1) / round * round, -1);
    return samples;
  }

  const MosaicOrderOptions& options_;
  const std::vector<StreamShare>& shares_;
  const int64_t epoch_;
};

std::vector<int64_t> StreamSamples(const MosaicOrderOptions& options) {
  std::vector<int64_t> samples;
  for (const std::vector<int64_t>& shards : options.shards) {
    samples.push_back(std::accumulate(shards.begin(), shards.end(), int64_t{0}));
  }
  return samples;
}

}  // namespace

std::optional<BatchingMethod> BatchingMethodFromName(std::string_view name) {
  for (const auto& [known, method] : kBatchingNames) {
    if (known == name) return method;
  }
  return std::nullopt;
}

std::string_view BatchingMethodName(BatchingMethod method) {
  for (const auto& [name, known] : kBatchingNames) {
    if (known == method) return name;
  }
  return "?";
}

std::vector<int64_t> MosaicEpoch::OfRank(int64_t rank) const {
  std::vector<int64_t> own;
  own.reserve(static_cast<size_t>(batches() * world.batch_size));
  for (int64_t batch = 0; batch < batches(); ++batch) {
    const auto first = samples.begin() + static_cast<std::ptrdiff_t>(batch * world.global_batch() +
                                                                     rank * world.batch_size);
    own.insert(own.end(), first, first + world.batch_size);
  }
  return own;
}

Result<MosaicOrderOptions> ResolveMosaicOrder(MosaicOrderOptions options) {
  const MosaicWorld& world = options.world;
  // Products of these stay far below 2^63.
  constexpr int64_t kMost = int64_t{1} << 20;
  for (const int64_t value : {world.nodes, world.ranks_per_node, world.workers_per_rank,
                              world.batch_size}) {
    if (value < 1 || value > kMost) {
      return InvalidArgument(fmt::format("nodes {}, ranks {}, workers {}, batch {}: each must be 1 to {}",
                                         world.nodes, world.ranks_per_node, world.workers_per_rank,
                                         world.batch_size, kMost));
    }
  }
  if (options.canonical_nodes == 0) {
    const bool many = options.algorithm == MosaicShuffle::kPy1s ||
                      options.algorithm == MosaicShuffle::kPy2s;
    options.canonical_nodes = (many ? 64 : 1) * world.nodes;
  }
  if (options.canonical_nodes < 1 || options.canonical_nodes > (kMost << 6)) {
    return InvalidArgument(
        fmt::format("num_canonical_nodes {} is not between 1 and {}", options.canonical_nodes,
                    kMost << 6));
  }
  if (options.block_size == 0) {
    options.block_size = std::max<int64_t>(4'000'000 / options.canonical_nodes, 1 << 18);
  }
  if (options.block_size < 1 || options.block_size > (int64_t{1} << 40)) {
    return InvalidArgument(fmt::format("shuffle_block_size {} is not between 1 and 2^40",
                                       options.block_size));
  }
  if (options.sampling_granularity < 1) {
    return InvalidArgument(fmt::format("sampling_granularity {} is below 1",
                                       options.sampling_granularity));
  }
  if (options.weights.empty()) options.weights.resize(options.shards.size());
  TESSERA_TRY(DeriveStreamShares(options.weights, StreamSamples(options), options.epoch_size,
                                 options.seed));
  return options;
}

Result<MosaicEpoch> MakeMosaicEpoch(const MosaicOrderOptions& options, int64_t epoch,
                                    int64_t sample_in_epoch) {
  if (epoch < 0 || sample_in_epoch < 0) {
    return InvalidArgument(fmt::format("epoch {}, sample {}: neither may be negative", epoch,
                                       sample_in_epoch));
  }
  TESSERA_ASSIGN(const std::vector<StreamShare> shares,
                 DeriveStreamShares(options.weights, StreamSamples(options), options.epoch_size,
                                    options.seed));
  MosaicEpoch out;
  out.world = options.world;
  TESSERA_ASSIGN(out.samples, EpochMaker(options, shares, epoch).Make(sample_in_epoch));
  const int64_t round = out.world.global_batch() * out.world.workers_per_rank;
  if (static_cast<int64_t>(out.samples.size()) % round != 0) {
    return InvalidArgument(fmt::format(
        "{} places of the run's first world can't be dealt out to rounds of {} (nodes {}, ranks {}, "
        "workers {}, batch {})",
        out.samples.size(), round, out.world.nodes, out.world.ranks_per_node,
        out.world.workers_per_rank, out.world.batch_size));
  }
  return out;
}

}  // namespace tessera
