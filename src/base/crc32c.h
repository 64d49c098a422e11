// CRC32C (Castagnoli, reflected polynomial 0x82F63B78): checksums of object stores and TFRecord.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace tessera {

// Extends `crc`, the checksum of what came before; 0 at the start.
uint32_t Crc32c(uint32_t crc, std::span<const std::byte> data);
inline uint32_t Crc32c(std::string_view data) { return Crc32c(0, std::as_bytes(std::span(data))); }

// The checksum of A followed by B from those of A and of B, in O(log bytes_b).
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, int64_t bytes_b);

// Without the processor's instruction; the tests compare both.
uint32_t Crc32cPortable(uint32_t crc, std::span<const std::byte> data);

}  // namespace tessera
