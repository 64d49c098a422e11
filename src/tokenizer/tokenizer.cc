#include "tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "base/files.h"
#include "base/hash.h"
#include "tokenizer/nfc.h"
#include "tokenizer/piece_cache.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer_state.h"
#include "tokenizer/utf8.h"

namespace tessera {
namespace {

constexpr int64_t kMaxJsonBytes = int64_t{256} << 20;

Status FillAddedTokens(TokenizerState* state, std::string_view source) {
  const auto& added = state->parts.added_tokens;
  for (size_t i = 0; i < added.size(); ++i) {
    const AddedToken& token = added[i];
    if (token.content.empty()) {
      return Corrupt(fmt::format("{}: the added token with id {} is empty", source, token.id));
    }
    if (!IsValidUtf8(token.content)) {
      return InvalidArgument(
          fmt::format("{}: the added token with id {} is not valid UTF-8", source, token.id));
    }
    if (token.id < 0 || token.id > kMaxTokenId) {
      return Corrupt(fmt::format("{}: the added token '{}' has id {}, which is not in 0..{}", source,
                                 token.content, token.id, kMaxTokenId));
    }
    if (!state->added_by_content.emplace(token.content, token.id).second) {
      return Corrupt(fmt::format("{}: the added token '{}' is listed twice", source, token.content));
    }
    const auto id = static_cast<size_t>(token.id);
    if (id < state->parts.vocab.size() && state->parts.vocab[id] &&
        *state->parts.vocab[id] != token.content) {
      return Corrupt(fmt::format("{}: the added token '{}' has id {}, which the vocabulary gives to "
                                 "another token",
                                 source, token.content, token.id));
    }
    if (id >= state->bytes.size()) {
      state->bytes.resize(id + 1);
      state->special.resize(id + 1);
    }
    if (!state->bytes[id].empty() && state->bytes[id] != token.content) {
      return Corrupt(fmt::format("{}: two added tokens have id {}", source, token.id));
    }
    state->bytes[id] = token.content;
    state->special[id] = token.special;
    const auto index = static_cast<int32_t>(i);
    if (!token.normalized) {
      state->raw_matcher.Add(token.content, index);
    } else if (state->parts.normalizer == Normalizer::kNfc) {
      state->normalized_matcher.Add(NormalizeNfc(token.content), index);
    } else {
      state->normalized_matcher.Add(token.content, index);
    }
  }
  return {};
}

}  // namespace

Result<Tokenizer> Tokenizer::Create(TokenizerParts parts, std::string_view source) {
  static std::atomic<uint64_t> next_serial{1};
  auto state = std::make_shared<TokenizerState>();
  state->parts = std::move(parts);
  TokenizerParts& own = state->parts;
  if (static_cast<int64_t>(own.vocab.size()) > kMaxTokenId + 1) {
    return Corrupt(fmt::format("{}: the highest id is {}, more than {}", source,
                               own.vocab.size() - 1, kMaxTokenId));
  }
  state->serial = next_serial.fetch_add(1, std::memory_order_relaxed);
  state->plain.resize(own.vocab.size());
  std::vector<bool> can_merge(own.vocab.size(), true);
  for (const int32_t id : own.plain_ids) {
    state->plain[static_cast<size_t>(id)] = true;
    can_merge[static_cast<size_t>(id)] = false;
  }
  TESSERA_ASSIGN(state->model,
                 BpeModel::Create(own.vocab, can_merge, own.merges, own.ignore_merges, source));
  state->bytes.resize(own.vocab.size());
  state->special.resize(own.vocab.size());
  for (size_t id = 0; id < own.vocab.size(); ++id) {
    if (own.vocab[id]) state->bytes[id] = *own.vocab[id];
  }
  std::sort(own.added_tokens.begin(), own.added_tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  TESSERA_TRY(FillAddedTokens(state.get(), source));
  state->vocab_size = static_cast<int64_t>(state->bytes.size());
  for (const auto& ids : {own.template_prefix, own.template_suffix}) {
    for (const int32_t id : ids) {
      if (id < 0 || id >= state->vocab_size) {
        return Corrupt(fmt::format("{}: the post-processor names the id {}, which does not exist",
                                   source, id));
      }
    }
  }
  state->json = TokenizerPartsToJson(own, state->plain);
  state->fingerprint = Sha256Hex(state->json);
  return Tokenizer(std::move(state));
}

Result<Tokenizer> Tokenizer::Load(const std::filesystem::path& path) {
  std::error_code code;
  const std::filesystem::path file =
      std::filesystem::is_directory(path, code) ? path / "tokenizer.json" : path;
  const Result<std::string> text = ReadFile(file, kMaxJsonBytes);
  if (!text.ok()) {
    Error error = text.error().WithContext("tokenizer");
    if (error.code == ErrorCode::kNotFound) {
      error.message += "; name a tokenizer.json or a folder that holds one (`tessera tokenizer train` "
                       "makes one)";
    }
    return error;
  }
  return FromJson(*text, file.string());
}

Status Tokenizer::Save(const std::filesystem::path& path) const {
  std::error_code code;
  const bool folder = std::filesystem::is_directory(path, code);
  return WriteFileAtomic(folder ? path / "tokenizer.json" : path, state_->json);
}

std::string Tokenizer::ToJson() const { return state_->json; }
const std::string& Tokenizer::fingerprint() const { return state_->fingerprint; }
int64_t Tokenizer::vocab_size() const { return state_->vocab_size; }
int64_t Tokenizer::merge_count() const { return static_cast<int64_t>(state_->parts.merges.size()); }
PreTokenizer Tokenizer::pre_tokenizer() const { return state_->parts.pre_tokenizer; }
Normalizer Tokenizer::normalizer() const { return state_->parts.normalizer; }
bool Tokenizer::ignore_merges() const { return state_->parts.ignore_merges; }
const std::vector<AddedToken>& Tokenizer::added_tokens() const {
  return state_->parts.added_tokens;
}
std::span<const int32_t> Tokenizer::template_prefix() const {
  return state_->parts.template_prefix;
}
std::span<const int32_t> Tokenizer::template_suffix() const {
  return state_->parts.template_suffix;
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view content) const {
  if (const auto it = state_->added_by_content.find(std::string(content));
      it != state_->added_by_content.end()) {
    return it->second;
  }
  return state_->model.Find(content);
}

std::optional<int32_t> Tokenizer::eos_id() const {
  for (const std::string_view name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>",
                                      "<|eos|>", "<|im_end|>", "<|eot_id|>"}) {
    if (const auto it = state_->added_by_content.find(std::string(name));
        it != state_->added_by_content.end()) {
      return it->second;
    }
  }
  return std::nullopt;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < state_->vocab_size && state_->special[static_cast<size_t>(id)];
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= state_->vocab_size) return {};
  return state_->bytes[static_cast<size_t>(id)];
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  text.reserve(ids.size() * 4);
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    text += TokenBytes(id);
  }
  return text;
}

