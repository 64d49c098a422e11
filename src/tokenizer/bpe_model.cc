#include "tokenizer/bpe_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace tessera {

Result<BpeModel> BpeModel::Create(const std::vector<std::optional<std::string>>& vocab,
                                  const std::vector<bool>& can_merge,
                                  const std::vector<std::pair<int32_t, int32_t>>& merges,
                                  bool ignore_merges, std::string_view source) {
  BpeModel model;
  model.ignore_merges_ = ignore_merges;
  model.byte_ids_.fill(-1);
  model.ids_by_bytes_.reserve(vocab.size());
  for (size_t id = 0; id < vocab.size(); ++id) {
    if (!vocab[id] || !can_merge[id]) continue;
    const std::string& bytes = *vocab[id];
    if (!model.ids_by_bytes_.emplace(bytes, static_cast<int32_t>(id)).second) {
      return Corrupt(fmt::format("{}: ids {} and {} have the same bytes", source,
                                 model.ids_by_bytes_[bytes], id));
    }
    model.longest_token_ = std::max(model.longest_token_, bytes.size());
    if (bytes.size() == 1) {
      model.byte_ids_[static_cast<uint8_t>(bytes[0])] = static_cast<int32_t>(id);
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (model.byte_ids_[static_cast<size_t>(byte)] >= 0) continue;
    model.all_bytes_ = false;
    const bool in_utf8 = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
    if (in_utf8) {
      return Unsupported(fmt::format(
          "{}: the vocabulary has no token for byte 0x{:02X}, so text with it could not be encoded "
          "without loss; train the tokenizer with the whole byte alphabet",
          source, byte));
    }
  }
  model.replacement_ = {model.byte_ids_[0xEF], model.byte_ids_[0xBF], model.byte_ids_[0xBD]};

  const uint64_t slots = std::bit_ceil(std::max<uint64_t>(64, merges.size() * 2 + 2));
  model.pairs_.resize(slots);
  model.pair_mask_ = slots - 1;
  model.pair_shift_ = 64 - std::countr_zero(slots);
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = merges[rank];
    const auto known = [&](int32_t id) {
      const auto index = static_cast<size_t>(id);
      return id >= 0 && index < vocab.size() && vocab[index].has_value() && can_merge[index];
    };
    if (!known(left) || !known(right)) {
      return Corrupt(fmt::format("{}: merge {} names the id {}, which is not a byte-level token",
                                 source, rank, known(left) ? right : left));
    }
    joined = *vocab[static_cast<size_t>(left)] + *vocab[static_cast<size_t>(right)];
    const auto it = model.ids_by_bytes_.find(joined);
    if (it == model.ids_by_bytes_.end()) {
      return Corrupt(fmt::format("{}: the result of merge {} (ids {} and {}) is not in the vocabulary",
                                 source, rank, left, right));
    }
    const uint64_t key = PairKey(left, right);
    uint64_t slot = (key * 0x9E3779B97F4A7C15u) >> model.pair_shift_;
    while (model.pairs_[slot].pair != kNoPair && model.pairs_[slot].pair != key) {
      slot = (slot + 1) & model.pair_mask_;
    }
    // A pair that is listed twice keeps its last rank, as in Hugging Face's tokenizers.
    model.pairs_[slot] = {key, static_cast<uint32_t>(rank), it->second};
  }
  return model;
}

std::optional<int32_t> BpeModel::Find(std::string_view bytes) const {
  if (bytes.size() > longest_token_) return std::nullopt;
  const auto it = ids_by_bytes_.find(std::string(bytes));
  if (it == ids_by_bytes_.end()) return std::nullopt;
  return it->second;
}

