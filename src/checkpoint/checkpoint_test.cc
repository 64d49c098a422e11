#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <vector>

#include "base/files.h"
#include "base/rng.h"
#include "base/test_folder.h"
#include "base/time.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

struct Model {
  std::vector<float> weights = std::vector<float>(1000);

  CheckpointContents Contents(int64_t step) {
    for (size_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<float>(step) + static_cast<float>(i);
    }
    CheckpointContents contents;
    contents.step = step;
    contents.info = {{"parameters", 1000}};
    contents.tensors.push_back(
        {kWeightsFile, {{"w", DType::kF32, {10, 100}, weights.data()}}, {{"format", "pt"}}});
    contents.texts.push_back({kStateFile, "{}"});
    return contents;
  }
};

CheckpointStore OpenStore(const fs::path& folder) {
  Result<CheckpointStore> store = CheckpointStore::Open(folder);
  EXPECT_TRUE(store.ok()) << store.error().message;
  return std::move(store).value();
}

std::string LatestName(const CheckpointStore& store, std::vector<std::string>* skipped) {
  const auto latest = store.LatestValid(skipped);
  if (!latest.ok()) return "error: " + latest.error().message;
  return latest->has_value() ? (*latest)->folder.filename().string() : "none";
}

void FlipByte(const fs::path& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char c = static_cast<char>(file.get() ^ 1);
  file.seekp(offset);
  file.put(c);
}

TEST(Checkpoint, NamesTellTheStep) {
  EXPECT_EQ(CheckpointName(40), "ckpt-00000040ba");
  EXPECT_EQ(CheckpointStep("ckpt-00000040ba"), 40);
  EXPECT_EQ(CheckpointStep(CheckpointName(123'456'789'012)), 123'456'789'012);
  EXPECT_FALSE(CheckpointStep("ckpt-ba"));
  EXPECT_FALSE(CheckpointStep("ckpt-1x2ba"));
  EXPECT_FALSE(CheckpointStep("ckpt-00000040ba.tmp"));
}

TEST(Checkpoint, SavesAndReadsBack) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder / "run");
  Model model;
  ASSERT_TRUE(store.Save(model.Contents(5)).ok());
  const auto saved = store.Save(model.Contents(40));
  ASSERT_TRUE(saved.ok()) << saved.error().message;

  const auto opened = FindCheckpoint(folder / "run");
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_EQ(opened->step, 40);
  EXPECT_EQ(opened->info["parameters"], 1000);
  EXPECT_TRUE(opened->Has(kStateFile));
  EXPECT_LE(opened->bytes(), CheckpointStore::BytesOf(model.Contents(40)));
  ASSERT_TRUE(VerifyCheckpoint(*opened).ok());

  std::vector<float> read(1000);
  const TensorTarget target = {"w", DType::kF32, {10, 100}, read.data()};
  ASSERT_TRUE(ReadSafetensors(opened->folder / kWeightsFile, {&target, 1}).ok());
  EXPECT_EQ(read, model.weights);
  EXPECT_EQ(store.List().size(), 2u);
}

TEST(Checkpoint, ReplacesTheSameStep) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder.path());
  Model model;
  ASSERT_TRUE(store.Save(model.Contents(5)).ok());
  ASSERT_TRUE(store.Save(model.Contents(5)).ok());
  std::vector<std::string> skipped;
  EXPECT_EQ(LatestName(store, &skipped), "ckpt-00000005ba");
  EXPECT_EQ(store.List().size(), 1u);
}

TEST(Checkpoint, DamageIsFoundAndTheOneBeforeIsUsed) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder.path());
  Model model;
  for (const int64_t step : {1, 2, 3, 4}) ASSERT_TRUE(store.Save(model.Contents(step)).ok());
  FlipByte(folder / "ckpt-00000004ba/weights.safetensors", 500);
  fs::resize_file(folder / "ckpt-00000003ba/weights.safetensors", 1000);
  std::vector<std::string> skipped;
  EXPECT_EQ(LatestName(store, &skipped), "ckpt-00000002ba");
  ASSERT_EQ(skipped.size(), 2u);
  EXPECT_NE(skipped[0].find("checksum"), std::string::npos) << skipped[0];
  EXPECT_NE(skipped[1].find("1000 bytes"), std::string::npos) << skipped[1];

  FlipByte(folder / "ckpt-00000002ba/manifest.json", 40);
  fs::remove(folder / "ckpt-00000001ba/state.json");
  skipped.clear();
  const auto none = store.LatestValid(&skipped);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(none.error().message.find("none of the 4"), std::string::npos) << none.error().message;
}

