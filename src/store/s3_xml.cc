#include "store/s3_xml.h"

#include <fmt/format.h>

#include <algorithm>
#include <pugixml.hpp>

#include "base/strings.h"
#include "store/aws_credentials.h"

namespace tessera {

namespace {

constexpr size_t kMaxXmlBytes = size_t{16} << 20;
constexpr size_t kMaxMessageBytes = 500;

// Entities of the document's own are not expanded and nothing is fetched: the parser knows only the
// five names and character numbers.
bool Load(std::string_view xml, pugi::xml_document* document) {
  if (xml.size() > kMaxXmlBytes) return false;
  return static_cast<bool>(document->load_buffer(
      xml.data(), xml.size(), pugi::parse_minimal | pugi::parse_escapes | pugi::parse_cdata,
      pugi::encoding_utf8));
}

// Local names: servers differ in their namespaces and prefixes.
std::string_view LocalName(const pugi::xml_node& node) {
  const std::string_view name = node.name();
  const size_t colon = name.rfind(':');
  return colon == name.npos ? name : name.substr(colon + 1);
}

pugi::xml_node Child(const pugi::xml_node& parent, std::string_view name) {
  for (const pugi::xml_node& child : parent.children()) {
    if (LocalName(child) == name) return child;
  }
  return {};
}

std::string Text(const pugi::xml_node& parent, std::string_view name) {
  return std::string(Trim(Child(parent, name).text().get()));
}

// For messages: one line, printable, bounded.
std::string Printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; },
      ' ');
  if (text.size() > kMaxMessageBytes) text = text.substr(0, kMaxMessageBytes) + "...";
  return text;
}

Error Unexpected(std::string_view what) {
  return Corrupt(fmt::format("the server's answer is no {}", what));
}

S3ErrorBody ErrorOf(const pugi::xml_node& error) {
  S3ErrorBody body;
  body.code = Printable(Text(error, "Code"));
  body.message = Printable(Text(error, "Message"));
  body.request_id = Printable(Text(error, "RequestId"));
  body.region = Printable(Text(error, "Region"));
  body.endpoint = Printable(Text(error, "Endpoint"));
  body.server_time = Printable(Text(error, "ServerTime"));
  return body;
}

}  // namespace

std::string Unquoted(std::string_view etag) {
  etag = Trim(etag);
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
    etag = etag.substr(1, etag.size() - 2);
  }
  return std::string(etag);
}

S3ErrorBody ParseS3Error(std::string_view xml) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return {};
  const pugi::xml_node root = document.document_element();
  if (LocalName(root) == "Error") return ErrorOf(root);
  if (LocalName(root) == "ErrorResponse") {  // Of the token service.
    S3ErrorBody body = ErrorOf(Child(root, "Error"));
    body.request_id = Printable(Text(root, "RequestId"));
    return body;
  }
  return {};
}

Result<ListPage> ParseListPage(std::string_view xml, std::string_view strip) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return Unexpected("list of objects");
  const pugi::xml_node root = document.document_element();
  if (LocalName(root) != "ListBucketResult") return Unexpected("list of objects");
  const bool encoded = Text(root, "EncodingType") == "url";
  ListPage page;
  const auto key_of = [&](const pugi::xml_node& node, const char* name) -> Result<std::string> {
    // Not trimmed: a key may begin or end with a space.
    std::string key = Child(node, name).text().get();
    if (encoded) key = UriDecode(key);
    if (!key.starts_with(strip)) {
      return Corrupt("the server listed a key outside the prefix that was asked for");
    }
    return key.substr(strip.size());
  };
  for (const pugi::xml_node& node : root.children()) {
    if (LocalName(node) == "Contents") {
      TESSERA_ASSIGN(std::string key, key_of(node, "Key"));
      ObjectInfo object;
      object.key = std::move(key);
      const auto bytes = ParseInt(Text(node, "Size"));
      if (!bytes || *bytes < 0) return Corrupt("the server listed an object without a size");
      object.bytes = *bytes;
      object.etag = Unquoted(Text(node, "ETag"));
      object.modified_unix_s = ParseIsoTime(Text(node, "LastModified"));
      page.objects.push_back(std::move(object));
    } else if (LocalName(node) == "CommonPrefixes") {
      TESSERA_ASSIGN(std::string folder, key_of(node, "Prefix"));
      page.folders.push_back(std::move(folder));
    }
  }
  if (Text(root, "IsTruncated") == "true") {
    page.next_page = Text(root, "NextContinuationToken");
    if (page.next_page.empty()) return Corrupt("the server's list goes on without saying where");
  }
  return page;
}

