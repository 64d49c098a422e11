// Bad input to the built program: each case ends with the exit code of its kind and a message that
// says what is wrong, where, with which value and what to do; what was there before stays as it was.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "base/files.h"
#include "base/json.h"
#include "base/test_folder.h"
#include "checkpoint/checkpoint.h"
#include "program.h"
#include "small_disk.h"

namespace tessera::integration {
namespace {

namespace fs = std::filesystem;

constexpr int kInput = 2, kFiles = 3, kDamaged = 4, kMemory = 5;

void FlipByte(const fs::path& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char c = static_cast<char>(file.get() ^ 1);
  file.seekp(offset);
  file.put(c);
}

// Every file below a folder with its content, but for the lock, which names its last holder.
std::map<std::string, std::string> Contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename() != ".lock") {
      files[fs::relative(entry.path(), folder).string()] = ReadText(entry.path());
    }
  }
  return files;
}

class BadInput : public ::testing::Test {
 protected:
  // A corpus, a finished run of a tiny model with its dataset, and the run file; made once.
  static void SetUpTestSuite() {
    shared_ = new TestFolder();
    const char* words[] = {"the", "model", "reads", "a", "long", "text", "about", "small", "rivers"};
    for (int document = 0; document < 40; ++document) {
      std::string text;
      for (int i = 0; i < 90; ++i) {
        text += words[(document * 31 + i * i * 7 + i / 9) % 9];
        text += i % 9 == 8 ? ".\n" : " ";
      }
      shared_->Write("corpus/" + std::to_string(document) + ".txt", text);
    }
    shared_->Write("run.yaml",
                   "run_name: tiny\n"
                   "max_seq_len: 16\n"
                   "max_duration: 4ba\n"
                   "global_train_batch_size: 4\n"
                   "device_train_microbatch_size: 2\n"
                   "precision: fp32\n"
                   "save_interval: 2ba\n"
                   "threads: 1\n"
                   "model: {name: gpt2_causal_lm, d_model: 16, n_heads: 2, n_layers: 1}\n"
                   "optimizer: {name: adamw, lr: 1.0e-3}\n"
                   "tokenizer: {train: {vocab_size: 280}}\n"
                   "data:\n"
                   "  build_folder: " + (shared_->path() / "data").string() + "\n"
                   "  validation_fraction: 0.1\n"
                   "  sources: {made: {path: " + (shared_->path() / "corpus").string() + "}}\n");
    Program program(shared_->path(), {"train", RunFile(), "save_folder=" + Path("done")});
    ASSERT_EQ(program.Wait(), 0) << program.err();
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }

  static std::string Path(const std::string& name) { return (shared_->path() / name).string(); }
  static std::string RunFile() { return Path("run.yaml"); }

  // Runs the program and expects the exit code and every part in what it printed.
  static std::string Expect(const std::vector<std::string>& arguments, int code,
                            const std::vector<std::string>& parts, const ProcessSetup& setup = {}) {
    Program program(shared_->path(), arguments, setup);
    const int found = program.Wait();
    const std::string text = program.err();
    EXPECT_EQ(found, code) << text << program.out();
    EXPECT_NE(text.find("tessera: error: "), std::string::npos) << text;
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
    }
    return text;
  }
  // `tessera train` into a folder of its own that must hold no checkpoint afterwards.
  static std::string ExpectTrain(const std::vector<std::string>& overrides, int code,
                                 const std::vector<std::string>& parts, const ProcessSetup& setup = {}) {
    static int counter = 0;
    const std::string folder = Path("refused-" + std::to_string(counter++));
    std::vector<std::string> arguments = {"train", RunFile(), "save_folder=" + folder};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    const std::string text = Expect(arguments, code, parts, setup);
    EXPECT_FALSE(fs::exists(folder + "/latest")) << "a refused run left a checkpoint";
    return text;
  }
  // A copy of the dataset to be damaged.
  static fs::path Dataset(const std::string& name) {
    fs::copy(Path("data"), Path(name), fs::copy_options::recursive);
    return Path(name);
  }
  static std::vector<std::string> TrainOn(const fs::path& dataset) {
    return {"data.sources=null", "tokenizer=null", "data.dataset=" + dataset.string()};
  }
  static fs::path Checkpoint(const std::string& name) {
    fs::copy(Path("done/ckpt-00000004ba"), Path(name), fs::copy_options::recursive);
    return Path(name);
  }

  static TestFolder* shared_;
};
TestFolder* BadInput::shared_ = nullptr;

