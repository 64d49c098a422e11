// Training end to end with the built program: resume after kills, stops, damage, full disks.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/test_folder.h"
#include "checkpoint/checkpoint.h"
#include "program.h"
#include "small_disk.h"

namespace tessera::integration {
namespace {

namespace fs = std::filesystem;

constexpr int kSteps = 24;

// A corpus of made-up sentences, a tokenizer and a dataset, made once for all tests.
class TrainTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TestFolder();
    const RngKey rng{.seed = 5, .purpose = RngPurpose::kSampling, .stream = 9};
    const std::vector<std::string> words = {"the",   "model", "reads",  "a",   "long",   "text",
                                            "about", "small", "rivers", "and", "writes", "letters",
                                            "to",    "every", "friend", "of",  "stone",  "towers"};
    uint64_t counter = 0;
    for (int document = 0; document < 120; ++document) {
      std::string text;
      for (int sentence = 0; sentence < 12; ++sentence) {
        for (int word = 0; word < 9; ++word) {
          text += words[rng.Block(counter++)[0] % words.size()] + (word == 8 ? ".\n" : " ");
        }
      }
      shared_->Write("corpus/" + std::to_string(document) + ".txt", text);
    }
    shared_->Write("run.yaml",
                   "run_name: tiny\n"
                   "seed: 3\n"
                   "max_seq_len: 32\n"
                   "max_duration: " +
                       std::to_string(kSteps) +
                       "ba\n"
                       "global_train_batch_size: 4\n"
                       "device_train_microbatch_size: 2\n"
                       "precision: fp32\n"
                       "save_interval: 3ba\n"
                       "eval_interval: 8ba\n"
                       "threads: 1\n"
                       "model: {name: modern_causal_lm, d_model: 32, n_heads: 2, n_layers: 2}\n"
                       "optimizer: {name: muon, lr: 3.0e-3, betas: [0.9, 0.95], "
                       "muon: {lr: 0.02, momentum: 0.95}}\n"
                       "scheduler: {name: warmup_stable_decay, t_warmup: 4ba, t_decay: 0.4dur, "
                       "alpha_f: 0.1}\n"
                       "tokenizer: {train: {vocab_size: 300}}\n"
                       "samples: {prompts: [\"the model\"], max_new_tokens: 12}\n"
                       "data:\n"
                       "  build_folder: " +
                       (shared_->path() / "data").string() +
                       "\n"
                       "  validation_fraction: 0.1\n"
                       "  sources: {made: {path: " +
                       (shared_->path() / "corpus").string() + ", license: CC0-1.0}}\n");
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }

