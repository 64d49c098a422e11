#include "tokenizer/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <queue>
#include <set>
#include <unordered_map>

#include "base/hash.h"
#include "base/threads.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer_state.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

// Counts distinct pieces: open addressing over entries whose bytes lie in an arena.
class PieceCounts {
 public:
  struct Entry {
    uint64_t hash;
    int64_t count;
    int64_t offset;
    int64_t length;
  };

  PieceCounts() : slots_(1 << 12, kEmpty) {}

  void Add(std::string_view piece, uint64_t hash, int64_t count) {
    uint64_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] != kEmpty) {
      Entry& entry = entries_[slots_[slot]];
      if (entry.hash == hash && Bytes(entry) == piece) {
        entry.count += count;
        return;
      }
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = entries_.size();
    entries_.push_back({hash, count, static_cast<int64_t>(bytes_.size()),
                        static_cast<int64_t>(piece.size())});
    bytes_.append(piece);
    if (entries_.size() * 2 > slots_.size()) Grow();
  }
  void Add(const PieceCounts& other) {
    for (const Entry& entry : other.entries_) Add(other.Bytes(entry), entry.hash, entry.count);
  }
  std::string_view Bytes(const Entry& entry) const {
    return {bytes_.data() + entry.offset, static_cast<size_t>(entry.length)};
  }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  void Grow() {
    slots_.assign(slots_.size() * 2, kEmpty);
    for (size_t i = 0; i < entries_.size(); ++i) {
      uint64_t slot = entries_[i].hash & (slots_.size() - 1);
      while (slots_[slot] != kEmpty) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = i;
    }
  }

  std::vector<uint64_t> slots_;
  std::vector<Entry> entries_;
  std::string bytes_;
};

// The distinct pieces as lists of symbols, and where each adjacent pair of symbols occurs.
class MergeLearner {
 public:
  // `byte_ids` maps bytes to first symbols; new symbols are numbered by the caller.
  Status AddPieces(const PieceCounts& pieces, const std::array<int32_t, 256>& byte_ids);
  struct Pair {
    int32_t left = 0, right = 0;
    int64_t count = 0;
    bool merged = false;  // Was chosen before and came up again through another merge.
  };
  // The most frequent pair now, or nullopt when no pair occurs at least `min_count` times.
  std::optional<Pair> Best(int64_t min_count);
  // Replaces every occurrence of the pair that Best returned, left to right in each piece.
  void Merge(int32_t id);

 private:
  struct PairState {
    int64_t count = 0;
    bool merged = false;
    // Where it occurred: the position of its left symbol. May name places where it no longer does.
    std::vector<uint32_t> positions;
  };
  struct HeapEntry {
    int64_t count;
    uint64_t key;
    uint32_t index;
    bool operator<(const HeapEntry& other) const {  // Less means later.
      return count != other.count ? count < other.count : key > other.key;
    }
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
  }
  uint32_t IndexOf(uint64_t key);
  void Change(int32_t left, int32_t right, int64_t delta, uint32_t position);

  struct Symbol {
    int32_t id;  // -1: merged into the symbol on its left.
    uint32_t piece;
    uint32_t prev, next;  // kNone at the ends of a piece.
  };
  static constexpr uint32_t kNone = ~uint32_t{0};

  std::vector<Symbol> symbols_;
  std::vector<int64_t> piece_counts_;
  std::vector<PairState> pairs_;
  std::vector<uint64_t> keys_;  // Of pairs_.
  std::vector<uint32_t> slots_ = std::vector<uint32_t>(1 << 16, kNone);
  std::priority_queue<HeapEntry> heap_;
  std::vector<uint32_t> grown_;  // Pairs whose count rose in the current merge.
  HeapEntry best_{};
};

