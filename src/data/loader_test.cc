#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "data/document_table.h"
#include "data/mds_reader.h"
#include "data/mds_writer.h"
#include "data/test_util.h"

namespace tessera {
namespace {

constexpr int32_t kEos = 256;

class LoaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const Result<DatasetInfo> info = BuildDataset(CorpusOptions(folder_, 120));
    ASSERT_TRUE(info.ok()) << info.error().message;
    info_ = *info;
    // The concatenation, made here from the samples alone.
    Result<MdsReader> reader = MdsReader::Open(info_.train_folder());
    ASSERT_TRUE(reader.ok());
    stream_.push_back(kEos);
    std::vector<std::string_view> columns;
    for (int64_t i = 0; i < reader->samples(); ++i) {
      ASSERT_TRUE(reader->Columns(i, &columns).ok());
      const Result<MdsTokens> tokens = ParseMdsTokens("ndarray:uint16", columns[3]);
      ASSERT_TRUE(tokens.ok());
      std::vector<int32_t> ids(static_cast<size_t>(tokens->count));
      CopyMdsTokens(*tokens, 0, tokens->count, ids.data());
      stream_.insert(stream_.end(), ids.begin(), ids.end());
      stream_.push_back(kEos);
    }
  }

  LoaderOptions Options() const {
    LoaderOptions options;
    options.dataset = info_.train_folder();
    options.sequence_length = 48;
    options.batch_size = 4;
    options.seed = 7;
    return options;
  }

  static std::unique_ptr<Loader> Open(const LoaderOptions& options) {
    Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
    EXPECT_TRUE(loader.ok()) << (loader.ok() ? "" : loader.error().message);
    return std::move(loader).value();
  }

  static TokenBatch Take(Loader& loader) {
    Result<const TokenBatch*> batch = loader.Next();
    EXPECT_TRUE(batch.ok()) << (batch.ok() ? "" : batch.error().message);
    return **batch;
  }

  TempFolder folder_;
  DatasetInfo info_;
  std::vector<int32_t> stream_;
};

TEST_F(LoaderTest, UnshuffledBatchesAreTheConcatenation) {
  LoaderOptions options = Options();
  options.shuffle = false;
  const std::unique_ptr<Loader> loader = Open(options);
  ASSERT_EQ(loader->total_tokens(), static_cast<int64_t>(stream_.size()));
  const int64_t n = (static_cast<int64_t>(stream_.size()) - 1 + 47) / 48;
  ASSERT_EQ(loader->samples_per_epoch(), n);
  for (int64_t g = 0; g < 2 * n;) {
    const TokenBatch batch = Take(*loader);
    for (int64_t row = 0; row < 4; ++row, ++g) {
      const size_t begin = static_cast<size_t>(g % n * 48);
      for (size_t t = 0; t < 48; ++t) {
        const size_t at = static_cast<size_t>(row) * 48 + t;
        const size_t p = begin + t;
        ASSERT_EQ(batch.tokens[at], p < stream_.size() ? stream_[p] : kEos) << "position " << p;
        ASSERT_EQ(batch.targets[at], p + 1 < stream_.size() ? stream_[p + 1] : -100);
        // The segment begins at the nearest end-of-text id at or before t, or at the row's start.
        size_t start = t;
        while (start > 0 && (begin + start >= stream_.size() || stream_[begin + start] != kEos)) {
          --start;
        }
        if (p < stream_.size()) {
          ASSERT_EQ(batch.segment_start[at], static_cast<int32_t>(start));
        }
      }
    }
  }
}

TEST_F(LoaderTest, EveryTokenIsATargetOncePerEpoch) {
  LoaderOptions options = Options();
  options.batch_size = 1;
  const std::unique_ptr<Loader> loader = Open(options);
  std::vector<int> seen(static_cast<size_t>(loader->samples_per_epoch()), 0);
  std::map<int32_t, int64_t> counts;
  int64_t targets = 0;
  int64_t bytes = 0;
  for (int64_t i = 0; i < loader->samples_per_epoch(); ++i) {
    const TokenBatch batch = Take(*loader);
    ++seen[static_cast<size_t>(batch.samples[0])];
    targets += batch.target_count;
    bytes += batch.bytes_covered;
    for (const int32_t id : batch.targets) counts[id] += id == -100 ? 0 : 1;
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), loader->samples_per_epoch());
  EXPECT_EQ(targets, static_cast<int64_t>(stream_.size()) - 1);
  EXPECT_EQ(bytes, info_.train.bytes);
  std::map<int32_t, int64_t> wanted;
  for (size_t i = 1; i < stream_.size(); ++i) ++wanted[stream_[i]];
  counts.erase(-100);
  EXPECT_EQ(counts, wanted);
  EXPECT_EQ(loader->state(), (LoaderState{1, 0}));
}

TEST_F(LoaderTest, EpochsHaveDifferentOrders) {
  LoaderOptions options = Options();
  options.batch_size = 1;
  const std::unique_ptr<Loader> loader = Open(options);
  const int64_t n = loader->samples_per_epoch();
  std::vector<int64_t> first, second;
  for (int64_t i = 0; i < n; ++i) first.push_back(Take(*loader).samples[0]);
  for (int64_t i = 0; i < n; ++i) second.push_back(Take(*loader).samples[0]);
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
}

