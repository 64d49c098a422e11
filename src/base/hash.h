// Hashes: xxh3 for speed, SHA-256 for identity.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace tessera {

// XXH3, 64 bits.
uint64_t Xxh3(std::string_view data, uint64_t seed = 0);
// XXH64, as 16 lower-case hex digits (the form of MDS indexes).
std::string Xxh64Hex(std::string_view data);
std::string Sha256Hex(std::string_view data);
std::string Sha1Hex(std::string_view data);

// SHA-256 of a stream.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(std::string_view data);
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// XXH3-64 of a stream, for checksums of large files.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  void Update(const void* data, int64_t bytes);
  uint64_t Digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string HexOf(const uint8_t* bytes, int64_t count);

}  // namespace tessera
