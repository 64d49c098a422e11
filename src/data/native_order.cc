#include "data/native_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/permutation.h"

namespace tessera {

namespace {

constexpr int64_t kMaxSamples = int64_t{1} << 53;

// What a permutation is for; keeps their keys apart.
enum class Use : uint64_t { kEpoch = 1, kChunks = 2, kBatch = 3, kTurns = 4, kStream = 5 };

uint64_t MixKey(uint64_t key, uint64_t value) {
  uint64_t z = (key ^ value) + 0x9E3779B97F4A7C15ull * (value + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint64_t KeyOf(Use use, int64_t a, int64_t b) {
  return MixKey(MixKey(MixKey(0, static_cast<uint64_t>(use)), static_cast<uint64_t>(a)),
                static_cast<uint64_t>(b));
}

int64_t MulDiv(int64_t a, int64_t b, int64_t c) {
  return static_cast<int64_t>(static_cast<__int128>(a) * b / c);
}

}  // namespace

NativeStream NativeStreamOf(int64_t samples, int64_t shards) {
  return {.samples = samples, .chunk = std::max<int64_t>(1, samples / std::max<int64_t>(shards, 1))};
}

BlockShuffle::BlockShuffle(int64_t n, int64_t block, uint64_t seed, uint64_t key)
    : n_(n), blocks_(block <= 0 ? 1 : std::max<int64_t>(1, n / block)), seed_(seed), key_(key) {}

int64_t BlockShuffle::Boundary(int64_t block) const { return MulDiv(block, n_, blocks_); }

int64_t BlockShuffle::BlockOf(int64_t position) const {
  // The largest block whose floor(block * n / blocks) is not above the position.
  return static_cast<int64_t>((static_cast<__int128>(position + 1) * blocks_ - 1) / n_);
}

int64_t BlockShuffle::Forward(int64_t position) const {
  const int64_t block = BlockOf(position);
  const int64_t begin = Boundary(block);
  const uint64_t key = blocks_ == 1 ? key_ : MixKey(key_, static_cast<uint64_t>(block));
  return begin + Permutation(Boundary(block + 1) - begin, seed_, key).Forward(position - begin);
}

int64_t BlockShuffle::Inverse(int64_t value) const {
  const int64_t block = BlockOf(value);
  const int64_t begin = Boundary(block);
  const uint64_t key = blocks_ == 1 ? key_ : MixKey(key_, static_cast<uint64_t>(block));
  return begin + Permutation(Boundary(block + 1) - begin, seed_, key).Inverse(value - begin);
}

ChunkShuffle::ChunkShuffle(int64_t n, int64_t chunk, uint64_t seed, uint64_t key)
    : chunk_(std::min(chunk, n)),
      chunks_((n + chunk_ - 1) / chunk_),
      short_by_(chunks_ * chunk_ - n),
      short_place_(Permutation(chunks_, seed, key).Inverse(chunks_ - 1)),
      seed_(seed),
      key_(key) {}

int64_t ChunkShuffle::Forward(int64_t position) const {
  // Places behind the short chunk begin earlier by what it lacks.
  if (position >= (short_place_ + 1) * chunk_ - short_by_) position += short_by_;
  return Permutation(chunks_, seed_, key_).Forward(position / chunk_) * chunk_ + position % chunk_;
}

int64_t ChunkShuffle::Inverse(int64_t value) const {
  const int64_t place = Permutation(chunks_, seed_, key_).Inverse(value / chunk_);
  return place * chunk_ + value % chunk_ - (place > short_place_ ? short_by_ : 0);
}

Interleave::Interleave(std::vector<int64_t> lengths) : sums_(lengths.size() + 1, 0) {
  std::partial_sum(lengths.begin(), lengths.end(), sums_.begin() + 1);
}

// Halves the sequences again and again; of N places a half with A gets those p at which
// floor(p * A / N) grows, the other half (B = N - A) the rest.
Interleave::Place Interleave::At(int64_t position) const {
  size_t low = 0;
  size_t high = sums_.size() - 1;
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    const int64_t all = sums_[high] - sums_[low];
    const int64_t left = sums_[middle] - sums_[low];
    const int64_t before = MulDiv(position, left, all);
    if (MulDiv(position + 1, left, all) > before) {
      position = before;
      high = middle;
    } else {
      position -= before;
      low = middle;
    }
  }
  return {static_cast<int64_t>(low), position};
}

int64_t Interleave::PositionOf(Place place) const {
  // The way down to the sequence, then back up.
  struct Step {
    int64_t all;
    int64_t part;
    bool left;
  };
  std::vector<Step> steps;
  size_t low = 0;
  size_t high = sums_.size() - 1;
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    const int64_t all = sums_[high] - sums_[low];
    const bool left = static_cast<size_t>(place.sequence) < middle;
    const int64_t part = left ? sums_[middle] - sums_[low] : sums_[high] - sums_[middle];
    steps.push_back({all, part, left});
    (left ? high : low) = middle;
  }
  int64_t position = place.index;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (step->left) {
      // The smallest p with floor((p + 1) * A / N) > index.
      const __int128 product = static_cast<__int128>(position + 1) * step->all;
      position = static_cast<int64_t>((product + step->part - 1) / step->part) - 1;
    } else {
      position = MulDiv(position, step->all, step->part);
    }
  }
  return position;
}

