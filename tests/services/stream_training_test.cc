// Training from streams with the built program: cold caches, kills, bad networks, bad data.
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>

#include "base/time.h"
#include "small_disk.h"
#include "stream_runs.h"

namespace tessera::services {
namespace {

namespace fs = std::filesystem;
using integration::Program;
using integration::ReadText;
using integration::SmallDisk;

constexpr int kInput = 2, kFiles = 3, kDamaged = 4;
// What must never be seen, see TearDown.
constexpr char kAccess[] = "AKIAUNSEENACCESSKEY", kSecret[] = "unseenSecretKeyOfTheTest",
               kToken[] = "unseenSessionToken", kPassword[] = "unseenPassword", kSignature[] = "unseenSig";

class StreamTraining : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    for (const char* name : {"S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"}) ::unsetenv(name);
    ::setenv("AWS_ACCESS_KEY_ID", kAccess, 1);
    ::setenv("AWS_SECRET_ACCESS_KEY", kSecret, 1);
    ::setenv("AWS_SESSION_TOKEN", kToken, 1);
    ::setenv("no_proxy", "127.0.0.1", 1);
    ::setenv("TESSERA_LOG", "debug", 1);
    shared_ = new TestFolder;
    runs_ = new StreamRuns(*shared_);
  }
  static void TearDownTestSuite() {
    delete runs_;
    delete shared_;
  }
  void TearDown() override {
    // Logs, errors, metrics, checkpoints, caches: everything that any run of these tests left.
    EXPECT_EQ(FilesThatShow(shared_->path(), {kAccess, kSecret, kToken, kPassword, kSignature, "AWS4-HMAC"}),
              std::vector<std::string>());
  }

  static std::unique_ptr<FaultProxy> Serve(const std::string& folder, FaultOptions fault = {}) {
    fault.folder = folder;
    return *FaultProxy::Start(std::move(fault));
  }
  static std::string Path(const std::string& name) { return runs_->Path(name); }
  static void ExpectParts(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
    }
  }
  static std::vector<std::string> Shards(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      EXPECT_NE(name.rfind(".part-", 0), 0u) << name << " was left behind";
      EXPECT_NE(name.rfind(".tessera-tmp", 0), 0u) << name << " was left behind";
      if (entry.path().extension() == ".mds") names.push_back(name);
    }
    return names;
  }

  static inline TestFolder* shared_ = nullptr;
  static inline StreamRuns* runs_ = nullptr;
};

TEST_F(StreamTraining, ColdCacheGivesTheBitsOfTheFolder) {
  const auto server = Serve(Path("dataset"));
  runs_->Train("http", {runs_->Stream(server->url(), "http-cache"),
                        runs_->EvalStream(server->url(), "http-cache")});
  runs_->ExpectReferenceBits("http");
  const Json summary = runs_->Summary("http");
  EXPECT_GT(summary["eval_loss"].get<double>(), 0);
  EXPECT_GT(summary["bits_per_byte"].get<double>(), 0);
  EXPECT_EQ(summary["streams"]["streams"][0]["downloads"], Shards(Path("http-cache/train")).size());
  EXPECT_GT(Shards(Path("http-cache/train")).size(), runs_->shards() / 2);
  EXPECT_EQ(summary["streams"]["replaced_samples"], 0);
  EXPECT_GT(summary["data_wait_seconds"].get<double>(), 0);
  const std::string metrics = ReadText(Path("http/metrics.jsonl"));
  EXPECT_NE(metrics.find("\"data_wait_seconds\":"), std::string::npos);
  // The held-out stream is found by the checkpoint alone; sums are grouped by another batch size.
  const Json score = Json::parse(runs_->Run({"eval", Path("http"), "--json"}));
  EXPECT_NEAR(score["loss"].get<double>(), summary["eval_loss"].get<double>(), 1e-9);
  // A warm cache asks the server for nothing but the size of the index.
  const int64_t before = server->counters().answer_bytes;
  runs_->Train("warm", {runs_->Stream(server->url(), "http-cache")});
  runs_->ExpectReferenceBits("warm");
  EXPECT_EQ(server->counters().answer_bytes, before);
}

