// Learns a byte-level BPE vocabulary from documents: exact counts, the same result for any number
// of threads and any order of documents.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace tessera {

struct BpeProgress {
  int64_t merges_done = 0;
  int64_t merges_total = 0;
};

struct BpeTrainOptions {
  // Special tokens, 256 bytes and merges together.
  int64_t vocab_size = 32768;
  // They take the first ids, in this order.
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  // A pair that occurs less often is not merged.
  int64_t min_frequency = 1;
  // Counts the caller; 0 takes every core.
  int num_threads = 0;
  // Called from the calling thread about every hundredth of the merges.
  std::function<void(const BpeProgress&)> progress = nullptr;
};

// Takes documents in batches, so that a corpus need not fit in memory; memory grows with the
// number of distinct pieces.
class BpeTrainer {
 public:
  explicit BpeTrainer(BpeTrainOptions options);
  ~BpeTrainer();
  BpeTrainer(BpeTrainer&&) noexcept;
  BpeTrainer& operator=(BpeTrainer&&) noexcept;

  // Cuts the documents into pieces and counts them, on all threads.
  void Add(std::span<const std::string_view> documents);
  // Bytes and distinct pieces seen so far.
  int64_t bytes_seen() const;
  int64_t distinct_pieces() const;

  // Learns the merges. Each step joins the most frequent pair; of equally frequent pairs the one
  // with the lower left id, then the lower right id (the rule of Hugging Face's trainer). An error
  // names the largest possible vocabulary when the data has too few pairs.
  Result<Tokenizer> Train();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// BpeTrainer over documents that are in memory.
Result<Tokenizer> TrainBpe(std::span<const std::string_view> documents,
                           const BpeTrainOptions& options);

}  // namespace tessera