Status NativeOrder::DeriveTaken() {
  std::vector<int64_t> sizes;
  for (const NativeStream& stream : options_.streams) {
    if (stream.samples < 1 || stream.samples > kMaxSamples || stream.chunk < 1 ||
        stream.chunk > (int64_t{1} << 40)) {
      return InvalidArgument(fmt::format("stream {} has {} samples in chunks of {}", sizes.size(),
                                         stream.samples, stream.chunk));
    }
    sizes.push_back(stream.samples);
  }
  if (options_.weights.empty()) options_.weights.resize(sizes.size());
  TESSERA_ASSIGN(const std::vector<StreamShare> shares,
                 DeriveStreamShares(options_.weights, sizes, options_.epoch_size, options_.seed));
  if (options_.block_size < 0 || options_.block_size > kMaxSamples || options_.global_batch < 1 ||
      options_.global_batch > kMaxSamples || options_.device_batch < 1 ||
      options_.global_batch % options_.device_batch != 0) {
    return InvalidArgument(fmt::format(
        "shuffle_block_size {}, global batch {}, device batch {}: none may be negative or above 2^53, "
        "and the last must divide the one before",
        options_.block_size, options_.global_batch, options_.device_batch));
  }
  const int64_t global = options_.global_batch;
  for (const StreamShare& share : shares) taken_.push_back(share.choose);
  if (options_.batching == BatchingMethod::kRandom) {
    turns_.emplace(taken_);
    samples_per_epoch_ = turns_->size();
    return {};
  }
  if (options_.batching == BatchingMethod::kStratified) {
    // Largest remainders; of equal ones the first stream.
    std::vector<int64_t> parts;
    std::vector<std::pair<double, size_t>> lost;
    int64_t missing = global;
    for (size_t i = 0; i < shares.size(); ++i) {
      const double exact = shares[i].proportion * static_cast<double>(global);
      parts.push_back(static_cast<int64_t>(exact));
      lost.emplace_back(static_cast<double>(parts.back()) - exact, i);
      missing -= parts.back();
    }
    std::sort(lost.begin(), lost.end());
    for (size_t i = 0; i < lost.size() && missing > 0; ++i, --missing) ++parts[lost[i].second];
    int64_t batches = INT64_MAX;
    parts_.push_back(0);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i] < 1 || shares[i].choose < parts[i]) {
        return InvalidArgument(fmt::format(
            "stream {}: {} of its samples an epoch and {} in each global batch of {}: raise its share or "
            "the batch, or use batching_method random",
            i, shares[i].choose, parts[i], global));
      }
      batches = std::min(batches, shares[i].choose / parts[i]);
      parts_.push_back(parts_.back() + parts[i]);
    }
    for (size_t i = 0; i < parts.size(); ++i) taken_[i] = batches * parts[i];
    samples_per_epoch_ = batches * global;
    return {};
  }
  std::vector<int64_t> units;
  for (size_t i = 0; i < taken_.size(); ++i) {
    units.push_back(taken_[i] / unit());
    if (units.back() == 0) {
      return InvalidArgument(fmt::format(
          "stream {} gives {} samples to an epoch, too few for one batch of {}: raise its share, or use "
          "batching_method random",
          i, taken_[i], unit()));
    }
    taken_[i] = units.back() * unit();
  }
  turns_.emplace(std::move(units));
  // Whole global batches; the units left over wait for the next epoch's other order.
  samples_per_epoch_ = turns_->size() * unit() / global * global;
  if (samples_per_epoch_ == 0) {
    return InvalidArgument(fmt::format("all streams together don't fill one global batch of {}", global));
  }
  return {};
}