void BpeModel::EncodePiece(std::string_view piece, BpeScratch* scratch,
                           std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = Find(piece)) {
      ids->push_back(*id);
      return;
    }
  }
  if (!all_bytes_) {
    std::string spelled;
    bool changed = false;
    for (const char c : piece) {
      if (byte_ids_[static_cast<uint8_t>(c)] >= 0) {
        spelled.push_back(c);
      } else {
        spelled += "\xEF\xBF\xBD";
        changed = true;
      }
    }
    if (changed) {
      MergeLarge(spelled, scratch, ids);
      return;
    }
  }
  if (piece.size() > kSmallPiece) {
    MergeLarge(piece, scratch, ids);
    return;
  }
  int32_t symbols[kSmallPiece];
  const int count = static_cast<int>(piece.size());
  for (int i = 0; i < count; ++i) {
    symbols[i] = byte_ids_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])];
  }
  MergeSmall(symbols, count, ids);
}

void BpeModel::MergeSmall(int32_t* symbols, int count, std::vector<int32_t>* ids) const {
  uint32_t ranks[kSmallPiece];  // Of the pair (i, i + 1).
  int32_t merged[kSmallPiece];  // What that pair becomes.
  const auto update = [&](int i) {
    const PairEntry& entry = Lookup(symbols[i], symbols[i + 1]);
    ranks[i] = entry.rank;
    merged[i] = entry.id;
  };
  for (int i = 0; i + 1 < count; ++i) update(i);
  while (count > 1) {
    int best = 0;
    uint32_t best_rank = ranks[0];
    for (int i = 1; i + 1 < count; ++i) {
      if (ranks[i] < best_rank) {
        best_rank = ranks[i];
        best = i;
      }
    }
    if (best_rank == kNoRank) break;
    symbols[best] = merged[best];
    for (int i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    --count;
    if (best > 0) update(best - 1);
    if (best + 1 < count) update(best);
  }
  ids->insert(ids->end(), symbols, symbols + count);
}

void BpeModel::MergeLarge(std::string_view piece, BpeScratch* scratch,
                          std::vector<int32_t>* ids) const {
  TESSERA_CHECK(static_cast<int64_t>(piece.size()) <= 3 * kMaxPieceBytes, "piece too long");
  auto& nodes = scratch->nodes;
  auto& heap = scratch->heap;
  const auto count = static_cast<int32_t>(piece.size());
  nodes.resize(piece.size());
  heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    nodes[static_cast<size_t>(i)] = {
        byte_ids_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])], i - 1,
        i + 1 < count ? i + 1 : -1};
  }
  const auto later = [](const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](int32_t i) -> std::optional<BpeScratch::Candidate> {
    const BpeScratch::Node& node = nodes[static_cast<size_t>(i)];
    const PairEntry& entry = Lookup(node.id, nodes[static_cast<size_t>(node.next)].id);
    if (entry.rank == kNoRank) return std::nullopt;
    return BpeScratch::Candidate{entry.rank, static_cast<uint32_t>(i), entry.pair, entry.id};
  };
  for (int32_t i = 0; i + 1 < count; ++i) {
    if (const auto found = candidate(i)) heap.push_back(*found);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](int32_t i) {
    if (const auto found = candidate(i)) {
      heap.push_back(*found);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };
  while (!heap.empty()) {
    const BpeScratch::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    const auto position = static_cast<int32_t>(top.position);
    BpeScratch::Node& node = nodes[top.position];
    // Stale when either side was merged away since: a dead node has id -1.
    if (node.id < 0 || node.next < 0 ||
        PairKey(node.id, nodes[static_cast<size_t>(node.next)].id) != top.pair) {
      continue;
    }
    BpeScratch::Node& gone = nodes[static_cast<size_t>(node.next)];
    node.id = top.id;
    node.next = gone.next;
    if (gone.next >= 0) nodes[static_cast<size_t>(gone.next)].prev = position;
    gone.id = -1;
    if (node.prev >= 0) push(node.prev);
    if (node.next >= 0) push(position);
  }
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next) {
    ids->push_back(nodes[static_cast<size_t>(i)].id);
  }
}

}  // namespace tessera