TEST_F(StreamTraining, KilledRunsGoOnWithTheSameBits) {
  FaultOptions hold;
  hold.script = HoldAfter(static_cast<int>(runs_->shards()) / 2);
  const auto holding = Serve(Path("dataset"), std::move(hold));
  const auto server = Serve(Path("dataset"));
  ASSERT_TRUE(runs_->KillAt("killed", {runs_->Stream(holding->url(), "killed-cache")}, 6));
  // With what the cache has by now, on another number of threads.
  const std::string text =
      runs_->Train("killed", {runs_->Stream(server->url(), "killed-cache"), "autoresume=true", "threads=2"});
  // How far it came before the kill depends on the machine.
  ExpectParts(text, {"resuming from", "(step "});
  runs_->ExpectReferenceBits("killed");

  // From an empty cache: only the shards of what is still to come are fetched.
  FaultOptions again;
  again.script = HoldAfter(static_cast<int>(runs_->shards()) / 2);
  const auto second = Serve(Path("dataset"), std::move(again));
  ASSERT_TRUE(runs_->KillAt("moved", {runs_->Stream(second->url(), "moved-cache")}, 10));
  runs_->Train("moved", {runs_->Stream(server->url(), "other-cache"), "autoresume=true", "threads=2"});
  runs_->ExpectReferenceBits("moved");
}

TEST_F(StreamTraining, SlowAndFailingNetworksGiveTheSameBits) {
  FaultOptions slow;
  slow.latency_s = 0.02;
  slow.bandwidth_bytes_per_s = 100'000'000;
  const auto far = Serve(Path("dataset"), std::move(slow));
  runs_->Train("slow", {runs_->Stream(far->url(), "slow-cache")});
  runs_->ExpectReferenceBits("slow");
  // A 5% chance of each fault; attempts of one request fail independently.
  FaultOptions failing;
  failing.internal_error = failing.slow_down = failing.reset = failing.truncate = failing.lose_answer = 0.05;
  failing.seed = 3;
  const auto bad = Serve(Path("dataset"), std::move(failing));
  runs_->Train("failing", {runs_->Stream(bad->url(), "failing-cache")});
  runs_->ExpectReferenceBits("failing");
  EXPECT_GE(bad->counters().faults, 4);
  // Each answer is damaged once on its way: the hash shows it and the shard is fetched again.
  FaultOptions flipping;
  flipping.script = [](const ProxyRequest& request) {
    Fault flip;
    if (request.method == "GET" && request.attempt == 1 && request.target.find("shard.") != std::string::npos) {
      flip.kind = FaultKind::kCorrupt;
      flip.bytes = 1234;
    }
    return flip;
  };
  const auto noisy = Serve(Path("dataset"), std::move(flipping));
  const std::string text = runs_->Train("noisy", {runs_->Stream(noisy->url(), "noisy-cache"),
                                                  "data.download_retry=3"});
  runs_->ExpectReferenceBits("noisy");
  ExpectParts(text, {"trying again (1 of 3)", "it was damaged or changed"});
}