TEST_F(BadInput, RunFileMistakesComeAllAtOnceWithTheirLines) {
  const std::string file = shared_->Write("wrong.yaml",
                                          "max_seq_len: 16\n"
                                          "max_duratoin: 4ba\n"
                                          "max_duration: 4 parsecs\n"
                                          "global_train_batch_size: many\n"
                                          "model: {name: gpt2_causal_lm, d_model: 16, n_heads: 2, "
                                          "n_layers: 1}\n"
                                          "optimizer: {lr: .nan}\n").string();
  for (const char* command : {"train", "plan"}) {
    Expect({command, file}, kInput,
           {"4 errors", file + ":2: max_duratoin: unknown key (did you mean 'max_duration'?)",
            file + ":3: max_duration: '4 parsecs' has the unknown unit 'parsecs'", "ba (batches)",
            file + ":4: global_train_batch_size: found 'many'; allowed is an integer",
            file + ":6: optimizer.lr: found '.nan'; allowed is a number"});
  }
  for (const char* number : {"inf", "nan", "0x1p-3", "1e999"}) {
    ExpectTrain({std::string("optimizer.lr=") + number}, kInput,
                {std::string("optimizer.lr=") + number, "allowed is a number: from 0 to 1000"});
  }
  Expect({"train", shared_->Write("cut.yaml", "model: {name: [\n").string()}, kInput,
         {"cut.yaml:2", "is not YAML"});
  Expect({"train", Path("nowhere.yaml")}, kFiles,
         {"run file", "nowhere.yaml", "No such file", "recipes/"});
  Expect({"train", Path("corpus")}, kFiles, {"corpus", "Is a directory"});
  ExpectTrain({"noequals"}, kInput, {"noequals", "key.path=value"});
}

TEST_F(BadInput, CommandLineMistakesNameTheHelp) {
  Expect({"trian", RunFile()}, kInput, {"'trian' is no command", "did you mean 'train'?"});
  Expect({}, kInput, {"name a command", "generate", "tessera --help"});
  Expect({"train", RunFile(), "--bogus"}, kInput, {"--bogus", "tessera train --help"});
  Expect({"data", "build", "--source", "x=y"}, kInput, {"required", "tessera data build --help"});
  Expect({"data", "build", "--source", "nopath", "--tokenizer", Path("data"), "-o", Path("out")},
         kInput, {"--source nopath", "NAME=VALUE"});
}

// The benchmark of training that takes turns reads how many steps to run.
TEST_F(BadInput, TurnsOfTheTrainingBenchmark) {
  const std::vector<std::string> bench = {"bench", "train",  "--turns", "--json",  "--model",
                                          "modern-10m", "--layers", "1", "--width", "64",
                                          "--heads", "1", "--vocab", "300", "--seq", "16",
                                          "--batch", "2"};
  const auto lines = [this](const std::string& text) -> ProcessSetup {
    shared_->Write("turns", text);
    return [path = Path("turns")] {
      if (::dup2(::open(path.c_str(), O_RDONLY), STDIN_FILENO) != STDIN_FILENO) ::_exit(99);
    };
  };
  Program good(shared_->path(), bench, lines("2\n1\n"));
  ASSERT_EQ(good.Wait(), 0) << good.err();
  const std::string out = good.out();
  EXPECT_EQ(out.rfind("{\"ready\": true}\n{\"steps\": 2, \"seconds\": ", 0), 0u) << out;
  EXPECT_NE(out.find("\n{\"steps\": 1, \"seconds\": "), std::string::npos) << out;
  EXPECT_NE(out.find("\"steps\": 3,"), std::string::npos) << out;  // the summary's
  Expect(bench, kInput, {"number of steps from 1 to 10000", "'two'"}, lines("1\ntwo\n"));
  Expect(bench, kInput, {"'0'"}, lines("0\n"));
  Expect(bench, kInput, {"ended before the first turn"}, lines(""));
}

