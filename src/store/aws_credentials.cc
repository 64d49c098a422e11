#include "store/aws_credentials.h"

#include <fmt/format.h>
#include <stdio.h>
#include <time.h>

#include <cstring>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "base/time.h"
#include "store/s3_xml.h"

namespace tessera {

namespace {

constexpr int64_t kRefreshBeforeExpiry_s = 300;
constexpr int64_t kMaxAnswerBytes = int64_t{1} << 20;

constexpr std::string_view kWhatToDo =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or TESSERA_S3_ANONYMOUS=1 for a "
    "public bucket";

Result<std::string> Member(const Json& object, const char* key, const std::string& source) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string()) {
    return InvalidArgument(fmt::format("the keys from {} have no '{}'", source, key));
  }
  return it->get<std::string>();
}

Error NoAnswer(std::string_view source, const HttpResponse& response) {
  return Error{ErrorCode::kUnavailable,
               fmt::format("no keys from {}: {}", source,
                           response.status != 0 ? fmt::format("HTTP status {}", response.status)
                                                : response.failure_text),
               true};
}

}  // namespace

int64_t ParseIsoTime(std::string_view text) {
  tm utc = {};
  const std::string copy(text.substr(0, 19));
  const char* end = ::strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%S", &utc);
  if (end == nullptr || *end != '\0' || copy.size() != 19) return -1;
  return ::timegm(&utc);
}

Result<Credentials> ParseCredentialJson(std::string_view text, std::string source) {
  // The parser's own error would quote the text.
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return InvalidArgument(fmt::format("the answer of {} is no JSON object", source));
  }
  Credentials credentials;
  TESSERA_ASSIGN(std::string access, Member(json, "AccessKeyId", source));
  TESSERA_ASSIGN(std::string secret, Member(json, "SecretAccessKey", source));
  credentials.access_key = Secret(std::move(access));
  credentials.secret_key = Secret(std::move(secret));
  for (const char* key : {"SessionToken", "Token"}) {
    const auto it = json.find(key);
    if (it != json.end() && it->is_string()) {
      credentials.session_token = Secret(it->get<std::string>());
    }
  }
  const auto expiry = json.find("Expiration");
  if (expiry != json.end() && expiry->is_string()) {
    credentials.expires_unix_s = ParseIsoTime(expiry->get<std::string>());
  }
  credentials.source = std::move(source);
  return credentials;
}

CredentialChain::CredentialChain(Environment environment, AwsProfile profile, bool named_profile,
                                 bool own_endpoint, HttpClientOptions http)
    : environment_(std::move(environment)),
      profile_(std::move(profile)),
      named_profile_(named_profile),
      own_endpoint_(own_endpoint),
      http_(std::move(http)) {
  http_.connections = 1;
  http_.counters = nullptr;
}

Result<Credentials> CredentialChain::Get() {
  const std::lock_guard lock(mutex_);
  const int64_t expiry = current_.expires_unix_s;
  if (known_ && (expiry < 0 || UnixSeconds() + kRefreshBeforeExpiry_s < expiry)) return current_;
  Result<Credentials> found = Find();
  if (!found.ok()) {
    // The old keys are good until they expire: the service may be back by then.
    if (known_ && UnixSeconds() < expiry) return current_;
    return found.error();
  }
  current_ = *found;
  known_ = true;
  return current_;
}

void CredentialChain::Expire() {
  const std::lock_guard lock(mutex_);
  known_ = false;
}

Result<Credentials> CredentialChain::Find() {
  const auto access = environment_("AWS_ACCESS_KEY_ID");
  const auto secret = environment_("AWS_SECRET_ACCESS_KEY");
  if (!named_profile_ && (access || secret)) {
    if (!access || !secret) {
      return InvalidArgument(fmt::format("{} is set but {} is not",
                                         access ? "AWS_ACCESS_KEY_ID" : "AWS_SECRET_ACCESS_KEY",
                                         access ? "AWS_SECRET_ACCESS_KEY" : "AWS_ACCESS_KEY_ID"));
    }
    Credentials credentials;
    credentials.access_key = Secret(*access);
    credentials.secret_key = Secret(*secret);
    credentials.session_token = Secret(environment_("AWS_SESSION_TOKEN").value_or(""));
    credentials.source = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    return credentials;
  }
  const std::string profile_source =
      fmt::format("profile '{}' of {}", profile_.name, profile_.credentials_file);
  const auto profile_access = profile_.Get("aws_access_key_id");
  const auto profile_secret = profile_.Get("aws_secret_access_key");
  if (profile_access && profile_secret) {
    Credentials credentials;
    credentials.access_key = Secret(*profile_access);
    credentials.secret_key = Secret(*profile_secret);
    credentials.session_token = Secret(profile_.Get("aws_session_token").value_or(""));
    credentials.source = profile_source;
    return credentials;
  }
  if (profile_access || profile_secret) {
    return InvalidArgument(fmt::format("{} needs both aws_access_key_id and aws_secret_access_key",
                                       profile_source));
  }
  if (const auto command = profile_.Get("credential_process")) return FromProcess(*command);
  const auto token_file = environment_("AWS_WEB_IDENTITY_TOKEN_FILE");
  const auto role = environment_("AWS_ROLE_ARN");
  if (token_file && role) return FromWebIdentity(*token_file, *role);
  if (const auto full = environment_("AWS_CONTAINER_CREDENTIALS_FULL_URI")) {
    return FromContainer(*full);
  }
  if (const auto relative = environment_("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")) {
    return FromContainer("http://169.254.170.2" + *relative);
  }
  for (const char* key : {"sso_session", "sso_start_url", "role_arn"}) {
    if (profile_.Get(key)) {
      return Unsupported(fmt::format(
          "profile '{}' uses {}, which Tessera does not follow: run `aws configure "
          "export-credentials --profile {} --format env` and set what it prints",
          profile_.name, key, profile_.name));
    }
  }
  std::string instance = "not asked, the endpoint is not Amazon's";
  if (!own_endpoint_) {
    if (Result<Credentials> found = FromInstance(&instance); found.ok()) return found;
  }
  return InvalidArgument(fmt::format(
      "no keys for S3. Looked at: AWS_ACCESS_KEY_ID (not set); profile '{}' in {} and {} ({}); "
      "AWS_WEB_IDENTITY_TOKEN_FILE (not set); AWS_CONTAINER_CREDENTIALS_FULL_URI (not set); the "
      "instance's metadata service ({}). What to do: {}",
      profile_.name, profile_.credentials_file, profile_.config_file,
      profile_.found ? "without keys" : "not there", instance, kWhatToDo));
}

