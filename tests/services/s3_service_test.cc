// The S3 store against a real server, Ceph's RADOS Gateway, directly and through the fault proxy.
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/time.h"
#include "fault_proxy.h"
#include "s3_server.h"
#include "store/digests.h"
#include "store/s3_client.h"
#include "store/s3_store.h"

namespace tessera {
namespace {

using services::Fault;
using services::FaultKind;
using services::FaultOptions;
using services::FaultProxy;
using services::ProxyRequest;
using services::S3Server;

std::string Bytes(size_t count, uint64_t seed) {
  std::string bytes(count, '\0');
  const RngKey key{.seed = seed, .purpose = RngPurpose::kSampling};
  for (size_t i = 0; i < count; i += 16) {
    const auto block = key.Block(i / 16);
    std::memcpy(bytes.data() + i, block.data(), std::min<size_t>(16, count - i));
  }
  return bytes;
}

[[maybe_unused]] const auto* const server =
    ::testing::AddGlobalTestEnvironment(new S3Server(TESSERA_SOURCE_DIR "/tests/services/s3-server.sh"));

class S3ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = S3Server::Missing(); !why.empty()) GTEST_SKIP() << why;
  }

  static std::unique_ptr<ObjectStore> Open(const std::string& url, StoreOptions options = {}) {
    auto store = OpenObjectStore(url, options);
    EXPECT_TRUE(store.ok()) << store.error().ToString();
    return *std::move(store);
  }

  static std::unique_ptr<FaultProxy> Proxy(FaultOptions options) {
    options.upstream_port = S3Server::port();
    return *FaultProxy::Start(std::move(options));
  }
};

TEST_F(S3ServiceTest, PutsReadsListsAndRemoves) {
  const auto store = Open("s3://bucket/basic");
  // Names that a wrong encoding or signature would break.
  const std::vector<std::string> keys = {
      "plain", "with space", "plus+plus", "percent%41", "a=b&c=d", "ümlaut/日本", "tilde~-_.",
      "quote'\"", "semi;colon,comma", "star*(paren)!", "hash#query?", "at@dollar$", "a:b", "<xml>&amp;"};
  for (const std::string& key : keys) {
    const auto put = store->Put(key, "content of " + key);
    ASSERT_TRUE(put.ok()) << put.error().ToString();
    EXPECT_EQ(put->etag, Hex(Md5("content of " + key)));
  }
  for (const std::string& key : keys) {
    const auto head = store->Head(key);
    ASSERT_TRUE(head.ok()) << head.error().ToString();
    EXPECT_EQ(head->bytes, static_cast<int64_t>(11 + key.size()));
    EXPECT_NEAR(static_cast<double>(head->modified_unix_s), static_cast<double>(UnixSeconds()), 120);
    EXPECT_EQ(*store->Get(key), "content of " + key);
  }
  std::vector<std::string> listed;
  ASSERT_TRUE(ForEachObject(*store, "", [&](const ObjectInfo& object) {
    listed.push_back(object.key);
    return Status();
  }).ok());
  std::vector<std::string> sorted = keys;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(listed, sorted);
  for (const std::string& key : keys) {
    ASSERT_TRUE(store->Remove(key).ok());
    EXPECT_TRUE(store->Remove(key).ok());
    EXPECT_EQ(store->Head(key).error().code, ErrorCode::kNotFound);
  }
}

TEST_F(S3ServiceTest, ListsByPages) {
  const auto store = Open("s3://bucket/pages");
  for (int i = 0; i < 25; ++i) {
    ASSERT_TRUE(store->Put("folder" + std::to_string(i % 3) + "/" + std::to_string(i), "x").ok());
  }
  ListOptions options;
  options.max_keys = 4;
  std::vector<std::string> keys;
  int pages = 0;
  do {
    const auto page = store->List(options);
    ASSERT_TRUE(page.ok()) << page.error().ToString();
    EXPECT_LE(page->objects.size(), 4u);
    for (const ObjectInfo& object : page->objects) keys.push_back(object.key);
    options.page = page->next_page;
    ++pages;
  } while (!options.page.empty());
  EXPECT_EQ(keys.size(), 25u);
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_EQ(pages, 7);
  ListOptions level;
  level.one_level = true;
  const auto page = store->List(level);
  EXPECT_EQ(page->folders, (std::vector<std::string>{"folder0/", "folder1/", "folder2/"}));
  EXPECT_TRUE(page->objects.empty());
}

