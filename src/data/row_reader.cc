#include "data/row_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "data/dataset.h"

namespace tessera {

namespace {

// Windows over the concatenation of the documents.
class ConcatenatedRows : public RowReader {
 public:
  ConcatenatedRows(std::unique_ptr<TokenStream> stream, int64_t length)
      : stream_(std::move(stream)), length_(length) {}

  int64_t rows() const override { return (stream_->size() - 2 + length_) / length_; }
  int64_t documents() const override { return stream_->documents(); }
  int64_t tokens() const override { return stream_->size(); }
  int32_t fill_id() const override { return stream_->eos_id(); }

  IndexRange ShardsOf(int64_t row) const override {
    return stream_->ShardsOf(row * length_, Count(row));
  }

  IndexRange RowsOf(int64_t shard) const override {
    const IndexRange tokens = stream_->TokensOf(shard);
    if (tokens.last < tokens.first) return {};
    // A row reads one token more than it is long.
    return {std::max<int64_t>(0, (tokens.first - 1) / length_),
            std::min(rows() - 1, tokens.last / length_)};
  }

  Result<int64_t> Read(int64_t row, int32_t* ids, int32_t* segment) override {
    TESSERA_TRY(stream_->Read(row * length_, Count(row), ids, segment));
    return Count(row);
  }

  int64_t BytesOf(int64_t row) const override {
    return stream_->BytesOf(row * length_ + 1, Count(row) - 1);
  }

  void CloseShard(int64_t shard) override { stream_->CloseShard(shard); }

 private:
  int64_t Count(int64_t row) const {
    return std::min(length_ + 1, stream_->size() - row * length_);
  }

  std::unique_ptr<TokenStream> stream_;
  int64_t length_;
};

// Stored samples, each a row.
class SampleRows : public RowReader {
 public:
  SampleRows(MdsReader reader, const RowReaderOptions& options, std::optional<int32_t> eos_id,
             int64_t id_limit)
      : reader_(std::move(reader)),
        options_(options),
        length_(options.sequence_length),
        eos_id_(eos_id),
        id_limit_(id_limit) {}

  int64_t rows() const override { return reader_.samples(); }
  int64_t documents() const override { return reader_.samples(); }
  int64_t tokens() const override { return reader_.samples() * length_; }
  int32_t fill_id() const override { return eos_id_.value_or(0); }

  IndexRange ShardsOf(int64_t row) const override {
    const int64_t shard = reader_.index().ShardOf(row);
    return {shard, shard};
  }

  IndexRange RowsOf(int64_t shard) const override {
    const std::vector<int64_t>& first = reader_.index().first_sample;
    return {first[static_cast<size_t>(shard)], first[static_cast<size_t>(shard) + 1] - 1};
  }

  Result<int64_t> Read(int64_t row, int32_t* ids, int32_t* segment) override {
    const MdsShard& shard = reader_.ShardOf(row);
    const int64_t column = shard.FindColumn(options_.stream.column);
    if (column < 0) {
      return InvalidArgument(fmt::format("{}: no column '{}'; it has {}", reader_.Where(row),
                                         options_.stream.column, ColumnNames(shard)));
    }
    TESSERA_TRY(reader_.Columns(row, &values_));
    const std::string& encoding = shard.columns[static_cast<size_t>(column)].encoding;
    const std::string_view value = values_[static_cast<size_t>(column)];
    int64_t count = 0;
    int64_t largest = 0;
    if (encoding == "str") {
      if (!options_.encode) {
        return InvalidArgument(fmt::format(
            "{}: column '{}' is text, which needs a tokenizer: set tokenizer.name", reader_.Where(row),
            options_.stream.column));
      }
      text_ids_.clear();
      options_.encode(value, &text_ids_);
      count = std::min(length_, static_cast<int64_t>(text_ids_.size()));
      std::copy_n(text_ids_.begin(), count, ids);
      if (count > 0) largest = *std::max_element(ids, ids + count);
    } else {
      const Result<MdsTokens> tokens = ParseMdsTokens(encoding, value);
      if (!tokens.ok()) return tokens.error().WithContext(reader_.Where(row));
      count = std::min(length_, tokens->count);
      largest = CopyMdsTokens(*tokens, 0, count, ids);
    }
    if (count == 0) {
      return Corrupt(fmt::format("{}: it holds no tokens", reader_.Where(row)));
    }
    if (largest < 0 || largest >= id_limit_) {
      return Corrupt(largest < 0 ? fmt::format("{}: a token id is negative or above 2^31",
                                               reader_.Where(row))
                                 : fmt::format("{}: token id {} is not below the vocabulary size {}",
                                               reader_.Where(row), largest, id_limit_));
    }
    int32_t start = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (eos_id_ && ids[i] == *eos_id_) start = static_cast<int32_t>(i);
      segment[i] = start;
    }
    return count;
  }

  int64_t BytesOf(int64_t) const override { return 0; }
  void CloseShard(int64_t shard) override { reader_.CloseShard(shard); }

 private:
  static std::string ColumnNames(const MdsShard& shard) {
    std::string names;
    for (const MdsColumn& each : shard.columns) names += (names.empty() ? "" : ", ") + each.name;
    return names;
  }

  MdsReader reader_;
  const RowReaderOptions options_;
  const int64_t length_;
  const std::optional<int32_t> eos_id_;
  const int64_t id_limit_;
  std::vector<std::string_view> values_;
  std::vector<int32_t> text_ids_;
};

}  // namespace

Result<std::unique_ptr<RowReader>> RowReader::Open(const RowReaderOptions& options) {
  if (!options.samples_as_rows) {
    TESSERA_ASSIGN(std::unique_ptr<TokenStream> stream, TokenStream::Open(options.stream));
    if (stream->size() < 2) {
      return InvalidArgument(fmt::format("'{}' holds a single token; nothing can be predicted",
                                         options.stream.dataset.string()));
    }
    return std::unique_ptr<RowReader>(
        std::make_unique<ConcatenatedRows>(std::move(stream), options.sequence_length));
  }
  TokenStreamOptions stream = options.stream;
  TESSERA_TRY(TakeFromManifest(&stream));
  TESSERA_ASSIGN(MdsReader reader, MdsReader::Open(stream.dataset));
  if (stream.before_open) {
    reader.set_before_open(stream.before_open);
  } else {
    TESSERA_TRY(ExpandMdsShards(stream.dataset, reader.index()));
  }
  if (reader.samples() == 0) {
    return InvalidArgument(fmt::format("'{}' holds no samples", stream.dataset.string()));
  }
  return std::unique_ptr<RowReader>(std::make_unique<SampleRows>(
      std::move(reader), options, stream.eos_id, stream.vocab_size.value_or(int64_t{INT32_MAX} + 1)));
}

}  // namespace tessera