  static std::vector<std::string> Arguments(const fs::path& folder,
                                            const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"train", (shared_->path() / "run.yaml").string(),
                                          "save_folder=" + folder.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // Runs to the end and expects `code`; returns what went to stderr and stdout.
  static std::string Train(const fs::path& folder, const std::vector<std::string>& more = {},
                           int code = 0) {
    Program program(shared_->path(), Arguments(folder, more));
    const int found = program.Wait();
    const std::string text = program.err() + program.out();
    EXPECT_EQ(found, code) << text;
    return text;
  }
  // The uninterrupted run that all others are compared with.
  static const fs::path& Reference() {
    static const fs::path folder = [] {
      const fs::path path = shared_->path() / "reference";
      Train(path);
      return path;
    }();
    return folder;
  }

  static Json ReadJson(const fs::path& path) {
    Result<Json> json = ReadJsonFile(path);
    EXPECT_TRUE(json.ok()) << json.error().message;
    return json.ok() ? std::move(json).value() : Json();
  }
  // The metrics without the members that hold times.
  static std::vector<Json> Metrics(const fs::path& folder) {
    std::vector<Json> lines;
    std::istringstream text(ReadText(folder / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      Json json = Json::parse(line);
      for (const char* key : {"seconds", "train_seconds", "tokens_per_s", "eval_seconds",
                              "data_wait_seconds"}) {
        json.erase(key);
      }
      lines.push_back(std::move(json));
    }
    return lines;
  }
  static fs::path Checkpoint(const fs::path& folder, int step) {
    char name[64];
    std::snprintf(name, sizeof(name), "ckpt-%08dba", step);
    return folder / name;
  }
  static void ExpectSameRun(const fs::path& a, const fs::path& b) {
    EXPECT_EQ(Metrics(a), Metrics(b));
    for (const char* file : {"weights.safetensors", "optimizer.safetensors"}) {
      EXPECT_TRUE(ReadText(Checkpoint(a, kSteps) / file) == ReadText(Checkpoint(b, kSteps) / file))
          << file << " differs between " << a << " and " << b;
    }
  }

  static TestFolder* shared_;
};
TestFolder* TrainTest::shared_ = nullptr;

void FlipByte(const fs::path& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char c = static_cast<char>(file.get() ^ 1);
  file.seekp(offset);
  file.put(c);
}

TEST_F(TrainTest, WritesSummaryMetricsReportAndLearns) {
  const fs::path& folder = Reference();
  const Json summary = ReadJson(folder / "summary.json");
  EXPECT_EQ(summary["status"], "complete");
  EXPECT_EQ(summary["steps"], kSteps);
  EXPECT_EQ(summary["tokens"], kSteps * 4 * 32);
  for (const char* key : {"bits_per_byte", "eval_loss", "loss", "parameters", "train_seconds",
                          "tokens_per_s", "peak_rss_bytes", "planned_bytes"}) {
    ASSERT_TRUE(summary[key].is_number()) << key << " " << summary[key];
    EXPECT_GT(summary[key].get<double>(), 0) << key;
  }
  EXPECT_TRUE(summary["gzip_bits_per_byte"].is_null()) << "not asked for";
  ASSERT_EQ(summary["samples"].size(), 1u);
  EXPECT_EQ(summary["samples"][0]["prompt"], "the model");
  EXPECT_NE(summary["samples"][0]["text"], "");
  const std::vector<Json> metrics = Metrics(folder);
  std::vector<int64_t> steps, evaluated;
  double first = 0, last = 0;
  for (const Json& line : metrics) {
    if (line.contains("eval_loss")) {
      evaluated.push_back(line["step"]);
      continue;
    }
    steps.push_back(line["step"]);
    if (steps.size() == 1) first = line["loss"];
    last = line["loss"];
  }
  ASSERT_EQ(steps.size(), static_cast<size_t>(kSteps));
  for (int i = 0; i < kSteps; ++i) EXPECT_EQ(steps[static_cast<size_t>(i)], i + 1);
  EXPECT_EQ(evaluated, (std::vector<int64_t>{8, 16, 24}));
  // A uniform guess over the vocabulary costs ln 300 = 5.7 nats; 18 words need far less.
  EXPECT_LT(last, 0.8 * first);
  const std::string report = ReadText(folder / "report.html");
  EXPECT_NE(report.find("<polyline"), std::string::npos);
  EXPECT_NE(report.find("CC0-1.0"), std::string::npos) << "the licence of the source";
  EXPECT_EQ(report.find("<script"), std::string::npos);
}

TEST_F(TrainTest, SecondRunUsesWhatIsThereAndGivesTheSameBits) {
  const std::string text = Train(shared_->path() / "again");
  EXPECT_NE(text.find("up to date"), std::string::npos) << text;
  ExpectSameRun(Reference(), shared_->path() / "again");
}

TEST_F(TrainTest, KilledAtRandomPointsResumesBitExact) {
  Reference();
  const RngKey rng{.seed = 11, .purpose = RngPurpose::kSampling, .stream = 1};
  int kills = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const fs::path folder = shared_->path() / ("killed-" + std::to_string(seed));
    const auto lines = [&] {
      const fs::path metrics = folder / "metrics.jsonl";
      if (!fs::exists(metrics)) return int64_t{0};
      const std::string text = ReadText(metrics);
      return static_cast<int64_t>(std::count(text.begin(), text.end(), '\n'));
    };
    for (uint64_t attempt = 0; attempt < 3; ++attempt) {
      Program program(shared_->path(), Arguments(folder, {"autoresume=true"}));
      // Somewhere within or after the step that was drawn; in the start where that one is behind.
      const auto step = static_cast<int64_t>(rng.Uniform(seed * 16 + 2 * attempt) * kSteps);
      EXPECT_TRUE(program.WaitUntil([&] { return lines() >= step; }));
      std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(
          20 * rng.Uniform(seed * 16 + 2 * attempt + 1)));
      program.Signal(SIGKILL);
      if (program.Wait() == -SIGKILL) ++kills;
    }
    Train(folder, {"autoresume=true"});
    ExpectSameRun(Reference(), folder);
    if (HasFailure()) FAIL() << "seed " << seed;
    fs::remove_all(folder);
  }
  EXPECT_GE(kills, 40) << "too few runs were hit before their end";
}