TEST_F(S3ServiceTest, EachUploadCheckIsAccepted) {
  for (const UploadCheck check : {UploadCheck::kMd5, UploadCheck::kCrc32c, UploadCheck::kSha256}) {
    StoreOptions options;
    options.upload_check = check;
    const auto store = Open("s3://bucket/checks", options);
    ASSERT_TRUE(store->Put("small", "content").ok());
    EXPECT_EQ(*store->Get("small"), "content");
    const std::string large = Bytes(20 << 20, 3);
    const auto put = store->Put("large", large);
    ASSERT_TRUE(put.ok()) << put.error().ToString();
    EXPECT_EQ(*store->Get("large"), large);
  }
}

TEST_F(S3ServiceTest, ConditionsHaveOneWinner) {
  const auto store = Open("s3://bucket/conditions");
  PutOptions absent;
  absent.if_absent = true;
  const auto first = store->Put("lease", "first", absent);
  ASSERT_TRUE(first.ok()) << first.error().ToString();
  const auto second = store->Put("lease", "second", absent);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kExists);
  EXPECT_EQ(*store->Get("lease"), "first");
  PutOptions match;
  match.if_match = first->etag;
  ASSERT_TRUE(store->Put("lease", "third", match).ok());
  EXPECT_EQ(store->Put("lease", "fourth", match).error().code, ErrorCode::kExists);
  EXPECT_EQ(*store->Get("lease"), "third");
}

