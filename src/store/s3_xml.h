// The XML answers of S3, parsed from untrusted text.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "store/object_store.h"
#include "store/sigv4.h"

namespace tessera {

// What an error body says; empty where it is none. Only these fields are taken: others may repeat
// the request's headers.
struct S3ErrorBody {
  std::string code;     // "NoSuchKey"
  std::string message;
  std::string request_id;
  std::string region;       // Of AuthorizationHeaderMalformed and redirects.
  std::string endpoint;     // Of redirects.
  std::string server_time;  // Of RequestTimeTooSkewed.
};
S3ErrorBody ParseS3Error(std::string_view xml);

// Keys decoded, with `strip` taken from their beginning; keys outside it are an error.
Result<ListPage> ParseListPage(std::string_view xml, std::string_view strip);

Result<std::string> ParseUploadId(std::string_view xml);

// The etag of a completed upload, or the error that a 200 may carry.
struct CompletedUpload {
  std::string etag;
  S3ErrorBody error;
};
Result<CompletedUpload> ParseCompletedUpload(std::string_view xml);

struct UploadedPart {
  int number = 0;
  std::string etag;
  std::string crc32c;  // Base64, empty where the server got none.
};
std::string CompleteUploadXml(const std::vector<UploadedPart>& parts);

struct PendingUploadPage {
  std::vector<PendingWrite> uploads;
  bool truncated = false;
  std::string next_key, next_id;
};
Result<PendingUploadPage> ParsePendingUploads(std::string_view xml);

// The answer of AssumeRoleWithWebIdentity.
Result<Credentials> ParseAssumedRole(std::string_view xml, std::string source);

// `"abc"` without its quotes.
std::string Unquoted(std::string_view etag);

}  // namespace tessera