Result<Credentials> CredentialChain::FromProcess(const std::string& command) {
  const std::string source = fmt::format("credential_process of profile '{}'", profile_.name);
  FILE* pipe = ::popen(command.c_str(), "re");
  if (pipe == nullptr) return ErrnoError("cannot run", source, errno);
  std::string text;
  char buffer[4096];
  size_t got = 0;
  while ((got = ::fread(buffer, 1, sizeof(buffer), pipe)) > 0 &&
         static_cast<int64_t>(text.size()) < kMaxAnswerBytes) {
    text.append(buffer, got);
  }
  const int status = ::pclose(pipe);
  if (status != 0) {
    return InvalidArgument(fmt::format("{} ended with status {}", source, status));
  }
  return ParseCredentialJson(text, source);
}

Result<Credentials> CredentialChain::FromWebIdentity(const std::string& token_file,
                                                     const std::string& role) {
  const std::string source = "AWS_WEB_IDENTITY_TOKEN_FILE";
  Result<std::string> token = ReadFile(token_file, kMaxAnswerBytes);
  if (!token.ok()) return token.error().WithContext(source);
  const std::string region =
      environment_("AWS_REGION").value_or(environment_("AWS_DEFAULT_REGION").value_or(""));
  const std::string endpoint = environment_("AWS_ENDPOINT_URL_STS")
                                   .value_or(region.empty() ? "https://sts.amazonaws.com"
                                                            : "https://sts." + region + ".amazonaws.com");
  const std::string body = CanonicalQuery(
      {{"Action", "AssumeRoleWithWebIdentity"},
       {"Version", "2011-06-15"},
       {"RoleArn", role},
       {"RoleSessionName", environment_("AWS_ROLE_SESSION_NAME").value_or("tessera")},
       {"WebIdentityToken", std::string(Trim(*token))}});
  HttpClient client(http_);
  HttpRequest request;
  request.method = "POST";
  request.url = endpoint + "/";
  request.headers = {{"Content-Type", "application/x-www-form-urlencoded"}};
  request.body = body;
  const HttpResponse response = client.Send(request);
  if (!response.ok()) {
    const S3ErrorBody error = ParseS3Error(response.body);
    if (error.code.empty()) return NoAnswer(source, response);
    return InvalidArgument(fmt::format("{} was refused by {}: {}: {}", source, endpoint, error.code,
                                       error.message));
  }
  return ParseAssumedRole(response.body, source);
}

Result<Credentials> CredentialChain::FromContainer(const std::string& url) {
  const std::string source = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
  HttpRequest request;
  request.url = url;
  request.max_body_bytes = kMaxAnswerBytes;
  if (const auto file = environment_("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")) {
    TESSERA_ASSIGN(const std::string token, ReadFile(*file, kMaxAnswerBytes));
    request.headers = {{"Authorization", std::string(Trim(token))}};
  } else if (const auto token = environment_("AWS_CONTAINER_AUTHORIZATION_TOKEN")) {
    request.headers = {{"Authorization", *token}};
  }
  HttpClient client(http_);
  const HttpResponse response = client.Send(request);
  if (!response.ok()) return NoAnswer(source, response);
  return ParseCredentialJson(response.body, source);
}

Result<Credentials> CredentialChain::FromInstance(std::string* why_not) {
  const std::string disabled = environment_("AWS_EC2_METADATA_DISABLED").value_or("");
  if (disabled == "true" || disabled == "1") {
    *why_not = "switched off by AWS_EC2_METADATA_DISABLED";
    return Unsupported(*why_not);
  }
  const std::string source = "the instance's metadata service";
  const std::string base =
      environment_("AWS_EC2_METADATA_SERVICE_ENDPOINT").value_or("http://169.254.169.254");
  HttpClientOptions quick = http_;
  quick.connect_timeout_s = 1;
  quick.stall_s = 2;
  HttpClient client(quick);
  HttpRequest request;
  request.method = "PUT";
  request.url = base + "/latest/api/token";
  request.headers = {{"X-aws-ec2-metadata-token-ttl-seconds", "21600"}};
  request.max_body_bytes = kMaxAnswerBytes;
  const HttpResponse token = client.Send(request);
  *why_not = "no answer";
  if (!token.ok()) return NoAnswer(source, token);
  request.method = "GET";
  request.url = base + "/latest/meta-data/iam/security-credentials/";
  request.headers = {{"X-aws-ec2-metadata-token", token.body}};
  const HttpResponse role = client.Send(request);
  *why_not = "the instance has no role";
  if (!role.ok()) return NoAnswer(source, role);
  request.url += std::string(Trim(std::string_view(role.body).substr(0, role.body.find('\n'))));
  const HttpResponse keys = client.Send(request);
  *why_not = "its answer holds no keys";
  if (!keys.ok()) return NoAnswer(source, keys);
  return ParseCredentialJson(keys.body, source);
}

}  // namespace tessera
