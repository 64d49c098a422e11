// Digests and encodings of the S3 protocol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

// 32 raw bytes.
std::string HmacSha256(std::string_view key, std::string_view data);
std::string Md5(std::string_view data);  // 16 raw bytes.
std::string Base64(std::string_view raw);
std::optional<std::string> Base64Decode(std::string_view text);
std::string Hex(std::string_view raw);  // Lower case.

// The base64 form of a CRC32C in S3's headers: big-endian bytes.
std::string EncodeCrc32c(uint32_t crc);
std::optional<uint32_t> DecodeCrc32c(std::string_view text);

class Md5Stream {
 public:
  Md5Stream();
  ~Md5Stream();
  void Update(std::span<const std::byte> data);
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
