#include "store/sigv4.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "base/hash.h"
#include "base/strings.h"
#include "store/digests.h"

namespace tessera {

namespace {

bool Unreserved(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_' || c == '~';
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

NameValues Sorted(const NameValues& headers) {
  NameValues sorted = headers;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

std::string SignedNames(const NameValues& sorted) {
  std::string names;
  for (const auto& [name, value] : sorted) {
    if (!names.empty()) names += ';';
    names += name;
  }
  return names;
}

}  // namespace

std::string UriEncode(std::string_view text, bool keep_slash) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (Unreserved(c) || (keep_slash && c == '/')) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += '%';
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15];
    }
  }
  return out;
}

std::string UriDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

std::string CanonicalQuery(const NameValues& query) {
  NameValues encoded;
  for (const auto& [name, value] : query) {
    encoded.emplace_back(UriEncode(name, false), UriEncode(value, false));
  }
  std::string out;
  for (const auto& [name, value] : Sorted(encoded)) {
    if (!out.empty()) out += '&';
    out += name + '=' + value;
  }
  return out;
}

std::string CanonicalRequest(const SigningInput& input) {
  const NameValues sorted = Sorted(*input.headers);
  std::string text = fmt::format("{}\n{}\n{}\n", input.method, input.encoded_path,
                                 input.canonical_query);
  for (const auto& [name, value] : sorted) text += fmt::format("{}:{}\n", name, Trim(value));
  text += fmt::format("\n{}\n{}", SignedNames(sorted), input.payload_hash);
  return text;
}

std::string Authorization(const SigningInput& input, const Credentials& credentials) {
  const std::string_view day = input.amz_date.substr(0, 8);
  const std::string scope = fmt::format("{}/{}/s3/aws4_request", day, input.region);
  const std::string to_sign = fmt::format("AWS4-HMAC-SHA256\n{}\n{}\n{}", input.amz_date, scope,
                                          Sha256Hex(CanonicalRequest(input)));
  std::string key = HmacSha256("AWS4" + credentials.secret_key.Reveal(), day);
  for (const std::string_view part : {input.region, std::string_view("s3"),
                                      std::string_view("aws4_request")}) {
    key = HmacSha256(key, part);
  }
  return fmt::format("AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}",
                     credentials.access_key.Reveal(), scope, SignedNames(Sorted(*input.headers)),
                     Hex(HmacSha256(key, to_sign)));
}

std::string AmzDate(int64_t unix_seconds) {
  const time_t seconds = unix_seconds;
  tm utc = {};
  ::gmtime_r(&seconds, &utc);
  char text[24];
  const size_t length = std::strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &utc);
  return std::string(text, length);
}

}  // namespace tessera
