#include "base/hash.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include "base/error.h"

namespace tessera {

std::string HexOf(const uint8_t* bytes, int64_t count) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(static_cast<size_t>(count) * 2);
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(kDigits[bytes[i] >> 4]);
    out.push_back(kDigits[bytes[i] & 15]);
  }
  return out;
}

uint64_t Xxh3(std::string_view data, uint64_t seed) {
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

std::string Xxh64Hex(std::string_view data) {
  return fmt::format("{:016x}", XXH64(data.data(), data.size(), 0));
}

namespace {

std::string DigestHex(std::string_view data, const EVP_MD* kind) {
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  const int ok = EVP_Digest(data.data(), data.size(), digest, &length, kind, nullptr);
  TESSERA_CHECK(ok == 1, "the digest is not available in OpenSSL");
  return HexOf(digest, length);
}

}  // namespace

std::string Sha256Hex(std::string_view data) { return DigestHex(data, EVP_sha256()); }
std::string Sha1Hex(std::string_view data) { return DigestHex(data, EVP_sha1()); }

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr);
}
Sha256::~Sha256() = default;

void Sha256::Update(std::string_view data) {
  EVP_DigestUpdate(state_->context, data.data(), data.size());
}

std::string Sha256::FinishHex() {
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(state_->context, digest, &length);
  return HexOf(digest, length);
}

struct Xxh3Stream::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) {
  XXH3_64bits_reset(state_->state);
}
Xxh3Stream::~Xxh3Stream() = default;

void Xxh3Stream::Update(const void* data, int64_t bytes) {
  XXH3_64bits_update(state_->state, data, static_cast<size_t>(bytes));
}

uint64_t Xxh3Stream::Digest() const { return XXH3_64bits_digest(state_->state); }

}  // namespace tessera
