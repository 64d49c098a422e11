#include "data/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "data/dataset.h"

namespace tessera {

namespace {

// Apart from the streams of the sample order, which are the epochs.
constexpr uint64_t kDocumentOrderStream = ~uint64_t{0};

}  // namespace

Status TakeFromManifest(TokenStreamOptions* options) {
  if (options->eos_id && options->vocab_size) return {};
  // "folder/" and "folder" have different parents.
  std::filesystem::path folder = options->dataset;
  if (!folder.has_filename()) folder = folder.parent_path();
  const Result<DatasetInfo> info = ReadDatasetInfo(folder / "..");
  if (info.ok()) {
    if (!options->eos_id) options->eos_id = info->eos_id;
    if (!options->vocab_size) options->vocab_size = info->vocab_size;
  } else if (info.error().code != ErrorCode::kNotFound) {
    return info.error();
  }
  return {};
}

Result<std::unique_ptr<TokenStream>> TokenStream::Open(const TokenStreamOptions& given) {
  TokenStreamOptions options = given;
  TESSERA_TRY(TakeFromManifest(&options));
  const std::optional<int32_t> eos_id = options.eos_id;
  const std::optional<int64_t> vocab_size = options.vocab_size;
  TESSERA_ASSIGN(MdsReader reader, MdsReader::Open(options.dataset));
  if (options.insert_eos && !eos_id) {
    return InvalidArgument(fmt::format("'{}' has no dataset.json beside it, so the end-of-text id is "
                                       "not known: give eos_id, or insert_eos false",
                                       options.dataset.string()));
  }
  if (vocab_size && eos_id && (*eos_id < 0 || *eos_id >= *vocab_size)) {
    return InvalidArgument(fmt::format("end-of-text id {} is not below the vocabulary size {}",
                                       *eos_id, *vocab_size));
  }
  if (options.before_open) {
    reader.set_before_open(options.before_open);
  } else {
    TESSERA_TRY(ExpandMdsShards(options.dataset, reader.index()));
  }
  TESSERA_ASSIGN(DocumentTable table, DocumentTable::Open(reader, options.column));
  if (table.total_tokens() == 0) {
    return InvalidArgument(fmt::format("'{}' holds no tokens", options.dataset.string()));
  }
  std::unique_ptr<TokenStream> stream(new TokenStream(std::move(reader), std::move(table)));
  stream->column_ = options.column;
  stream->eos_id_ = eos_id.value_or(0);
  stream->id_limit_ = vocab_size.value_or(int64_t{INT32_MAX} + 1);
  stream->separator_ = options.insert_eos ? 1 : 0;
  const int64_t n = stream->documents();
  if (options.shuffle_documents) stream->order_.emplace(n, options.seed, kDocumentOrderStream);
  stream->starts_.resize(static_cast<size_t>(n) + 1);
  int64_t position = 0;
  for (int64_t place = 0; place < n; ++place) {
    stream->starts_[static_cast<size_t>(place)] = position;
    position += stream->separator_ + stream->table_.tokens(stream->DocumentAt(place));
  }
  stream->starts_.back() = position;
  stream->size_ = position + stream->separator_;
  return stream;
}

IndexRange TokenStream::ShardsOf(int64_t begin, int64_t count) const {
  const MdsIndex& index = reader_.index();
  if (order_) return {0, static_cast<int64_t>(index.shards.size()) - 1};
  const int64_t first = std::min(PlaceOf(begin), documents() - 1);
  const int64_t last = std::min(PlaceOf(begin + count - 1), documents() - 1);
  return {index.ShardOf(first), index.ShardOf(last)};
}

IndexRange TokenStream::TokensOf(int64_t shard) const {
  if (order_) return {0, size_ - 1};
  const std::vector<int64_t>& first = reader_.index().first_sample;
  return {starts_[static_cast<size_t>(first[static_cast<size_t>(shard)])],
          starts_[static_cast<size_t>(first[static_cast<size_t>(shard) + 1])] - 1};
}

int64_t TokenStream::PlaceOf(int64_t position) const {
  return std::upper_bound(starts_.begin(), starts_.end(), position) - starts_.begin() - 1;
}

Status TokenStream::ReadDocument(int64_t document, int64_t begin, int64_t count, int32_t* out) {
  const MdsShard& shard = reader_.ShardOf(document);
  const int64_t column = shard.FindColumn(column_);
  if (column < 0) {
    return Corrupt(fmt::format("{}: no column '{}'", reader_.Where(document), column_));
  }
  TESSERA_TRY(reader_.Columns(document, &values_));
  const Result<MdsTokens> tokens = ParseMdsTokens(shard.columns[static_cast<size_t>(column)].encoding,
                                                  values_[static_cast<size_t>(column)]);
  if (!tokens.ok()) return tokens.error().WithContext(reader_.Where(document));
  if (tokens->count != table_.tokens(document)) {
    return Corrupt(fmt::format("{}: has {} tokens, {} says {}", reader_.Where(document),
                               tokens->count, kDocumentTableFile, table_.tokens(document)));
  }
  const int64_t largest = CopyMdsTokens(*tokens, begin, count, out);
  if (largest < 0 || largest >= id_limit_) {
    return Corrupt(largest < 0
                       ? fmt::format("{}: a token id is negative or above 2^31",
                                     reader_.Where(document))
                       : fmt::format("{}: token id {} is not below the vocabulary size {}",
                                     reader_.Where(document), largest, id_limit_));
  }
  return {};
}

Status TokenStream::Read(int64_t begin, int64_t count, int32_t* out, int32_t* segment) {
  TESSERA_CHECK(begin >= 0 && begin + count <= size_, "range of the token stream");
  int64_t place = PlaceOf(begin);
  for (int64_t done = 0; done < count; ++place) {
    const int64_t start = starts_[static_cast<size_t>(place)];
    const bool last = place == documents();
    const int64_t end = last ? size_ : starts_[static_cast<size_t>(place) + 1];
    const int64_t stop = std::min(end - begin, count);  // In the row.
    const int32_t row_start = static_cast<int32_t>(std::max<int64_t>(start - begin, 0));
    if (segment != nullptr) std::fill(segment + done, segment + stop, row_start);
    int64_t offset = begin + done - start;  // In the segment, whose first token is the eos.
    if (offset < separator_ && done < stop) {
      out[done++] = eos_id_;
      ++offset;
    }
    if (done < stop) {
      TESSERA_TRY(ReadDocument(DocumentAt(place), offset - separator_, stop - done, out + done));
      done = stop;
    }
  }
  return {};
}

int64_t TokenStream::BytesOf(int64_t begin, int64_t count) const {
  if (table_.total_bytes() == 0) return 0;
  int64_t sum = 0;
  for (int64_t place = PlaceOf(begin); place < documents(); ++place) {
    const int64_t first = starts_[static_cast<size_t>(place)] + separator_;
    if (first >= begin + count) break;
    const int64_t document = DocumentAt(place);
    const uint64_t tokens = static_cast<uint64_t>(table_.tokens(document));
    if (tokens == 0) continue;
    const uint64_t bytes = static_cast<uint64_t>(table_.bytes(document));
    // Both factors are below 2^32.
    const auto share = [&](int64_t position) {
      const uint64_t k = static_cast<uint64_t>(
          std::clamp<int64_t>(position - first, 0, static_cast<int64_t>(tokens)));
      return static_cast<int64_t>(bytes * k / tokens);
    };
    sum += share(begin + count) - share(begin);
  }
  return sum;
}

}  // namespace tessera
