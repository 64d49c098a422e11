#include "data/build.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <map>

#include "base/signals.h"
#include "data/mds_reader.h"
#include "data/test_util.h"

namespace tessera {
namespace {

std::map<std::string, std::string> Contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      out[entry.path().lexically_relative(folder).string()] = *ReadFile(entry.path());
    }
  }
  return out;
}

DatasetInfo Build(const BuildOptions& options) {
  const Result<DatasetInfo> info = BuildDataset(options);
  EXPECT_TRUE(info.ok()) << (info.ok() ? "" : info.error().message);
  return info.ok() ? *info : DatasetInfo{};
}

// identity -> text, over one split.
std::multimap<std::string, std::string> Documents(const std::filesystem::path& split) {
  std::multimap<std::string, std::string> out;
  Result<MdsReader> reader = MdsReader::Open(split);
  EXPECT_TRUE(reader.ok());
  std::vector<std::string_view> columns;
  for (int64_t i = 0; i < reader->samples(); ++i) {
    EXPECT_TRUE(reader->Columns(i, &columns).ok());
    const MdsShard& shard = reader->ShardOf(i);
    EXPECT_EQ(shard.columns[0].name, "bytes");
    const MdsTokens tokens = *ParseMdsTokens(shard.columns[3].encoding, columns[3]);
    std::vector<int32_t> ids(static_cast<size_t>(tokens.count));
    CopyMdsTokens(tokens, 0, tokens.count, ids.data());
    std::string text;
    for (const int32_t id : ids) text.push_back(static_cast<char>(id));
    int64_t bytes = 0;
    std::memcpy(&bytes, columns[0].data(), 8);
    EXPECT_EQ(bytes, static_cast<int64_t>(text.size()));
    EXPECT_EQ(columns[2], "corpus");
    out.emplace(columns[1], text);
  }
  return out;
}

TEST(BuildDataset, HoldsEveryDocumentOnce) {
  const TempFolder folder;
  const BuildOptions options = CorpusOptions(folder, 100);
  const DatasetInfo info = Build(options);
  auto documents = Documents(info.train_folder());
  const auto validation = Documents(info.validation_folder());
  EXPECT_GT(validation.size(), 5u);
  EXPECT_GT(documents.size(), 50u);
  documents.insert(validation.begin(), validation.end());
  ASSERT_EQ(documents.size(), 100u);
  int i = 0;
  for (const auto& [identity, text] : documents) EXPECT_EQ(text, DocumentText(i++)) << identity;
  EXPECT_EQ(info.train.documents + info.validation.documents, 100);
  EXPECT_EQ(VerifyMds(info.train_folder(), {.vocab_size = 257})->problem_count, 0);
  EXPECT_EQ(VerifyMds(info.validation_folder(), {.vocab_size = 257})->problem_count, 0);
  const Result<DatasetInfo> read = ReadDatasetInfo(info.folder);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(DatasetInfoToJson(*read), DatasetInfoToJson(info));
  EXPECT_EQ(read->sources[0].license, "CC0-1.0");
  // The visitor sees the same split.
  int64_t held_out = 0;
  ASSERT_TRUE(VisitDocuments(options, [&](const DocumentView& view) {
                held_out += view.validation;
                EXPECT_EQ(view.validation, validation.count(std::string(view.identity)) == 1);
                return Status();
              }).ok());
  EXPECT_EQ(held_out, static_cast<int64_t>(validation.size()));
}

TEST(BuildDataset, IsTheSameForAnyNumberOfThreads) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 60);
  Build(options);
  const auto one = Contents(options.output);
  for (const int threads : {2, 5}) {
    options.threads = threads;
    options.output = folder.path() / std::to_string(threads);
    Build(options);
    EXPECT_EQ(Contents(options.output), one);
  }
}

TEST(BuildDataset, WideVocabularyUsesFourBytes) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 30);
  options.encoder = ByteEncoder(65536);
  EXPECT_EQ(Build(options).token_encoding, "ndarray:uint16");
  options.encoder = ByteEncoder(65537);
  options.output = folder.path() / "wide";
  EXPECT_EQ(Build(options).token_encoding, "ndarray:uint32");
}

TEST(BuildDataset, WeightsRepeatTrainingDocumentsApart) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 80);
  options.sources[0].weight = 2.5;
  const DatasetInfo info = Build(options);
  const auto train = Documents(info.train_folder());
  const auto validation = Documents(info.validation_folder());
  std::map<std::string, int> copies;
  for (const auto& [identity, text] : train) ++copies[identity];
  EXPECT_EQ(copies.size() + validation.size(), 80u);
  std::map<int, int> histogram;
  for (const auto& [identity, count] : copies) ++histogram[count];
  EXPECT_EQ(histogram.size(), 2u);  // Some twice, some three times.
  EXPECT_GT(histogram[2], 10);
  EXPECT_GT(histogram[3], 10);
  EXPECT_EQ(info.sources[0].documents, 80);
}