struct Encoder::Work {
  std::shared_ptr<const TokenizerState> state;
  PieceCache cache;
  BpeScratch scratch;
  std::vector<int32_t> piece_ids;

  void EncodeMatched(const AddedTokenMatcher& matcher, bool normalized_stage,
                     std::string_view text, SpecialTokens mode, std::vector<int32_t>* ids);
  void EncodeBetween(bool normalized_stage, std::string_view text, SpecialTokens mode,
                     std::vector<int32_t>* ids);
  void EncodeText(std::string_view text, std::vector<int32_t>* ids);
  void EncodeMiss(std::string_view piece);
  void EncodeUncommon(std::string_view piece, std::vector<int32_t>* ids);
};

// Cuts the added tokens of one stage out of `text`.
void Encoder::Work::EncodeMatched(const AddedTokenMatcher& matcher, bool normalized_stage,
                                  std::string_view text, SpecialTokens mode,
                                  std::vector<int32_t>* ids) {
  const auto size = static_cast<int64_t>(text.size());
  const auto part = [&](int64_t begin, int64_t end) {
    return text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  };
  int64_t done = 0;
  int64_t search = 0;
  while (search < size) {
    const AddedTokenMatcher::Match match = matcher.Find(text, search);
    if (match.index < 0) break;
    search = match.end;
    const AddedToken& token = state->parts.added_tokens[static_cast<size_t>(match.index)];
    if (token.special && mode == SpecialTokens::kAsText) continue;
    int64_t begin = match.begin;
    int64_t end = match.end;
    // A match inside the white space that the token before it swallowed.
    if (begin < done) continue;
    if (token.lstrip) begin = std::max(done, begin - TrailingSpaceBytes(part(done, begin)));
    if (token.rstrip) end += LeadingSpaceBytes(part(end, size));
    if (begin > done) EncodeBetween(normalized_stage, part(done, begin), mode, ids);
    ids->push_back(token.id);
    done = end;
  }
  if (done < size) EncodeBetween(normalized_stage, part(done, size), mode, ids);
}

void Encoder::Work::EncodeBetween(bool normalized_stage, std::string_view text, SpecialTokens mode,
                                  std::vector<int32_t>* ids) {
  if (normalized_stage) {
    EncodeText(text, ids);
    return;
  }
  std::string normalized;
  if (state->parts.normalizer == Normalizer::kNfc && MayNeedNfc(text)) {
    normalized = NormalizeNfc(text);
    text = normalized;
  }
  if (state->normalized_matcher.empty()) {
    EncodeText(text, ids);
  } else {
    EncodeMatched(state->normalized_matcher, true, text, mode, ids);
  }
}