TEST_F(BadInput, SourcesThatHoldNothing) {
  const std::string build = "data.build_folder=" + Path("never-built");
  ExpectTrain({"data.sources.made.path=" + Path("nowhere"), build}, kFiles,
              {"source 'made'", Path("nowhere"), "does not exist"});
  ExpectTrain({"data.sources.made.path=" + Path("corpus/*.pod"), build}, kFiles,
              {"source 'made'", "no file matches", "corpus/*.pod", "docs/**/*.txt"});
  fs::create_directories(Path("empty"));
  ExpectTrain({"data.sources.made.path=" + Path("empty"), build}, kFiles,
              {"source 'made'", "the folder '" + Path("empty") + "' is empty"});
  shared_->Write("blank/a.txt", "");
  ExpectTrain({"data.sources.made.path=" + Path("blank"), build}, kInput,
              {"the corpus is empty", "'made' (" + Path("blank") + ")"});
  shared_->Write("pictures/a.png", "x");
  ExpectTrain({"data.sources.made.path=" + Path("pictures"), build}, kInput,
              {"source 'made'", ".png (1)", "known are txt"});
  EXPECT_FALSE(fs::exists(Path("never-built")));
  Expect({"data", "build", "--source", "made=" + Path("blank"), "--tokenizer", Path("data"), "-o",
          Path("never-built")},
         kInput, {"the corpus is empty"});
  Expect({"tokenizer", "train", Path("blank"), "-o", Path("never.json")}, kInput,
         {"the corpus is empty"});
  EXPECT_FALSE(fs::exists(Path("never-built")));
  EXPECT_FALSE(fs::exists(Path("never.json")));
}

TEST_F(BadInput, UnreadableFolderInACorpus) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become somebody without rights";
  fs::copy(Path("corpus"), Path("mixed"), fs::copy_options::recursive);
  shared_->Write("mixed/closed/secret.txt", "text");
  fs::permissions(Path("mixed/closed"), fs::perms::none);
  const ProcessSetup nobody = [] {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(99);
  };
  fs::create_directories(Path("open"));
  fs::permissions(Path("open"), fs::perms::all);
  {
    Program probe(shared_->path(), {"--version"}, nobody);
    if (probe.Wait() != 0) GTEST_SKIP() << "the program's folder is closed to others";
  }
  const std::vector<std::string> parts = {"Permission denied", Path("mixed/closed"), "readable"};
  for (const std::string& path : {Path("mixed"), Path("mixed/**/*.txt")}) {
    Expect({"train", RunFile(), "save_folder=" + Path("open/run"),
            "data.sources.made.path=" + path, "data.build_folder=" + Path("open/data")},
           kFiles, parts, nobody);
    Expect({"data", "build", "--source", "made=" + path, "--tokenizer", Path("data"), "-o",
            Path("open/data")},
           kFiles, parts, nobody);
    Expect({"tokenizer", "train", path, "-o", Path("open/t.json")}, kFiles, parts, nobody);
  }
  EXPECT_FALSE(fs::exists(Path("open/data")));
  fs::permissions(Path("mixed/closed"), fs::perms::owner_all);
}

TEST_F(BadInput, VocabularyThatTheTextCannotFill) {
  ExpectTrain({"tokenizer.train.vocab_size=90000", "data.build_folder=" + Path("wordy")}, kInput,
              {"vocab_size 90000 is more than the data allows", "ask for at most"});
  Expect({"tokenizer", "train", Path("corpus"), "--vocab-size", "90000", "-o", Path("wordy.json")},
         kInput, {"vocab_size 90000", "ask for at most"});
  Expect({"tokenizer", "train", Path("corpus"), "--vocab-size", "100", "-o", Path("wordy.json")},
         kInput, {"vocab_size 100 must be in 257.."});
  EXPECT_FALSE(fs::exists(Path("wordy.json")));
  ExpectTrain({"model.vocab_size=100"}, kInput, {"no room for the 280 words"});
}

TEST_F(BadInput, TokenizerGoesIntoAFolderThatIsMade) {
  Program program(shared_->path(), {"tokenizer", "train", Path("corpus"), "--vocab-size", "270",
                                    "-o", Path("fresh/deep/")});
  EXPECT_EQ(program.Wait(), 0) << program.err();
  EXPECT_TRUE(fs::exists(Path("fresh/deep/tokenizer.json")));
  Expect({"tokenizer", "info", Path("corpus")}, kFiles,
         {"corpus/tokenizer.json", "No such file", "tessera tokenizer train"});
  Expect({"tokenizer", "info", RunFile()}, kDamaged, {"run.yaml", "not valid JSON", "line 1"});
}