TEST_F(TrainTest, TermSavesAndTellsHowToGoOn) {
  const fs::path folder = shared_->path() / "term";
  {
    Program program(shared_->path(),
                    Arguments(folder, {"max_duration=100000ba", "save_interval=100000ba",
                                       "eval_interval=100000ba"}));
    ASSERT_TRUE(program.WaitUntil([&] {
      return ReadText(folder / "metrics.jsonl").find("\"step\":5,") != std::string::npos;
    })) << program.err();
    program.Signal(SIGTERM);
    EXPECT_EQ(program.Wait(), 0) << program.err();
    EXPECT_NE(program.out().find("autoresume=true"), std::string::npos) << program.out();
  }
  const Json summary = ReadJson(folder / "summary.json");
  EXPECT_EQ(summary["status"], "stopped");
  const int64_t step = summary["steps"];
  EXPECT_TRUE(fs::exists(Checkpoint(folder, static_cast<int>(step)) / "manifest.json"));
  const std::string text =
      Train(folder, {"max_duration=" + std::to_string(step + 2) + "ba", "autoresume=true"});
  EXPECT_NE(text.find("resuming from"), std::string::npos) << text;
  EXPECT_EQ(ReadJson(folder / "summary.json")["steps"], step + 2);
}

TEST_F(TrainTest, InterruptEndsWith130) {
  const fs::path folder = shared_->path() / "interrupt";
  Program program(shared_->path(),
                  Arguments(folder, {"max_duration=100000ba", "save_interval=100000ba"}));
  ASSERT_TRUE(program.WaitUntil([&] {
    return fs::exists(folder / "metrics.jsonl") && fs::file_size(folder / "metrics.jsonl") > 0;
  })) << program.err();
  program.Signal(SIGINT);
  EXPECT_EQ(program.Wait(), 130) << program.err();
  EXPECT_TRUE(fs::exists(folder / "latest"));
}

TEST_F(TrainTest, ExistingRunIsNotTouchedWithoutSayingSo) {
  const fs::path folder = shared_->path() / "existing";
  Train(folder, {"max_duration=4ba"});
  const std::string before = ReadText(folder / "metrics.jsonl");
  const std::string text = Train(folder, {"max_duration=4ba"}, 3);
  EXPECT_NE(text.find("autoresume=true"), std::string::npos) << text;
  EXPECT_NE(text.find("save_overwrite=true"), std::string::npos) << text;
  EXPECT_EQ(ReadText(folder / "metrics.jsonl"), before);
  Train(folder, {"max_duration=5ba", "save_overwrite=true"});
  EXPECT_FALSE(fs::exists(Checkpoint(folder, 4))) << "replaced by the new run's";
  EXPECT_TRUE(fs::exists(Checkpoint(folder, 5)));
}

TEST_F(TrainTest, RetentionKeepsTheNewest) {
  const fs::path folder = shared_->path() / "retention";
  Train(folder, {"save_num_checkpoints_to_keep=2"});
  EXPECT_FALSE(fs::exists(Checkpoint(folder, 18)));
  EXPECT_TRUE(fs::exists(Checkpoint(folder, 21)));
  EXPECT_TRUE(fs::exists(Checkpoint(folder, 24)));
}

TEST_F(TrainTest, DamagedCheckpointIsPassedOver) {
  const fs::path folder = shared_->path() / "damaged";
  Train(folder);
  FlipByte(Checkpoint(folder, 24) / "weights.safetensors", 4000);
  FlipByte(Checkpoint(folder, 21) / "manifest.json", 30);
  const std::string text = Train(folder, {"autoresume=true"});
  EXPECT_NE(text.find("passed over"), std::string::npos) << text;
  EXPECT_NE(text.find("checksum"), std::string::npos) << text;
  EXPECT_NE(text.find("(step 18"), std::string::npos) << text;
  ExpectSameRun(Reference(), folder);

  for (const int step : {3, 6, 9, 12, 15, 18, 21, 24}) {
    FlipByte(Checkpoint(folder, step) / "optimizer.safetensors", 5000);
  }
  const std::string none = Train(folder, {"autoresume=true"}, 4);
  EXPECT_NE(none.find("none of the 8 checkpoints"), std::string::npos) << none;
}