TEST_F(StreamTraining, ProcessesShareOneCache) {
  const auto server = Serve(Path("dataset"));
  // At the same time, without a limit: every shard is fetched once by one of them.
  {
    Program first(shared_->path(), runs_->Arguments("share-1", {runs_->Stream(server->url(), "shared")}));
    Program second(shared_->path(), runs_->Arguments("share-2", {runs_->Stream(server->url(), "shared")}));
    EXPECT_EQ(first.Wait(), 0) << first.err();
    EXPECT_EQ(second.Wait(), 0) << second.err();
  }
  runs_->ExpectReferenceBits("share-1");
  runs_->ExpectReferenceBits("share-2");
  int64_t downloads = 0;
  for (const char* name : {"share-1", "share-2"}) {
    downloads += runs_->Summary(name)["streams"]["streams"][0]["downloads"].get<int64_t>();
  }
  EXPECT_EQ(downloads, static_cast<int64_t>(Shards(Path("shared/train")).size()));
  // With a limit of a few shards both evict, never what the other one reads; three epochs.
  const std::vector<std::string> tight = {runs_->Stream(server->url(), "tight"), "data.cache_limit=32KiB",
                                          "max_duration=48ba"};
  runs_->Train("long", {runs_->Stream(Path("dataset"), ""), "max_duration=48ba"});
  {
    Program first(shared_->path(), runs_->Arguments("tight-1", tight));
    Program second(shared_->path(), runs_->Arguments("tight-2", tight));
    EXPECT_EQ(first.Wait(), 0) << first.err();
    EXPECT_EQ(second.Wait(), 0) << second.err();
  }
  EXPECT_TRUE(runs_->Weights("tight-1", 48) == runs_->Weights("long", 48));
  EXPECT_TRUE(runs_->Weights("tight-2", 48) == runs_->Weights("long", 48));
  // One of them is killed while it writes; the other and a later one are not harmed.
  {
    Program victim(shared_->path(), runs_->Arguments("victim", {runs_->Stream(server->url(), "wounded")}));
    ASSERT_TRUE(victim.WaitUntil([&] { return fs::exists(Path("wounded/train/index.json")); }));
    Program other(shared_->path(), runs_->Arguments("other", {runs_->Stream(server->url(), "wounded")}));
    victim.Signal(SIGKILL);
    victim.Wait();
    EXPECT_EQ(other.Wait(), 0) << other.err();
  }
  runs_->ExpectReferenceBits("other");
  runs_->Train("later", {runs_->Stream(server->url(), "wounded")});
  runs_->ExpectReferenceBits("later");
  EXPECT_EQ(Shards(Path("wounded/train")).size(), Shards(Path("shared/train")).size());
}

TEST_F(StreamTraining, ADiskThatIsFullHoldsWhatFits) {
  // Fits about a third of the shards: what is needed last gives way.
  const auto server = Serve(Path("dataset"));
  {
    const SmallDisk disk(Path("small"), "48k");
    if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small file system";
    const std::string text = runs_->Train("small-run", {runs_->Stream(server->url(), "small/cache"),
                                                        "max_duration=48ba"});
    runs_->Train("small-reference", {runs_->Stream(Path("dataset"), ""), "max_duration=48ba"});
    EXPECT_TRUE(runs_->Weights("small-run", 48) == runs_->Weights("small-reference", 48));
    EXPECT_LT(Shards(Path("small/cache/train")).size(), runs_->shards());
    ExpectParts(text, {"the disk of its cache is full"});
  }
  // Not even one shard: the run ends with a message, and a checkpoint of what came before.
  const SmallDisk disk(Path("tiny"), "48k");
  ASSERT_TRUE(disk.mounted());
  const std::vector<std::string> arguments = {runs_->Stream(server->url(), "tiny/cache"), "data.cache_limit=20KiB"};
  runs_->Train("tiny-run", {arguments[0], arguments[1], "max_duration=4ba"});
  const std::string before = runs_->Weights("tiny-run", 4);
  const size_t present = Shards(Path("tiny/cache/train")).size();
  for (const std::string& name : Shards(Path("tiny/cache/train"))) fs::remove(Path("tiny/cache/train/") + name);
  {
    std::ofstream filler(Path("tiny/filler"), std::ios::binary);
    const std::string block(512, 'x');
    while (filler.write(block.data(), 512).flush()) {
    }
  }
  EXPECT_GT(present, 0u);
  const std::string text = runs_->Train("tiny-run", {arguments[0], arguments[1], "autoresume=true"}, kFiles);
  ExpectParts(text, {"the disk of the cache '" + Path("tiny/cache/train") + "' is full", "needed", "cache_limit",
                     "stream 'made'", "shard.000"});
  EXPECT_TRUE(runs_->Weights("tiny-run", 4) == before);
  fs::remove(Path("tiny/filler"));
  runs_->Train("tiny-run", {arguments[0], arguments[1], "autoresume=true"});
  runs_->ExpectReferenceBits("tiny-run");
}

