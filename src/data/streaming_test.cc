// Streams with a remote (a folder behind the store's interface) and a cache.
#include <bzlib.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "base/json.h"
#include "base/log.h"
#include "data/loader.h"
#include "data/mds_writer.h"
#include "data/shard_cache.h"
#include "data/shard_codec.h"
#include "data/test_util.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLength = 16;

// Samples of kLength ids; sample i holds base + i, i + 1, ... so that it can be told from others.
void WriteSamples(const fs::path& folder, int64_t samples, int base = 0,
                  std::vector<std::string> hashes = {"sha256", "xxh64"}) {
  Result<MdsWriter> writer = MdsWriter::Create({.folder = folder,
                                                .columns = {{"tokens", "ndarray:uint16"}},
                                                .size_limit = 700,
                                                .hashes = std::move(hashes)});
  ASSERT_TRUE(writer.ok()) << writer.error().ToString();
  for (int64_t i = 0; i < samples; ++i) {
    std::vector<int32_t> ids;
    for (int64_t k = 0; k < kLength; ++k) ids.push_back(base + static_cast<int32_t>((i + k) % 20000));
    std::string value;
    AppendMdsTokens(ids, 2, &value);
    const std::string_view view = value;
    ASSERT_TRUE(writer->Write(std::span(&view, 1)).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
}

StreamOptions StreamOf(const TempFolder& folder, const std::string& name) {
  StreamOptions stream;
  stream.name = name;
  stream.remote = (folder.path() / "remote" / name).string();
  stream.local = (folder.path() / "cache" / name).string();
  stream.split = "train";
  stream.download_retry = 0;
  return stream;
}

LoaderOptions OptionsFor(std::vector<StreamOptions> streams) {
  LoaderOptions options;
  options.sequence_length = kLength;
  options.batch_size = 8;
  options.seed = 3;
  options.vocab_size = 65536;
  options.streams = std::move(streams);
  options.streaming.shuffle_block_size = 64;
  options.streaming.download_threads = 3;
  return options;
}

class Streaming : public ::testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kOff);
    WriteSamples(folder_.path() / "remote/a/train", 200);
    WriteSamples(folder_.path() / "remote/b/train", 90, 30000);
  }
  std::vector<StreamOptions> Both() const { return {StreamOf(folder_, "a"), StreamOf(folder_, "b")}; }
  static std::unique_ptr<Loader> Open(const LoaderOptions& options) {
    Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
    EXPECT_TRUE(loader.ok()) << (loader.ok() ? "" : loader.error().ToString());
    return loader.ok() ? std::move(loader).value() : nullptr;
  }
  static std::string OpenError(const LoaderOptions& options) {
    const Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
    return loader.ok() ? "" : loader.error().message;
  }
  // The ids of so many batches, row by row.
  static std::vector<std::vector<int32_t>> Rows(Loader& loader, int64_t batches) {
    std::vector<std::vector<int32_t>> rows;
    for (int64_t i = 0; i < batches; ++i) {
      const Result<const TokenBatch*> batch = loader.Next();
      EXPECT_TRUE(batch.ok()) << (batch.ok() ? "" : batch.error().ToString());
      if (!batch.ok()) return rows;
      for (int64_t row = 0; row < (*batch)->rows; ++row) {
        const auto begin = (*batch)->tokens.begin() + row * kLength;
        rows.emplace_back(begin, begin + kLength);
      }
    }
    return rows;
  }
  fs::path ShardOf(const std::string& stream, int shard, const char* side = "remote") const {
    return folder_.path() / side / stream / "train" / fmt::format("shard.{:05d}.mds", shard);
  }
  static void Damage(const fs::path& path, int64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const char byte = static_cast<char>(file.get() ^ 0x55);
    file.seekp(offset);
    file.put(byte);
  }

  TempFolder folder_;
};

TEST_F(Streaming, ReadsTheSameFromARemoteAndInPlace) {
  std::vector<StreamOptions> in_place = Both();
  for (StreamOptions& stream : in_place) stream.local.clear();
  const auto want = Rows(*Open(OptionsFor(in_place)), 80);
  const std::unique_ptr<Loader> loader = Open(OptionsFor(Both()));
  EXPECT_EQ(Rows(*loader, 80), want);
  EXPECT_EQ(loader->samples_per_epoch(), 290);
  const Loader::Report report = loader->report();
  EXPECT_GT(report.streams[0].downloads, 10);
  EXPECT_GT(report.most_cache_bytes, 0);
  // Rows are the samples that were written.
  for (const std::vector<int32_t>& row : want) {
    for (size_t k = 1; k < row.size(); ++k) EXPECT_EQ(row[k], row[0] + static_cast<int32_t>(k));
  }
  const std::set<std::vector<int32_t>> distinct(want.begin(), want.begin() + 288);
  EXPECT_EQ(distinct.size(), 288u);  // 36 batches of an epoch of 290.
}

