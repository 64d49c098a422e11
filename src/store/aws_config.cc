#include "store/aws_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/files.h"
#include "base/strings.h"

namespace tessera {

namespace {

constexpr int64_t kMaxProfileBytes = int64_t{1} << 20;

std::string Lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return out;
}

Result<IniFile> ReadIniFile(const std::string& path) {
  Result<std::string> text = ReadFile(path, kMaxProfileBytes);
  if (!text.ok()) {
    if (text.error().code == ErrorCode::kNotFound) return IniFile{};
    return text.error();
  }
  return ParseIni(*text, path);
}

void Merge(const IniFile& file, std::string_view section, AwsProfile* profile) {
  const auto it = file.find(section);
  if (it == file.end()) return;
  profile->found = true;
  for (const auto& [key, value] : it->second) profile->values.emplace(key, value);
}

std::string HomeFile(const Environment& environment, std::string_view name) {
  return environment("HOME").value_or("") + "/.aws/" + std::string(name);
}

bool IsTrue(std::string_view text) { return Lower(text) == "true" || text == "1"; }

}  // namespace

Environment ProcessEnvironment() {
  return [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::string(value);
  };
}

Result<IniFile> ParseIni(std::string_view text, std::string_view source) {
  IniFile file;
  IniSection* section = nullptr;
  std::string parent;  // The key with an empty value whose nested keys may follow.
  int64_t number = 0;
  const auto fail = [&](std::string_view what) {
    return InvalidArgument(fmt::format("{}:{}: {}", source, number, what));
  };
  for (std::string_view line : Split(text, '\n')) {
    ++number;
    const bool indented = !line.empty() && (line[0] == ' ' || line[0] == '\t');
    line = Trim(line);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line[0] == '[') {
      const size_t end = line.find(']');
      if (end == line.npos) return fail("a section needs ']' at its end");
      section = &file[std::string(Trim(line.substr(1, end - 1)))];
      parent.clear();
      continue;
    }
    if (section == nullptr) return fail("a value stands before the first [section]");
    const size_t equals = line.find('=');
    if (equals == line.npos) return fail("expected 'key = value' or '[section]'");
    const std::string key = Lower(Trim(line.substr(0, equals)));
    const std::string_view value = Trim(line.substr(equals + 1));
    if (key.empty()) return fail("a key is missing before '='");
    if (indented && !parent.empty()) {
      if (!value.empty()) (*section)[parent + "." + key] = value;
      continue;
    }
    parent = value.empty() ? key : "";
    if (!value.empty()) (*section)[key] = value;
  }
  return file;
}

std::optional<std::string> AwsProfile::Get(std::string_view key) const {
  const auto it = values.find(key);
  if (it == values.end()) return std::nullopt;
  return it->second;
}

Result<AwsProfile> ReadAwsProfile(const Environment& environment, const std::string& wanted) {
  AwsProfile profile;
  const auto named = environment("AWS_PROFILE");
  const auto named_default = environment("AWS_DEFAULT_PROFILE");
  profile.name = !wanted.empty() ? wanted : named ? *named : named_default.value_or("default");
  const bool required = !wanted.empty() || named || named_default;
  profile.credentials_file = environment("AWS_SHARED_CREDENTIALS_FILE")
                                 .value_or(HomeFile(environment, "credentials"));
  profile.config_file = environment("AWS_CONFIG_FILE").value_or(HomeFile(environment, "config"));
  TESSERA_ASSIGN(const IniFile credentials, ReadIniFile(profile.credentials_file));
  TESSERA_ASSIGN(const IniFile config, ReadIniFile(profile.config_file));
  Merge(credentials, profile.name, &profile);
  Merge(config, "profile " + profile.name, &profile);
  if (profile.name == "default") Merge(config, "default", &profile);
  if (!profile.found && required) {
    std::vector<std::string> names;
    for (const auto& [name, values] : credentials) names.push_back(name);
    for (const auto& [name, values] : config) {
      names.push_back(name.starts_with("profile ") ? name.substr(8) : name);
    }
    const auto nearest = NearestKey(profile.name, names);
    return InvalidArgument(fmt::format(
        "profile '{}' is neither in {} nor in {}{}", profile.name, profile.credentials_file,
        profile.config_file, nearest ? fmt::format("; did you mean '{}'?", *nearest) : ""));
  }
  // [services NAME] holds endpoints by service.
  if (const auto services = profile.Get("services")) {
    const auto it = config.find("services " + *services);
    if (it != config.end()) {
      const auto endpoint = it->second.find("s3.endpoint_url");
      if (endpoint != it->second.end()) profile.values["s3.endpoint_url"] = endpoint->second;
    }
  }
  return profile;
}

