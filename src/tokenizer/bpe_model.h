// The merge rules of a byte-pair encoding, applied to one piece at a time.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"

namespace tessera {

// Working memory of BpeModel::EncodePiece, reused between calls.
struct BpeScratch {
  struct Node {
    int32_t id;
    int32_t prev, next;  // Neighbours in the list of live symbols, -1 at the ends.
  };
  struct Candidate {
    uint32_t rank;
    uint32_t position;
    uint64_t pair;
    int32_t id;
  };
  std::vector<Node> nodes;
  std::vector<Candidate> heap;
};

class BpeModel {
 public:
  // `vocab` holds the raw bytes of each id (nullopt: none), `can_merge[id]` is false for ids that
  // bytes never become. Errors name what is missing: a byte, or a merge's result.
  static Result<BpeModel> Create(const std::vector<std::optional<std::string>>& vocab,
                                 const std::vector<bool>& can_merge,
                                 const std::vector<std::pair<int32_t, int32_t>>& merges,
                                 bool ignore_merges, std::string_view source);

  // Appends the ids of a piece that is not empty and not longer than kMaxPieceBytes. Repeatedly
  // joins the adjacent pair of lowest rank, the leftmost on ties.
  // O(n^2) steps of a few ns up to 32 bytes, O(n log n) above.
  void EncodePiece(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const;

  // The id that a whole piece has in the vocabulary.
  std::optional<int32_t> Find(std::string_view bytes) const;

  static constexpr int64_t kMaxPieceBytes = int64_t{1} << 29;

 private:
  struct PairEntry {
    uint64_t pair = kNoPair;
    uint32_t rank = kNoRank;
    int32_t id = -1;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr uint32_t kNoRank = ~uint32_t{0};
  static constexpr int kSmallPiece = 32;

  static uint64_t PairKey(int32_t left, int32_t right) {
    return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
  }
  const PairEntry& Lookup(int32_t left, int32_t right) const {
    const uint64_t key = PairKey(left, right);
    uint64_t slot = (key * 0x9E3779B97F4A7C15u) >> pair_shift_;
    while (true) {
      const PairEntry& entry = pairs_[slot];
      if (entry.pair == key || entry.pair == kNoPair) return entry;
      slot = (slot + 1) & pair_mask_;
    }
  }
  void MergeSmall(int32_t* symbols, int count, std::vector<int32_t>* ids) const;
  void MergeLarge(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> byte_ids_{};  // -1: not in the vocabulary.
  bool all_bytes_ = true;
  std::array<int32_t, 3> replacement_{};  // U+FFFD, for bytes that the vocabulary lacks.
  std::vector<PairEntry> pairs_;          // Open addressing, at most half full.
  uint64_t pair_mask_ = 0;
  int pair_shift_ = 63;
  bool ignore_merges_ = false;
  std::unordered_map<std::string, int32_t> ids_by_bytes_;
  size_t longest_token_ = 0;
};

}  // namespace tessera
