// Where S3 is and how it is spoken to: the environment, then the profile files of Amazon's tools.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "store/http_client.h"
#include "store/object_store.h"

namespace tessera {

// The value of a variable, nullopt where it is not set or empty.
using Environment = std::function<std::optional<std::string>(const char* name)>;
Environment ProcessEnvironment();

using IniSection = std::map<std::string, std::string, std::less<>>;
// Section -> key -> value; keys in lower case, a nested key as "s3.addressing_style".
using IniFile = std::map<std::string, IniSection, std::less<>>;
// Errors name `source` and the line's number, never its text, which may hold a secret.
Result<IniFile> ParseIni(std::string_view text, std::string_view source);

// Both profile files: what the credentials file says goes before the config file.
struct AwsProfile {
  std::string name;
  bool found = false;
  IniSection values;
  std::string credentials_file, config_file;  // Where it was looked for.

  std::optional<std::string> Get(std::string_view key) const;
};
// `wanted`, or AWS_PROFILE, AWS_DEFAULT_PROFILE, "default". A named profile that is nowhere is an
// error; files that do not exist are empty.
Result<AwsProfile> ReadAwsProfile(const Environment& environment, const std::string& wanted);

struct S3Settings {
  std::optional<UrlParts> endpoint;  // Absent: Amazon's, by region.
  std::string endpoint_source;       // "S3_ENDPOINT_URL", "profile 'x'", ...
  std::string region = "us-east-1";
  bool path_style = false;  // https://host/bucket/key instead of https://bucket.host/key
  std::string ca_bundle;
  bool anonymous = false;
  UploadCheck upload_check = UploadCheck::kAuto;
};
Result<S3Settings> ReadS3Settings(const StoreOptions& options, const Environment& environment,
                                  const AwsProfile& profile, std::string_view bucket);

// A bucket that may stand before the host's name: DNS labels, and no dots, which wildcard
// certificates do not cover.
bool IsHostLabel(std::string_view bucket);

}  // namespace tessera