bool IsHostLabel(std::string_view bucket) {
  if (bucket.size() < 3 || bucket.size() > 63) return false;
  for (const char c : bucket) {
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-') return false;
  }
  return bucket.front() != '-' && bucket.back() != '-';
}

Result<S3Settings> ReadS3Settings(const StoreOptions& options, const Environment& environment,
                                  const AwsProfile& profile, std::string_view bucket) {
  S3Settings settings;
  std::string endpoint = options.endpoint;
  settings.endpoint_source = "the endpoint option";
  const bool ignored = IsTrue(environment("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").value_or("")) ||
                       IsTrue(profile.Get("ignore_configured_endpoint_urls").value_or(""));
  for (const char* name : {"S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}) {
    // The first is the word of mosaicml-streaming, which no Amazon tool knows or ignores.
    if (!endpoint.empty() || (ignored && name[0] == 'A')) continue;
    if (const auto value = environment(name)) {
      endpoint = *value;
      settings.endpoint_source = name;
    }
  }
  for (const char* key : {"s3.endpoint_url", "endpoint_url"}) {
    if (!endpoint.empty() || ignored) continue;
    if (const auto value = profile.Get(key)) {
      endpoint = *value;
      settings.endpoint_source = fmt::format("{} of profile '{}'", key, profile.name);
    }
  }
  if (!endpoint.empty()) {
    TESSERA_ASSIGN(settings.endpoint, ParseUrl(endpoint, settings.endpoint_source));
    while (settings.endpoint->path.ends_with('/')) settings.endpoint->path.pop_back();
  }
  if (!options.region.empty()) {
    settings.region = options.region;
  } else if (const auto region = environment("AWS_REGION")) {
    settings.region = *region;
  } else if (const auto default_region = environment("AWS_DEFAULT_REGION")) {
    settings.region = *default_region;
  } else if (const auto profile_region = profile.Get("region")) {
    settings.region = *profile_region;
  }
  for (const char c : settings.region) {
    // The region becomes part of a host name.
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') {
      return InvalidArgument(fmt::format("'{}' is no region; expected a word as us-east-1 or auto",
                                         settings.region));
    }
  }
  const std::string style = profile.Get("s3.addressing_style").value_or("auto");
  if (style != "auto" && style != "path" && style != "virtual") {
    return InvalidArgument(fmt::format(
        "s3.addressing_style of profile '{}' is '{}'; expected auto, path or virtual", profile.name,
        style));
  }
  settings.path_style =
      style == "path" || (style == "auto" && (settings.endpoint || !IsHostLabel(bucket)));
  settings.ca_bundle =
      environment("AWS_CA_BUNDLE").value_or(profile.Get("ca_bundle").value_or(""));
  if (!settings.ca_bundle.empty() && !PathExists(settings.ca_bundle)) {
    return NotFound(fmt::format("AWS_CA_BUNDLE names '{}', which does not exist",
                                settings.ca_bundle));
  }
  settings.anonymous =
      options.anonymous || IsTrue(environment("TESSERA_S3_ANONYMOUS").value_or(""));
  settings.upload_check = options.upload_check;
  if (const auto check = environment("TESSERA_S3_UPLOAD_CHECK")) {
    if (*check == "md5") {
      settings.upload_check = UploadCheck::kMd5;
    } else if (*check == "crc32c") {
      settings.upload_check = UploadCheck::kCrc32c;
    } else if (*check == "sha256") {
      settings.upload_check = UploadCheck::kSha256;
    } else if (*check != "auto") {
      return InvalidArgument(fmt::format(
          "TESSERA_S3_UPLOAD_CHECK is '{}'; expected auto, md5, crc32c or sha256", *check));
    }
  }
  if (settings.upload_check == UploadCheck::kAuto) {
    const bool tls = !settings.endpoint || settings.endpoint->scheme == "https";
    const bool amazon =
        !settings.endpoint || settings.endpoint->host.find(".amazonaws.com") != std::string::npos;
    settings.upload_check = tls && amazon ? UploadCheck::kCrc32c : UploadCheck::kMd5;
  }
  return settings;
}

}  // namespace tessera