uint32_t MergeLearner::IndexOf(uint64_t key) {
  const auto slot_of = [&](uint64_t k) {
    return (k * 0x9E3779B97F4A7C15u) >> (64 - std::countr_zero(slots_.size()));
  };
  uint64_t slot = slot_of(key);
  while (slots_[slot] != kNone) {
    if (keys_[slots_[slot]] == key) return slots_[slot];
    slot = (slot + 1) & (slots_.size() - 1);
  }
  const auto index = static_cast<uint32_t>(pairs_.size());
  slots_[slot] = index;
  pairs_.emplace_back();
  keys_.push_back(key);
  if (pairs_.size() * 2 > slots_.size()) {
    slots_.assign(slots_.size() * 2, kNone);
    for (uint32_t i = 0; i < keys_.size(); ++i) {
      uint64_t s = slot_of(keys_[i]);
      while (slots_[s] != kNone) s = (s + 1) & (slots_.size() - 1);
      slots_[s] = i;
    }
  }
  return index;
}

Status MergeLearner::AddPieces(const PieceCounts& pieces,
                               const std::array<int32_t, 256>& byte_ids) {
  int64_t total = 0;
  for (const auto& entry : pieces.entries()) total += entry.length;
  if (total >= static_cast<int64_t>(kNone)) {
    return Unsupported(fmt::format("the distinct pieces of the corpus have {} bytes, more than {}; "
                                   "train the tokenizer on a sample",
                                   total, kNone - 1));
  }
  symbols_.reserve(static_cast<size_t>(total));
  for (const auto& entry : pieces.entries()) {
    const auto piece = static_cast<uint32_t>(piece_counts_.size());
    piece_counts_.push_back(entry.count);
    const auto first = static_cast<uint32_t>(symbols_.size());
    const auto last = first + static_cast<uint32_t>(entry.length) - 1;
    for (const char c : pieces.Bytes(entry)) {
      const auto at = static_cast<uint32_t>(symbols_.size());
      symbols_.push_back({byte_ids[static_cast<uint8_t>(c)], piece, at == first ? kNone : at - 1,
                          at == last ? kNone : at + 1});
      if (at != first) Change(symbols_[at - 1].id, symbols_[at].id, entry.count, at - 1);
    }
  }
  for (uint32_t i = 0; i < pairs_.size(); ++i) heap_.push({pairs_[i].count, keys_[i], i});
  grown_.clear();
  return {};
}

void MergeLearner::Change(int32_t left, int32_t right, int64_t delta, uint32_t position) {
  const uint32_t index = IndexOf(Key(left, right));
  PairState& pair = pairs_[index];
  pair.count += delta;
  if (delta > 0) {
    pair.positions.push_back(position);
    // A pair grows many times in one merge; most of its entries are next to each other.
    if (grown_.empty() || grown_.back() != index) grown_.push_back(index);
  }
}

std::optional<MergeLearner::Pair> MergeLearner::Best(int64_t min_count) {
  while (!heap_.empty()) {
    best_ = heap_.top();
    const PairState& pair = pairs_[best_.index];
    if (pair.count < min_count) {
      // Should it grow again, it is pushed again.
      heap_.pop();
      continue;
    }
    if (pair.count != best_.count) {
      heap_.pop();
      heap_.push({pair.count, best_.key, best_.index});
      continue;
    }
    heap_.pop();
    return Pair{static_cast<int32_t>(best_.key >> 32), static_cast<int32_t>(best_.key),
                pair.count, pair.merged};
  }
  return std::nullopt;
}

