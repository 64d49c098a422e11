// The concatenation of a split's documents with end-of-text ids, readable at any position.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/document_table.h"
#include "data/mds_reader.h"
#include "data/permutation.h"

namespace tessera {

struct TokenStreamOptions {
  std::filesystem::path dataset;
  std::string column = "tokens";
  std::optional<int32_t> eos_id = {};      // From ../dataset.json where absent.
  std::optional<int64_t> vocab_size = {};  // Likewise; without any, ids are only checked to be >= 0.
  bool insert_eos = true;
  bool shuffle_documents = false;
  uint64_t seed = 0;
  // Where set, shards come one by one: called before each is opened. Then documents.idx must be there.
  std::function<Status(int64_t shard)> before_open = {};
};

// Fills in what ../dataset.json says where the options leave it open; no error where there is none.
Status TakeFromManifest(TokenStreamOptions* options);

// A range [first, last], empty where last < first.
struct IndexRange {
  int64_t first = 0;
  int64_t last = -1;
};

// Positions: eos d0 eos d1 eos ... eos with insert_eos, else d0 d1 ... A document's segment begins
// at the eos before it. Memory: 8 bytes a document. Not thread-safe.
class TokenStream {
 public:
  static Result<std::unique_ptr<TokenStream>> Open(const TokenStreamOptions& options);

  int64_t size() const { return size_; }  // Tokens of the concatenation.
  int64_t documents() const { return table_.documents(); }
  int64_t total_bytes() const { return table_.total_bytes(); }
  int32_t eos_id() const { return eos_id_; }
  const DocumentTable& table() const { return table_; }

  // Tokens [begin, begin + count) into `out` and, where not null, into `segment` the index in
  // [0, count) at which each token's segment begins (0 where it begins earlier).
  Status Read(int64_t begin, int64_t count, int32_t* out, int32_t* segment);
  // Raw bytes behind the tokens [begin, begin + count): floor(bytes * k / tokens) is a document's
  // share up to its token k, so neighbouring ranges sum up without loss.
  int64_t BytesOf(int64_t begin, int64_t count) const;
  // Ids [begin, begin + count) of one document of the dataset's own order.
  Status ReadDocument(int64_t document, int64_t begin, int64_t count, int32_t* out);
  // The document of the dataset at this place of the concatenation's order.
  int64_t DocumentAt(int64_t place) const { return order_ ? order_->Forward(place) : place; }
  // The place in the order of the document whose segment holds `position`; documents() for the eos
  // at the end.
  int64_t PlaceOf(int64_t position) const;

  // Shards that tokens [begin, begin + count) lie in, for a stream in stored order; all of them where
  // documents are shuffled. ShardsOf and TokensOf may be called from any thread.
  IndexRange ShardsOf(int64_t begin, int64_t count) const;
  // Tokens of a shard's documents.
  IndexRange TokensOf(int64_t shard) const;
  void CloseShard(int64_t shard) { reader_.CloseShard(shard); }

 private:
  TokenStream(MdsReader reader, DocumentTable table)
      : reader_(std::move(reader)), table_(std::move(table)) {}

  MdsReader reader_;
  DocumentTable table_;
  std::string column_;
  std::optional<Permutation> order_;
  std::vector<int64_t> starts_;  // [documents + 1]: where segments begin, by place.
  std::vector<std::string_view> values_;
  int64_t size_ = 0;
  int64_t separator_ = 1;  // Tokens before each document: 1 or 0.
  int64_t id_limit_ = 0;   // Ids must lie below.
  int32_t eos_id_ = 0;
};

}  // namespace tessera