TEST(BuildDataset, RecognisesWhatIsUpToDate) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 30);
  EXPECT_FALSE(Build(options).up_to_date);
  EXPECT_TRUE(Build(options).up_to_date);
  options.threads = 3;
  EXPECT_TRUE(Build(options).up_to_date);
  // The same bytes with another time are the same inputs.
  const std::filesystem::path file = folder.path() / "corpus/d0003.txt";
  std::filesystem::last_write_time(file, std::filesystem::file_time_type::clock::now() +
                                             std::chrono::hours(1));
  EXPECT_TRUE(Build(options).up_to_date);

  folder.Write("corpus/d0003.txt", "something else");
  const auto before = Contents(options.output);
  const Result<DatasetInfo> refused = BuildDataset(options);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kExists);
  EXPECT_NE(refused.error().message.find("--overwrite"), std::string::npos);
  EXPECT_EQ(Contents(options.output), before);
  options.overwrite = true;
  EXPECT_FALSE(Build(options).up_to_date);
  EXPECT_NE(Contents(options.output), before);
  EXPECT_TRUE(Build(options).up_to_date);
  options.overwrite = false;
  options.split_seed = 9;
  EXPECT_FALSE(BuildDataset(options).ok());
  options.split_seed = 0;
  options.encoder.fingerprint = "other";
  const Result<DatasetInfo> other = BuildDataset(options);
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.error().message.find("another tokenizer"), std::string::npos);
  // Nothing is left beside the dataset.
  int64_t entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    ++entries;
  }
  EXPECT_EQ(entries, 2);
}

TEST(BuildDataset, FailureLeavesNoDataset) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 30);
  folder.Write("corpus/z.jsonl", "{\"text\": \"fine\"}\n{broken\n");
  const Result<DatasetInfo> failed = BuildDataset(options);
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("z.jsonl' line 2"), std::string::npos)
      << failed.error().message;
  EXPECT_FALSE(PathExists(options.output));
  EXPECT_FALSE(PathExists(options.output.string() + ".building"));
}

TEST(BuildDataset, StopRequestLeavesTheOldDataset) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 30);
  Build(options);
  const auto before = Contents(options.output);
  options.split_seed = 4;
  options.overwrite = true;
  RequestStop();
  const Result<DatasetInfo> stopped = BuildDataset(options);
  ClearStopRequest();
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(Contents(options.output), before);
}

TEST(BuildDataset, CleansUpAfterAKilledBuild) {
  const TempFolder folder;
  const BuildOptions options = CorpusOptions(folder, 30);
  folder.Write("dataset.building/train/shard.00000.mds", "half a shard");
  folder.Write("dataset.building/train/index.json", "{}");
  const DatasetInfo info = Build(options);
  EXPECT_EQ(VerifyMds(info.train_folder(), {})->problem_count, 0);
  EXPECT_FALSE(PathExists(options.output.string() + ".building"));
}

TEST(BuildDataset, NeverReplacesWhatIsNoDataset) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 30);
  options.overwrite = true;
  folder.Write("dataset/thesis.txt", "years of work");
  EXPECT_FALSE(BuildDataset(options).ok());
  EXPECT_EQ(*ReadFile(folder.path() / "dataset/thesis.txt"), "years of work");
}

TEST(BuildDataset, EmptyCorporaAreClearErrors) {
  const TempFolder folder;
  BuildOptions options = CorpusOptions(folder, 0);
  folder.Write("corpus/a.txt", "");
  folder.Write("corpus/b.txt", "");
  const Result<DatasetInfo> empty = BuildDataset(options);
  ASSERT_FALSE(empty.ok());
  EXPECT_NE(empty.error().message.find("corpus is empty"), std::string::npos);
  options.sources.clear();
  EXPECT_FALSE(BuildDataset(options).ok());
  options = CorpusOptions(folder, 30);
  options.validation_fraction = 0.9999999;
  const Result<DatasetInfo> no_train = BuildDataset(options);
  ASSERT_FALSE(no_train.ok());
  EXPECT_NE(no_train.error().message.find("fell into validation"), std::string::npos);
}

TEST(BuildDataset, RefusesImpossibleOptions) {
  const TempFolder folder;
  const BuildOptions good = CorpusOptions(folder, 30);
  BuildOptions bad = good;
  bad.validation_fraction = 1.0;
  EXPECT_FALSE(BuildDataset(bad).ok());
  bad = good;
  bad.encoder.eos_id = -1;
  EXPECT_FALSE(BuildDataset(bad).ok());
  bad = good;
  bad.sources.push_back(bad.sources[0]);
  EXPECT_FALSE(BuildDataset(bad).ok());
  bad = good;
  bad.sources[0].weight = 0;
  EXPECT_FALSE(BuildDataset(bad).ok());
  bad = good;
  bad.encoder.vocab_size = 257;
  bad.encoder.encode = [](std::string_view, std::vector<int32_t>* ids) { ids->push_back(257); };
  EXPECT_FALSE(BuildDataset(bad).ok());
  bad = good;
  bad.output = folder.path() / "corpus/d0001.txt/below";
  EXPECT_FALSE(BuildDataset(bad).ok());
  EXPECT_FALSE(PathExists(good.output));
}

// A limit on the size of files makes write(2) fail as a full disk does.
TEST(BuildDataset, FullDiskIsAnErrorAndLeavesNothing) {
  const TempFolder folder;
  const BuildOptions options = CorpusOptions(folder, 60);
  struct rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {4000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Result<DatasetInfo> failed = BuildDataset(options);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code, ErrorCode::kIo);
  EXPECT_NE(failed.error().message.find("cannot write"), std::string::npos) << failed.error().message;
  EXPECT_FALSE(PathExists(options.output));
  EXPECT_FALSE(PathExists(options.output.string() + ".building"));
}

}  // namespace
}  // namespace tessera