Result<std::string> ParseUploadId(std::string_view xml) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return Unexpected("start of an upload");
  const pugi::xml_node root = document.document_element();
  std::string id = Text(root, "UploadId");
  if (LocalName(root) != "InitiateMultipartUploadResult" || id.empty()) {
    return Unexpected("start of an upload");
  }
  return id;
}

Result<CompletedUpload> ParseCompletedUpload(std::string_view xml) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return Unexpected("completion of an upload");
  const pugi::xml_node root = document.document_element();
  CompletedUpload completed;
  if (LocalName(root) == "Error") {
    completed.error = ErrorOf(root);
    if (completed.error.code.empty()) completed.error.code = "InternalError";
    return completed;
  }
  if (LocalName(root) != "CompleteMultipartUploadResult") {
    return Unexpected("completion of an upload");
  }
  completed.etag = Unquoted(Text(root, "ETag"));
  return completed;
}

std::string CompleteUploadXml(const std::vector<UploadedPart>& parts) {
  pugi::xml_document document;
  pugi::xml_node root = document.append_child("CompleteMultipartUpload");
  root.append_attribute("xmlns") = "http://s3.amazonaws.com/doc/2006-03-01/";
  for (const UploadedPart& part : parts) {
    pugi::xml_node node = root.append_child("Part");
    node.append_child("PartNumber").text() = part.number;
    node.append_child("ETag").text() = ("\"" + part.etag + "\"").c_str();
    if (!part.crc32c.empty()) node.append_child("ChecksumCRC32C").text() = part.crc32c.c_str();
  }
  struct Writer : pugi::xml_writer {
    std::string text;
    void write(const void* data, size_t size) override {
      text.append(static_cast<const char*>(data), size);
    }
  } writer;
  document.save(writer, "", pugi::format_raw | pugi::format_no_declaration);
  return std::move(writer.text);
}

Result<PendingUploadPage> ParsePendingUploads(std::string_view xml) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return Unexpected("list of uploads");
  const pugi::xml_node root = document.document_element();
  if (LocalName(root) != "ListMultipartUploadsResult") return Unexpected("list of uploads");
  const bool encoded = Text(root, "EncodingType") == "url";
  const auto key_of = [&](const pugi::xml_node& node, const char* name) {
    const std::string key = Child(node, name).text().get();
    return encoded ? UriDecode(key) : key;
  };
  PendingUploadPage page;
  for (const pugi::xml_node& node : root.children()) {
    if (LocalName(node) != "Upload") continue;
    page.uploads.push_back({.key = key_of(node, "Key"),
                            .id = Text(node, "UploadId"),
                            .started_unix_s = ParseIsoTime(Text(node, "Initiated"))});
  }
  page.truncated = Text(root, "IsTruncated") == "true";
  page.next_key = key_of(root, "NextKeyMarker");
  page.next_id = Text(root, "NextUploadIdMarker");
  return page;
}

Result<Credentials> ParseAssumedRole(std::string_view xml, std::string source) {
  pugi::xml_document document;
  if (!Load(xml, &document)) return Unexpected("set of temporary keys");
  const pugi::xml_node node = Child(
      Child(document.document_element(), "AssumeRoleWithWebIdentityResult"), "Credentials");
  Credentials credentials;
  credentials.access_key = Secret(Text(node, "AccessKeyId"));
  credentials.secret_key = Secret(Text(node, "SecretAccessKey"));
  credentials.session_token = Secret(Text(node, "SessionToken"));
  credentials.expires_unix_s = ParseIsoTime(Text(node, "Expiration"));
  credentials.source = std::move(source);
  if (credentials.access_key.empty() || credentials.secret_key.empty()) {
    return Unexpected("set of temporary keys");
  }
  return credentials;
}

}  // namespace tessera
