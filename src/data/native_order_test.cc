#include "data/native_order.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "data/permutation.h"

namespace tessera {
namespace {

NativeOrder Order(NativeOrderOptions options) {
  Result<NativeOrder> order = NativeOrder::Make(std::move(options));
  EXPECT_TRUE(order.ok()) << (order.ok() ? "" : order.error().ToString());
  return std::move(order).value();
}

TEST(BlockShuffle, IsInvertibleAndKeepsToItsBlocks) {
  for (const auto& [n, block] : {std::pair<int64_t, int64_t>{1, 0}, {100, 0}, {100, 30}, {1000, 7},
                                 {50, 49}, {50, 1}}) {
    const BlockShuffle shuffle(n, block, 3, 9);
    std::set<int64_t> seen;
    for (int64_t p = 0; p < n; ++p) {
      const int64_t value = shuffle.Forward(p);
      EXPECT_TRUE(seen.insert(value).second);
      EXPECT_EQ(shuffle.Inverse(value), p);
      // floor(n / block) blocks are at most twice as large.
      EXPECT_LT(std::abs(value - p), block > 0 ? 2 * block : n);
    }
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), n - 1);
  }
}

TEST(ChunkShuffle, IsInvertibleAndKeepsRunsTogether) {
  for (const auto& [n, chunk] : {std::pair<int64_t, int64_t>{1, 1}, {100, 10}, {103, 10}, {7, 100},
                                 {1000, 3}, {99, 98}}) {
    for (uint64_t key = 0; key < 5; ++key) {
      const ChunkShuffle shuffle(n, chunk, 3, key);
      std::set<int64_t> seen;
      int64_t breaks = 0;
      int64_t last = -1;
      for (int64_t p = 0; p < n; ++p) {
        const int64_t value = shuffle.Forward(p);
        ASSERT_TRUE(value >= 0 && value < n && seen.insert(value).second) << n << " " << chunk;
        EXPECT_EQ(shuffle.Inverse(value), p);
        breaks += value != last + 1;
        last = value;
      }
      EXPECT_LE(breaks, (n + chunk - 1) / chunk);
    }
  }
}

TEST(Interleave, IsInvertibleAndEven) {
  const std::vector<int64_t> lengths = {70, 1, 0, 500, 29, 29};
  const Interleave turns(lengths);
  ASSERT_EQ(turns.size(), 629);
  std::vector<int64_t> next(lengths.size(), 0);
  for (int64_t p = 0; p < turns.size(); ++p) {
    const Interleave::Place place = turns.At(p);
    const size_t i = static_cast<size_t>(place.sequence);
    EXPECT_EQ(place.index, next[i]++);
    EXPECT_EQ(turns.PositionOf(place), p);
    // Each level of halving rounds by less than one.
    const double ideal = static_cast<double>(lengths[i]) * static_cast<double>(p) / 629;
    EXPECT_LT(std::abs(static_cast<double>(place.index) - ideal), 4.0);
  }
  EXPECT_EQ(next, lengths);
}

TEST(NativeOrder, OfOneStreamIsThePlainPermutation) {
  const NativeOrder order = Order({.streams = {{.samples = 100, .chunk = 10}}, .seed = 5});
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const Permutation plain(100, 5, static_cast<uint64_t>(epoch));
    for (int64_t p = 0; p < 100; ++p) {
      EXPECT_EQ(order.At(epoch, p), (StreamSample{0, plain.Forward(p)}));
    }
  }
}

std::vector<NativeOrderOptions> Grid() {
  std::vector<NativeOrderOptions> grid;
  const std::vector<NativeStream> streams = {{.samples = 300, .chunk = 20},
                                             {.samples = 77, .chunk = 10},
                                             {.samples = 1000, .chunk = 64}};
  const std::vector<std::vector<StreamWeight>> weights = {
      {},
      {{.proportion = 0.5}, {.proportion = 0.2}, {.proportion = 0.3}},
      {{.repeat = 2.5}, {.repeat = 0.7}, {.repeat = 1.0}},
      {{.choose = 33}, {.choose = 200}, {.choose = 400}}};
  for (const auto& weight : weights) {
    for (const BatchingMethod batching :
         {BatchingMethod::kRandom, BatchingMethod::kStratified, BatchingMethod::kPerStream,
          BatchingMethod::kDevicePerStream}) {
      for (const int64_t block : {0, 150}) {
        for (const int variant : {0, 1, 2}) {
          grid.push_back({.streams = streams,
                          .weights = weight,
                          .seed = 11,
                          .shuffle = variant != 1,
                          .block_size = block,
                          .batching = batching,
                          .global_batch = 24,
                          .device_batch = 6,
                          .fixed_sampling = variant == 2});
        }
      }
    }
  }
  return grid;
}