TEST_F(TrainTest, OtherArchitectureIsRefused) {
  const fs::path folder = shared_->path() / "architecture";
  Train(folder, {"max_duration=3ba"});
  const std::string text = Train(folder, {"autoresume=true", "model.d_model=64"}, 2);
  EXPECT_NE(text.find("d_model is 32 in the checkpoint, 64 in the run"), std::string::npos) << text;
  const std::string loaded =
      Train(shared_->path() / "loaded", {"load_path=" + folder.string(), "model.n_layers=3"}, 2);
  EXPECT_NE(loaded.find("n_layers is 2 in the checkpoint"), std::string::npos) << loaded;
}

TEST_F(TrainTest, WeightsAloneStartAnotherRun) {
  const fs::path folder = shared_->path() / "finetune";
  Train(folder,
        {"load_path=" + Reference().string(), "load_weights_only=true", "max_duration=2ba"});
  const std::vector<Json> metrics = Metrics(folder);
  const double begin = metrics.at(0)["loss"];
  const double fresh = Metrics(Reference()).at(0)["loss"];
  EXPECT_EQ(metrics.at(0)["step"], 1);
  EXPECT_LT(begin, 0.8 * fresh);
}

TEST_F(TrainTest, TablesFittedToPairsStartLowerAndResumeBitExact) {
  const fs::path whole = shared_->path() / "pairs", parts = shared_->path() / "pairs-parts";
  const std::vector<std::string> fitted = {"init_from_token_pairs=true"};
  const std::string text = Train(whole, fitted);
  EXPECT_NE(text.find("tables: fitted to the pairs of"), std::string::npos) << text;
  EXPECT_LT(Metrics(whole).at(0)["loss"].get<double>(),
            0.6 * Metrics(Reference()).at(0)["loss"].get<double>());
  Program program(shared_->path(), Arguments(parts, {fitted[0], "autoresume=true", "threads=2"}));
  EXPECT_TRUE(program.WaitUntil([&] { return fs::exists(Checkpoint(parts, 6)); }));
  program.Signal(SIGKILL);
  program.Wait();
  const std::string resumed = Train(parts, {fitted[0], "autoresume=true"});
  EXPECT_EQ(resumed.find("tables: fitted"), std::string::npos) << resumed;
  ExpectSameRun(whole, parts);
}

TEST_F(TrainTest, GrowthStagesAndAverageResumeBitExact) {
  const std::vector<std::string> growth = {
      "batch_size_growth=[{until: 6ba, global_train_batch_size: 2}]",
      "sequence_length_growth=[{until: 12ba, max_seq_len: 16}]",
      "weight_average={enabled: true, decay: 0.9, start: 5ba}"};
  const fs::path whole = shared_->path() / "growth";
  Train(whole, growth);
  std::vector<std::string> resumed = growth;
  resumed.push_back("autoresume=true");
  const fs::path folder = shared_->path() / "growth-killed";
  {
    Program program(shared_->path(), Arguments(folder, resumed));
    program.WaitUntil([&] {
      return ReadText(folder / "metrics.jsonl").find("\"step\":14,") != std::string::npos;
    });
    program.Signal(SIGKILL);
    program.Wait();
  }
  Train(folder, resumed);
  ExpectSameRun(whole, folder);
  EXPECT_TRUE(ReadText(Checkpoint(whole, kSteps) / "average.safetensors") ==
              ReadText(Checkpoint(folder, kSteps) / "average.safetensors"));
}

// Without stages of growth nothing but the resume itself passes through a checkpoint: before, at and
// after the step at which the average begins.
TEST_F(TrainTest, AverageResumesBitExactFromAnyStep) {
  const std::vector<std::string> average = {"weight_average={enabled: true, decay: 0.9, start: 5ba}"};
  const fs::path whole = shared_->path() / "average";
  Train(whole, average);
  for (const int step : {3, 6, 15}) {
    const fs::path folder = shared_->path() / ("average-" + std::to_string(step));
    fs::copy(whole, folder, fs::copy_options::recursive);
    for (int later = step + 3; later <= kSteps; later += 3) fs::remove_all(Checkpoint(folder, later));
    std::ofstream(folder / "latest") << Checkpoint(folder, step).filename().string() << "\n";
    std::vector<std::string> resumed = average;
    resumed.push_back("autoresume=true");
    const std::string text = Train(folder, resumed);
    EXPECT_NE(text.find("(step " + std::to_string(step)), std::string::npos) << text;
    ExpectSameRun(whole, folder);
    EXPECT_TRUE(ReadText(Checkpoint(whole, kSteps) / "average.safetensors") ==
                ReadText(Checkpoint(folder, kSteps) / "average.safetensors"))
        << "from step " << step;
  }
}

