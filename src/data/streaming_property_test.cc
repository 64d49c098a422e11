// What must hold for any mixture, cut and number of ranks: a resumed run reads what the uninterrupted one
// would have read, and all ranks together read the same global sequence.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/log.h"
#include "base/rng.h"
#include "data/loader.h"
#include "data/mds_writer.h"
#include "data/test_util.h"

namespace tessera {
namespace {

constexpr int64_t kLength = 24;
constexpr int64_t kBatch = 24;  // Divided by 1, 2, 3, 4, 6, 8, 12 and 24 ranks.

// A row as training sees it: ids, targets, borders of documents, and where it comes from.
struct Row {
  std::vector<int32_t> tokens, targets, segments;
  int64_t sample = 0;
  int32_t stream = 0;
  bool operator==(const Row&) const = default;
};

void AppendRows(const TokenBatch& batch, std::vector<Row>* rows) {
  for (int64_t row = 0; row < batch.rows; ++row) {
    const auto part = [&](const std::vector<int32_t>& values) {
      const auto begin = values.begin() + row * kLength;
      return std::vector<int32_t>(begin, begin + kLength);
    };
    rows->push_back({part(batch.tokens), part(batch.targets), part(batch.segment_start),
                     batch.samples[static_cast<size_t>(row)], batch.streams[static_cast<size_t>(row)]});
  }
}

// So many ranks that read side by side.
class World {
 public:
  World(LoaderOptions options, int ranks) {
    options.world = ranks;
    for (options.rank = 0; options.rank < ranks; ++options.rank) {
      Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
      EXPECT_TRUE(loader.ok()) << (loader.ok() ? "" : loader.error().ToString());
      if (loader.ok()) loaders_.push_back(*std::move(loader));
    }
  }
  // The rows of the next global batches, rank by rank.
  std::vector<Row> Read(int64_t batches) {
    std::vector<Row> rows;
    for (int64_t i = 0; i < batches; ++i) {
      for (const auto& loader : loaders_) {
        const Result<const TokenBatch*> batch = loader->Next();
        EXPECT_TRUE(batch.ok()) << (batch.ok() ? "" : batch.error().ToString());
        if (batch.ok()) AppendRows(**batch, &rows);
      }
    }
    return rows;
  }
  // The same on every rank; as a checkpoint keeps it.
  LoaderState State() const {
    for (const auto& loader : loaders_) EXPECT_EQ(loader->state(), loaders_[0]->state());
    return LoaderStateFromJson(LoaderStateToJson(loaders_[0]->state()), "test").value();
  }
  void Seek(const LoaderState& state) {
    for (const auto& loader : loaders_) ASSERT_TRUE(loader->Seek(state).ok());
  }