TEST_F(BadInput, DamagedDatasetIsFoundBeforeTrainingAndByVerify) {
  struct Case {
    const char* name;
    const char* file;
    std::vector<std::string> parts;  // of both messages
    bool verify_only = false;
  };
  const Case cases[] = {
      {"cut", "train/shard.00000.mds", {"its index says", "cut off"}},
      {"flip", "train/shard.00000.mds", {"the index says", "changed or damaged"}},
      {"gone", "train/shard.00000.mds", {"No such file"}},
      {"cut", "train/index.json", {"not valid JSON", "cut off"}},
      {"gone", "train/index.json", {"holds no index.json"}},
      {"flip", "train/documents.idx", {"its checksum does not match", "delete it"}},
      {"cut", "tokenizer.json", {"not valid JSON", "cut off"}},
      {"cut", "dataset.json", {"not valid JSON", "cut off"}},
      {"gone", "tokenizer.json", {"is missing", "put the tokenizer.json"}, true},
  };
  int counter = 0;
  for (const Case& test : cases) {
    SCOPED_TRACE(std::string(test.name) + " " + test.file);
    const fs::path dataset = Dataset("damaged-" + std::to_string(counter++));
    const fs::path file = dataset / test.file;
    const std::string how = test.name;
    if (how == "cut") fs::resize_file(file, fs::file_size(file) / 2);
    if (how == "flip") FlipByte(file, static_cast<int64_t>(fs::file_size(file)) - 30);
    if (how == "gone") fs::remove(file);
    const int code = how == "gone" && !test.verify_only ? -1 : kDamaged;
    // A missing file is told as missing by the one, as damage of the whole by the other.
    Program verify(shared_->path(), {"data", "verify", dataset.string()});
    EXPECT_EQ(verify.Wait(), code == -1 && std::string(test.file) == "train/index.json" ? kFiles
                                                                                         : kDamaged)
        << verify.err();
    std::vector<std::string> parts = test.parts;
    if (!test.verify_only) {
      parts[0] = parts[0] == "the index says" ? "its index says" : parts[0];
      ExpectTrain(TrainOn(dataset), code == -1 ? kFiles : kDamaged, parts);
    }
    for (const std::string& part : test.parts) {
      EXPECT_NE(verify.err().find(part), std::string::npos) << part << " in " << verify.err();
    }
    EXPECT_NE(verify.err().find(file.filename().string()), std::string::npos) << verify.err();
  }
}

TEST_F(BadInput, TokenizerCopyOfAnotherDatasetIsFoundByVerify) {
  const fs::path dataset = Dataset("other-words");
  Program program(shared_->path(), {"tokenizer", "train", Path("corpus"), "--vocab-size", "270",
                                    "-o", dataset.string()});
  ASSERT_EQ(program.Wait(), 0) << program.err();
  Expect({"data", "verify", dataset.string()}, kDamaged,
         {"tokenizer.json", "is not the tokenizer that made the tokens", "fingerprint"});
  ExpectTrain(TrainOn(dataset), kInput, {"another tokenizer"});
}

TEST_F(BadInput, DamagedCacheOfARunIsNamedWithTheWayOut) {
  const fs::path dataset = Dataset("cache");
  // The run's own dataset counts as up to date by its manifest; its shards are compared all the same.
  fs::copy(Path("data.tokenizer"), Path("cache.tokenizer"), fs::copy_options::recursive);
  FlipByte(dataset / "train/shard.00000.mds", 2000);
  ExpectTrain({"data.build_folder=" + dataset.string()}, kDamaged,
              {"shard.00000.mds", "changed or damaged", "remove '" + dataset.string() + "'"});
}

