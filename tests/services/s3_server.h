// Ceph's RADOS Gateway for the tests of one program: started before the first test, stopped after the last.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "base/test_folder.h"
#include "store/aws_config.h"
#include "store/s3_client.h"

namespace tessera::services {

// Keys and endpoint are in the environment, so that the built program finds them too.
class S3Server : public ::testing::Environment {
 public:
  static constexpr char kAccess[] = "testaccess";
  static constexpr char kSecret[] = "testsecretkey";

  explicit S3Server(std::string script) { script_ = std::move(script); }

  void SetUp() override {
    folder_.emplace();
    port_ = 12000 + 2 * (::getpid() % 10000);  // Below the ports that the system hands out.
    ::setenv("S3_SERVER_DIR", (*folder_ / "s3").c_str(), 1);
    const std::string command =
        script_ + " start " + std::to_string(port_) + " >" + (*folder_ / "env").string();
    started_ = WEXITSTATUS(std::system(command.c_str()));
    for (const char* name : {"S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"}) {
      ::unsetenv(name);
    }
    ::setenv("AWS_ACCESS_KEY_ID", kAccess, 1);
    ::setenv("AWS_SECRET_ACCESS_KEY", kSecret, 1);
    ::setenv("no_proxy", "127.0.0.1", 1);
    ::setenv("AWS_ENDPOINT_URL", Endpoint().c_str(), 1);
    if (started_ == 0) MakeBucket("bucket");
  }
  void TearDown() override {
    const std::string command = script_ + " stop";
    (void)std::system(command.c_str());
    folder_.reset();
  }

  // Why tests can't run; empty where the server runs.
  static std::string Missing() {
    if (started_ == 77) return "Ceph is not installed: tests/services/s3-server.sh install";
    return started_ == 0 ? "" : "Ceph did not start here: its log is above";
  }
  static int port() { return port_; }
  static std::string Endpoint() { return "http://127.0.0.1:" + std::to_string(port_); }
  // For files of the tests; the server's own lie in "s3".
  static TestFolder& folder() { return *folder_; }

  static void MakeBucket(const std::string& name) {
    const auto client = S3Client::Open(name, {}, ProcessEnvironment());
    ASSERT_TRUE(client.ok());
    S3Request request;
    request.method = "PUT";
    const S3Answer answer = (*client)->Send(request);
    ASSERT_TRUE(answer.ok()) << answer.response.status << " " << answer.error.message;
  }

 private:
  static inline std::string script_;
  static inline std::optional<TestFolder> folder_;
  static inline int port_ = 0;
  static inline int started_ = 1;
};

}  // namespace tessera::services
