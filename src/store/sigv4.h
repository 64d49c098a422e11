// Signature version 4 of Amazon's web services, as S3 wants it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

// Text that must not be seen: nothing formats or prints it by accident.
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::string text) : text_(std::move(text)) {}
  const std::string& Reveal() const { return text_; }
  bool empty() const { return text_.empty(); }

 private:
  std::string text_;
};

struct Credentials {
  Secret access_key;
  Secret secret_key;
  Secret session_token;          // Empty for long-lived keys.
  int64_t expires_unix_s = -1;   // -1: never.
  std::string source;            // For messages: "AWS_ACCESS_KEY_ID", "profile 'x' of ...".
};

using NameValues = std::vector<std::pair<std::string, std::string>>;

inline constexpr std::string_view kEmptySha256 =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
inline constexpr std::string_view kUnsignedPayload = "UNSIGNED-PAYLOAD";

// Percent-encodes all but A-Z a-z 0-9 - . _ ~ and, with `keep_slash`, '/'.
std::string UriEncode(std::string_view text, bool keep_slash);
// Undoes it; '+' becomes a space, as in S3's listings.
std::string UriDecode(std::string_view text);
// "a=1&b=2" sorted by encoded name, values encoded.
std::string CanonicalQuery(const NameValues& query);

struct SigningInput {
  std::string_view method;
  std::string_view encoded_path;     // As on the wire, from the first '/'.
  std::string_view canonical_query;  // As on the wire.
  // Lower-case names; host and all x-amz-* must be among them.
  const NameValues* headers = nullptr;
  std::string_view payload_hash;  // Hex, or UNSIGNED-PAYLOAD.
  std::string_view amz_date;      // "20130524T000000Z", also the header x-amz-date.
  std::string_view region;
};

std::string CanonicalRequest(const SigningInput& input);
// The value of the header Authorization.
std::string Authorization(const SigningInput& input, const Credentials& credentials);
// "20130524T000000Z".
std::string AmzDate(int64_t unix_seconds);

}  // namespace tessera