TEST_F(BadInput, CheckpointOfAnotherArchitectureOrNoCheckpoint) {
  const auto before = Contents(Path("done"));
  Expect({"train", RunFile(), "save_folder=" + Path("done"), "autoresume=true", "model.d_model=32"},
         kInput, {"ckpt-00000004ba", "another architecture", "d_model is 16 in the checkpoint, 32"});
  EXPECT_TRUE(Contents(Path("done")) == before);
  ExpectTrain({"load_path=" + Path("done"), "model.n_layers=3"}, kInput,
              {"n_layers is 1 in the checkpoint, 3 in the run"});
  // Before the tokenizer and the dataset are made.
  const std::string early = "data.build_folder=" + Path("too-early");
  ExpectTrain({"load_path=" + Path("nowhere"), early}, kFiles,
              {"load_path", Path("nowhere"), "does not exist"});
  ExpectTrain({"load_path=" + Path("corpus"), early}, kFiles, {"load_path", "neither a checkpoint"});
  EXPECT_FALSE(fs::exists(Path("too-early")));
  for (const char* command : {"generate", "eval"}) {
    Expect({command, Path("nowhere")}, kFiles, {Path("nowhere"), "does not exist"});
    Expect({command, Path("corpus")}, kFiles, {"neither a checkpoint"});
  }
  // A checkpoint whose weights are not of its configuration.
  const fs::path other = Checkpoint("other");
  Result<CheckpointInfo> opened = OpenCheckpoint(other);
  ASSERT_TRUE(opened.ok());
  CheckpointContents contents;
  contents.step = 4;
  const Result<SafetensorsFile> weights = SafetensorsFile::Open(other / kWeightsFile);
  ASSERT_TRUE(weights.ok());
  CheckpointTensorFile file{kWeightsFile, {}, {}};
  for (const SafetensorsEntry& entry : weights->header().entries) {
    file.tensors.push_back({entry.name, entry.dtype, entry.shape, weights->data(entry).data()});
  }
  contents.tensors.push_back(std::move(file));
  Json config = ReadJsonFile(other / kModelConfigFile).value();
  config["n_layers"] = 2;
  contents.texts = {{kModelConfigFile, config.dump()},
                    {kTokenizerFile, ReadText(other / kTokenizerFile)}};
  Result<CheckpointStore> store = CheckpointStore::Open(Path("mixed-up"));
  ASSERT_TRUE(store.ok() && store->Save(contents).ok());
  Expect({"generate", Path("mixed-up"), "-p", "the"}, kDamaged,
         {"weights.safetensors", "is missing", "config.json"});
}

TEST_F(BadInput, DamagedCheckpoint) {
  for (const char* name : {"weights.safetensors", "config.json", "state.json", "tokenizer.json",
                           "manifest.json"}) {
    for (const char* how : {"flip", "cut", "gone"}) {
      SCOPED_TRACE(std::string(how) + " " + name);
      const fs::path folder = Checkpoint(std::string("bad-") + how + "-" + name);
      const bool manifest = std::string(name) == "manifest.json";
      if (std::string(how) == "flip") {
        FlipByte(folder / name, static_cast<int64_t>(fs::file_size(folder / name)) / 2);
      }
      if (std::string(how) == "cut") fs::resize_file(folder / name, 100);
      if (std::string(how) == "gone") fs::remove(folder / name);
      const int code = manifest && std::string(how) == "gone" ? kFiles : kDamaged;
      std::vector<std::string> parts = {name};
      if (!manifest) parts.push_back("take an earlier checkpoint");
      Expect({"generate", folder.string(), "-p", "the"}, code, parts);
      Expect({"eval", folder.string()}, code, parts);
      parts.push_back("load_path");
      ExpectTrain({"load_path=" + folder.string()}, code, parts);
    }
  }
}

TEST_F(BadInput, SequencesAndMemoryBeyondTheModel) {
  ExpectTrain({"max_seq_len=64", "model.max_seq_len=32"}, kInput,
              {"max_seq_len: 64 is longer than model.max_seq_len 32"});
  std::string prompt;
  for (int i = 0; i < 40; ++i) prompt += "the rivers ";
  Expect({"generate", Path("done"), "-p", prompt}, kInput,
         {"the prompt has", "tokens", "positions for 16", "shorten it by"});
  const std::string early = "data.build_folder=" + Path("too-large");
  ExpectTrain({"memory_limit=1MiB", early}, kMemory,
              {"the plan needs", "1.0 MiB are available", "activations", "a smaller model"});
  ExpectTrain({"model.d_model=8192", "model.n_heads=64", "model.n_layers=80", early,
               "memory_limit=64GiB"},
              kMemory, {"the plan needs", "GiB", "64.0 GiB are available", "a smaller model"});
  EXPECT_FALSE(fs::exists(Path("too-large"))) << "work was done for a run that can't start";
  Expect({"plan", RunFile(), "memory_limit=1MiB"}, kMemory,
         {"does not fit into memory", "1.0 MiB are available"});
  Program recipe(shared_->path(), {"plan", std::string(TESSERA_SOURCE_DIR) + "/recipes/mpt/70b.yaml",
                                   "memory_limit=256GiB"});
  EXPECT_EQ(recipe.Wait(), kMemory) << recipe.err();
}

