#include "store/aws_config.h"

#include <gtest/gtest.h>

#include <map>

#include "base/test_folder.h"
#include "store/aws_credentials.h"

namespace tessera {
namespace {

using Variables = std::map<std::string, std::string>;

Environment Of(Variables variables) {
  return [variables](const char* name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    if (it == variables.end()) return std::nullopt;
    return it->second;
  };
}

// Variables that point at profile files of the test.
Variables Files(const TestFolder& folder, std::string_view credentials, std::string_view config) {
  return {{"AWS_SHARED_CREDENTIALS_FILE", folder.Write("credentials", credentials).string()},
          {"AWS_CONFIG_FILE", folder.Write("config", config).string()},
          {"AWS_EC2_METADATA_DISABLED", "true"}};
}

Result<Credentials> Find(const Variables& variables, const std::string& profile = "") {
  auto read = ReadAwsProfile(Of(variables), profile);
  if (!read.ok()) return read.error();
  CredentialChain chain(Of(variables), *read, !profile.empty() || variables.count("AWS_PROFILE") > 0,
                        false, {});
  return chain.Get();
}

TEST(IniTest, ReadsSectionsNestedKeysAndComments) {
  const auto file = ParseIni(
      "# comment\r\n"
      "[default]\r\n"
      "Region = eu-central-1\r\n"
      "; comment\n"
      "s3 =\n"
      "  addressing_style = path\n"
      "  max_bandwidth = 1\n"
      "  empty =\n"
      "output=json\n"
      "[ profile x ]\n"
      "secret = a = b #c\n",
      "file");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->at("default"), (IniSection{{"region", "eu-central-1"},
                                             {"s3.addressing_style", "path"},
                                             {"s3.max_bandwidth", "1"},
                                             {"output", "json"}}));
  EXPECT_EQ(file->at("profile x").at("secret"), "a = b #c");
}

TEST(IniTest, ErrorsNameTheLineAndNeverItsText) {
  for (const std::string_view text : {"\nhidden = x", "[a]\nhidden", "\n[hidden\n", "[a]\n=hidden"}) {
    const auto file = ParseIni(text, "name");
    ASSERT_FALSE(file.ok()) << text;
    EXPECT_TRUE(file.error().message.starts_with("name:2:")) << file.error().message;
    EXPECT_EQ(file.error().message.find("hidden"), std::string::npos);
  }
}

TEST(CredentialsTest, VariablesGoBeforeTheDefaultProfile) {
  const TestFolder folder;
  Variables variables = Files(folder, "[default]\naws_access_key_id=fileA\naws_secret_access_key=fileS\n", "");
  EXPECT_EQ(Find(variables)->access_key.Reveal(), "fileA");
  variables["AWS_ACCESS_KEY_ID"] = "envA";
  variables["AWS_SECRET_ACCESS_KEY"] = "envS";
  variables["AWS_SESSION_TOKEN"] = "envT";
  const auto found = Find(variables);
  EXPECT_EQ(found->access_key.Reveal(), "envA");
  EXPECT_EQ(found->secret_key.Reveal(), "envS");
  EXPECT_EQ(found->session_token.Reveal(), "envT");
}

TEST(CredentialsTest, ANamedProfileGoesBeforeTheVariables) {
  const TestFolder folder;
  Variables variables = Files(folder,
                              "[work]\naws_access_key_id=workA\naws_secret_access_key=workS\n"
                              "aws_session_token=workT\n",
                              "[profile work]\nregion=eu-west-3\naws_access_key_id=shadowed\n");
  variables["AWS_ACCESS_KEY_ID"] = "envA";
  variables["AWS_SECRET_ACCESS_KEY"] = "envS";
  EXPECT_EQ(Find(variables, "work")->access_key.Reveal(), "workA");
  EXPECT_EQ(Find(variables, "work")->session_token.Reveal(), "workT");
  variables["AWS_PROFILE"] = "work";
  EXPECT_EQ(Find(variables)->access_key.Reveal(), "workA");
  const auto missing = Find(variables, "wrk");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("did you mean 'work'?"), std::string::npos);
}

TEST(CredentialsTest, HalfAPairIsAnError) {
  const TestFolder folder;
  Variables variables = Files(folder, "[default]\naws_access_key_id=fileA\n", "");
  EXPECT_NE(Find(variables).error().message.find("aws_secret_access_key"), std::string::npos);
  variables["AWS_ACCESS_KEY_ID"] = "envA";
  const std::string message = Find(variables).error().message;
  EXPECT_NE(message.find("AWS_SECRET_ACCESS_KEY is not"), std::string::npos) << message;
  EXPECT_EQ(message.find("envA"), std::string::npos);
}