int64_t NativeOrder::unit() const {
  switch (options_.batching) {
    case BatchingMethod::kPerStream: return options_.global_batch;
    case BatchingMethod::kDevicePerStream: return options_.device_batch;
    default: return 1;
  }
}

Result<NativeOrder> NativeOrder::Make(NativeOrderOptions options) {
  NativeOrder order(std::move(options));
  TESSERA_TRY(order.DeriveTaken());
  return order;
}

// Where an epoch takes a stream whole and shuffles all of it, moving chunks first adds nothing.
bool NativeOrder::MovesChunks(int64_t stream) const {
  const NativeStream& shape = options_.streams[static_cast<size_t>(stream)];
  return options_.shuffle && (options_.block_size > 0 || taken(stream) % shape.samples != 0);
}

BlockShuffle NativeOrder::StreamBlocks(int64_t stream, int64_t epoch) const {
  const double share = static_cast<double>(taken(stream)) / static_cast<double>(samples_per_epoch_);
  const int64_t block = static_cast<int64_t>(static_cast<double>(options_.block_size) * share);
  return BlockShuffle(taken(stream), options_.block_size > 0 ? std::max<int64_t>(block, 1) : 0,
                      options_.seed, KeyOf(Use::kStream, stream, epoch));
}

// The stream at a position and the index among the samples that the epoch takes of it.
Interleave::Place NativeOrder::StreamAt(int64_t epoch, int64_t position) const {
  if (options_.batching == BatchingMethod::kRandom) {
    if (options_.shuffle) {
      // A lone stream that is shuffled whole has the plain permutation of (seed, epoch).
      const bool plain = options_.streams.size() == 1 && options_.block_size == 0;
      const uint64_t key = plain ? static_cast<uint64_t>(epoch) : KeyOf(Use::kEpoch, epoch, 0);
      position =
          BlockShuffle(samples_per_epoch_, options_.block_size, options_.seed, key).Forward(position);
    }
    return turns_->At(position);
  }
  Interleave::Place place;
  if (options_.batching == BatchingMethod::kStratified) {
    const int64_t batch = position / options_.global_batch;
    int64_t row = position % options_.global_batch;
    if (options_.shuffle) {
      row = Permutation(options_.global_batch, options_.seed, KeyOf(Use::kBatch, epoch, batch))
                .Forward(row);
    }
    const auto part = std::upper_bound(parts_.begin(), parts_.end(), row) - 1;
    place.sequence = part - parts_.begin();
    place.index = batch * (part[1] - part[0]) + row - *part;
  } else {
    int64_t turn = position / unit();
    if (options_.shuffle) {
      turn = Permutation(turns_->size(), options_.seed, KeyOf(Use::kTurns, epoch, 0)).Forward(turn);
    }
    place = turns_->At(turn);
    place.index = place.index * unit() + position % unit();
  }
  if (options_.shuffle) place.index = StreamBlocks(place.sequence, epoch).Forward(place.index);
  return place;
}

int64_t NativeOrder::PositionOf(int64_t epoch, const Interleave::Place& at) const {
  Interleave::Place place = at;
  if (options_.batching == BatchingMethod::kRandom) {
    const int64_t position = turns_->PositionOf(place);
    if (!options_.shuffle) return position;
    const bool plain = options_.streams.size() == 1 && options_.block_size == 0;
    const uint64_t key = plain ? static_cast<uint64_t>(epoch) : KeyOf(Use::kEpoch, epoch, 0);
    return BlockShuffle(samples_per_epoch_, options_.block_size, options_.seed, key).Inverse(position);
  }
  if (options_.shuffle) place.index = StreamBlocks(place.sequence, epoch).Inverse(place.index);
  if (options_.batching == BatchingMethod::kStratified) {
    const size_t stream = static_cast<size_t>(place.sequence);
    const int64_t part = parts_[stream + 1] - parts_[stream];
    const int64_t batch = place.index / part;
    int64_t row = parts_[stream] + place.index % part;
    if (options_.shuffle) {
      row = Permutation(options_.global_batch, options_.seed, KeyOf(Use::kBatch, epoch, batch))
                .Inverse(row);
    }
    return batch * options_.global_batch + row;
  }
  int64_t turn = turns_->PositionOf({place.sequence, place.index / unit()});
  if (options_.shuffle) {
    turn = Permutation(turns_->size(), options_.seed, KeyOf(Use::kTurns, epoch, 0)).Inverse(turn);
  }
  return turn * unit() + place.index % unit();
}

