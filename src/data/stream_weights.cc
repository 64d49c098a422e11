#include "data/stream_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/numpy_random.h"

namespace tessera {

namespace {

constexpr int64_t kMaxEpoch = int64_t{1} << 53;  // Exact as a double.

Status CheckWeights(std::span<const StreamWeight> weights) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const StreamWeight& weight = weights[i];
    if (weight.proportion.has_value() + weight.repeat.has_value() + weight.choose.has_value() > 1) {
      return InvalidArgument(
          fmt::format("stream {}: set at most one of proportion, repeat and choose", i));
    }
    if (weight.proportion.has_value() != weights[0].proportion.has_value()) {
      return InvalidArgument(fmt::format(
          "stream {}: either all streams have a proportion or none; repeat and choose are absolute", i));
    }
    const double value = weight.proportion ? *weight.proportion : weight.repeat.value_or(0);
    if (!std::isfinite(value) || value < 0 || weight.choose.value_or(0) < 0) {
      return InvalidArgument(fmt::format("stream {}: its weight must not be negative", i));
    }
  }
  return {};
}

// floor(size * proportion) each; samples left over go to streams drawn at random.
Result<std::vector<StreamShare>> Relative(std::vector<double> proportions, int64_t size,
                                          uint64_t seed) {
  const double sum = NumpySum(proportions);
  if (!(sum > 0) || !std::isfinite(sum)) {
    return InvalidArgument("the proportions of all streams are 0; give at least one a share");
  }
  std::vector<StreamShare> shares;
  int64_t left = size;
  for (const double proportion : proportions) {
    const double share = proportion / sum;
    shares.push_back(
        {.choose = static_cast<int64_t>(static_cast<double>(size) * share), .proportion = share});
    left -= shares.back().choose;
  }
  const int64_t n = static_cast<int64_t>(shares.size());
  if (left < 0 || left > n) {
    return InvalidArgument(fmt::format("an epoch of {} samples can't be shared out exactly", size));
  }
  NumpyGenerator rng(seed);
  for (const int64_t stream : rng.ChooseDistinct(n, left)) ++shares[static_cast<size_t>(stream)].choose;
  return shares;
}

}  // namespace

Result<std::vector<StreamShare>> DeriveStreamShares(std::span<const StreamWeight> weights,
                                                    std::span<const int64_t> samples,
                                                    int64_t epoch_size, uint64_t seed) {
  if (weights.empty() || weights.size() != samples.size()) {
    return InvalidArgument("there are no streams");
  }
  TESSERA_TRY(CheckWeights(weights));
  if (epoch_size < 0 || epoch_size > kMaxEpoch) {
    return InvalidArgument(fmt::format("epoch_size {} is not between 1 and 2^53", epoch_size));
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    if (samples[i] < 1) return InvalidArgument(fmt::format("stream {} holds no samples", i));
  }
  const int64_t total = std::accumulate(samples.begin(), samples.end(), int64_t{0});
  const bool unspecified = std::all_of(weights.begin(), weights.end(), [](const StreamWeight& w) {
    return !w.proportion && !w.repeat && !w.choose;
  });
  if (weights[0].proportion) {
    std::vector<double> proportions;
    for (const StreamWeight& weight : weights) proportions.push_back(*weight.proportion);
    return Relative(std::move(proportions), epoch_size > 0 ? epoch_size : total, seed);
  }
  if (epoch_size > 0) {
    if (!unspecified) {
      return InvalidArgument(
          "epoch_size goes with proportions; repeat and choose already say how large an epoch is");
    }
    return Relative(std::vector<double>(samples.begin(), samples.end()), epoch_size, seed);
  }
  std::vector<StreamShare> shares(weights.size());
  int64_t sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double repeated = weights[i].repeat.value_or(0) * static_cast<double>(samples[i]);
    if (repeated > static_cast<double>(kMaxEpoch) || weights[i].choose.value_or(0) > kMaxEpoch) {
      return InvalidArgument(fmt::format("stream {}: its weight asks for more than 2^53 samples", i));
    }
    shares[i].choose = weights[i].repeat   ? static_cast<int64_t>(repeated)
                       : weights[i].choose ? *weights[i].choose
                                           : samples[i];
    sum += shares[i].choose;
    if (sum > kMaxEpoch) return InvalidArgument("an epoch has more than 2^53 samples");
  }
  if (sum == 0) return InvalidArgument("the weights of all streams choose no samples");
  for (StreamShare& share : shares) {
    share.proportion = static_cast<double>(share.choose) / static_cast<double>(sum);
  }
  return shares;
}

std::vector<int64_t> ChoosePerShard(std::span<const int64_t> shards, int64_t choose,
                                    int64_t granularity, uint64_t seed) {
  const int64_t total = std::accumulate(shards.begin(), shards.end(), int64_t{0});
  std::vector<int64_t> chosen(shards.begin(), shards.end());
  for (int64_t& samples : chosen) samples *= choose / total;
  int64_t left = choose % total;
  if (left == 0) return chosen;
  // The shard and the size of each pick. The last pick of a shard is what remains of it; for a shard
  // without samples that lands on the pick before, as the original has it.
  std::vector<int64_t> shard_of;
  std::vector<int64_t> size_of;
  for (size_t i = 0; i < shards.size(); ++i) {
    const int64_t picks = (shards[i] + granularity - 1) / granularity;
    shard_of.insert(shard_of.end(), static_cast<size_t>(picks), static_cast<int64_t>(i));
    size_of.insert(size_of.end(), static_cast<size_t>(picks), granularity);
  }
  int64_t end = 0;
  for (const int64_t samples : shards) {
    const int64_t picks = (samples + granularity - 1) / granularity;
    end += picks;
    size_of[static_cast<size_t>(end > 0 ? end - 1 : static_cast<int64_t>(size_of.size()) - 1)] =
        samples - (picks - 1) * granularity;
  }
  NumpyGenerator rng(seed);
  for (const int64_t pick : rng.Permutation(static_cast<int64_t>(shard_of.size()))) {
    const int64_t taken = std::min(left, size_of[static_cast<size_t>(pick)]);
    chosen[static_cast<size_t>(shard_of[static_cast<size_t>(pick)])] += taken;
    left -= taken;
    if (left == 0) break;
  }
  return chosen;
}

}  // namespace tessera