TEST_F(LoaderTest, ResumesAtEveryPositionWithTheSameBatches) {
  const std::unique_ptr<Loader> whole = Open(Options());
  std::vector<TokenBatch> batches;
  std::vector<LoaderState> states;
  for (int i = 0; i < 150; ++i) {
    states.push_back(whole->state());
    batches.push_back(Take(*whole));
  }
  EXPECT_GT(states.back().epoch, 0);
  const std::unique_ptr<Loader> resumed = Open(Options());
  for (int i = 149; i >= 0; i -= 7) {
    const size_t k = static_cast<size_t>(i);
    const Result<LoaderState> state = LoaderStateFromJson(LoaderStateToJson(states[k]), "state");
    ASSERT_TRUE(state.ok());
    ASSERT_TRUE(resumed->Seek(*state).ok());
    const TokenBatch batch = Take(*resumed);
    EXPECT_EQ(batch.tokens, batches[k].tokens);
    EXPECT_EQ(batch.targets, batches[k].targets);
    EXPECT_EQ(batch.segment_start, batches[k].segment_start);
    EXPECT_EQ(batch.first, states[k]);
  }
}

TEST_F(LoaderTest, RanksTogetherSeeTheGlobalBatch) {
  const std::unique_ptr<Loader> whole = Open(Options());
  for (const int world : {2, 4}) {
    ASSERT_TRUE(whole->Seek({0, 0}).ok());
    std::vector<std::unique_ptr<Loader>> ranks;
    for (int rank = 0; rank < world; ++rank) {
      LoaderOptions options = Options();
      options.rank = rank;
      options.world = world;
      ranks.push_back(Open(options));
    }
    for (int i = 0; i < 20; ++i) {
      const TokenBatch batch = Take(*whole);
      std::vector<int32_t> tokens;
      for (const auto& rank : ranks) {
        const TokenBatch part = Take(*rank);
        tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
        EXPECT_EQ(part.first, batch.first);
      }
      EXPECT_EQ(tokens, batch.tokens);
    }
  }
}