TEST_F(StreamTraining, BadShardsAreNamedOrReplaced) {
  const std::string remote = runs_->Copy("bad");
  fs::resize_file(remote + "/train/shard.00002.mds", 1500);
  fs::remove(remote + "/train/shard.00005.mds");
  {
    std::fstream file(remote + "/train/shard.00007.mds", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(2000);
    file.put('\x7f');
  }
  const auto server = Serve(remote);
  const std::string text = runs_->Train("bad-run", {runs_->Stream(server->url(), "bad-cache"),
                                                    "data.download_retry=1"}, kDamaged);
  // Whichever of the three comes first in the order: which step, stream, sample and shard, and the way out.
  ExpectParts(text, {"step ", "sample ", "stream 'made', shard '" + server->url() + "/train/shard.000",
                     "replace_bad_samples: true"});
  // The same substitutes in every repetition, whatever the cache and the threads.
  std::vector<std::string> replace = {runs_->Stream(server->url(), "replace-cache"), "data.download_retry=0",
                                      "data.replace_bad_samples=true"};
  const std::string log = runs_->Train("replaced", replace);
  ExpectParts(log, {"shard given up: stream 'made', shard '" + server->url() + "/train/shard.00002.mds': it has 1500 bytes, "
                    "the index says ",
                    "shard.00005.mds", "it does not exist", "shard.00007.mds", "it was damaged or changed",
                    " of stream 'made' is replaced by sample ", "bad data", "3 shards given up"});
  const Json summary = runs_->Summary("replaced");
  EXPECT_GT(summary["streams"]["replaced_samples"].get<int64_t>(), 5);
  EXPECT_EQ(summary["streams"]["bad_shards"].size(), 3u);
  EXPECT_EQ(summary["steps"], kSteps);
  FaultOptions hold;
  hold.script = HoldAfter(static_cast<int>(runs_->shards()) / 2);
  const auto holding = Serve(remote, std::move(hold));
  replace[0] = runs_->Stream(holding->url(), "replace-killed");
  ASSERT_TRUE(runs_->KillAt("replaced-killed", replace, 6));
  replace[0] = runs_->Stream(server->url(), "replace-killed");
  replace.insert(replace.end(), {"autoresume=true", "threads=2"});
  runs_->Train("replaced-killed", replace);
  EXPECT_TRUE(runs_->Weights("replaced-killed") == runs_->Weights("replaced"));
  EXPECT_EQ(runs_->Summary("replaced-killed")["streams"]["replaced_samples"], summary["streams"]["replaced_samples"]);
}

TEST_F(StreamTraining, BadIndexesAreRefusedBeforeTraining) {
  const auto train = [&](const std::string& name, int code, const std::vector<std::string>& parts) {
    const auto server = Serve(Path(name));
    ExpectParts(runs_->Train(name + "-run", {runs_->Stream(server->url(), name + "-cache")}, code), parts);
    EXPECT_FALSE(fs::exists(Path(name + "-run/latest")));
  };
  shared_->Write("no-shards/train/index.json", R"({"shards": [], "version": 2})");
  train("no-shards", kInput, {"stream 'made'", "/train/index.json' lists 0 shards and no samples"});
  shared_->Write("cut-index/train/index.json", ReadText(Path("dataset/train/index.json")).substr(0, 900));
  train("cut-index", kDamaged, {"stream 'made'", "index.json", "not valid JSON"});
  shared_->Write("no-index/train/readme", "x");
  train("no-index", kFiles, {"stream 'made'", "/train/index.json: it does not exist (HTTP 404); check remote and split"});
  shared_->Write("lies/train/index.json", R"({"shards": [{"format": "mds", "samples": -5}], "version": 2})");
  train("lies", kDamaged, {"stream 'made'", "index.json"});
}

TEST_F(StreamTraining, RefusalsOfS3AreExplained) {
  struct Case {
    const char* name;
    int status;
    const char* code;
    int exit;
    std::vector<std::string> parts;
  };
  const Case cases[] = {
      {"bucket", 404, "NoSuchBucket", kFiles, {"bucket 'bucket' does not exist at http://127.0.0.1:"}},
      {"access", 403, "InvalidAccessKeyId", kInput, {"does not know the access key of AWS_ACCESS_KEY_ID"}},
      {"secret", 403, "SignatureDoesNotMatch", kInput, {"the secret key of AWS_ACCESS_KEY_ID"}},
      {"rights", 403, "AccessDenied", kFiles, {"ask for the right to read"}},
      {"clock", 403, "RequestTimeTooSkewed", kInput, {"this machine's clock says ", "3h", "ahead", "set the clock"}},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.name);
    FaultOptions fault;
    fault.script = [&](const ProxyRequest& request) {
      Fault refuse = S3ErrorAnswer(test.status, test.code, "No: " + request.Header("authorization"));
      char date[64];
      const time_t server_time = UnixSeconds() + 3 * 3600;
      tm utc = {};
      ::gmtime_r(&server_time, &utc);
      std::strftime(date, sizeof(date), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &utc);
      if (std::string_view(test.name) == "clock") refuse.head += date;
      return refuse;
    };
    const auto s3 = Serve("/nonexistent", std::move(fault));
    ::setenv("AWS_ENDPOINT_URL", s3->url().c_str(), 1);
    std::vector<std::string> parts = test.parts;
    parts.push_back("stream 'made'");
    const std::string name = std::string("refused-") + test.name;
    ExpectParts(runs_->Train(name, {runs_->Stream("s3://bucket/data", name + "-cache")}, test.exit), parts);
    ::unsetenv("AWS_ENDPOINT_URL");
    EXPECT_FALSE(fs::exists(Path(name + "/latest")));
  }
}