TEST(Checkpoint, ManifestNamesStayInTheFolder) {
  const TestFolder folder;
  folder.Write("c/manifest.json",
               R"({"format_version": 1, "step": 1, "created": "", "files": [)"
               R"({"name": "../x", "bytes": 1, "xxh3": ""}], "manifest_xxh3": "0"})");
  EXPECT_FALSE(OpenCheckpoint(folder / "c").ok());
  folder.Write("d/manifest.json", R"({"format_version": 99})");
  const auto version = OpenCheckpoint(folder / "d");
  ASSERT_FALSE(version.ok());
  EXPECT_EQ(version.error().code, ErrorCode::kUnsupported);
}

TEST(Checkpoint, OpeningRemovesLeftoversOnly) {
  const TestFolder folder;
  folder.Write("ckpt-00000007ba.tmp/weights.safetensors", "half");
  folder.Write("ckpt-00000003ba.old.tmp/manifest.json", "{}");
  folder.Write("latest.tmp.123", "ckpt");
  folder.Write("notes.tmp", "mine");
  folder.Write("metrics.jsonl", "{}\n");
  const CheckpointStore store = OpenStore(folder.path());
  EXPECT_FALSE(fs::exists(folder / "ckpt-00000007ba.tmp"));
  EXPECT_FALSE(fs::exists(folder / "ckpt-00000003ba.old.tmp"));
  EXPECT_FALSE(fs::exists(folder / "latest.tmp.123"));
  EXPECT_TRUE(fs::exists(folder / "notes.tmp"));
  EXPECT_TRUE(fs::exists(folder / "metrics.jsonl"));
  std::vector<std::string> skipped;
  EXPECT_EQ(LatestName(store, &skipped), "none");
}

TEST(Checkpoint, OneProcessHoldsTheFolder) {
  const TestFolder folder;
  const CheckpointStore store = OpenStore(folder.path());
  const auto second = CheckpointStore::Open(folder.path());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kExists);
  EXPECT_NE(second.error().message.find("pid"), std::string::npos) << second.error().message;
}

TEST(Checkpoint, AnUnusedFolderVanishesUnlessItWasThere) {
  const TestFolder parent;
  const fs::path made = parent.path() / "a" / "made", given = parent.path() / "given";
  fs::create_directory(given);
  {
    const CheckpointStore one = OpenStore(made), other = OpenStore(given);
    EXPECT_TRUE(fs::exists(made));
  }
  EXPECT_FALSE(fs::exists(made));
  EXPECT_TRUE(fs::is_empty(given));
  {
    CheckpointStore used = OpenStore(made);
    Model model;
    ASSERT_TRUE(used.Save(model.Contents(1)).ok());
  }
  EXPECT_EQ(OpenStore(made).List().size(), 1u);
}