TEST(NativeOrder, TakesWhatWeightsSayAndRepeatsNothingEarly) {
  for (const NativeOrderOptions& options : Grid()) {
    const NativeOrder order = Order(options);
    const bool left_over = options.batching == BatchingMethod::kDevicePerStream;
    std::map<std::pair<int64_t, int64_t>, int64_t> uses;
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
      std::vector<int64_t> counts(3, 0);
      for (int64_t p = 0; p < order.samples_per_epoch(); ++p) {
        const StreamSample at = order.At(epoch, p);
        ++counts[static_cast<size_t>(at.stream)];
        ++uses[{at.stream, at.sample}];
        ASSERT_TRUE(at.sample >= 0 &&
                    at.sample < options.streams[static_cast<size_t>(at.stream)].samples);
      }
      for (int64_t s = 0; s < 3 && !left_over; ++s) {
        EXPECT_EQ(counts[static_cast<size_t>(s)], order.taken(s));
      }
      if (left_over || (options.fixed_sampling && epoch > 0)) continue;
      // No sample is two uses ahead of another of its stream.
      for (int64_t s = 0; s < 3; ++s) {
        int64_t least = INT64_MAX;
        int64_t most = 0;
        for (int64_t i = 0; i < options.streams[static_cast<size_t>(s)].samples; ++i) {
          least = std::min(least, uses[{s, i}]);
          most = std::max(most, uses[{s, i}]);
        }
        EXPECT_LE(most - least, 1);
      }
    }
  }
}

TEST(NativeOrder, KnowsWhenASampleIsUsedNext) {
  for (const NativeOrderOptions& options : Grid()) {
    const NativeOrder order = Order(options);
    const int64_t n = order.samples_per_epoch();
    for (const int64_t from : {int64_t{0}, n / 2, n - 1, 3 * n + 5}) {
      // The first use of each sample within the next epochs, by looking.
      std::map<std::pair<int64_t, int64_t>, int64_t> first;
      for (int64_t g = from; g < from + 2 * n; ++g) {
        const StreamSample at = order.At(g / n, g % n);
        first.try_emplace({at.stream, at.sample}, g);
      }
      int64_t checked = 0;
      for (const auto& [at, position] : first) {
        if (++checked % 13 != 0) continue;
        const std::optional<int64_t> next = order.NextUse({at.first, at.second}, from);
        // What whole batches leave over may be left over again.
        if (options.batching == BatchingMethod::kDevicePerStream && !next) continue;
        ASSERT_TRUE(next.has_value());
        EXPECT_EQ(*next, position) << "from " << from << " of " << n << ", stream " << at.first;
      }
    }
  }
}

TEST(NativeOrder, KeepsStratifiedBatchesAlikeAndOtherBatchesPure) {
  for (const NativeOrderOptions& options : Grid()) {
    const NativeOrder order = Order(options);
    std::vector<int64_t> first;
    for (int64_t batch = 0; batch < order.samples_per_epoch() / 24; ++batch) {
      std::vector<int64_t> counts(3, 0);
      std::set<int64_t> devices;
      for (int64_t row = 0; row < 24; ++row) {
        const int64_t stream = order.At(2, batch * 24 + row).stream;
        ++counts[static_cast<size_t>(stream)];
        devices.insert(stream + 3 * (row / 6));
      }
      if (batch == 0) first = counts;
      EXPECT_TRUE(options.batching != BatchingMethod::kStratified || counts == first);
      if (options.batching == BatchingMethod::kPerStream) {
        EXPECT_EQ(*std::max_element(counts.begin(), counts.end()), 24);
      }
      EXPECT_TRUE(options.batching != BatchingMethod::kDevicePerStream || devices.size() == 4);
    }
  }
}

TEST(NativeOrder, TouchesFewChunksAtATime) {
  const NativeOrder order = Order({.streams = {{.samples = 100000, .chunk = 100}},
                                   .seed = 2,
                                   .block_size = 2000});
  for (int64_t begin = 0; begin < 100000; begin += 2000) {
    std::set<int64_t> chunks;
    for (int64_t p = begin; p < begin + 2000; ++p) chunks.insert(order.At(0, p).sample / 100);
    EXPECT_LE(chunks.size(), 22u);  // 20, and one at each border.
  }
}

TEST(NativeOrder, CountsInTrillions) {
  // 10^12 tokens in samples of 16.
  const NativeOrder order = Order({.streams = {{.samples = 40'000'000'000, .chunk = 8192},
                                               {.samples = 22'500'000'000, .chunk = 8192}},
                                   .seed = 1,
                                   .block_size = 1 << 18});
  EXPECT_EQ(order.samples_per_epoch(), 62'500'000'000);
  for (int64_t g = 1; g < 3 * order.samples_per_epoch(); g = 3 * g + 7) {
    const StreamSample at =
        order.At(g / order.samples_per_epoch(), g % order.samples_per_epoch());
    EXPECT_EQ(order.NextUse(at, g), g);
  }
}

TEST(NativeOrder, RefusesWhatDoesNotFit) {
  const auto fails = [](NativeOrderOptions options) { return !NativeOrder::Make(options).ok(); };
  EXPECT_TRUE(fails({}));
  EXPECT_TRUE(fails({.streams = {{.samples = 0}}}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}}, .block_size = -1}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}},
                     .batching = BatchingMethod::kPerStream,
                     .global_batch = 11}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}, {.samples = 1000}},
                     .batching = BatchingMethod::kStratified,
                     .global_batch = 4}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}}, .global_batch = 4, .device_batch = 3}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}},
                     .batching = BatchingMethod::kStratified,
                     .global_batch = INT64_MAX}));
  EXPECT_TRUE(fails({.streams = {{.samples = 10}},
                     .block_size = INT64_MAX,
                     .batching = BatchingMethod::kPerStream}));
}

}  // namespace
}  // namespace tessera