TEST_F(BadInput, LossThatIsNotANumberStopsTheRun) {
  // A learning rate that no model survives: the weights overflow, then every loss is not finite.
  const std::string text =
      Expect({"train", RunFile(), "save_folder=" + Path("exploded"), "optimizer.lr=1000",
              "optimizer.weight_decay=100", "max_duration=200ba", "max_nonfinite_steps=3",
              "save_interval=1ba", "save_num_checkpoints_to_keep=2"},
             kInput, {"3 steps in a row", "gradient norm", "the last checkpoint is",
                      "Lower the learning rate"});
  const Result<CheckpointInfo> last = FindCheckpoint(Path("exploded"));
  ASSERT_TRUE(last.ok()) << last.error().message;
  EXPECT_TRUE(VerifyCheckpoint(*last).ok());
}

TEST_F(BadInput, DatasetWriterOnAFullDiskKeepsTheFormerDataset) {
  const SmallDisk disk(Path("full"), "256k");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small file system";
  fs::copy(Path("data"), Path("full/data"), fs::copy_options::recursive);
  const auto before = Contents(Path("full"));
  const std::string weight = "made=60";  // more copies than the disk has room for
  Expect({"data", "build", "--source", "made=" + Path("corpus"), "--weight", weight, "--tokenizer",
          Path("data"), "-o", Path("full/data"), "--overwrite"},
         kFiles, {"cannot write", Path("full/data"), "No space left on device"});
  EXPECT_TRUE(Contents(Path("full")) == before);
  Program verify(shared_->path(), {"data", "verify", Path("full/data")});
  EXPECT_EQ(verify.Wait(), 0) << verify.err();
}

TEST_F(BadInput, CheckpointWriterOnAFullDiskKeepsTheFormerCheckpoint) {
  fs::copy(Path("done"), Path("limited"), fs::copy_options::recursive);
  const auto before = Contents(Path("limited"));
  // A limit on the size of a file fails the write in its middle, as a disk that fills up does.
  const ProcessSetup small_files = [] {
    struct rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  };
  const std::string text =
      Expect({"train", RunFile(), "save_folder=" + Path("limited"), "autoresume=true",
              "max_duration=6ba", "loggers.jsonl.enabled=false", "report=false"},
             kFiles, {"cannot write", "File too large", "weights.safetensors", "was not saved",
                      "earlier checkpoints are untouched"},
             small_files);
  for (const auto& [name, content] : before) {
    if (name.starts_with("ckpt-") || name == "latest") {
      EXPECT_TRUE(ReadText(Path("limited/" + name)) == content) << name;
    }
  }
  const Result<CheckpointInfo> last = FindCheckpoint(Path("limited"));
  ASSERT_TRUE(last.ok()) << last.error().message;
  EXPECT_EQ(last->step, 4);
  EXPECT_TRUE(VerifyCheckpoint(*last).ok());
}

TEST_F(BadInput, FoldersThatCannotBeWritten) {
  ExpectTrain({"save_folder=" + RunFile()}, kFiles, {"save_folder", "run.yaml", "Not a directory"});
  const SmallDisk disk(Path("fixed"), "1m");
  if (!disk.mounted() || !disk.MakeReadOnly()) GTEST_SKIP() << "no right to mount read-only";
  Expect({"train", RunFile(), "save_folder=" + Path("fixed/run")}, kFiles,
         {"save_folder", Path("fixed/run"), "Read-only file system"});
  ExpectTrain({"data.build_folder=" + Path("fixed/data")}, kFiles,
              {Path("fixed/data"), "Read-only file system"});
  Expect({"data", "build", "--source", "made=" + Path("corpus"), "--tokenizer", Path("data"), "-o",
          Path("fixed/data")},
         kFiles, {Path("fixed/data"), "Read-only file system"});
  Expect({"tokenizer", "train", Path("corpus"), "--vocab-size", "270", "-o", Path("fixed/t/")},
         kFiles, {Path("fixed/t"), "Read-only file system"});
}

}  // namespace
}  // namespace tessera::integration
