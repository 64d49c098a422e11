// From files to documents: a sequential reader of raw records, and their parsing, which is a pure
// function so that many threads can share it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/input_stream.h"
#include "data/source.h"

namespace tessera {

// A file's text or a line of jsonl, not yet parsed.
struct RawRecord {
  int64_t source = 0;  // Index into the sources.
  int64_t file = 0;    // Index into the source's listing.
  int64_t line = 0;    // From 1; 0 for a whole file.
  std::string content;
};

struct Document {
  std::string identity;  // File identity, with "#id" or "#line" behind for jsonl.
  std::string text;      // Bytes as they were; UTF-8 is not enforced.
};

// Reads the files of one source in order. Memory: one record and a buffer.
class RecordReader {
 public:
  RecordReader(const SourceListing& listing, int64_t source_index, int64_t max_record_bytes);
  ~RecordReader();

  // False at the end.
  Result<bool> Next(RawRecord* record);
  int64_t stored_bytes() const { return stored_bytes_; }  // Read so far, over all files.
  // XXH3 of each file that was read to its end, in order.
  const std::vector<uint64_t>& file_hashes() const { return file_hashes_; }

 private:
  Result<bool> NextLine(RawRecord* record);
  void CloseFile();

  const SourceListing& listing_;
  int64_t source_index_;
  int64_t max_record_bytes_;
  int64_t next_file_ = 0;
  int64_t line_ = 0;
  std::unique_ptr<InputStream> stream_;
  std::vector<char> buffer_;
  size_t buffer_begin_ = 0;
  size_t buffer_end_ = 0;
  int64_t stored_bytes_ = 0;
  std::vector<uint64_t> file_hashes_;
};

// Errors name the file and the line.
Result<Document> ParseRecord(RawRecord record, const SourceConfig& source, const SourceFile& file);

// Validation when hash(identity) / 2^53 < fraction, hash = top 53 bits of XXH3-64(identity, seed).
// Depends on nothing else, so a document keeps its side when others come or go.
bool InValidation(std::string_view identity, double fraction, uint64_t seed);

// Copies of a training document under a weight: floor(weight), one more with the chance of the
// rest, decided by XXH3-64(identity, seed of the copies).
int64_t CopiesOf(std::string_view identity, double weight);

}  // namespace tessera