TEST_F(S3ServiceTest, StreamedWritesAppearAtTheEnd) {
  const auto store = Open("s3://bucket/stream");
  const std::string content = Bytes(40 << 20, 5);
  auto writer = store->StartWrite("object", {});
  ASSERT_TRUE(writer.ok());
  for (size_t at = 0; at < content.size(); at += 3'000'017) {
    ASSERT_TRUE((*writer)->Write(std::string_view(content).substr(at, 3'000'017)).ok());
  }
  EXPECT_EQ(store->Head("object").error().code, ErrorCode::kNotFound);
  const auto done = (*writer)->Finish();
  ASSERT_TRUE(done.ok()) << done.error().ToString();
  EXPECT_EQ(done->bytes, static_cast<int64_t>(content.size()));
  EXPECT_EQ(*store->Get("object"), content);
  auto small = store->StartWrite("small", {});
  ASSERT_TRUE((*small)->Write("tiny").ok());
  ASSERT_TRUE((*small)->Finish().ok());
  EXPECT_EQ(*store->Get("small"), "tiny");
  {
    auto abandoned = store->StartWrite("abandoned", {});
    ASSERT_TRUE((*abandoned)->Write(content).ok());
  }
  EXPECT_EQ(store->Head("abandoned").error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(store->PendingWrites()->empty());
}

TEST_F(S3ServiceTest, FindsAndAbandonsWhatAKilledWriterLeft) {
  S3Server::MakeBucket("killed");
  StoreOptions options;
  const auto client = S3Client::Open("killed", options, ProcessEnvironment());
  S3Request request;
  request.method = "POST";
  request.key = "folder/left behind";
  request.query = {{"uploads", ""}};
  ASSERT_TRUE((*client)->Send(request).ok());
  const auto store = Open("s3://killed/folder");
  const auto pending = store->PendingWrites();
  ASSERT_TRUE(pending.ok()) << pending.error().ToString();
  ASSERT_EQ(pending->size(), 1u);
  EXPECT_EQ((*pending)[0].key, "left behind");
  ASSERT_TRUE(store->AbandonWrite((*pending)[0]).ok());
  EXPECT_TRUE(store->PendingWrites()->empty());
}

TEST_F(S3ServiceTest, AnUploadSurvivesAKilledConnectionAtEveryPart) {
  // 64 MiB; TESSERA_TEST_UPLOAD_MB=1024 for the whole gigabyte.
  const char* wanted = std::getenv("TESSERA_TEST_UPLOAD_MB");
  const size_t bytes = static_cast<size_t>(wanted != nullptr ? std::atoi(wanted) : 64) << 20;
  const std::filesystem::path file = S3Server::folder().Write("upload", Bytes(bytes, 9));
  FaultOptions fault;
  std::atomic<int> killed{0};
  fault.script = [&](const ProxyRequest& request) {
    Fault kill;
    if (request.method == "PUT" && request.target.find("partNumber=") != std::string::npos) {
      // Once within the body, once after the server has the part.
      if (request.attempt == 1) {
        kill.kind = FaultKind::kResetInBody;
        kill.bytes = 1'000'000;
        ++killed;
      } else if (request.attempt == 2) {
        kill.kind = FaultKind::kLoseAnswer;
        ++killed;
      }
    } else if (request.method == "POST" && request.attempt == 1 &&
               request.target.find("uploadId=") != std::string::npos) {
      kill.kind = FaultKind::kLoseAnswer;
      ++killed;
    }
    return kill;
  };
  const auto proxy = Proxy(std::move(fault));
  StoreOptions options;
  options.endpoint = proxy->url();
  options.retry.cap_s = 0.5;
  const auto store = Open("s3://bucket/survive", options);
  const auto up = store->Upload(file.string(), "object");
  ASSERT_TRUE(up.ok()) << up.error().ToString();
  EXPECT_EQ(up->bytes, static_cast<int64_t>(bytes));
  EXPECT_EQ(killed, static_cast<int>(2 * ((bytes + (8 << 20) - 1) / (8 << 20)) + 1));
  const std::string back = (S3Server::folder() / "back").string();
  const auto down = Open("s3://bucket/survive")->Download("object", back);
  ASSERT_TRUE(down.ok()) << down.error().ToString();
  const auto a = MappedFile::Open(file);
  const auto b = MappedFile::Open(back);
  ASSERT_EQ(a->size(), b->size());
  EXPECT_EQ(std::memcmp(a->data(), b->data(), bytes), 0);
  EXPECT_TRUE(store->PendingWrites()->empty());
}

TEST_F(S3ServiceTest, AStoreThatFailsOftenGivesTheSameBytes) {
  FaultOptions fault;
  fault.internal_error = 0.05;
  fault.slow_down = 0.05;
  fault.reset = 0.05;
  fault.truncate = 0.05;
  fault.lose_answer = 0.05;
  const auto proxy = Proxy(std::move(fault));
  StoreOptions options;
  options.endpoint = proxy->url();
  options.retry.base_s = 0.005;
  options.retry.cap_s = 0.05;
  options.part_bytes = 1 << 20;
  const auto store = Open("s3://bucket/often", options);
  for (int i = 0; i < 30; ++i) {
    const std::string key = "object" + std::to_string(i);
    const std::string content = Bytes(static_cast<size_t>(100'000 * i + 7), static_cast<uint64_t>(i));
    PutOptions put;
    put.if_absent = i % 2 == 0;
    const auto written = store->Put(key, content, put);
    ASSERT_TRUE(written.ok()) << written.error().ToString();
    EXPECT_EQ(*store->Get(key), content);
    const std::string path = (S3Server::folder() / "often").string();
    const auto down = store->Download(key, path);
    ASSERT_TRUE(down.ok()) << down.error().ToString();
    EXPECT_EQ(*ReadFile(path), content);
  }
  EXPECT_GT(store->counters().retries, 10);
}

TEST_F(S3ServiceTest, DamageOnTheWayIsSeenAndReadAgain) {
  const std::string content = Bytes(3 << 20, 11);
  ASSERT_TRUE(Open("s3://bucket/damage")->Put("object", content).ok());
  FaultOptions fault;
  fault.script = [](const ProxyRequest& request) {
    Fault flip;
    if (request.method == "GET" && request.attempt == 1) {
      flip.kind = FaultKind::kCorrupt;
      flip.bytes = 12345;
    }
    return flip;
  };
  const auto proxy = Proxy(std::move(fault));
  StoreOptions options;
  options.endpoint = proxy->url();
  options.part_bytes = 1 << 20;
  const auto store = Open("s3://bucket/damage", options);
  const std::string path = (S3Server::folder() / "damaged").string();
  const auto down = store->Download("object", path);
  ASSERT_TRUE(down.ok()) << down.error().ToString();
  EXPECT_EQ(*ReadFile(path), content);
  options.verify_reads = false;
  const auto proxy_again = Proxy([] {
    FaultOptions same;
    same.script = [](const ProxyRequest& request) {
      Fault flip;
      if (request.method == "GET") flip.kind = FaultKind::kCorrupt;
      return flip;
    };
    return same;
  }());
  options.endpoint = proxy_again->url();
  // Without verification the damage comes through: the check above can fail.
  EXPECT_NE(*Open("s3://bucket/damage", options)->Get("object"), content);
}

TEST_F(S3ServiceTest, ConnectionsAreKept) {
  StoreOptions options;
  options.connections = 4;
  const auto store = Open("s3://bucket/kept", options);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) {
        EXPECT_TRUE(store->Put(std::to_string(t) + "/" + std::to_string(i), "x").ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store->counters().requests, 200);
  EXPECT_LE(store->counters().connections_opened, 8);
}

TEST_F(S3ServiceTest, WrongKeysBucketsAndEndpointsAreExplained) {
  const auto missing = Open("s3://no-such-bucket");
  EXPECT_NE(missing->List({}).error().message.find("bucket 'no-such-bucket' does not exist"), std::string::npos);
  EXPECT_NE(missing->Head("key").error().message.find("bucket 'no-such-bucket' does not exist"), std::string::npos);
  EXPECT_NE(missing->Put("key", "x").error().message.find("bucket 'no-such-bucket' does not exist"), std::string::npos);
  ::setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret", 1);
  const auto wrong_secret = Open("s3://bucket");
  const std::string message = wrong_secret->Head("key").error().message;
  EXPECT_NE(message.find("secret key of AWS_ACCESS_KEY_ID"), std::string::npos) << message;
  EXPECT_EQ(message.find("wrongsecret"), std::string::npos);
  ::setenv("AWS_SECRET_ACCESS_KEY", "testsecretkey", 1);
  ::setenv("AWS_ACCESS_KEY_ID", "wrongaccess", 1);
  EXPECT_NE(Open("s3://bucket")->List({}).error().message.find("does not know the access key"), std::string::npos);
  ::setenv("AWS_ACCESS_KEY_ID", "testaccess", 1);
  StoreOptions tls;
  tls.endpoint = "https://127.0.0.1:" + std::to_string(S3Server::port());
  EXPECT_NE(Open("s3://bucket", tls)->List({}).error().message.find("the TLS connection"), std::string::npos);
}

TEST_F(S3ServiceTest, TheCommandCopiesBothWays) {
  const auto run = [&](const std::string& arguments) {
    const std::string out = (S3Server::folder() / "command.out").string();
    const std::string command = std::string(TESSERA_BINARY) + " store " + arguments + " >" + out + " 2>" + out + ".err";
    const int code = WEXITSTATUS(std::system(command.c_str()));
    const std::string text = *ReadFile(out);
    const std::string errors = *ReadFile(out + ".err");
    EXPECT_EQ((text + errors).find("testsecretkey"), std::string::npos);
    return std::pair(code, text + (code != 0 ? errors : ""));
  };
  for (int i = 0; i < 5; ++i) S3Server::folder().Write("tree/sub/" + std::to_string(i), Bytes(1000, static_cast<uint64_t>(i)));
  const std::string tree = (S3Server::folder() / "tree").string();
  const auto up = run("cp -r --json " + tree + " s3://bucket/command/");
  ASSERT_EQ(up.first, 0) << up.second;
  EXPECT_EQ(Json::parse(up.second)["objects"], 5);
  const auto list = run("ls -r --json s3://bucket/command/");
  ASSERT_EQ(list.first, 0);
  EXPECT_EQ(Json::parse(list.second)["objects"].size(), 5u);
  EXPECT_EQ(Json::parse(list.second)["objects"][0]["key"], "command/sub/0");
  const auto down = run("cp -r s3://bucket/command/ " + (S3Server::folder() / "down").string());
  ASSERT_EQ(down.first, 0) << down.second;
  EXPECT_EQ(*ReadFile(S3Server::folder() / "down/sub/3"), Bytes(1000, 3));
  EXPECT_EQ(run("cat s3://bucket/command/sub/3").second, Bytes(1000, 3));
  const auto relay = run("cp s3://bucket/command/sub/3 s3://bucket/relayed/");
  ASSERT_EQ(relay.first, 0) << relay.second;
  EXPECT_EQ(Json::parse(run("stat --json s3://bucket/relayed/3").second)["bytes"], 1000);
  ASSERT_EQ(run("rm -r s3://bucket/command/").first, 0);
  EXPECT_EQ(run("stat s3://bucket/command/sub/3").first, 3);
  EXPECT_EQ(run("rm s3://bucket/command/sub/3").first, 3);
}

}  // namespace
}  // namespace tessera
