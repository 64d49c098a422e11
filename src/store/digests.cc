#include "store/digests.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "base/error.h"
#include "base/hash.h"

namespace tessera {

std::string HmacSha256(std::string_view key, std::string_view data) {
  std::string out(32, '\0');
  unsigned int length = 0;
  const unsigned char* result =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(data.data()), data.size(),
           reinterpret_cast<unsigned char*>(out.data()), &length);
  TESSERA_CHECK(result != nullptr && length == 32, "OpenSSL has no HMAC-SHA256");
  return out;
}

std::string Md5(std::string_view data) {
  std::string out(16, '\0');
  unsigned int length = 0;
  const int ok = EVP_Digest(data.data(), data.size(), reinterpret_cast<unsigned char*>(out.data()),
                            &length, EVP_md5(), nullptr);
  TESSERA_CHECK(ok == 1 && length == 16, "OpenSSL has no MD5");
  return out;
}

std::string Base64(std::string_view raw) {
  std::string out(4 * ((raw.size() + 2) / 3) + 1, '\0');
  const int length = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(raw.data()),
                                     static_cast<int>(raw.size()));
  out.resize(static_cast<size_t>(length));
  return out;
}

std::optional<std::string> Base64Decode(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::string out(text.size() / 4 * 3, '\0');
  const int length = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  if (length < 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  out.resize(static_cast<size_t>(length) - padding);
  return out;
}

std::string Hex(std::string_view raw) {
  return HexOf(reinterpret_cast<const uint8_t*>(raw.data()), static_cast<int64_t>(raw.size()));
}

std::string EncodeCrc32c(uint32_t crc) {
  const char bytes[4] = {static_cast<char>(crc >> 24), static_cast<char>(crc >> 16),
                         static_cast<char>(crc >> 8), static_cast<char>(crc)};
  return Base64(std::string_view(bytes, 4));
}

std::optional<uint32_t> DecodeCrc32c(std::string_view text) {
  const auto raw = Base64Decode(text);
  if (!raw || raw->size() != 4) return std::nullopt;
  uint32_t crc = 0;
  for (const char byte : *raw) crc = crc << 8 | static_cast<uint8_t>(byte);
  return crc;
}

struct Md5Stream::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Md5Stream::Md5Stream() : state_(std::make_unique<State>()) {
  EVP_DigestInit_ex(state_->context, EVP_md5(), nullptr);
}
Md5Stream::~Md5Stream() = default;

void Md5Stream::Update(std::span<const std::byte> data) {
  EVP_DigestUpdate(state_->context, data.data(), data.size());
}

std::string Md5Stream::FinishHex() {
  std::string digest(16, '\0');
  unsigned int length = 0;
  EVP_DigestFinal_ex(state_->context, reinterpret_cast<unsigned char*>(digest.data()), &length);
  return Hex(digest);
}

}  // namespace tessera