void MergeLearner::Merge(int32_t id) {
  const auto left = static_cast<int32_t>(best_.key >> 32);
  const auto right = static_cast<int32_t>(best_.key);
  std::vector<uint32_t> positions = std::move(pairs_[best_.index].positions);
  pairs_[best_.index].positions = {};
  // Overlaps ("aaa") are resolved from the left, as the encoder does.
  if (!std::is_sorted(positions.begin(), positions.end())) {
    std::sort(positions.begin(), positions.end());
  }
  grown_.clear();
  for (const uint32_t at : positions) {
    Symbol& symbol = symbols_[at];
    if (symbol.id != left || symbol.next == kNone || symbols_[symbol.next].id != right) continue;
    Symbol& gone = symbols_[symbol.next];
    const int64_t count = piece_counts_[symbol.piece];
    if (symbol.prev != kNone) {
      const int32_t before = symbols_[symbol.prev].id;
      Change(before, left, -count, symbol.prev);
      Change(before, id, count, symbol.prev);
    }
    if (gone.next != kNone) {
      const int32_t after = symbols_[gone.next].id;
      Change(right, after, -count, symbol.next);
      Change(id, after, count, at);
      symbols_[gone.next].prev = at;
    }
    symbol.id = id;
    symbol.next = gone.next;
    gone.id = -1;
    pairs_[best_.index].count -= count;
  }
  pairs_[best_.index].merged = true;
  std::sort(grown_.begin(), grown_.end());
  grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
  for (const uint32_t index : grown_) {
    if (pairs_[index].count > 0) heap_.push({pairs_[index].count, keys_[index], index});
  }
}

}  // namespace

struct BpeTrainer::State {
  BpeTrainOptions options;
  ThreadPool pool;
  std::vector<PieceCounts> counts;  // One a thread.
  int64_t bytes = 0;

  explicit State(BpeTrainOptions given)
      : options(std::move(given)),
        pool(options.num_threads),
        counts(static_cast<size_t>(pool.num_threads())) {}
};

BpeTrainer::BpeTrainer(BpeTrainOptions options)
    : state_(std::make_unique<State>(std::move(options))) {}
BpeTrainer::~BpeTrainer() = default;
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;
BpeTrainer& BpeTrainer::operator=(BpeTrainer&&) noexcept = default;

void BpeTrainer::Add(std::span<const std::string_view> documents) {
  std::atomic<size_t> next{0};
  state_->pool.Run([&](int thread) {
    PieceCounts& counts = state_->counts[static_cast<size_t>(thread)];
    std::array<int64_t, 256> ends;
    while (true) {
      const size_t d = next.fetch_add(1, std::memory_order_relaxed);
      if (d >= documents.size()) break;
      const std::string_view text = documents[d];
      const auto size = static_cast<int64_t>(text.size());
      for (int64_t position = 0; position < size;) {
        const int64_t found = ScanPieces(state_->options.pre_tokenizer, text, position,
                                         static_cast<int64_t>(ends.size()), ends.data());
        for (int64_t i = 0; i < found; ++i) {
          const int64_t end = ends[static_cast<size_t>(i)];
          const std::string_view piece =
              text.substr(static_cast<size_t>(position), static_cast<size_t>(end - position));
          counts.Add(piece, Xxh3(piece), 1);
          position = end;
        }
      }
    }
  });
  for (const std::string_view text : documents) state_->bytes += static_cast<int64_t>(text.size());
}

int64_t BpeTrainer::bytes_seen() const { return state_->bytes; }
int64_t BpeTrainer::distinct_pieces() const {
  // Threads count apart, so this is an upper bound until Train joins them.
  int64_t pieces = 0;
  for (const PieceCounts& counts : state_->counts) {
    pieces += static_cast<int64_t>(counts.entries().size());
  }
  return pieces;
}