TEST_F(Streaming, KeepsTheCacheLimitAndReadsTheSame) {
  const auto want = Rows(*Open(OptionsFor(Both())), 120);
  fs::remove_all(folder_.path() / "cache");
  LoaderOptions options = OptionsFor(Both());
  options.streaming.cache_limit = 4 * 700;
  const std::unique_ptr<Loader> loader = Open(options);
  EXPECT_EQ(Rows(*loader, 120), want);
  EXPECT_LE(loader->report().most_cache_bytes, options.streaming.cache_limit);
  int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder_.path() / "cache")) {
    if (entry.path().extension() == ".mds") bytes += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_LE(bytes, options.streaming.cache_limit);
  EXPECT_GT(bytes, 0);
  options.streaming.cache_limit = 700;
  EXPECT_NE(OpenError(options).find("cache_limit"), std::string::npos);
}

TEST_F(Streaming, EvictsByTheFutureSoThatBlocksAreFetchedOnce) {
  // A block of 64 rows touches at most 4 chunks of the larger stream; a cache that holds two blocks'
  // shards fetches each shard about once an epoch, where least-recently-used would not.
  LoaderOptions options = OptionsFor({StreamOf(folder_, "a")});
  options.streaming.cache_limit = 12 * 700;
  options.streaming.predownload = 16;
  const std::unique_ptr<Loader> loader = Open(options);
  Rows(*loader, 25);  // An epoch.
  const int64_t shards = 200 * 40 / 700 + 1;
  EXPECT_LE(loader->report().streams[0].downloads, 2 * shards);
}

TEST_F(Streaming, ResumesAnywhereExactly) {
  for (const BatchingMethod method : {BatchingMethod::kRandom, BatchingMethod::kStratified,
                                      BatchingMethod::kPerStream}) {
    for (const char* algorithm : {"native", "py1e", "py2s"}) {
      LoaderOptions options = OptionsFor(Both());
      options.streaming.batching_method = method;
      options.streaming.shuffle_algo = algorithm;
      options.streaming.num_canonical_nodes = 2;
      const auto want = Rows(*Open(options), 90);
      const std::unique_ptr<Loader> first = Open(options);
      Rows(*first, 41);
      const LoaderState state = LoaderStateFromJson(LoaderStateToJson(first->state()), "test").value();
      const std::unique_ptr<Loader> second = Open(options);
      ASSERT_TRUE(second->Seek(state).ok());
      const auto rest = Rows(*second, 49);
      EXPECT_TRUE(std::equal(rest.begin(), rest.end(), want.begin() + 41 * 8, want.end()))
          << algorithm << " " << BatchingMethodName(method);
    }
  }
}

TEST_F(Streaming, RanksOfAnyNumberReadTheSameGlobalBatches) {
  for (const char* algorithm : {"native", "py1e"}) {
    LoaderOptions options = OptionsFor(Both());
    options.streams[0].weight.repeat = 0.5;
    options.streaming.shuffle_algo = algorithm;
    const auto want = Rows(*Open(options), 50);
    for (const int world : {2, 4, 8}) {
      std::vector<std::unique_ptr<Loader>> loaders;
      for (int rank = 0; rank < world; ++rank) {
        options.rank = rank;
        options.world = world;
        loaders.push_back(Open(options));
      }
      std::vector<std::vector<int32_t>> got;
      for (int64_t batch = 0; batch < 50; ++batch) {
        for (const auto& loader : loaders) {
          for (auto& row : Rows(*loader, 1)) got.push_back(std::move(row));
        }
      }
      EXPECT_EQ(got, want) << world << " ranks, " << algorithm;
    }
    options.rank = 0;
    options.world = 1;
  }
}