TEST_F(LoaderTest, ShuffledDocumentsAreTheSameDocuments) {
  LoaderOptions options = Options();
  options.shuffle = false;
  options.shuffle_documents = true;
  options.batch_size = 1;
  const std::unique_ptr<Loader> loader = Open(options);
  std::vector<int32_t> tokens = {kEos};
  for (int64_t i = 0; i < loader->samples_per_epoch(); ++i) {
    for (const int32_t id : Take(*loader).targets) {
      if (id != -100) tokens.push_back(id);
    }
  }
  EXPECT_NE(tokens, stream_);
  const auto documents = [](const std::vector<int32_t>& all) {
    std::vector<std::vector<int32_t>> out(1);
    for (const int32_t id : all) {
      if (id == kEos) {
        out.emplace_back();
      } else {
        out.back().push_back(id);
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  };
  EXPECT_EQ(documents(tokens), documents(stream_));
}

TEST_F(LoaderTest, WorksWithoutTheDocumentTable) {
  const TokenBatch with_table = Take(*Open(Options()));
  std::filesystem::remove(info_.train_folder() / kDocumentTableFile);
  const TokenBatch without = Take(*Open(Options()));
  EXPECT_EQ(with_table.tokens, without.tokens);
  EXPECT_EQ(with_table.bytes_covered, without.bytes_covered);
}

TEST_F(LoaderTest, BatchLargerThanTheEpochWrapsAround) {
  LoaderOptions options = Options();
  options.sequence_length = 100000;
  const std::unique_ptr<Loader> loader = Open(options);
  EXPECT_EQ(loader->samples_per_epoch(), 1);
  const TokenBatch batch = Take(*loader);
  EXPECT_EQ(batch.target_count, 4 * (static_cast<int64_t>(stream_.size()) - 1));
  EXPECT_EQ(loader->state(), (LoaderState{4, 0}));
}

TEST_F(LoaderTest, RefusesImpossibleOptionsAndStates) {
  LoaderOptions options = Options();
  options.sequence_length = 0;
  EXPECT_FALSE(Loader::Open(options).ok());
  options = Options();
  options.world = 3;
  EXPECT_FALSE(Loader::Open(options).ok());
  options = Options();
  options.dataset = info_.folder;
  const auto parent = Loader::Open(options);
  ASSERT_FALSE(parent.ok());
  EXPECT_NE(parent.error().message.find("train"), std::string::npos) << parent.error().message;
  const std::unique_ptr<Loader> loader = Open(Options());
  EXPECT_FALSE(loader->Seek({0, loader->samples_per_epoch()}).ok());
  EXPECT_FALSE(loader->Seek({-1, 0}).ok());
  EXPECT_FALSE(loader->Seek({INT64_MAX, 0}).ok());
  EXPECT_TRUE(loader->Next().ok());
}

TEST_F(LoaderTest, DamagedShardIsNamedAndEndsNothingElse) {
  const std::filesystem::path shard = info_.train_folder() / "shard.00001.mds";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  LoaderOptions options = Options();
  const std::unique_ptr<Loader> loader = Open(options);
  Result<const TokenBatch*> batch = loader->Next();
  for (int i = 0; i < 1000 && batch.ok(); ++i) batch = loader->Next();
  ASSERT_FALSE(batch.ok());
  EXPECT_NE(batch.error().message.find("shard.00001.mds"), std::string::npos)
      << batch.error().message;
  EXPECT_FALSE(loader->Next().ok());
}

TEST_F(LoaderTest, TokenIdAboveTheVocabularyIsAnError) {
  LoaderOptions options = Options();
  options.vocab_size = 100;
  options.eos_id = 5;
  const std::unique_ptr<Loader> loader = Open(options);
  const Result<const TokenBatch*> batch = loader->Next();
  ASSERT_FALSE(batch.ok());
  EXPECT_NE(batch.error().message.find("vocabulary size 100"), std::string::npos)
      << batch.error().message;
}

TEST_F(LoaderTest, ForeignDatasetNeedsTheEndOfTextId) {
  const std::filesystem::path foreign = folder_.path() / "foreign";
  Result<MdsWriter> writer = MdsWriter::Create({.folder = foreign,
                                                .columns = {{"tokens", "ndarray:int32:8"}},
                                                .hashes = {}});
  ASSERT_TRUE(writer.ok());
  for (int32_t i = 0; i < 10; ++i) {
    int32_t ids[8];
    for (int32_t k = 0; k < 8; ++k) ids[k] = 8 * i + k;
    const std::string_view value(reinterpret_cast<const char*>(ids), sizeof(ids));
    ASSERT_TRUE(writer->Write(std::span(&value, 1)).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  LoaderOptions options;
  options.dataset = foreign;
  options.sequence_length = 4;
  options.batch_size = 2;
  options.shuffle = false;
  const auto refused = Loader::Open(options);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("eos_id"), std::string::npos);
  options.insert_eos = false;
  const std::unique_ptr<Loader> loader = Open(options);
  EXPECT_EQ(loader->total_tokens(), 80);
  EXPECT_EQ(Take(*loader).tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(Take(*loader).tokens, (std::vector<int32_t>{8, 9, 10, 11, 12, 13, 14, 15}));
}

TEST_F(LoaderTest, EvaluationScoresEveryTokenOnce) {
  Result<MdsReader> reader = MdsReader::Open(info_.validation_folder());
  ASSERT_TRUE(reader.ok());
  ASSERT_GT(reader->samples(), 5);
  for (const int64_t stride : {16, 5, 1}) {
    EvalOptions options;
    options.dataset = info_.validation_folder();
    options.sequence_length = 16;
    options.stride = stride;
    options.batch_size = 3;
    Result<std::unique_ptr<EvalStream>> eval = EvalStream::Open(options);
    ASSERT_TRUE(eval.ok()) << eval.error().message;
    EXPECT_EQ((*eval)->total_bytes(), info_.validation.bytes);
    EXPECT_EQ((*eval)->total_targets(), info_.validation.tokens + info_.validation.documents);
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::map<int64_t, std::vector<int32_t>> scored;
      int64_t targets = 0;
      int64_t bytes = 0;
      int64_t batches = 0;
      while (true) {
        const Result<const TokenBatch*> next = (*eval)->Next();
        ASSERT_TRUE(next.ok());
        if (*next == nullptr) break;
        const TokenBatch& batch = **next;
        ++batches;
        targets += batch.target_count;
        bytes += batch.bytes_covered;
        for (size_t row = 0; row < static_cast<size_t>(batch.rows); ++row) {
          for (size_t t = 0; t < 16; ++t) {
            const int32_t id = batch.targets[row * 16 + t];
            if (id == -100) continue;
            scored[batch.samples[row]].push_back(id);
            if (t + 1 < 16 && batch.targets[row * 16 + t + 1] != -100) {
              EXPECT_EQ(batch.tokens[row * 16 + t + 1], id);
            }
          }
        }
      }
      EXPECT_EQ(targets, (*eval)->total_targets());
      EXPECT_EQ(bytes, (*eval)->total_bytes());
      EXPECT_EQ(batches, (*eval)->total_batches());
      std::vector<std::string_view> columns;
      for (int64_t i = 0; i < reader->samples(); ++i) {
        ASSERT_TRUE(reader->Columns(i, &columns).ok());
        const MdsTokens tokens = *ParseMdsTokens("ndarray:uint16", columns[3]);
        std::vector<int32_t> ids(static_cast<size_t>(tokens.count));
        CopyMdsTokens(tokens, 0, tokens.count, ids.data());
        ids.push_back(kEos);
        EXPECT_EQ(scored[i], ids) << "document " << i << " stride " << stride;
      }
      (*eval)->Reset();
    }
  }
}

}  // namespace
}  // namespace tessera
