// The ids of pieces that were encoded before. Short pieces lie with their ids in half a cache line;
// longer ones go to a smaller table. Never grows past a few MiB: a new piece replaces an old one.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

class PieceCache {
 public:
  static constexpr int64_t kShortBytes = 15;
  static constexpr int64_t kLongBytes = 128;
  static constexpr int kInlineIds = 4;

  // A piece of 1 to 15 bytes: its bytes, zeros, and its length in the last byte. Never all zero.
  struct Key {
    uint64_t low = 0, high = 0;
    bool operator==(const Key&) const = default;
  };
  struct Entry {
    Key key;
    std::array<int32_t, kInlineIds> ids{};  // Unused ones are -1.
  };

  PieceCache() : lines_(kLines) {}

  // `readable` is how many bytes may be read from `p`.
  static Key MakeKey(const char* p, int64_t length, int64_t readable) {
    Key key;
    if (readable >= 16) [[likely]] {
      std::memcpy(&key, p, 16);
      key.low &= kMasks[static_cast<size_t>(length)].low;
      key.high &= kMasks[static_cast<size_t>(length)].high;
    } else {
      std::memcpy(&key, p, static_cast<size_t>(length));
    }
    key.high |= static_cast<uint64_t>(length) << 56;
    return key;
  }
  static uint32_t LineOf(const Key& key) {
    uint64_t hash = (key.low * 0x9E3779B97F4A7C15u) ^ (key.high * 0xC2B2AE3D27D4EB4Fu);
    hash = (hash ^ (hash >> 32)) * 0xD6E8FEB86659FD93u;
    return static_cast<uint32_t>(hash >> (64 - kLineBits));
  }
  void Prefetch(uint32_t line) const { __builtin_prefetch(&lines_[line]); }

  // The entry of a key, or null.
  const Entry* Find(const Key& key, uint32_t line) const {
    const Line& pair = lines_[line];
    if (pair.entries[0].key == key) return &pair.entries[0];
    if (pair.entries[1].key == key) return &pair.entries[1];
    return nullptr;
  }
  // Keeps a piece of at most kInlineIds ids; the older entry of the line goes.
  void Insert(const Key& key, uint32_t line, std::span<const int32_t> ids) {
    Line& pair = lines_[line];
    pair.entries[1] = pair.entries[0];
    Entry& entry = pair.entries[0];
    entry.key = key;
    for (size_t i = 0; i < kInlineIds; ++i) entry.ids[i] = i < ids.size() ? ids[i] : -1;
  }

  // Pieces that do not fit above: longer than 15 bytes, or more than 4 ids.
  const std::vector<int32_t>* FindLong(std::string_view piece, uint64_t hash) const {
    if (long_.empty()) return nullptr;
    const LongEntry& entry = long_[hash & (kLongEntries - 1)];
    return entry.hash == hash && entry.piece == piece ? &entry.ids : nullptr;
  }
  void InsertLong(std::string_view piece, uint64_t hash, std::span<const int32_t> ids) {
    if (long_.empty()) long_.resize(kLongEntries);
    LongEntry& entry = long_[hash & (kLongEntries - 1)];
    entry.hash = hash;
    entry.piece.assign(piece);
    entry.ids.assign(ids.begin(), ids.end());
  }

 private:
  static constexpr int kLineBits = 16;  // 4 MiB, 131,072 pieces.
  static constexpr size_t kLines = size_t{1} << kLineBits;
  static constexpr size_t kLongEntries = 1 << 12;

  struct alignas(64) Line {
    Entry entries[2];
  };
  static_assert(sizeof(Line) == 64);
  struct LongEntry {
    uint64_t hash = 0;
    std::string piece;
    std::vector<int32_t> ids;
  };
  static constexpr std::array<Key, 16> MakeMasks() {
    std::array<Key, 16> masks{};
    for (size_t n = 0; n < 16; ++n) {
      masks[n].low = n >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * n)) - 1;
      masks[n].high = n <= 8 ? 0 : (uint64_t{1} << (8 * (n - 8))) - 1;
    }
    return masks;
  }
  static const std::array<Key, 16> kMasks;

  std::vector<Line> lines_;
  std::vector<LongEntry> long_;
};

inline constexpr std::array<PieceCache::Key, 16> PieceCache::kMasks = PieceCache::MakeMasks();

}  // namespace tessera