TEST_F(Streaming, FollowsTheMosaicOrder) {
  LoaderOptions options = OptionsFor({StreamOf(folder_, "a")});
  options.streaming.shuffle_algo = "py1s";
  options.streaming.num_canonical_nodes = 2;
  const std::unique_ptr<Loader> loader = Open(options);
  Result<MdsIndex> index = ReadMdsIndex(folder_.path() / "remote/a/train");
  MosaicOrderOptions mosaic;
  mosaic.shards.emplace_back();
  for (const MdsShard& shard : index->shards) mosaic.shards[0].push_back(shard.samples);
  mosaic.algorithm = MosaicShuffle::kPy1s;
  mosaic.seed = 3;
  mosaic.block_size = 64;
  mosaic.canonical_nodes = 2;
  mosaic.world.batch_size = 8;
  mosaic = *ResolveMosaicOrder(mosaic);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const MosaicEpoch want = *MakeMosaicEpoch(mosaic, epoch);
    for (int64_t batch = 0; batch < want.batches(); ++batch) {
      const Result<const TokenBatch*> got = loader->Next();
      ASSERT_TRUE(got.ok());
      EXPECT_TRUE(std::equal((*got)->samples.begin(), (*got)->samples.end(),
                             want.samples.begin() + batch * 8))
          << epoch << " " << batch;
    }
  }
}

TEST_F(Streaming, FetchesADamagedCopyAnew) {
  const auto want = Rows(*Open(OptionsFor(Both())), 40);
  // The copies in the cache lose their table of offsets.
  for (int shard = 0; shard < 5; ++shard) Damage(ShardOf("a", shard, "cache"), 4);
  const std::unique_ptr<Loader> loader = Open(OptionsFor(Both()));
  EXPECT_EQ(Rows(*loader, 40), want);
  EXPECT_GE(loader->report().streams[0].downloads, 5);
  EXPECT_TRUE(loader->report().quarantined.empty());
}

TEST_F(Streaming, NamesABadShardOrReplacesItsSamples) {
  const auto good = Rows(*Open(OptionsFor(Both())), 37);
  fs::remove_all(folder_.path() / "cache");
  Damage(ShardOf("a", 2), 300);
  fs::remove(ShardOf("b", 1));
  LoaderOptions options = OptionsFor(Both());
  {
    const std::unique_ptr<Loader> loader = Open(options);
    std::string message;
    for (int i = 0; i < 37 && message.empty(); ++i) {
      const Result<const TokenBatch*> batch = loader->Next();
      if (!batch.ok()) message = batch.error().message;
    }
    EXPECT_NE(message.find("shard.0000"), std::string::npos) << message;
    EXPECT_NE(message.find("remote"), std::string::npos) << message;
    EXPECT_NE(message.find("sample "), std::string::npos) << message;
    EXPECT_NE(message.find("replace_bad_samples"), std::string::npos) << message;
  }
  options.streaming.replace_bad_samples = true;
  const std::unique_ptr<Loader> loader = Open(options);
  const auto rows = Rows(*loader, 37);
  ASSERT_EQ(rows.size(), good.size());
  int64_t changed = 0;
  for (size_t i = 0; i < rows.size(); ++i) changed += rows[i] != good[i];
  const Loader::Report report = loader->report();
  EXPECT_EQ(report.quarantined.size(), 2u);
  EXPECT_GE(report.replaced_rows, changed);  // The loader is some batches ahead.
  EXPECT_GT(changed, 10);
  // The same ones whoever asks: two ranks, from the middle, with another cache.
  for (StreamOptions& stream : options.streams) stream.local += "-second";
  options.world = 2;
  for (options.rank = 0; options.rank < 2; ++options.rank) {
    const std::unique_ptr<Loader> other = Open(options);
    ASSERT_TRUE(other->Seek({0, 10 * 8}).ok());
    const auto got = Rows(*other, 20);
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = (10 + i / 4) * 8 + static_cast<size_t>(options.rank) * 4 + i % 4;
      EXPECT_EQ(got[i], rows[row]);
    }
  }
}

TEST_F(Streaming, SharesACacheBetweenRuns) {
  const auto want = Rows(*Open(OptionsFor(Both())), 60);
  fs::remove_all(folder_.path() / "cache");
  LoaderOptions options = OptionsFor(Both());
  options.streaming.cache_limit = 6 * 700;
  std::vector<std::thread> runs;
  std::vector<std::vector<std::vector<int32_t>>> got(3);
  for (size_t run = 0; run < got.size(); ++run) {
    runs.emplace_back([&, run] {
      const std::unique_ptr<Loader> loader = Open(options);
      got[run] = Rows(*loader, 60);
    });
  }
  for (std::thread& run : runs) run.join();
  for (const auto& rows : got) EXPECT_EQ(rows, want);
}