 private:
  std::vector<std::unique_ptr<Loader>> loaders_;
};

class StreamingProperties : public ::testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kOff);
    // Documents that are joined and cut into windows, of two sources...
    BuildOptions first = CorpusOptions(folder_, 60);
    first.output = folder_.path() / "remote/a";
    first.shard_bytes = 4096;
    ASSERT_TRUE(BuildDataset(first).ok());
    BuildOptions second = first;
    second.output = folder_.path() / "remote/b";
    second.split_seed = 9;
    second.validation_fraction = 0.6;
    ASSERT_TRUE(BuildDataset(second).ok());
    // ...and rows that were joined before, as llm-foundry's converter writes them.
    for (const auto& [name, samples] : {std::pair("c", 130), std::pair("d", 70)}) {
      Result<MdsWriter> writer = MdsWriter::Create({.folder = folder_.path() / "remote" / name / "train",
                                                    .columns = {{"tokens", "ndarray:int32"}},
                                                    .size_limit = 900,
                                                    .hashes = {"xxh64"}});
      ASSERT_TRUE(writer.ok());
      for (int32_t i = 0; i < samples; ++i) {
        std::vector<int32_t> ids(static_cast<size_t>(kLength));
        for (size_t k = 0; k < ids.size(); ++k) ids[k] = (i * 31 + static_cast<int32_t>(k)) % 256;
        std::string value;
        AppendMdsTokens(ids, 4, &value);
        const std::string_view view = value;
        ASSERT_TRUE(writer->Write(std::span(&view, 1)).ok());
      }
      ASSERT_TRUE(writer->Finish().ok());
    }
  }

  LoaderOptions OptionsFor(const std::vector<std::string>& names, const std::string& cache) const {
    LoaderOptions options;
    options.sequence_length = kLength;
    options.batch_size = kBatch;
    options.seed = 3;
    options.vocab_size = 257;
    for (const std::string& name : names) {
      StreamOptions stream;
      stream.name = name;
      stream.remote = (folder_.path() / "remote" / name).string();
      stream.local = (folder_.path() / cache / name).string();
      stream.split = "train";
      options.streams.push_back(stream);
    }
    options.streaming.shuffle_block_size = 64;
    options.streaming.download_threads = 2;
    options.streaming.predownload = 32;
    return options;
  }

  // Cuts at places of a fixed random sequence, between numbers of ranks that differ.
  static void CheckCuts(const LoaderOptions& options, int64_t batches, int rounds, uint64_t stream) {
    const std::vector<Row> want = World(options, 1).Read(batches);
    ASSERT_EQ(want.size(), static_cast<size_t>(batches * kBatch));
    const RngKey rng{.seed = 1, .purpose = RngPurpose::kSampling, .stream = stream};
    constexpr int kRanks[] = {1, 2, 3, 4, 6, 8};
    for (uint64_t round = 0; round < static_cast<uint64_t>(rounds); ++round) {
      const auto block = rng.Block(round);
      const int before = kRanks[block[0] % 6];
      const int after = kRanks[block[1] % 6];
      const int64_t cut = block[2] % static_cast<uint64_t>(batches);
      World first(options, before);
      const std::vector<Row> begin = first.Read(cut);
      EXPECT_TRUE(std::equal(begin.begin(), begin.end(), want.begin())) << before << " ranks";
      World second(options, after);
      second.Seek(first.State());
      const std::vector<Row> rest = second.Read(batches - cut);
      EXPECT_TRUE(std::equal(rest.begin(), rest.end(), want.begin() + cut * kBatch, want.end()))
          << before << " ranks, then " << after << " from batch " << cut;
    }
  }

  TempFolder folder_;
};

TEST_F(StreamingProperties, WindowsOverJoinedDocuments) {
  LoaderOptions options = OptionsFor({"a", "b"}, "cache");
  ASSERT_TRUE((*Loader::Open(options))->rows_are_windows());
  CheckCuts(options, 30, 8, 1);  // Over more than one epoch.
  options.streams[0].weight.proportion = 0.3;
  options.streams[1].weight.proportion = 0.7;
  options.streaming.epoch_size = 100;  // No multiple of the batch: batches run across the ends of epochs.
  for (const BatchingMethod method : {BatchingMethod::kStratified, BatchingMethod::kPerStream}) {
    options.streaming.batching_method = method;
    CheckCuts(options, 20, 3, 2);
  }
}

TEST_F(StreamingProperties, WindowsWithATightCache) {
  LoaderOptions options = OptionsFor({"a", "b"}, "tight");
  options.streaming.cache_limit = 4 * 4096 + 4096;
  CheckCuts(options, 30, 4, 3);
}

TEST_F(StreamingProperties, StoredSamplesInEveryOrder) {
  for (const char* algorithm : {"native", "py1e", "py1s", "py1br", "py2s", "naive"}) {
    SCOPED_TRACE(algorithm);
    LoaderOptions options = OptionsFor({"c", "d"}, "cache");
    options.streaming.rows = RowKind::kSamples;
    options.streaming.shuffle_algo = algorithm;
    options.streaming.num_canonical_nodes = 2;
    options.streams[1].weight.repeat = 1.5;
    CheckCuts(options, 25, 3, 4);
  }
}

TEST_F(StreamingProperties, AnotherLengthOfTheSameTextFollowsOn) {
  // The concatenation is the same text whatever the windows: joined in stored order, rows of 24 and of
  // 12 tokens hold the same targets.
  LoaderOptions options = OptionsFor({"a"}, "cache");
  options.shuffle = false;
  const auto targets = [](const LoaderOptions& with, int64_t tokens) {
    std::vector<int32_t> all;
    const std::unique_ptr<Loader> loader = *Loader::Open(with);
    while (static_cast<int64_t>(all.size()) < tokens) {
      const TokenBatch* batch = *loader->Next();
      all.insert(all.end(), batch->targets.begin(), batch->targets.end());
    }
    all.resize(static_cast<size_t>(tokens));
    return all;
  };
  LoaderOptions half = options;
  half.sequence_length = kLength / 2;
  EXPECT_EQ(targets(options, 1200), targets(half, 1200));
}

}  // namespace
}  // namespace tessera
