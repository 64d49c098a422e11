// Arbitrary bytes as an endpoint's URL and as the dates of HTTP and AWS. Errors never repeat a URL,
// which may hold a password.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "store/aws_credentials.h"
#include "store/http_client.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const Result<UrlParts> url = ParseUrl(text, "fuzz");
  if (url.ok()) {
    if (url->host.empty() || !ParseUrl(url->Origin(), "again").ok()) std::abort();
  } else if (url.error().message.size() > 100) {
    std::abort();
  }
  if (ParseHttpDate(text) < -1) std::abort();
  (void)ParseIsoTime(text);
  return 0;
}