void Encoder::Work::EncodeMiss(std::string_view piece) {
  piece_ids.clear();
  // A piece beyond any real text's is cut so that its positions fit 32 bits.
  while (static_cast<int64_t>(piece.size()) > BpeModel::kMaxPieceBytes) {
    state->model.EncodePiece(piece.substr(0, BpeModel::kMaxPieceBytes), &scratch, &piece_ids);
    piece.remove_prefix(BpeModel::kMaxPieceBytes);
  }
  state->model.EncodePiece(piece, &scratch, &piece_ids);
}

// Pieces of many bytes or many ids.
void Encoder::Work::EncodeUncommon(std::string_view piece, std::vector<int32_t>* ids) {
  if (static_cast<int64_t>(piece.size()) > PieceCache::kLongBytes) {
    EncodeMiss(piece);
    ids->insert(ids->end(), piece_ids.begin(), piece_ids.end());
    return;
  }
  const uint64_t hash = Xxh3(piece);
  if (const std::vector<int32_t>* found = cache.FindLong(piece, hash)) {
    ids->insert(ids->end(), found->begin(), found->end());
    return;
  }
  EncodeMiss(piece);
  cache.InsertLong(piece, hash, piece_ids);
  ids->insert(ids->end(), piece_ids.begin(), piece_ids.end());
}

// Pieces are scanned a batch ahead, so that their cache lines are on the way when they are needed.
void Encoder::Work::EncodeText(std::string_view text, std::vector<int32_t>* ids) {
  constexpr int64_t kBatch = 128;
  std::array<int64_t, kBatch> ends;
  std::array<PieceCache::Key, kBatch> keys;
  std::array<uint32_t, kBatch> lines;
  std::array<int32_t, (kBatch + 1) * PieceCache::kInlineIds> out;
  const PreTokenizer kind = state->parts.pre_tokenizer;
  const auto size = static_cast<int64_t>(text.size());
  int64_t position = 0;
  while (position < size) {
    const int64_t count = ScanPieces(kind, text, position, kBatch, ends.data());
    int64_t begin = position;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t length = ends[at] - begin;
      if (length <= PieceCache::kShortBytes) [[likely]] {
        keys[at] = PieceCache::MakeKey(text.data() + begin, length, size - begin);
        lines[at] = PieceCache::LineOf(keys[at]);
        cache.Prefetch(lines[at]);
      }
      begin = ends[at];
    }
    begin = position;
    size_t filled = 0;
    const auto flush = [&] {
      ids->insert(ids->end(), out.begin(), out.begin() + static_cast<int64_t>(filled));
      filled = 0;
    };
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const std::string_view piece(text.data() + begin, static_cast<size_t>(ends[at] - begin));
      begin = ends[at];
      if (static_cast<int64_t>(piece.size()) > PieceCache::kShortBytes) [[unlikely]] {
        flush();
        EncodeUncommon(piece, ids);
        continue;
      }
      if (const PieceCache::Entry* entry = cache.Find(keys[at], lines[at])) [[likely]] {
        std::copy(entry->ids.begin(), entry->ids.end(), out.begin() + static_cast<int64_t>(filled));
        filled += static_cast<size_t>(1 + (entry->ids[1] >= 0) + (entry->ids[2] >= 0) +
                                      (entry->ids[3] >= 0));
        continue;
      }
      EncodeMiss(piece);
      if (piece_ids.size() <= PieceCache::kInlineIds) {
        cache.Insert(keys[at], lines[at], piece_ids);
      }
      flush();
      ids->insert(ids->end(), piece_ids.begin(), piece_ids.end());
    }
    flush();
    position = begin;
  }
}

Encoder::Encoder(const Tokenizer& tokenizer) : work_(std::make_unique<Work>()) {
  work_->state = tokenizer.state_;
}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&& other) noexcept = default;
Encoder& Encoder::operator=(Encoder&& other) noexcept = default;

void Encoder::Encode(std::string_view text, std::vector<int32_t>* ids, SpecialTokens mode) {
  if (work_->state->raw_matcher.empty()) {
    work_->EncodeBetween(false, text, mode, ids);
  } else {
    work_->EncodeMatched(work_->state->raw_matcher, false, text, mode, ids);
  }
}

void Tokenizer::Encode(std::string_view text, std::vector<int32_t>* ids, SpecialTokens mode) const {
  // One encoder a thread, replaced when the thread turns to another tokenizer.
  thread_local std::unique_ptr<Encoder> encoder;
  thread_local uint64_t serial = 0;
  if (serial != state_->serial) {
    encoder = std::make_unique<Encoder>(*this);
    serial = state_->serial;
  }
  encoder->Encode(text, ids, mode);
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, SpecialTokens mode) const {
  std::vector<int32_t> ids;
  Encode(text, &ids, mode);
  return ids;
}

}  // namespace tessera
