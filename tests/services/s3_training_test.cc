// The built program trains from a real S3 server: the bits of the local folder, through failures and kills.
#include <gtest/gtest.h>

#include "s3_server.h"
#include "stream_runs.h"

namespace tessera::services {
namespace {

class S3Training : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!S3Server::Missing().empty()) return;
    ::setenv("TESSERA_LOG", "debug", 1);
    shared_ = new TestFolder;
    runs_ = new StreamRuns(*shared_);
    runs_->Run({"store", "cp", "-r", runs_->Path("dataset") + "/", "s3://bucket/dataset/"});
  }
  static void TearDownTestSuite() {
    ::unsetenv("TESSERA_LOG");
    delete runs_;
    delete shared_;
  }
  void SetUp() override {
    if (const std::string why = S3Server::Missing(); !why.empty()) GTEST_SKIP() << why;
  }
  void TearDown() override {
    if (shared_ == nullptr) return;
    EXPECT_EQ(FilesThatShow(shared_->path(), {S3Server::kAccess, S3Server::kSecret, "AWS4-HMAC"}),
              std::vector<std::string>());
  }
  // Sends the program's requests through a proxy while it lives.
  struct Through {
    explicit Through(FaultOptions fault) {
      fault.upstream_port = S3Server::port();
      proxy = *FaultProxy::Start(std::move(fault));
      ::setenv("AWS_ENDPOINT_URL", proxy->url().c_str(), 1);
    }
    ~Through() { ::setenv("AWS_ENDPOINT_URL", S3Server::Endpoint().c_str(), 1); }
    std::unique_ptr<FaultProxy> proxy;
  };

  static inline TestFolder* shared_ = nullptr;
  static inline StreamRuns* runs_ = nullptr;
};

TEST_F(S3Training, ColdCacheGivesTheBitsOfTheFolder) {
  runs_->Train("s3", {runs_->Stream("s3://bucket/dataset", "s3-cache"),
                      runs_->EvalStream("s3://bucket/dataset", "s3-cache")});
  runs_->ExpectReferenceBits("s3");
  const Json summary = runs_->Summary("s3");
  EXPECT_GT(summary["streams"]["streams"][0]["downloads"].get<size_t>(), runs_->shards() / 2);
  EXPECT_GT(summary["bits_per_byte"].get<double>(), 0);
}

TEST_F(S3Training, KilledRunsGoOnWithTheSameBits) {
  {
    FaultOptions hold;
    hold.script = HoldAfter(static_cast<int>(runs_->shards()) / 2);
    const Through holding(std::move(hold));
    ASSERT_TRUE(runs_->KillAt("killed", {runs_->Stream("s3://bucket/dataset", "killed-cache")}, 6));
  }
  runs_->Train("killed", {runs_->Stream("s3://bucket/dataset", "cold-cache"), "autoresume=true", "threads=2"});
  runs_->ExpectReferenceBits("killed");
}

TEST_F(S3Training, SlowAndFailingNetworksGiveTheSameBits) {
  FaultOptions fault;
  fault.latency_s = 0.02;
  fault.bandwidth_bytes_per_s = 100'000'000;
  fault.internal_error = fault.slow_down = fault.reset = fault.truncate = fault.lose_answer = 0.1;
  const Through failing(std::move(fault));
  runs_->Train("failing", {runs_->Stream("s3://bucket/dataset", "failing-cache")});
  runs_->ExpectReferenceBits("failing");
  EXPECT_GE(failing.proxy->counters().faults, 4);
}

TEST_F(S3Training, WrongKeysAndBucketsAreExplained) {
  const auto refused = [&](const std::string& name, const std::string& remote, int code,
                           const std::vector<std::string>& parts) {
    const std::string text = runs_->Train(name, {runs_->Stream(remote, name + "-cache")}, code);
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
    EXPECT_FALSE(std::filesystem::exists(runs_->Path(name + "/latest")));
  };
  refused("no-bucket", "s3://no-such-bucket/dataset", 3,
          {"stream 'made'", "bucket 'no-such-bucket' does not exist at " + S3Server::Endpoint()});
  refused("no-prefix", "s3://bucket/elsewhere", 3,
          {"stream 'made'", "s3://bucket/elsewhere/train/index.json", "does not exist", "check remote and split"});
  ::setenv("AWS_SECRET_ACCESS_KEY", "aWrongSecretKey", 1);
  refused("wrong-secret", "s3://bucket/dataset", 2, {"stream 'made'", "secret key of AWS_ACCESS_KEY_ID"});
  ::setenv("AWS_SECRET_ACCESS_KEY", S3Server::kSecret, 1);
  ::setenv("AWS_ACCESS_KEY_ID", "aWrongAccessKey", 1);
  refused("wrong-access", "s3://bucket/dataset", 2, {"stream 'made'", "does not know the access key"});
  ::setenv("AWS_ACCESS_KEY_ID", S3Server::kAccess, 1);
  EXPECT_EQ(FilesThatShow(shared_->path(), {"aWrongSecretKey"}), std::vector<std::string>());
}

}  // namespace
}  // namespace tessera::services