TEST_F(Streaming, RemovesWhatADeadProcessLeft) {
  fs::create_directories(folder_.path() / "cache/a/train");
  std::ofstream(folder_.path() / "cache/a/train/.part-1-0-shard.00000.mds") << "half";
  const std::unique_ptr<Loader> loader = Open(OptionsFor({StreamOf(folder_, "a")}));
  for (const auto& entry : fs::directory_iterator(folder_.path() / "cache/a/train")) {
    EXPECT_NE(entry.path().filename().string().rfind(".part-1-0", 0), 0u);
  }
}

TEST_F(Streaming, RefusesWhatCannotBeRight) {
  LoaderOptions options = OptionsFor({StreamOf(folder_, "missing")});
  EXPECT_NE(OpenError(options).find("index.json"), std::string::npos);
  folder_.Write("remote/empty/train/index.json", R"({"shards": [], "version": 2})");
  EXPECT_NE(OpenError(OptionsFor({StreamOf(folder_, "empty")})).find("no samples"), std::string::npos);
  // A cache that belongs to another dataset.
  (void)Open(OptionsFor({StreamOf(folder_, "a")}));
  StreamOptions mixed_up = StreamOf(folder_, "b");
  mixed_up.local = (folder_.path() / "cache/a").string();
  EXPECT_NE(OpenError(OptionsFor({mixed_up})).find("another dataset"), std::string::npos);
  options = OptionsFor(Both());
  options.streams[0].validate_hash = "md5";
  EXPECT_NE(OpenError(options).find("md5"), std::string::npos);
  options = OptionsFor(Both());
  options.streaming.shuffle_algo = "py9z";
  EXPECT_NE(OpenError(options).find("py9z"), std::string::npos);
  options = OptionsFor(Both());
  options.streams[0].remote.clear();
  options.streams[0].local.clear();
  EXPECT_NE(OpenError(options).find("neither"), std::string::npos);
}

TEST_F(Streaming, TakesWeights) {
  LoaderOptions options = OptionsFor(Both());
  options.streams[0].weight.proportion = 0.25;
  options.streams[1].weight.proportion = 0.75;
  options.streaming.epoch_size = 400;
  const std::unique_ptr<Loader> loader = Open(options);
  EXPECT_EQ(loader->samples_per_epoch(), 400);
  std::map<int32_t, int64_t> counts;
  for (int i = 0; i < 50; ++i) {
    const Result<const TokenBatch*> batch = loader->Next();
    ASSERT_TRUE(batch.ok());
    for (const int32_t stream : (*batch)->streams) ++counts[stream];
  }
  EXPECT_EQ(counts[0], 100);
  EXPECT_EQ(counts[1], 300);
}