TEST_F(TrainTest, BadInputIsNamed) {
  const fs::path folder = shared_->path() / "bad";
  EXPECT_NE(Train(folder, {"max_duratoin=3ba"}, 2).find("max_duration"), std::string::npos);
  const std::string small = Train(folder, {"model.vocab_size=100"}, 2);
  EXPECT_NE(small.find("no room for the 300 words"), std::string::npos) << small;
  const std::string huge = Train(folder, {"memory_limit=1MiB"}, 5);
  EXPECT_NE(huge.find("plan needs"), std::string::npos) << huge;
  const std::string vocabulary =
      Train(folder,
            {"tokenizer.train.vocab_size=90000",
             "data.build_folder=" + (shared_->path() / "bad-data").string()},
            2);
  EXPECT_NE(vocabulary.find("vocab"), std::string::npos) << vocabulary;
  fs::create_directories(shared_->path() / "empty");
  const std::string empty =
      Train(folder,
            {"data.sources.made.path=" + (shared_->path() / "empty").string(),
             "data.build_folder=" + (shared_->path() / "empty-data").string()},
            3);
  EXPECT_NE(empty.find("empty"), std::string::npos) << empty;
  Program missing(shared_->path(), {"train", "/nonexistent/run.yaml"});
  EXPECT_EQ(missing.Wait(), 3) << missing.err();
}

TEST_F(TrainTest, DryRunWritesNothing) {
  const fs::path folder = shared_->path() / "dry";
  Program program(shared_->path(), Arguments(folder, {"--dry-run", "--json"}));
  ASSERT_EQ(program.Wait(), 0) << program.err();
  EXPECT_GT(Json::parse(program.out())["memory_bytes"]["total"].get<int64_t>(), 0);
  EXPECT_FALSE(fs::exists(folder));
}

// The table's promise: what is resident at most lies within 3% of what was planned.
TEST_F(TrainTest, PeakMemoryIsThatOfTheTable) {
  for (const char* precision : {"fp32", "amp_bf16"}) {
    const fs::path folder = shared_->path() / ("memory-" + std::string(precision));
    Train(folder, {"model.d_model=768", "model.n_heads=12", "model.n_layers=7", "max_duration=2ba",
                   "save_interval=2ba", "eval_interval=2ba", "threads=2",
                   "precision=" + std::string(precision)});
    const Json summary = ReadJson(folder / "summary.json");
    const double planned = summary["planned_bytes"].get<double>();
    const double peak = summary["peak_rss_bytes"].get<double>();
    EXPECT_GT(planned, 500e6);
    EXPECT_NEAR(peak / planned, 1.0, 0.03) << precision << ": " << peak << " of " << planned;
  }
}

TEST_F(TrainTest, JsonPrintsTheSummary) {
  const fs::path folder = shared_->path() / "json";
  Program program(shared_->path(),
                  Arguments(folder, {"max_duration=2ba", "--json", "compare_compressors=true"}));
  ASSERT_EQ(program.Wait(), 0) << program.err();
  const Json printed = Json::parse(program.out());
  EXPECT_EQ(printed, ReadJson(folder / "summary.json"));
  EXPECT_GT(printed["gzip_bits_per_byte"].get<double>(),
            0.5 * printed["xz_bits_per_byte"].get<double>());
  EXPECT_GT(printed["xz_bits_per_byte"].get<double>(), 0);
}

TEST_F(TrainTest, EvalGivesTheScoreOfTheRun) {
  const Json summary = ReadJson(Reference() / "summary.json");
  Program program(shared_->path(), {"eval", Reference().string(), "--json"});
  ASSERT_EQ(program.Wait(), 0) << program.err();
  const Json score = Json::parse(program.out());
  // Only the order in which double sums are grouped may differ.
  EXPECT_NEAR(score["bits_per_byte"].get<double>(), summary["bits_per_byte"].get<double>(),
              1e-12 * summary["bits_per_byte"].get<double>());
  EXPECT_EQ(score["step"], kSteps);
}