// Owners that come and go, each removing the folder: never two at a time.
TEST(Checkpoint, OneOwnerAtATimeWhileTheFolderComesAndGoes) {
  const TestFolder parent;
  const fs::path folder = parent.path() / "run", token = parent.path() / "token";
  std::vector<pid_t> children;
  for (int child = 0; child < 3; ++child) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      for (int owned = 0; owned < 40;) {
        if (std::chrono::steady_clock::now() > deadline) ::_exit(3);
        Result<CheckpointStore> store = CheckpointStore::Open(folder);
        if (!store.ok()) {
          // Held by another, or removed meanwhile: let that one go on.
          if (store.error().code != ErrorCode::kExists) ::_exit(4);
          ::usleep(100);
          continue;
        }
        ++owned;
        const int fd = ::open(token.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
        if (fd < 0) ::_exit(1);  // another owner is inside
        ::close(fd);
        if (::unlink(token.c_str()) != 0) ::_exit(2);
      }
      ::_exit(0);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
}

TEST(Checkpoint, RetentionKeepsTheNewestAndTheLatest) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder.path());
  Model model;
  for (const int64_t step : {1, 2, 3, 4, 5}) ASSERT_TRUE(store.Save(model.Contents(step)).ok());
  ASSERT_TRUE(store.Retain(-1).ok());
  EXPECT_EQ(store.List().size(), 5u);
  ASSERT_TRUE(store.Retain(2).ok());
  ASSERT_EQ(store.List().size(), 2u);
  EXPECT_EQ(store.List()[0].filename(), "ckpt-00000004ba");
  folder.Write("latest", "ckpt-00000004ba\n");
  ASSERT_TRUE(store.Retain(0).ok());
  ASSERT_EQ(store.List().size(), 1u);
  EXPECT_EQ(store.List()[0].filename(), "ckpt-00000004ba");
}

// A write that fails half-way, as on a full disk: the file-size limit stands in for it.
TEST(Checkpoint, FailedSaveLeavesTheEarlierOnes) {
  const TestFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Model model;
    Result<CheckpointStore> store = CheckpointStore::Open(folder.path());
    if (!store.ok() || !store->Save(model.Contents(1)).ok()) ::_exit(1);
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {2000, 2000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto saved = store->Save(model.Contents(2));
    if (saved.ok()) ::_exit(2);
    const bool told =
        saved.error().message.find("it needs") != std::string::npos &&
        saved.error().message.find("earlier checkpoints are untouched") != std::string::npos;
    ::_exit(told ? 0 : 3);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  const CheckpointStore store = OpenStore(folder.path());
  std::vector<std::string> skipped;
  EXPECT_EQ(LatestName(store, &skipped), "ckpt-00000001ba");
  EXPECT_FALSE(fs::exists(folder / "ckpt-00000002ba.tmp"));
}

// Killed at a random moment of a save, over and over: what `latest` leads to is always whole.
TEST(Checkpoint, KilledSavesNeverLeaveATornCheckpoint) {
  const TestFolder folder;
  const RngKey rng{.seed = 3, .purpose = RngPurpose::kSampling, .stream = 1};
  // How long a save takes on this machine now.
  Model timed;
  const Stopwatch watch;
  ASSERT_TRUE(OpenStore(folder / "timed").Save(timed.Contents(1)).ok());
  const double save_s = watch.Seconds();
  int64_t last = 0;
  for (uint64_t round = 0; round < 15; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Model model;
      Result<CheckpointStore> store = CheckpointStore::Open(folder / "run");
      if (!store.ok()) ::_exit(1);
      for (int64_t step = last + 1;; ++step) {
        if (!store->Save(model.Contents(step)).ok() || !store->Retain(3).ok()) ::_exit(1);
      }
    }
    // After the first commit of this child, somewhere in one of the next saves.
    const Stopwatch waiting;
    // (The round before may have left last + 1 renamed but not yet named by `latest`; and the child
    // removes old ones, so any later one will do.)
    const auto committed = [&] {
      for (int64_t step = last + 2; step < last + 100; ++step) {
        if (PathExists(folder / "run" / CheckpointName(step))) return true;
      }
      return false;
    };
    while (!committed() && waiting.Seconds() < 60) ::usleep(500);
    ::usleep(static_cast<useconds_t>(2e6 * save_s * static_cast<double>(rng.Uniform(round))));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";

    const CheckpointStore store = OpenStore(folder / "run");
    std::vector<std::string> skipped;
    const auto latest = store.LatestValid(&skipped);
    ASSERT_TRUE(latest.ok()) << latest.error().message;
    EXPECT_TRUE(skipped.empty()) << skipped[0];
    // Renamed but not yet named by `latest` is the one state in which the pointer lags.
    const int64_t found = latest->has_value() ? (*latest)->step : 0;
    EXPECT_GE(found, last);
    last = found;
  }
  EXPECT_GT(last, 5);
}

}  // namespace
}  // namespace tessera