StreamSample NativeOrder::At(int64_t epoch, int64_t position) const {
  const Interleave::Place place = StreamAt(epoch, position);
  const int64_t stream = place.sequence;
  const NativeStream& shape = options_.streams[static_cast<size_t>(stream)];
  // Counted over all epochs, the samples that came before say which pass over the stream this is.
  const __int128 used =
      (options_.fixed_sampling ? 0 : static_cast<__int128>(epoch) * taken(stream)) + place.index;
  const int64_t pass = static_cast<int64_t>(used / shape.samples);
  int64_t sample = static_cast<int64_t>(used % shape.samples);
  if (MovesChunks(stream)) {
    const int64_t chunk = options_.block_size > 0 ? shape.chunk : 1;
    sample = ChunkShuffle(shape.samples, chunk, options_.seed, KeyOf(Use::kChunks, stream, pass))
                 .Forward(sample);
  }
  return {stream, sample};
}

std::optional<int64_t> NativeOrder::NextUse(const StreamSample& at, int64_t from) const {
  const NativeStream& shape = options_.streams[static_cast<size_t>(at.stream)];
  const int64_t taken_now = taken(at.stream);
  if (taken_now == 0) return std::nullopt;
  const int64_t first_epoch = from / samples_per_epoch_;
  const auto use_in = [&](int64_t epoch, int64_t pass) -> std::optional<int64_t> {
    int64_t sample = at.sample;
    if (MovesChunks(at.stream)) {
      const int64_t chunk = options_.block_size > 0 ? shape.chunk : 1;
      sample = ChunkShuffle(shape.samples, chunk, options_.seed,
                            KeyOf(Use::kChunks, at.stream, pass))
                   .Inverse(sample);
    }
    const __int128 used = static_cast<__int128>(pass) * shape.samples + sample;
    const int64_t own_epoch =
        options_.fixed_sampling ? epoch : static_cast<int64_t>(used / taken_now);
    const __int128 before = options_.fixed_sampling ? 0 : static_cast<__int128>(own_epoch) * taken_now;
    if (used - before >= taken_now) return std::nullopt;
    const int64_t position =
        PositionOf(own_epoch, {at.stream, static_cast<int64_t>(used - before)});
    if (position >= samples_per_epoch_) return std::nullopt;  // Left over by whole batches.
    const int64_t run_position = own_epoch * samples_per_epoch_ + position;
    return run_position >= from ? std::optional(run_position) : std::nullopt;
  };
  std::optional<int64_t> best;
  const auto offer = [&](const std::optional<int64_t>& position) {
    if (position && (!best || *position < *best)) best = position;
  };
  if (options_.fixed_sampling) {
    const int64_t passes = (taken_now + shape.samples - 1) / shape.samples;
    for (int64_t epoch = first_epoch; epoch < first_epoch + 2; ++epoch) {
      for (int64_t pass = 0; pass < passes; ++pass) offer(use_in(epoch, pass));
      if (best) return best;
    }
    return best;
  }
  // Passes that touch this epoch and the next, and one more. An epoch mixes its passes, so all that
  // begin before the end of the epoch with the best use are looked at.
  const int64_t first_pass =
      static_cast<int64_t>(static_cast<__int128>(first_epoch) * taken_now / shape.samples);
  const int64_t passes_an_epoch = taken_now / shape.samples + 1;
  for (int64_t pass = first_pass; pass < first_pass + 2 * passes_an_epoch + 2; ++pass) {
    if (best && static_cast<__int128>(pass) * shape.samples >=
                    static_cast<__int128>(*best / samples_per_epoch_ + 1) * taken_now) {
      break;
    }
    offer(use_in(first_epoch, pass));
  }
  return best;
}

}  // namespace tessera
