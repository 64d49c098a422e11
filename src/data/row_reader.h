// One stream as rows of token ids: what the loader puts into batches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/mds_reader.h"
#include "data/token_stream.h"

namespace tessera {

struct RowReaderOptions {
  TokenStreamOptions stream;
  int64_t sequence_length = 0;  // T
  // Rows are the stored samples, each cut at T tokens, as llm-foundry trains on them; otherwise
  // windows of T + 1 tokens, one shared, over the concatenation of all documents.
  bool samples_as_rows = false;
  // For columns of text (str), with samples_as_rows: appends the ids of a text.
  std::function<void(std::string_view text, std::vector<int32_t>* ids)> encode = {};
};

// Reading is for one thread; ShardsOf and RowsOf for any.
class RowReader {
 public:
  static Result<std::unique_ptr<RowReader>> Open(const RowReaderOptions& options);
  virtual ~RowReader() = default;

  virtual int64_t rows() const = 0;
  virtual int64_t documents() const = 0;
  virtual int64_t tokens() const = 0;  // Of the concatenation, or rows() * T where samples are rows.
  virtual int32_t fill_id() const = 0;  // What stands behind a row that is short.
  virtual IndexRange ShardsOf(int64_t row) const = 0;
  // Rows that touch a shard; those between may be all of them.
  virtual IndexRange RowsOf(int64_t shard) const = 0;
  // Fills ids and segment starts, at most T + 1 of them, and returns how many.
  virtual Result<int64_t> Read(int64_t row, int32_t* ids, int32_t* segment) = 0;
  // Raw text bytes behind the row's targets; 0 where the dataset does not tell.
  virtual int64_t BytesOf(int64_t row) const = 0;
  // Unmaps a shard whose file is gone.
  virtual void CloseShard(int64_t shard) = 0;
};

}  // namespace tessera