Result<Tokenizer> BpeTrainer::Train() {
  const BpeTrainOptions& options = state_->options;
  if (state_->bytes == 0) {
    return InvalidArgument("the corpus is empty: a tokenizer needs text to learn from");
  }
  std::set<std::string> distinct;
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || !IsValidUtf8(token) || !distinct.insert(token).second) {
      return InvalidArgument(fmt::format(
          "special token '{}' is empty, listed twice or not valid UTF-8", token));
    }
    if (token.size() == 1) {
      return InvalidArgument(
          fmt::format("special token '{}' is one byte, which the alphabet holds already", token));
    }
  }
  const auto base = static_cast<int64_t>(options.special_tokens.size()) + 256;
  if (options.vocab_size < base || options.vocab_size > kMaxTokenId) {
    return InvalidArgument(fmt::format(
        "vocab_size {} must be in {}..{}: {} special tokens, 256 bytes and at least no merge",
        options.vocab_size, base, kMaxTokenId, options.special_tokens.size()));
  }

  TokenizerParts parts;
  parts.pre_tokenizer = options.pre_tokenizer;
  parts.ignore_merges = false;
  parts.post_processor_json =
      R"({"add_prefix_space":true,"trim_offsets":false,"type":"ByteLevel","use_regex":true})";
  std::unordered_map<std::string, int32_t> ids;
  const auto add_token = [&](std::string bytes) {
    const auto id = static_cast<int32_t>(parts.vocab.size());
    ids.emplace(bytes, id);
    parts.vocab.emplace_back(std::move(bytes));
    return id;
  };
  for (const std::string& token : options.special_tokens) {
    const std::optional<std::string> spelled = BytesOfVocabularyKey(token);
    if (spelled && *spelled != token) {
      return InvalidArgument(fmt::format(
          "special token '{}' would be taken for other bytes in a tokenizer.json; use printable "
          "ASCII characters",
          token));
    }
    const auto id = static_cast<int32_t>(parts.vocab.size());
    parts.added_tokens.push_back({.content = token, .id = id});
    if (spelled) {
      add_token(token);
    } else {
      parts.vocab.emplace_back(token);
      parts.plain_ids.push_back(id);
    }
  }
  // Bytes in the order of the byte alphabet's characters: the printable ones, then the rest.
  std::array<int32_t, 256> byte_ids{};
  for (const bool printable : {true, false}) {
    for (int b = 0; b < 256; ++b) {
      const bool is = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      if (is == printable) byte_ids[static_cast<size_t>(b)] = add_token({static_cast<char>(b)});
    }
  }

  for (size_t i = 1; i < state_->counts.size(); ++i) {
    state_->counts[0].Add(state_->counts[i]);
    state_->counts[i] = PieceCounts();
  }
  MergeLearner learner;
  TESSERA_TRY(learner.AddPieces(state_->counts[0], byte_ids));
  const int64_t total = options.vocab_size - base;
  const int64_t report_every = std::max<int64_t>(1, total / 100);
  while (static_cast<int64_t>(parts.vocab.size()) < options.vocab_size) {
    const auto best = learner.Best(std::max<int64_t>(1, options.min_frequency));
    const int64_t learned = static_cast<int64_t>(parts.vocab.size()) - base;
    if (!best) {
      return InvalidArgument(fmt::format(
          "vocab_size {} is more than the data allows: {} bytes of text hold {} merges{}, which "
          "make a vocabulary of {}; ask for at most that, or give more text",
          options.vocab_size, state_->bytes, learned,
          options.min_frequency > 1
              ? fmt::format(" of pairs that occur at least {} times", options.min_frequency)
              : std::string(),
          parts.vocab.size()));
    }
    std::string joined = *parts.vocab[static_cast<size_t>(best->left)] +
                         *parts.vocab[static_cast<size_t>(best->right)];
    // Two merges may spell the same token; both are rules for it.
    const auto it = ids.find(joined);
    const int32_t id = it != ids.end() ? it->second : add_token(std::move(joined));
    if (!best->merged) parts.merges.emplace_back(best->left, best->right);
    learner.Merge(id);
    if (options.progress && learned % report_every == 0) {
      options.progress({learned, total});
    }
  }
  return Tokenizer::Create(std::move(parts), "the trained tokenizer");
}

Result<Tokenizer> TrainBpe(std::span<const std::string_view> documents,
                           const BpeTrainOptions& options) {
  BpeTrainer trainer(options);
  trainer.Add(documents);
  return trainer.Train();
}

}  // namespace tessera
