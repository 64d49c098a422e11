// Runs of the built program on streamed datasets, and what their tests compare.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/test_folder.h"
#include "fault_proxy.h"
#include "program.h"

namespace tessera::services {

inline constexpr int kSteps = 24;

// A dataset in many small shards, a run file, and the uninterrupted run from the folder that all others
// are compared with; made once for all tests of a program.
class StreamRuns {
 public:
  explicit StreamRuns(const TestFolder& folder) : folder_(folder) {
    const RngKey rng{.seed = 5, .purpose = RngPurpose::kSampling, .stream = 9};
    const char* words[] = {"the",   "model", "reads",  "a",   "long",   "text", "about", "small",
                           "rivers", "and",  "writes", "letters", "to", "every", "friend", "of"};
    uint64_t counter = 0;
    for (int document = 0; document < 160; ++document) {
      std::string text;
      for (int word = 0; word < 90; ++word) {
        text += words[rng.Block(counter++)[0] % 16];
        text += word % 9 == 8 ? ".\n" : " ";
      }
      folder.Write("corpus/" + std::to_string(document) + ".txt", text);
    }
    Run({"tokenizer", "train", Path("corpus"), "--vocab-size", "300", "-o", Path("tokenizer.json")});
    Run({"data", "build", "--source", "made=" + Path("corpus"), "--tokenizer", Path("tokenizer.json"),
         "-o", Path("dataset"), "--validation-fraction", "0.1", "--shard-bytes", "4096"});
    folder.Write("run.yaml",
                 "run_name: streamed\n"
                 "seed: 3\n"
                 "max_seq_len: 32\n"
                 "max_duration: " + std::to_string(kSteps) + "ba\n"
                 "global_train_batch_size: 12\n"
                 "device_train_microbatch_size: 4\n"
                 "precision: fp32\n"
                 "save_interval: 4ba\n"
                 "eval_interval: 12ba\n"
                 "threads: 1\n"
                 "model: {name: mpt_causal_lm, d_model: 16, n_heads: 2, n_layers: 1}\n"
                 "optimizer: {name: adamw, lr: 3.0e-3}\n"
                 "data:\n"
                 "  shuffle_block_size: 64\n"
                 "  predownload: 48\n"
                 "  download_threads: 3\n");
    Train("reference", {Stream(Path("dataset"), "")});
    shards_ = ReadJson(Path("dataset/train/index.json"))["shards"].size();
  }

  std::string Path(const std::string& name) const { return (folder_.path() / name).string(); }
  const TestFolder& folder() const { return folder_; }
  size_t shards() const { return shards_; }

  // The override that trains on `remote`, with an empty cache of the given name ("": in place).
  std::string Stream(const std::string& remote, const std::string& cache, const std::string& more = "") const {
    const std::string local = cache.empty() ? "" : ", local: \"" + Path(cache) + "\"";
    return "data.streams={made: {remote: \"" + remote + "\"" + local + ", split: train" + more + "}}";
  }
  std::string EvalStream(const std::string& remote, const std::string& cache) const {
    return "data.eval_streams={held: {remote: \"" + remote + "\", local: \"" + Path(cache) + "\", split: validation}}";
  }
  std::vector<std::string> Arguments(const std::string& name, const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"train", Path("run.yaml"), "save_folder=" + Path(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // Runs to the end, expects the exit code, and returns what was printed.
  std::string Train(const std::string& name, const std::vector<std::string>& more, int code = 0) const {
    return Run(Arguments(name, more), code);
  }
  std::string Run(const std::vector<std::string>& arguments, int code = 0) const {
    integration::Program program(folder_.path(), arguments);
    const int found = program.Wait();
    const std::string text = program.err() + program.out();
    EXPECT_EQ(found, code) << text;
    return text;
  }
  std::string Weights(const std::string& name, int step = kSteps) const {
    char checkpoint[64];
    std::snprintf(checkpoint, sizeof(checkpoint), "/ckpt-%08dba/weights.safetensors", step);
    const std::string bytes = integration::ReadText(Path(name) + checkpoint);
    EXPECT_FALSE(bytes.empty()) << name << checkpoint;
    return bytes;
  }
  Json ReadJson(const std::string& path) const {
    Result<Json> json = ReadJsonFile(path);
    EXPECT_TRUE(json.ok()) << json.error().message;
    return json.ok() ? *json : Json();
  }
  Json Summary(const std::string& name) const { return ReadJson(Path(name + "/summary.json")); }
  // The losses of all steps; a run whose weights agree went the same way.
  std::vector<double> Losses(const std::string& name) const {
    std::vector<double> losses;
    std::istringstream text(integration::ReadText(Path(name + "/metrics.jsonl")));
    for (std::string line; std::getline(text, line);) {
      const Json json = Json::parse(line);
      if (json.contains("loss")) losses.push_back(json["loss"].get<double>());
    }
    return losses;
  }
  void ExpectReferenceBits(const std::string& name) const {
    EXPECT_TRUE(Weights(name) == Weights("reference")) << name << ": other weights than the reference";
    EXPECT_EQ(Losses(name), Losses("reference"));
  }
  // Runs until the step is in the metrics, then kills it. False where it ended before.
  bool KillAt(const std::string& name, const std::vector<std::string>& more, int step) const {
    integration::Program program(folder_.path(), Arguments(name, more));
    const std::string mark = "\"step\":" + std::to_string(step) + ",";
    EXPECT_TRUE(program.WaitUntil([&] {
      return integration::ReadText(Path(name + "/metrics.jsonl")).find(mark) != std::string::npos;
    })) << program.err();
    program.Signal(SIGKILL);
    return program.Wait() == -SIGKILL;
  }
  // A copy of the dataset to be damaged.
  std::string Copy(const std::string& name) const {
    std::filesystem::copy(Path("dataset"), Path(name), std::filesystem::copy_options::recursive);
    return Path(name);
  }

 private:
  const TestFolder& folder_;
  size_t shards_ = 0;
};

// Every file below `folder` that holds one of the words; the names of `except` are not looked into.
inline std::vector<std::string> FilesThatShow(const std::filesystem::path& folder,
                                              const std::vector<std::string>& words,
                                              const std::vector<std::string>& except = {}) {
  std::vector<std::string> found;
  std::error_code code;
  for (auto it = std::filesystem::recursive_directory_iterator(folder, code);
       it != std::filesystem::recursive_directory_iterator(); it.increment(code)) {
    if (std::find(except.begin(), except.end(), it->path().filename().string()) != except.end()) {
      it.disable_recursion_pending();
      continue;
    }
    if (!it->is_regular_file()) continue;
    const std::string text = integration::ReadText(it->path());
    for (const std::string& word : words) {
      if (text.find(word) != std::string::npos) found.push_back(it->path().string() + " shows " + word);
    }
  }
  return found;
}

// Answers shard requests until `limit` of them were made, then lets the others hang: a run that needs
// more waits there to be killed.
inline std::function<Fault(const ProxyRequest&)> HoldAfter(int limit) {
  auto seen = std::make_shared<std::atomic<int>>(0);
  return [seen, limit](const ProxyRequest& request) {
    Fault hold;
    if (request.method == "GET" && request.target.find("shard.") != std::string::npos && ++*seen > limit) {
      hold.kind = FaultKind::kStall;
      hold.seconds = 60;
    }
    return hold;
  };
}

}  // namespace tessera::services