TEST(CredentialsTest, NoneAnywhereSaysWhereWasLooked) {
  const TestFolder folder;
  const Variables variables = Files(folder, "", "");
  const auto found = Find(variables);
  ASSERT_FALSE(found.ok());
  for (const char* part : {"AWS_ACCESS_KEY_ID", "credentials", "AWS_EC2_METADATA_DISABLED", "TESSERA_S3_ANONYMOUS"}) {
    EXPECT_NE(found.error().message.find(part), std::string::npos) << part;
  }
}

TEST(CredentialsTest, AProcessGivesKeys) {
  const TestFolder folder;
  Variables variables = Files(
      folder, "",
      "[default]\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":\"pA\","
      "\"SecretAccessKey\":\"pS\",\"SessionToken\":\"pT\",\"Expiration\":\"2999-01-01T00:00:00Z\"}'\n");
  const auto found = Find(variables);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(found->access_key.Reveal(), "pA");
  EXPECT_EQ(found->session_token.Reveal(), "pT");
  EXPECT_EQ(found->expires_unix_s, 32472144000);
  variables = Files(folder, "", "[default]\ncredential_process = echo secretText\n");
  EXPECT_EQ(Find(variables).error().message.find("secretText"), std::string::npos);
  variables = Files(folder, "", "[default]\ncredential_process = exit 3\n");
  EXPECT_FALSE(Find(variables).ok());
}

TEST(CredentialsTest, RolesAndSsoAreRefusedWithAWayOut) {
  const TestFolder folder;
  const Variables variables = Files(folder, "", "[default]\nsso_session = corp\n");
  EXPECT_EQ(Find(variables).error().code, ErrorCode::kUnsupported);
  EXPECT_NE(Find(variables).error().message.find("export-credentials"), std::string::npos);
}

Result<S3Settings> Settings(const Variables& variables, const StoreOptions& options = {},
                            std::string_view bucket = "bucket") {
  const auto profile = ReadAwsProfile(Of(variables), options.profile);
  if (!profile.ok()) return profile.error();
  return ReadS3Settings(options, Of(variables), *profile, bucket);
}

TEST(S3SettingsTest, TheEndpointsOrder) {
  const TestFolder folder;
  Variables variables = Files(folder, "",
                              "[default]\nendpoint_url = http://profile\nservices = own\n"
                              "[services own]\ns3 =\n  endpoint_url = http://service\n");
  EXPECT_EQ(Settings(variables)->endpoint->Origin(), "http://service");
  variables["AWS_ENDPOINT_URL"] = "http://general";
  EXPECT_EQ(Settings(variables)->endpoint->Origin(), "http://general");
  variables["AWS_ENDPOINT_URL_S3"] = "http://special:9000/";
  EXPECT_EQ(Settings(variables)->endpoint->Origin(), "http://special:9000");
  variables["S3_ENDPOINT_URL"] = "https://streaming:443/base/";
  EXPECT_EQ(Settings(variables)->endpoint->Origin(), "https://streaming");
  EXPECT_EQ(Settings(variables)->endpoint->path, "/base");
  EXPECT_EQ(Settings(variables)->endpoint_source, "S3_ENDPOINT_URL");
  StoreOptions options;
  options.endpoint = "http://option";
  EXPECT_EQ(Settings(variables, options)->endpoint->Origin(), "http://option");
  options.endpoint = "ftp://user:secretword@x";
  const auto wrong = Settings(variables, options);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().message.find("secretword"), std::string::npos);
}

TEST(S3SettingsTest, RegionStyleAndCheck) {
  const TestFolder folder;
  Variables variables = Files(folder, "", "[default]\nregion = eu-north-1\n");
  EXPECT_EQ(Settings(variables)->region, "eu-north-1");
  EXPECT_FALSE(Settings(variables)->path_style);
  EXPECT_TRUE(Settings(variables, {}, "with.dots")->path_style);
  EXPECT_EQ(Settings(variables)->upload_check, UploadCheck::kCrc32c);
  variables["AWS_DEFAULT_REGION"] = "a";
  variables["AWS_REGION"] = "auto";
  EXPECT_EQ(Settings(variables)->region, "auto");
  variables["AWS_REGION"] = "evil.host/";
  EXPECT_FALSE(Settings(variables).ok());
  variables["AWS_REGION"] = "auto";
  variables["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9000";
  EXPECT_TRUE(Settings(variables)->path_style);
  EXPECT_EQ(Settings(variables)->upload_check, UploadCheck::kMd5);
  variables["TESSERA_S3_UPLOAD_CHECK"] = "sha256";
  EXPECT_EQ(Settings(variables)->upload_check, UploadCheck::kSha256);
  variables["AWS_CA_BUNDLE"] = (folder / "no.pem").string();
  EXPECT_EQ(Settings(variables).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace tessera
