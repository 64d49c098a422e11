// Fuzz target of S3's XML answers.
#include <cstdint>
#include <cstdlib>

#include "store/s3_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const S3ErrorBody error = ParseS3Error(text);
  if (error.message.size() > 600 || error.code.find('\n') != std::string::npos) std::abort();
  if (const auto page = ParseListPage(text, ""); page.ok()) {
    for (const ObjectInfo& object : page->objects) {
      if (object.bytes < 0) std::abort();
    }
  }
  (void)ParseListPage(text, "p/").ok();
  (void)ParseUploadId(text).ok();
  (void)ParseCompletedUpload(text).ok();
  (void)ParsePendingUploads(text).ok();
  (void)ParseAssumedRole(text, "fuzz").ok();
  return 0;
}
