// How the stores behave when servers and networks do not.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/files.h"
#include "base/log.h"
#include "base/test_folder.h"
#include "base/time.h"
#include "fault_proxy.h"
#include "store/digests.h"
#include "store/http_store.h"
#include "store/s3_store.h"

namespace tessera {
namespace {

using services::Fault;
using services::FaultKind;
using services::FaultOptions;
using services::FaultProxy;
using services::ProxyRequest;
using services::S3ErrorAnswer;

constexpr char kAccess[] = "AKIATESTACCESSKEY";
constexpr char kSecret[] = "verySecretKeyOfTheTest";
constexpr char kToken[] = "sessionTokenOfTheTest";

std::string Bytes(size_t count) {
  std::string bytes(count, '\0');
  uint32_t state = 7;
  for (char& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

StoreOptions Quick() {
  StoreOptions options;
  options.retry.base_s = 0.001;
  options.retry.cap_s = 0.01;
  options.connections = 8;
  return options;
}

// An S3 store whose server is what `script` answers.
struct FakeS3 {
  explicit FakeS3(std::function<Fault(const ProxyRequest&)> script, StoreOptions options = Quick()) {
    FaultOptions fault;
    fault.script = std::move(script);
    fault.folder = "/nonexistent";
    proxy = *FaultProxy::Start(std::move(fault));
    options.endpoint = proxy->url();
    const auto environment = [](const char* name) -> std::optional<std::string> {
      const std::string_view wanted = name;
      if (wanted == "AWS_ACCESS_KEY_ID") return kAccess;
      if (wanted == "AWS_SECRET_ACCESS_KEY") return kSecret;
      if (wanted == "AWS_SESSION_TOKEN") return kToken;
      return std::nullopt;
    };
    store = *S3Store::Open("bucket", "", options, environment);
  }
  std::unique_ptr<FaultProxy> proxy;
  std::unique_ptr<ObjectStore> store;
};

Fault Answer(int status, std::string body = "", std::string head = "") {
  Fault fault;
  fault.kind = FaultKind::kAnswer;
  fault.status = status;
  fault.body = std::move(body);
  fault.head = std::move(head);
  return fault;
}

std::string EtagHead(const std::string& body) { return "ETag: \"" + Hex(Md5(body)) + "\"\r\n"; }

TEST(HttpStoreTest, ReadsRangesAndWholes) {
  const TestFolder folder;
  const std::string content = Bytes(3'000'000);
  folder.Write("data/a b.bin", content);
  folder.Write("data/empty", "");
  FaultOptions fault;
  fault.folder = folder.path().string();
  const auto proxy = *FaultProxy::Start(std::move(fault));
  StoreOptions options = Quick();
  options.part_bytes = 1 << 20;
  const auto store = *OpenHttpStore(proxy->url() + "/data/", options);
  EXPECT_EQ(*store->Get("a b.bin"), content);
  EXPECT_EQ(*store->Get("empty"), "");
  EXPECT_EQ(store->Head("a b.bin")->bytes, 3'000'000);
  std::string part(1000, ' ');
  ASSERT_TRUE(store->GetRange("a b.bin", 5000, std::as_writable_bytes(std::span(part))).ok());
  EXPECT_EQ(part, content.substr(5000, 1000));
  int64_t moved = 0;
  std::mutex mutex;
  ASSERT_TRUE(store->Download("a b.bin", (folder / "out").string(), {.progress = [&](int64_t bytes) {
    const std::lock_guard lock(mutex);
    moved += bytes;
  }}).ok());
  EXPECT_EQ(*ReadFile(folder / "out"), content);
  EXPECT_EQ(moved, 3'000'000);
  EXPECT_EQ(store->Get("a b.bin", 2'999'999).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(store->Get("missing").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store->Put("x", "y").error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(store->List({}).error().code, ErrorCode::kUnsupported);
  const Status behind = store->GetRange("a b.bin", 2'999'999, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(behind.error().code, ErrorCode::kCorrupt);
}

TEST(HttpStoreTest, SurvivesAServerThatFailsOften) {
  const TestFolder folder;
  std::vector<std::string> contents;
  for (int i = 0; i < 40; ++i) {
    contents.push_back(Bytes(static_cast<size_t>(20'000 + 777 * i)));
    folder.Write(std::to_string(i), contents.back());
  }
  FaultOptions fault;
  fault.folder = folder.path().string();
  fault.internal_error = 0.1;
  fault.slow_down = 0.1;
  fault.reset = 0.1;
  fault.truncate = 0.1;
  fault.lose_answer = 0.1;
  const auto proxy = *FaultProxy::Start(std::move(fault));
  StoreOptions options = Quick();
  options.part_bytes = 10'000;
  const auto store = *OpenHttpStore(proxy->url(), options);
  for (int i = 0; i < 40; ++i) {
    const auto got = store->Get(std::to_string(i));
    ASSERT_TRUE(got.ok()) << got.error().ToString();
    EXPECT_EQ(*got, contents[static_cast<size_t>(i)]);
    const std::string path = (folder / "out").string();
    ASSERT_TRUE(store->Download(std::to_string(i), path).ok());
    EXPECT_EQ(*ReadFile(path), contents[static_cast<size_t>(i)]);
  }
  EXPECT_GT(store->counters().retries, 20);
  EXPECT_GT(proxy->counters().faults, 20);
}

TEST(HttpStoreTest, FaultsDependOnTheSeedAlone) {
  const TestFolder folder;
  for (int i = 0; i < 30; ++i) folder.Write(std::to_string(i), Bytes(1000));
  const auto retries = [&](uint64_t seed) {
    FaultOptions fault;
    fault.folder = folder.path().string();
    fault.seed = seed;
    fault.internal_error = 0.3;
    const auto proxy = *FaultProxy::Start(std::move(fault));
    const auto store = *OpenHttpStore(proxy->url(), Quick());
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (int i = t; i < 30; i += 3) EXPECT_TRUE(store->Get(std::to_string(i)).ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
    return store->counters().retries;
  };
  const int64_t first = retries(1);
  EXPECT_GT(first, 0);
  EXPECT_EQ(retries(1), first);
}

TEST(HttpStoreTest, UserAndSignatureAreNotShown) {
  const TestFolder folder;
  FaultOptions fault;
  fault.script = [](const ProxyRequest& request) {
    EXPECT_EQ(request.Header("authorization"), "Basic " + Base64("user:passwort"));
    EXPECT_NE(request.target.find("?sig=q7XzUnseen"), std::string::npos);
    return Answer(403);
  };
  fault.folder = folder.path().string();
  const auto proxy = *FaultProxy::Start(std::move(fault));
  const std::string url = "http://user:passwort@" + proxy->url().substr(7) + "/d/x?sig=q7XzUnseen";
  const auto location = OpenObjectLocation(url, Quick());
  ASSERT_TRUE(location.ok());
  EXPECT_EQ(location->key, "x");
  const std::string text = location->store->Get("x").error().message + location->store->url();
  EXPECT_NE(text.find("/d/x"), std::string::npos);
  EXPECT_EQ(text.find("passwort"), std::string::npos);
  EXPECT_EQ(text.find("q7XzUnseen"), std::string::npos);
}

TEST(S3FaultTest, ErrorsSayWhatToDo) {
  struct Case {
    int status;
    const char* code;
    ErrorCode expected;
    const char* advice;
  };
  const Case cases[] = {
      {404, "NoSuchBucket", ErrorCode::kNotFound, "bucket 'bucket' does not exist"},
      {404, "NoSuchKey", ErrorCode::kNotFound, "does not exist"},
      {403, "InvalidAccessKeyId", ErrorCode::kInvalidArgument, "does not know the access key of AWS_ACCESS_KEY_ID"},
      {403, "SignatureDoesNotMatch", ErrorCode::kInvalidArgument, "secret key of AWS_ACCESS_KEY_ID"},
      {403, "AccessDenied", ErrorCode::kIo, "ask for the right to read"},
      {400, "ExpiredToken", ErrorCode::kInvalidArgument, "get a new one"},
      {501, "NotImplemented", ErrorCode::kUnsupported, "can't do this"},
      {400, "InvalidArgument", ErrorCode::kInvalidArgument, "HTTP 400 InvalidArgument: it is so (request fault-proxy)"},
  };
  for (const Case& c : cases) {
    std::atomic<int> requests{0};
    FakeS3 s3([&](const ProxyRequest&) {
      ++requests;
      return S3ErrorAnswer(c.status, c.code, "it is so");
    });
    const auto got = s3.store->Get("key");
    ASSERT_FALSE(got.ok());
    EXPECT_EQ(got.error().code, c.expected) << c.code;
    EXPECT_NE(got.error().message.find(c.advice), std::string::npos) << got.error().message;
    EXPECT_NE(got.error().message.find("s3://bucket/key"), std::string::npos);
    EXPECT_FALSE(got.error().retryable);
    // What is wrong for good is not tried again; a token may have been renewed in between.
    EXPECT_EQ(requests, std::string_view(c.code) == "ExpiredToken" ? 2 : 1) << c.code;
    // HEAD has no body, so the reason comes from a second request.
    const auto head = s3.store->Head("key");
    EXPECT_EQ(head.error().code, c.expected) << c.code;
  }
}

TEST(S3FaultTest, GivesUpAfterTheLastAttempt) {
  std::atomic<int> requests{0};
  StoreOptions options = Quick();
  options.retry.max_attempts = 5;
  FakeS3 s3([&](const ProxyRequest&) { ++requests; return services::SlowDown(); }, options);
  const auto got = s3.store->Get("key");
  EXPECT_EQ(requests, 5);
  EXPECT_EQ(got.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(got.error().retryable);
  EXPECT_NE(got.error().message.find("after 5 attempts"), std::string::npos) << got.error().message;
}

TEST(S3FaultTest, TotalTimeBoundsTheAttempts) {
  StoreOptions options = Quick();
  options.retry.max_attempts = 1000;
  options.retry.total_s = 0.3;
  FakeS3 s3([&](const ProxyRequest&) { return services::SlowDown(); }, options);
  const Stopwatch watch;
  EXPECT_FALSE(s3.store->Get("key").ok());
  // The bound, and generous room for the requests of a slow machine.
  EXPECT_LT(watch.Seconds(), 3);
}

TEST(S3FaultTest, HonoursRetryAfter) {
  FakeS3 s3([&](const ProxyRequest& request) {
    Fault fault = services::SlowDown();
    fault.head += "Retry-After: 1\r\n";
    return request.attempt == 1 ? fault : Answer(200, "content", EtagHead("content"));
  });
  const Stopwatch watch;
  EXPECT_EQ(*s3.store->Get("key"), "content");
  EXPECT_GE(watch.Seconds(), 1);
}

TEST(S3FaultTest, SignsWithTheServersTimeAndSaysSo) {
  const int64_t server_time = UnixSeconds() + 3 * 3600;
  const std::string date = "Date: " + [&] {
    char text[64];
    const time_t time = server_time;
    tm utc = {};
    ::gmtime_r(&time, &utc);
    return std::string(text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc));
  }() + "\r\n";
  bool relent = true;
  FakeS3 s3([&](const ProxyRequest& request) {
    // The date of the signature within 15 minutes of the server's: same hour is close enough here.
    if (relent && request.Header("x-amz-date") >= AmzDate(server_time - 900)) {
      return Answer(200, "content", EtagHead("content"));
    }
    Fault fault = S3ErrorAnswer(403, "RequestTimeTooSkewed", "The difference is too large.");
    fault.head += date;
    return fault;
  });
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(*s3.store->Get("key"), "content");
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find(UtcTimestamp(server_time)), std::string::npos) << log;
  relent = false;
  const auto refused = s3.store->Get("key");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find(UtcTimestamp(server_time)), std::string::npos);
  EXPECT_NE(refused.error().message.find("set the clock"), std::string::npos);
  // How far apart the clocks are; the request itself may take a second.
  EXPECT_TRUE(refused.error().message.find("3h") != std::string::npos ||
              refused.error().message.find("2h") != std::string::npos)
      << refused.error().message;
  EXPECT_NE(refused.error().message.find(" ahead"), std::string::npos) << refused.error().message;
}

TEST(S3FaultTest, ABrokenRangeGoesOnWhereItStopped) {
  const TestFolder folder;
  const std::string content = Bytes(1'000'000);
  folder.Write("bucket/key", content);
  std::vector<std::string> ranges;
  std::mutex mutex;
  FaultOptions fault;
  fault.folder = folder.path().string();
  fault.script = [&](const ProxyRequest& request) {
    const std::lock_guard lock(mutex);
    ranges.push_back(request.Header("range") + (request.Header("if-match").empty() ? "" : " pinned"));
    Fault cut;
    if (ranges.size() == 1) {
      cut.kind = FaultKind::kTruncate;
      cut.bytes = 300'000;
    }
    return cut;
  };
  const auto proxy = *FaultProxy::Start(std::move(fault));
  StoreOptions options = Quick();
  options.endpoint = proxy->url();
  options.anonymous = true;
  const auto store = *S3Store::Open("bucket", "", options, [](const char*) { return std::nullopt; });
  std::string out(900'000, ' ');
  ASSERT_TRUE(store->GetRange("key", 50'000, std::as_writable_bytes(std::span(out)), {}).ok());
  EXPECT_EQ(out, content.substr(50'000, 900'000));
  EXPECT_EQ(ranges, (std::vector<std::string>{"bytes=50000-949999", "bytes=350000-949999 pinned"}));
}

TEST(S3FaultTest, ReadsAgainWhatDoesNotFitItsChecksum) {
  const std::string content = Bytes(5000);
  std::atomic<int> requests{0};
  int damaged = 1;
  FakeS3 s3([&](const ProxyRequest&) {
    std::string body = content;
    if (++requests <= damaged) body[static_cast<size_t>(requests)] ^= 1;
    return Answer(200, body, EtagHead(content));
  });
  EXPECT_EQ(*s3.store->Get("key"), content);
  EXPECT_EQ(requests, 2);
  damaged = 100;
  requests = 0;
  const auto got = s3.store->Get("key");
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(requests, 3);
}

TEST(S3FaultTest, ComparesTheServersCrc32c) {
  const std::string content = "123456789";
  FakeS3 s3([&](const ProxyRequest& request) {
    EXPECT_EQ(request.Header("x-amz-checksum-mode"), "ENABLED");
    const bool good = request.target == "/bucket/good";
    return Answer(200, content, good ? "x-amz-checksum-crc32c: 4waSgw==\r\n" : "x-amz-checksum-crc32c: 4waSgg==\r\n");
  });
  EXPECT_TRUE(s3.store->Get("good").ok());
  const auto bad = s3.store->Get("bad");
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.error().message.find("CRC32C is e3069283, expected e3069282"), std::string::npos)
      << bad.error().message;
}

TEST(S3FaultTest, ComparesTheCrc32cOfItsOwnPuts) {
  std::string content, own, etag;
  std::mutex mutex;
  FakeS3 s3([&](const ProxyRequest& request) {
    const std::lock_guard lock(mutex);
    if (request.method == "PUT") {
      own = request.Header("x-amz-meta-tessera-crc32c");
      return Answer(200, "", EtagHead("123456789"));
    }
    return Answer(200, content, "x-amz-meta-tessera-crc32c: " + own + "\r\nETag: \"" + etag + "\"\r\n");
  });
  ASSERT_TRUE(s3.store->Put("key", "123456789").ok());
  EXPECT_EQ(own, "4waSgw== " + Hex(Md5("123456789")));
  etag = Hex(Md5("123456789"));
  content = "123456789";
  EXPECT_EQ(*s3.store->Get("key"), content);
  content = "123456788";
  const auto bad = s3.store->Get("key");
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.error().message.find("expected e3069283"), std::string::npos) << bad.error().message;
  // Written again by a program that kept the metadata: the etag tells, and counts.
  etag = Hex(Md5(content));
  EXPECT_EQ(*s3.store->Get("key"), content);
  content = "123456787";
  EXPECT_FALSE(s3.store->Get("key").ok());
}

TEST(S3FaultTest, ASmallObjectOfKnownSizeTakesOneRequest) {
  const TestFolder folder;
  const std::string content = Bytes(50'000);
  std::vector<std::string> requests;
  std::mutex mutex;
  std::string served = content;
  bool damage_first = false;
  FakeS3 s3([&](const ProxyRequest& request) {
    const std::lock_guard lock(mutex);
    requests.push_back(request.method);
    std::string body = served;
    if (damage_first && requests.size() == 1) body[7] ^= 1;
    if (request.method == "GET" && !request.Header("range").empty()) {
      return Answer(206, body, EtagHead(served) + "Content-Range: bytes 0-" + std::to_string(body.size() - 1) + "/" +
                                   std::to_string(body.size()) + "\r\n");
    }
    return Answer(200, body, EtagHead(served));
  });
  const std::string path = (folder / "out").string();
  std::vector<std::byte> scratch;
  const DownloadOptions known{.expected_bytes = 50'000, .scratch = &scratch};
  ASSERT_TRUE(s3.store->Download("key", path, known).ok());
  EXPECT_EQ(*ReadFile(path), content);
  EXPECT_EQ(requests, std::vector<std::string>{"GET"});
  requests.clear();
  damage_first = true;
  ASSERT_TRUE(s3.store->Download("key", path, known).ok());
  EXPECT_EQ(*ReadFile(path), content);
  EXPECT_EQ(requests, (std::vector<std::string>{"GET", "GET"}));
  // It has grown, or shrunk, since it was listed: read as it is now.
  damage_first = false;
  for (const size_t bytes : {60'000, 40'000}) {
    served = Bytes(bytes);
    ASSERT_TRUE(s3.store->Download("key", path, known).ok()) << bytes;
    EXPECT_EQ(*ReadFile(path), served);
  }
}

TEST(S3FaultTest, EtagsThatAreNoMd5AreNoDamage) {
  FakeS3 s3([&](const ProxyRequest&) {
    return Answer(200, "content", "ETag: \"0123456789abcdef0123456789abcdef\"\r\n");
  });
  EXPECT_EQ(*s3.store->Get("key"), "content");
  EXPECT_EQ(*s3.store->Get("key"), "content");
}

TEST(S3FaultTest, AConditionalPutWhoseAnswerWasLostIsRecognised) {
  std::string mark;
  bool own = true;
  FakeS3 s3([&](const ProxyRequest& request) {
    if (request.method == "PUT") {
      EXPECT_EQ(request.Header("if-none-match"), "*");
      Fault lost;
      lost.kind = FaultKind::kLoseAnswer;
      if (mark.empty()) {
        mark = request.Header("x-amz-meta-tessera-write");
        return lost;
      }
      return S3ErrorAnswer(412, "PreconditionFailed", "It exists.");
    }
    return Answer(200, "", "ETag: \"abc\"\r\nx-amz-meta-tessera-write: " + (own ? mark : "another") + "\r\n");
  });
  PutOptions options;
  options.if_absent = true;
  const auto put = s3.store->Put("lease", "mine", options);
  ASSERT_TRUE(put.ok()) << put.error().ToString();
  mark.clear();
  own = false;
  EXPECT_EQ(s3.store->Put("lease", "mine", options).error().code, ErrorCode::kExists);
}

// A server that takes multipart uploads; `script` goes before.
std::function<Fault(const ProxyRequest&)> Multipart(std::function<Fault(const ProxyRequest&)> script,
                                                    std::atomic<int>* aborted) {
  return [=](const ProxyRequest& request) {
    Fault fault = script(request);
    if (fault.kind != FaultKind::kNone) return fault;
    if (request.method == "DELETE") {
      ++*aborted;
      return Answer(204);
    }
    if (request.method == "POST" && request.target.ends_with("uploads=")) {
      return Answer(200, "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>");
    }
    if (request.method == "POST") {
      return Answer(200, "<CompleteMultipartUploadResult><ETag>\"x-2\"</ETag></CompleteMultipartUploadResult>");
    }
    return Answer(200, "", EtagHead(request.body));
  };
}

TEST(S3FaultTest, AnErrorWithinTheAnswerToCompleteIsTriedAgain) {
  std::atomic<int> aborted{0};
  std::atomic<int> completions{0};
  FakeS3 s3(Multipart(
      [&](const ProxyRequest& request) {
        if (request.method != "POST" || request.target.ends_with("uploads=")) return Fault();
        if (++completions > 1) return Fault();
        return Answer(200, "  <?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>m</Message></Error>");
      },
      &aborted));
  const auto put = s3.store->Put("key", Bytes(20 << 20), {});
  ASSERT_TRUE(put.ok()) << put.error().ToString();
  EXPECT_EQ(put->etag, "x-2");
  EXPECT_EQ(completions, 2);
  EXPECT_EQ(aborted, 0);
}

TEST(S3FaultTest, AFailedUploadIsAborted) {
  std::atomic<int> aborted{0};
  FakeS3 s3(Multipart(
      [&](const ProxyRequest& request) {
        if (request.target.find("partNumber=2") == std::string::npos) return Fault();
        return S3ErrorAnswer(403, "AccessDenied", "No.");
      },
      &aborted));
  EXPECT_EQ(s3.store->Put("key", Bytes(20 << 20), {}).error().code, ErrorCode::kIo);
  EXPECT_EQ(aborted, 1);
  {
    auto writer = s3.store->StartWrite("key", {});
    ASSERT_TRUE((*writer)->Write(Bytes(17 << 20)).ok());
  }
  EXPECT_EQ(aborted, 2);
}

TEST(S3FaultTest, CancelEndsARequestAndItsPauses) {
  std::atomic<bool> cancelled{false};
  StoreOptions options = Quick();
  options.cancelled = &cancelled;
  FakeS3 s3([&](const ProxyRequest&) {
    Fault fault;
    fault.kind = FaultKind::kStall;
    fault.seconds = 20;
    return fault;
  }, options);
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    cancelled = true;
  });
  const Stopwatch watch;
  const auto got = s3.store->Get("key");
  canceller.join();
  EXPECT_EQ(got.error().code, ErrorCode::kCancelled);
  EXPECT_LT(watch.Seconds(), 10);
}

TEST(S3FaultTest, ASilentServerIsATimeout) {
  StoreOptions options = Quick();
  options.stall_s = 1;
  options.retry.max_attempts = 1;
  FakeS3 s3([&](const ProxyRequest&) {
    Fault fault;
    fault.kind = FaultKind::kStall;
    fault.seconds = 20;
    return fault;
  }, options);
  const Stopwatch watch;
  EXPECT_EQ(s3.store->Get("key").error().code, ErrorCode::kTimeout);
  EXPECT_LT(watch.Seconds(), 10);
}

TEST(S3FaultTest, NoLogAndNoErrorShowsAKey) {
  const LogLevel before = CurrentLogLevel();
  SetLogLevel(LogLevel::kDebug);
  ::testing::internal::CaptureStderr();
  std::string errors;
  StoreOptions options = Quick();
  options.retry.max_attempts = 4;
  int round = 0;
  FakeS3 s3([&](const ProxyRequest& request) {
    // Servers do repeat what they got.
    const std::string echo = "<Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message><AWSAccessKeyId>" +
                             std::string(kAccess) + "</AWSAccessKeyId><CanonicalRequest>" +
                             request.Header("x-amz-security-token") + request.Header("authorization") +
                             "</CanonicalRequest></Error>";
    Fault reset;
    reset.kind = FaultKind::kReset;
    switch (round) {
      case 0: return Answer(403, echo);
      case 1: return Answer(503, echo);
      case 2: return reset;
      default: return Answer(500, "not xml " + request.Header("authorization"));
    }
  }, options);
  for (round = 0; round < 4; ++round) {
    errors += s3.store->Get("key").error().ToString();
    errors += s3.store->Head("key").error().ToString();
    errors += s3.store->Put("key", "content").error().ToString();
    errors += s3.store->List({}).error().ToString();
    errors += s3.store->Remove("key").error().ToString();
  }
  errors += s3.store->url() + ::testing::internal::GetCapturedStderr();
  SetLogLevel(before);
  EXPECT_NE(errors.find("s3://bucket/key"), std::string::npos);
  for (const char* secret : {kAccess, kSecret, kToken, "AWS4-HMAC", "Signature="}) {
    EXPECT_EQ(errors.find(secret), std::string::npos) << secret;
  }
}

}  // namespace
}  // namespace tessera