TEST_F(TrainTest, NonFiniteStepsAreSkippedThenStopTheRun) {
  // A checkpoint with a weight that is not a number: every loss from it is not finite.
  const fs::path folder = shared_->path() / "nonfinite";
  const fs::path whole = Checkpoint(Reference(), kSteps);
  const Result<SafetensorsFile> weights = SafetensorsFile::Open(whole / kWeightsFile);
  ASSERT_TRUE(weights.ok());
  CheckpointContents contents;
  contents.step = kSteps;
  CheckpointTensorFile poisoned{kWeightsFile, {}, {}};
  std::vector<std::vector<float>> values;
  for (const SafetensorsEntry& entry : weights->header().entries) {
    values.emplace_back(static_cast<size_t>(entry.bytes) / 4);
    std::memcpy(values.back().data(), weights->data(entry).data(),
                static_cast<size_t>(entry.bytes));
    if (values.size() == 1) values.back()[0] = std::numeric_limits<float>::quiet_NaN();
    poisoned.tensors.push_back({entry.name, entry.dtype, entry.shape, values.back().data()});
  }
  contents.tensors.push_back(std::move(poisoned));
  contents.texts.push_back({kModelConfigFile, ReadText(whole / kModelConfigFile)});
  Result<CheckpointStore> store = CheckpointStore::Open(shared_->path() / "poisoned");
  ASSERT_TRUE(store.ok() && store->Save(contents).ok());

  const std::string text = Train(folder,
                                 {"load_path=" + (shared_->path() / "poisoned").string(),
                                  "load_weights_only=true", "max_nonfinite_steps=3"},
                                 2);
  EXPECT_NE(text.find("3 steps in a row"), std::string::npos) << text;
  EXPECT_NE(text.find("gradient norm"), std::string::npos) << text;
  int64_t skipped = 0;
  for (const Json& line : Metrics(folder)) skipped += line.value("skipped", false) ? 1 : 0;
  EXPECT_EQ(skipped, 3);
}

TEST_F(TrainTest, FullDiskIsToldBeforeTheStart) {
  const SmallDisk disk(shared_->path() / "small", "1m");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small file system";
  const std::string text = Train(shared_->path() / "small/run", {}, 3);
  EXPECT_NE(text.find("free"), std::string::npos) << text;
}

TEST_F(TrainTest, DiskThatFillsUpKeepsEarlierCheckpointsAndRecovers) {
  const fs::path mount = shared_->path() / "filling";
  const SmallDisk disk(mount, "24m");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small file system";
  const fs::path folder = mount / "run";
  Program program(shared_->path(),
                  Arguments(folder, {"max_duration=1000000ba", "save_interval=10ba",
                                     "save_num_checkpoints_to_keep=2", "eval_interval=0ba"}));
  ASSERT_TRUE(program.WaitUntil([&] { return fs::exists(folder / "latest"); })) << program.err();
  {
    std::ofstream filler(mount / "filler", std::ios::binary);
    const std::string block(1 << 16, 'x');
    while (filler.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
  }
  ASSERT_TRUE(program.WaitUntil([&] {
    return program.err().find("earlier checkpoints are untouched") != std::string::npos;
  })) << program.err();
  fs::remove(mount / "filler");
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0) << program.err();
  const std::string text = Train(
      folder, {"autoresume=true", "max_duration=1ba", "save_interval=10ba", "eval_interval=0ba"});
  EXPECT_NE(text.find("resuming from"), std::string::npos) << text;
}

TEST_F(TrainTest, ReadOnlyFolderIsRefusedAtOnce) {
  const fs::path mount = shared_->path() / "readonly";
  const SmallDisk disk(mount, "24m");
  if (!disk.mounted() || !disk.MakeReadOnly()) GTEST_SKIP() << "no right to mount read-only";
  const std::string text = Train(mount / "run", {}, 3);
  EXPECT_NE(text.find("Read-only file system"), std::string::npos) << text;
  EXPECT_NE(text.find("save_folder"), std::string::npos) << text;
}

}  // namespace
}  // namespace tessera::integration
