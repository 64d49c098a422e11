#include "data/mosaic_order.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/hash.h"
#include "base/json.h"
#include "data/numpy_random.h"

namespace tessera {
namespace {

using Ids = std::vector<int64_t>;

// Values that NumPy's documentation and its own tests show, and ones printed by NumPy 2.1.
TEST(NumpyRandom, GivesNumpysNumbers) {
  EXPECT_EQ(NumpySeedSequence(0).Words32(4),
            (std::vector<uint32_t>{0xb0f478beu, 0xdb2cd7e7u, 0x2c71ba49u, 0xabf4641au}));
  NumpyGenerator uniform(42);
  EXPECT_EQ(uniform.NextDouble(), 0.7739560485559633);
  EXPECT_EQ(uniform.NextDouble(), 0.4388784397520523);
  EXPECT_EQ(NumpyGenerator(9176).Next64(), 0xce488e5ff4c10304ull);
  NumpyGenerator integers(42);
  Ids drawn(10);
  for (int64_t& value : drawn) value = integers.Integers(0, 10);
  EXPECT_EQ(drawn, (Ids{0, 7, 6, 4, 4, 8, 0, 6, 2, 0}));
  EXPECT_EQ(NumpyGenerator(42).Permutation(10), (Ids{5, 6, 0, 7, 3, 2, 4, 9, 1, 8}));
  EXPECT_EQ(NumpyGenerator(42).ChooseDistinct(10, 5), (Ids{5, 3, 7, 0, 4}));
  EXPECT_EQ(NumpyGenerator(1).ChooseDistinct(10, 0), Ids{});
}

TEST(NumpyRandom, ChoosesDistinctValuesInEveryRegime) {
  for (const auto& [n, count] : {std::pair<int64_t, int64_t>{1, 1}, {50, 50}, {10000, 9000},
                                 {20000, 300}, {20000, 401}, {20000, 20000}}) {
    Ids values = NumpyGenerator(3).ChooseDistinct(n, count);
    std::sort(values.begin(), values.end());
    ASSERT_EQ(static_cast<int64_t>(values.size()), count);
    EXPECT_EQ(std::adjacent_find(values.begin(), values.end()), values.end()) << n << " " << count;
    EXPECT_TRUE(values.front() >= 0 && values.back() < n);
  }
}

MosaicOrderOptions OptionsOf(const Json& at) {
  MosaicOrderOptions options;
  options.shards = at["shards"].get<std::vector<Ids>>();
  options.weights.resize(options.shards.size());
  const std::string weight = at.contains("weight") && !at["weight"].is_null()
                                 ? at["weight"].get<std::string>()
                                 : std::string();
  for (size_t i = 0; i < options.shards.size() && !weight.empty(); ++i) {
    if (weight == "proportion") options.weights[i].proportion = at["weights"][i].get<double>();
    if (weight == "repeat") options.weights[i].repeat = at["weights"][i].get<double>();
    if (weight == "choose") options.weights[i].choose = at["weights"][i].get<int64_t>();
  }
  options.epoch_size = at.value("epoch_size", int64_t{0});
  options.shuffle = at.value("shuffle", true);
  options.algorithm = MosaicShuffleFromName(at.value("order", "py1e")).value();
  options.seed = at.value("seed", uint64_t{9176});
  options.block_size = at.value("block_size", int64_t{0});
  options.canonical_nodes = at.value("canonical_nodes", int64_t{0});
  options.partition = at.value("partition", "relaxed") == "orig" ? MosaicPartition::kOrig
                                                                  : MosaicPartition::kRelaxed;
  options.initial_nodes = at.value("initial_nodes", int64_t{0});
  options.world = {.nodes = at.value("nodes", int64_t{1}),
                   .ranks_per_node = at.value("ranks_per_node", int64_t{1}),
                   .workers_per_rank = at.value("workers", int64_t{1}),
                   .batch_size = at.value("batch", int64_t{1})};
  options.fixed_sampling = at.value("sampling", "balanced") == "fixed";
  options.sampling_granularity = at.value("granularity", int64_t{1});
  options.batching = BatchingMethodFromName(at.value("batching", "random")).value();
  return options;
}

// The file comes from the package itself: scripts/make_order_golden.py.
TEST(MosaicOrder, EqualsTheOriginalsGoldenOrders) {
  const std::string path = std::string(TESSERA_SOURCE_DIR) + "/tests/golden/sample_orders.json";
  const Result<Json> cases = ReadJsonFile(path);
  ASSERT_TRUE(cases.ok()) << cases.error().ToString();
  ASSERT_GT(cases->size(), 80u);
  for (const Json& at : *cases) {
    const Result<MosaicOrderOptions> options = ResolveMosaicOrder(OptionsOf(at));
    ASSERT_TRUE(options.ok()) << at.dump() << options.error().ToString();
    const Result<MosaicEpoch> epoch = MakeMosaicEpoch(*options, at.value("epoch", int64_t{0}),
                                                      at.value("sample_in_epoch", int64_t{0}));
    ASSERT_TRUE(epoch.ok()) << at.dump() << epoch.error().ToString();
    const Ids& ids = epoch->samples;
    ASSERT_EQ(ids.size(), at["count"].get<size_t>()) << at.dump();
    const Ids head(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(at["head"].size()));
    EXPECT_EQ(head, at["head"].get<Ids>()) << at.dump();
    EXPECT_EQ(Sha256Hex({reinterpret_cast<const char*>(ids.data()), 8 * ids.size()}),
              at["sha256"].get<std::string>())
        << at.dump();
  }
}

MosaicOrderOptions Basic() {
  MosaicOrderOptions options;
  options.shards = {Ids(40, 25)};
  options.block_size = 100;
  options.canonical_nodes = 8;
  options.world = {.nodes = 2, .ranks_per_node = 2, .workers_per_rank = 3, .batch_size = 5};
  return options;
}

TEST(MosaicOrder, GivesTheSameGlobalBatchesToAnyNumberOfNodes) {
  const Result<MosaicEpoch> two = MakeMosaicEpoch(*ResolveMosaicOrder(Basic()), 1);
  ASSERT_TRUE(two.ok());
  for (const int64_t nodes : {1, 4}) {
    MosaicOrderOptions options = Basic();
    options.world.nodes = nodes;
    options.world.batch_size = 10 / nodes;
    const Result<MosaicEpoch> other = MakeMosaicEpoch(*ResolveMosaicOrder(options), 1);
    if (!other.ok() || options.world.global_batch() != 20) continue;
    for (int64_t batch = 0; batch < 50; ++batch) {
      const auto sorted = [&](const MosaicEpoch& epoch) {
        Ids ids(epoch.samples.begin() + batch * 20, epoch.samples.begin() + (batch + 1) * 20);
        std::sort(ids.begin(), ids.end());
        return ids;
      };
      EXPECT_EQ(sorted(*two), sorted(*other)) << nodes << " nodes, batch " << batch;
    }
  }
}

TEST(MosaicOrder, RanksTogetherReadTheEpoch) {
  const Result<MosaicEpoch> epoch = MakeMosaicEpoch(*ResolveMosaicOrder(Basic()), 0);
  ASSERT_TRUE(epoch.ok());
  Ids all;
  for (int64_t rank = 0; rank < 4; ++rank) {
    const Ids own = epoch->OfRank(rank);
    all.insert(all.end(), own.begin(), own.end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  Ids want(1001);
  std::iota(want.begin(), want.end(), int64_t{-1});
  EXPECT_EQ(all, want);  // Every sample, and padding.
}

std::string ErrorOf(const MosaicOrderOptions& options) {
  const Result<MosaicOrderOptions> resolved = ResolveMosaicOrder(options);
  if (!resolved.ok()) return resolved.error().message;
  const Result<MosaicEpoch> epoch = MakeMosaicEpoch(*resolved, 0);
  return epoch.ok() ? std::string() : epoch.error().message;
}

TEST(MosaicOrder, RefusesWhatCannotBeDealtOut) {
  MosaicOrderOptions options = Basic();
  options.world.nodes = 3;
  EXPECT_NE(ErrorOf(options).find("must divide"), std::string::npos);
  options = Basic();
  options.shards = {{3}};
  EXPECT_NE(ErrorOf(options).find("canonical nodes"), std::string::npos);
  options = Basic();
  options.shards = {{}};
  EXPECT_NE(ErrorOf(options).find("no samples"), std::string::npos);
  options = Basic();
  options.block_size = 1;
  EXPECT_NE(ErrorOf(options).find("shuffle_block_size"), std::string::npos);
  options = Basic();
  options.shards = {{100}, {100}};
  options.weights = {{.proportion = 0.5}, {.repeat = 1.0}};
  EXPECT_NE(ErrorOf(options).find("proportion"), std::string::npos);
  options.weights = {{.proportion = 1.0}, {.proportion = 0.0}};
  options.batching = BatchingMethod::kStratified;
  EXPECT_NE(ErrorOf(options).find("no sample in a global batch"), std::string::npos);
}

}  // namespace
}  // namespace tessera
