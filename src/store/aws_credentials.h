// The chain of places that may give the keys of S3.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "store/aws_config.h"
#include "store/sigv4.h"

namespace tessera {

// Keys that are fetched anew before they expire. Thread-safe.
//   1. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
//   2. the profile: keys, or credential_process
//   3. AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN (Kubernetes)
//   4. AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI
//   5. the instance's metadata service (version 2), unless there is an endpoint of one's own or
//      AWS_EC2_METADATA_DISABLED=true
// A named profile goes before the variables, as in Amazon's tools.
class CredentialChain {
 public:
  CredentialChain(Environment environment, AwsProfile profile, bool named_profile,
                  bool own_endpoint, HttpClientOptions http);

  // The keys now; an error that names every place where none were found.
  Result<Credentials> Get();
  // Keys that the server called expired are not used again.
  void Expire();

 private:
  Result<Credentials> Find();
  Result<Credentials> FromProcess(const std::string& command);
  Result<Credentials> FromWebIdentity(const std::string& token_file, const std::string& role);
  Result<Credentials> FromContainer(const std::string& url);
  Result<Credentials> FromInstance(std::string* why_not);

  Environment environment_;
  AwsProfile profile_;
  bool named_profile_;
  bool own_endpoint_;
  HttpClientOptions http_;
  std::mutex mutex_;  // Guards known_ and current_.
  bool known_ = false;
  Credentials current_;
};

// The answer of credential_process, of containers and of the metadata service. Errors name `source`
// and the missing key, never a value.
Result<Credentials> ParseCredentialJson(std::string_view text, std::string source);
// "2025-01-31T12:34:56Z", -1 where it is no such time.
int64_t ParseIsoTime(std::string_view text);

}  // namespace tessera
