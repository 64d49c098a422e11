#include "store/object_store.h"

#include <fmt/format.h>

#include <filesystem>

#include "store/aws_config.h"
#include "store/file_store.h"
#include "store/http_store.h"
#include "store/s3_store.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kKnownSchemes =
    "a path, file:///path, s3://bucket/prefix, http://host/path or https://host/path";

// "s3" of "s3://...", empty for a path.
std::string_view SchemeOf(std::string_view url) {
  const size_t end = url.find("://");
  return end == std::string_view::npos ? std::string_view{} : url.substr(0, end);
}

Error UnknownScheme(std::string_view scheme) {
  if (scheme == "gs") {
    return Unsupported(
        "gs:// is not read directly: use s3://BUCKET with AWS_ENDPOINT_URL="
        "https://storage.googleapis.com and an HMAC key of Google Cloud Storage");
  }
  return Unsupported(
      fmt::format("no object store for '{}://'; what can be opened: {}", scheme, kKnownSchemes));
}

Result<std::string> FilePathOf(std::string_view url) {
  std::string_view path = url;
  if (SchemeOf(url) == "file") {
    path.remove_prefix(std::string_view("file://").size());
    if (path.starts_with("localhost/")) path.remove_prefix(std::string_view("localhost").size());
    if (!path.starts_with('/')) {
      return InvalidArgument(fmt::format("'{}': a file URL has three slashes, file:///path", url));
    }
  }
  if (path.empty()) return InvalidArgument(fmt::format("an empty URL; expected {}", kKnownSchemes));
  return std::string(path);
}

}  // namespace

bool IsRemoteUrl(std::string_view url) {
  const std::string_view scheme = SchemeOf(url);
  return !scheme.empty() && scheme != "file";
}

std::string WithoutCredentials(std::string_view text) {
  std::string out;
  while (true) {
    size_t host = std::string_view::npos;
    for (const std::string_view scheme : {"http://", "https://"}) {
      const size_t found = text.find(scheme);
      if (found != text.npos) host = std::min(host, found + scheme.size());
    }
    if (host == text.npos) return out + std::string(text);
    // A password may hold nearly anything; behind the first '/' an '@' belongs to the path.
    const size_t authority_end = std::min(text.find_first_of("/?# \t\n\"'", host), text.size());
    const std::string_view authority = text.substr(host, authority_end - host);
    const size_t user = authority.rfind('@');
    const size_t end =
        std::min(text.find_first_of(" \t\n\"',)}]>", authority_end), text.size());
    const std::string_view path = text.substr(authority_end, end - authority_end);
    out += text.substr(0, host);
    out += authority.substr(user == authority.npos ? 0 : user + 1);
    out += path.substr(0, path.find_first_of("?#"));
    text.remove_prefix(end);
  }
}

Result<std::unique_ptr<ObjectStore>> OpenObjectStore(std::string_view url,
                                                     const StoreOptions& options) {
  const std::string_view scheme = SchemeOf(url);
  if (scheme.empty() || scheme == "file") {
    TESSERA_ASSIGN(std::string path, FilePathOf(url));
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return OpenFileStore(std::move(path), options);
  }
  if (scheme == "s3") {
    TESSERA_ASSIGN(S3Url parts, ParseS3Url(url));
    while (parts.key.ends_with('/')) parts.key.pop_back();
    TESSERA_ASSIGN(std::unique_ptr<ObjectStore> store,
                   S3Store::Open(parts.bucket, parts.key, options, ProcessEnvironment()));
    return store;
  }
  if (scheme == "http" || scheme == "https") return OpenHttpStore(std::string(url), options);
  return UnknownScheme(scheme);
}

Result<ObjectLocation> OpenObjectLocation(std::string_view url, const StoreOptions& options) {
  const std::string_view scheme = SchemeOf(url);
  ObjectLocation location;
  if (scheme.empty() || scheme == "file") {
    TESSERA_ASSIGN(const std::string path, FilePathOf(url));
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "."
                               : slash == 0               ? "/"
                                                          : path.substr(0, slash);
    location.key = slash == std::string::npos ? path : path.substr(slash + 1);
    TESSERA_ASSIGN(location.store, OpenObjectStore(folder, options));
    return location;
  }
  if (scheme == "s3") {
    TESSERA_ASSIGN(const S3Url parts, ParseS3Url(url));
    location.key = parts.key;
    TESSERA_ASSIGN(location.store, OpenObjectStore("s3://" + parts.bucket, options));
    return location;
  }
  if (scheme == "http" || scheme == "https") {
    // The query stays with the store: it may be a signature.
    const size_t path_end = std::min(url.find_first_of("?#"), url.size());
    const size_t slash = url.substr(0, path_end).rfind('/');
    if (slash < scheme.size() + 3 || slash + 1 == path_end) {
      return InvalidArgument("the URL of one object on a web server is http(s)://host/path/name");
    }
    location.key = UriDecode(url.substr(slash + 1, path_end - slash - 1));
    const std::string folder = std::string(url.substr(0, slash + 1)) + std::string(url.substr(path_end));
    TESSERA_ASSIGN(location.store, OpenObjectStore(folder, options));
    return location;
  }
  return UnknownScheme(scheme);
}

Status ForEachObject(ObjectStore& store, std::string_view prefix,
                     const std::function<Status(const ObjectInfo&)>& visit) {
  ListOptions options;
  options.prefix = prefix;
  do {
    TESSERA_ASSIGN(ListPage page, store.List(options));
    for (const ObjectInfo& object : page.objects) TESSERA_TRY(visit(object));
    options.page = std::move(page.next_page);
  } while (!options.page.empty());
  return {};
}

}  // namespace tessera