TEST(StreamingText, TokenizesTextColumns) {
  const TempFolder folder;
  Result<MdsWriter> writer =
      MdsWriter::Create({.folder = folder.path() / "text", .columns = {{"text", "str"}}, .hashes = {}});
  ASSERT_TRUE(writer.ok());
  for (const std::string_view text : {"hello", "a text that is longer than a row of ids", "x"}) {
    ASSERT_TRUE(writer->Write(std::span(&text, 1)).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  StreamOptions stream;
  stream.name = "text";
  stream.remote = (folder.path() / "text").string();
  LoaderOptions options = OptionsFor({stream});
  options.batch_size = 3;
  options.shuffle = false;
  options.column = "text";
  options.eos_id = 256;
  {
    const Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
    ASSERT_TRUE(loader.ok());
    const Result<const TokenBatch*> batch = (*loader)->Next();
    ASSERT_FALSE(batch.ok());
    EXPECT_NE(batch.error().message.find("tokenizer"), std::string::npos);
  }
  options.streaming.encode = ByteEncoder().encode;
  const Result<std::unique_ptr<Loader>> loader = Loader::Open(options);
  ASSERT_TRUE(loader.ok()) << loader.error().ToString();
  const Result<const TokenBatch*> batch = (*loader)->Next();
  ASSERT_TRUE(batch.ok()) << batch.error().ToString();
  const auto& tokens = (*batch)->tokens;
  const auto& targets = (*batch)->targets;
  EXPECT_EQ(std::string(tokens.begin(), tokens.begin() + 5), "hello");
  EXPECT_EQ(tokens[5], 256);
  EXPECT_EQ(targets[3], 'o');
  EXPECT_EQ(targets[4], -100);
  EXPECT_EQ(targets[kLength + kLength - 2], 'l');  // "a text that is l"
  EXPECT_EQ(targets[kLength + kLength - 1], -100);
  EXPECT_EQ((*batch)->target_count, 4 + 15 + 0);
}

std::string Compress(const std::string& algorithm, const std::string& raw) {
  std::string out(raw.size() + raw.size() / 2 + 1024, '\0');
  if (algorithm == "snappy") {
    snappy::Compress(raw.data(), raw.size(), &out);
  } else if (algorithm == "bz2") {
    unsigned size = static_cast<unsigned>(out.size());
    EXPECT_EQ(BZ2_bzBuffToBuffCompress(out.data(), &size, const_cast<char*>(raw.data()),
                                       static_cast<unsigned>(raw.size()), 9, 0, 0),
              BZ_OK);
    out.resize(size);
  } else if (algorithm == "zstd") {
    out.resize(ZSTD_compress(out.data(), out.size(), raw.data(), raw.size(), 3));
  } else {
    z_stream stream = {};
    EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(raw.data()));
    stream.avail_in = static_cast<unsigned>(raw.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<unsigned>(out.size());
    EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    out.resize(stream.total_out);
    deflateEnd(&stream);
  }
  return out;
}

TEST(ShardCodec, DecodesEveryFormAndFindsEveryCut) {
  std::string raw;
  for (int i = 0; i < 5000; ++i) raw += std::to_string(i * 7919 % 1000) + " ";
  for (const std::string algorithm : {"zstd", "gz", "bz2", "snappy"}) {
    const std::string zip = Compress(algorithm, raw);
    const int64_t size = static_cast<int64_t>(raw.size());
    const Result<std::vector<char>> out = DecompressShard(algorithm + ":3", zip, size, "zip");
    ASSERT_TRUE(out.ok()) << algorithm << " " << out.error().ToString();
    EXPECT_EQ(std::string(out->begin(), out->end()), raw);
    for (const int64_t wrong : {size - 1, size + 1, int64_t{0}, int64_t{1} << 32}) {
      EXPECT_FALSE(DecompressShard(algorithm, zip, wrong, "zip").ok()) << algorithm << " " << wrong;
    }
    for (size_t cut = 0; cut < zip.size(); cut += 1 + zip.size() / 37) {
      EXPECT_FALSE(DecompressShard(algorithm, zip.substr(0, cut), size, "zip").ok())
          << algorithm << " cut at " << cut;
    }
  }
  EXPECT_EQ(DecompressShard("lzma", "x", 1, "zip").error().code, ErrorCode::kUnsupported);
  EXPECT_FALSE(DecompressShard("br", "not brotli", 10, "zip").ok());
}

TEST(StreamingZip, FetchesCompressedShards) {
  for (const std::string algorithm : {"zstd", "gz", "bz2", "snappy"}) {
    const TempFolder folder;
    const fs::path remote = folder.path() / "remote/a/train";
    WriteSamples(remote, 60);
    // The index as MDSWriter leaves it with compression, the raw files gone.
    Json index = *ReadJsonFile(remote / "index.json");
    for (Json& shard : index["shards"]) {
      const std::string name = shard["raw_data"]["basename"];
      const std::string zip = Compress(algorithm, *ReadFile(remote / name));
      folder.Write("remote/a/train/" + name + "." + algorithm, zip);
      fs::remove(remote / name);
      shard["compression"] = algorithm;
      shard["zip_data"] = {{"basename", name + "." + algorithm},
                           {"bytes", zip.size()},
                           {"hashes", {{"sha256", *MdsHashHex("sha256", zip)}}}};
    }
    folder.Write("remote/a/train/index.json", index.dump());
    for (const bool keep : {false, true}) {
      fs::remove_all(folder.path() / "cache");
      StreamOptions stream = StreamOf(folder, "a");
      stream.keep_zip = keep;
      stream.validate_hash = "sha256";
      const Result<std::unique_ptr<Loader>> loader = Loader::Open(OptionsFor({stream}));
      ASSERT_TRUE(loader.ok()) << loader.error().ToString();
      std::set<int32_t> seen;
      for (int i = 0; i < 8; ++i) {
        const Result<const TokenBatch*> batch = (*loader)->Next();
        ASSERT_TRUE(batch.ok()) << batch.error().ToString();
        for (int64_t row = 0; row < 8; ++row) seen.insert((*batch)->tokens[row * kLength]);
      }
      EXPECT_EQ(seen.size(), 60u);
      int64_t zips = 0;
      for (const auto& entry : fs::recursive_directory_iterator(folder.path() / "cache")) {
        zips += entry.path().extension() == "." + algorithm;
      }
      EXPECT_EQ(zips > 0, keep);
    }
  }
}

}  // namespace
}  // namespace tessera