TEST_F(StreamTraining, CredentialsOfAUrlAreNowhereWritten) {
  // TearDown looks through everything that was printed and written.
  FaultOptions fault;
  fault.script = [](const ProxyRequest& request) {
    EXPECT_NE(request.target.find("sig=unseenSig"), std::string::npos);
    EXPECT_EQ(request.Header("authorization").rfind("Basic ", 0), 0u);
    return Fault();
  };
  const auto server = Serve(Path("dataset"), std::move(fault));
  const std::string url = "http://user:" + std::string(kPassword) + "@" + server->url().substr(7) + "?sig=" + kSignature;
  Program program(shared_->path(), runs_->Arguments("private", {runs_->Stream(url, "private-cache"),
                                                                 "max_duration=1000000ba"}));
  ASSERT_TRUE(program.WaitUntil([&] { return fs::exists(Path("private/latest")); })) << program.err();
  program.Signal(SIGTERM);
  EXPECT_EQ(program.Wait(), 0) << program.err();
  ExpectParts(program.out(), {"go on with", "autoresume=true"});
  ExpectParts(ReadText(Path("private/run.yaml")), {server->url()});
  // And where it fails.
  const auto empty = Serve(Path("corpus"));
  const std::string wrong = "http://user:" + std::string(kPassword) + "@" + empty->url().substr(7) + "?sig=" + kSignature;
  ExpectParts(runs_->Train("private-wrong", {runs_->Stream(wrong, "private-wrong-cache")}, kFiles),
              {"stream 'made'", empty->url() + "/train/index.json"});
}

}  // namespace
}  // namespace tessera::services
