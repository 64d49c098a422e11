#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "data/loader.h"
#include "data/loader_parts.h"
#include "data/token_stream.h"

namespace tessera {

namespace {

class DocumentEvalStream : public EvalStream {
 public:
  DocumentEvalStream(const EvalOptions& options, std::unique_ptr<TokenStream> stream)
      : options_(options), stream_(std::move(stream)) {
    documents_ = stream_->documents();
    if (options.max_documents > 0) documents_ = std::min(documents_, options.max_documents);
    int64_t windows = 0;
    for (int64_t document = 0; document < documents_; ++document) {
      const int64_t targets = TargetsOf(document);
      total_targets_ += targets;
      total_bytes_ += stream_->table().bytes(document);
      windows += WindowsOf(targets);
    }
    total_batches_ = (windows + options.batch_size - 1) / options.batch_size;
    ResizeBatch(options.batch_size, options.sequence_length, &batch_);
    row_.resize(static_cast<size_t>(options.sequence_length) + 1);
  }

  int64_t documents() const override { return documents_; }
  int64_t total_targets() const override { return total_targets_; }
  int64_t total_bytes() const override { return total_bytes_; }
  int64_t total_batches() const override { return total_batches_; }
  void Reset() override { document_ = window_ = 0; }

  Result<const TokenBatch*> Next() override {
    batch_.rows = 0;
    batch_.target_count = 0;
    batch_.bytes_covered = 0;
    batch_.first = {0, document_};
    std::fill(batch_.tokens.begin(), batch_.tokens.end(), stream_->eos_id());
    std::fill(batch_.targets.begin(), batch_.targets.end(), kIgnoredTarget);
    std::fill(batch_.segment_start.begin(), batch_.segment_start.end(), 0);
    std::fill(batch_.samples.begin(), batch_.samples.end(), -1);
    while (batch_.rows < options_.batch_size && document_ < documents_) {
      if (window_ >= WindowsOf(TargetsOf(document_))) {
        ++document_;
        window_ = 0;
        continue;
      }
      TESSERA_TRY(FillRow(batch_.rows));
      ++batch_.rows;
      ++window_;
    }
    const TokenBatch* batch = batch_.rows == 0 ? nullptr : &batch_;
    return batch;
  }

 private:
  int64_t TargetsOf(int64_t document) const {
    const int64_t tokens = stream_->table().tokens(document);
    return tokens == 0 ? 0 : tokens + (options_.score_end ? 1 : 0);
  }
  int64_t WindowsOf(int64_t targets) const {
    if (targets == 0) return 0;
    const int64_t beyond = std::max<int64_t>(targets - options_.sequence_length, 0);
    return 1 + (beyond + options_.stride - 1) / options_.stride;
  }

  // Window w predicts targets [w * stride, w * stride + length) of the document and scores those
  // that no earlier window scored.
  Status FillRow(int64_t row) {
    const int64_t length = options_.sequence_length;
    const int64_t tokens = stream_->table().tokens(document_);
    const int64_t targets = TargetsOf(document_);
    const int64_t begin = window_ * options_.stride;
    const int64_t end = std::min(begin + length, targets);
    const int64_t scored = window_ == 0 ? 0 : begin - options_.stride + length;
    // Token k of "eos d eos" is d[k - 1]; targets are tokens 1 and later. Row: tokens [begin, end].
    std::fill(row_.begin(), row_.end(), stream_->eos_id());
    const int64_t first = std::max<int64_t>(begin, 1);
    const int64_t last = std::min(end, tokens);
    if (last >= first) {
      TESSERA_TRY(stream_->ReadDocument(document_, first - 1, last - first + 1,
                                        row_.data() + (first - begin)));
    }
    const int64_t offset = row * length;
    std::copy_n(row_.begin(), length, batch_.tokens.begin() + offset);
    std::copy_n(row_.begin() + 1 + (scored > begin ? scored - begin : 0),
                end - std::max(scored, begin),
                batch_.targets.begin() + offset + (scored > begin ? scored - begin : 0));
    batch_.target_count += end - std::max(scored, begin);
    batch_.samples[static_cast<size_t>(row)] = document_;
    const auto share = [&](int64_t k) {
      return static_cast<int64_t>(static_cast<uint64_t>(stream_->table().bytes(document_)) *
                                  static_cast<uint64_t>(std::min(k, tokens)) /
                                  static_cast<uint64_t>(tokens));
    };
    batch_.bytes_covered += share(end) - share(std::max(scored, begin));
    return {};
  }

  const EvalOptions options_;
  std::unique_ptr<TokenStream> stream_;
  int64_t documents_ = 0;
  int64_t total_targets_ = 0;
  int64_t total_bytes_ = 0;
  int64_t total_batches_ = 0;
  int64_t document_ = 0;
  int64_t window_ = 0;
  TokenBatch batch_;
  std::vector<int32_t> row_;  // [T + 1]
};

}  // namespace

Result<std::unique_ptr<EvalStream>> EvalStream::Open(const EvalOptions& options) {
  TESSERA_TRY(CheckSequenceLength(options.sequence_length, options.batch_size));
  EvalOptions resolved = options;
  if (resolved.stride == 0) resolved.stride = resolved.sequence_length;
  if (resolved.stride < 1 || resolved.stride > resolved.sequence_length) {
    return InvalidArgument(fmt::format("stride {} is not between 1 and sequence_length {}: tokens "
                                       "would not be scored",
                                       resolved.stride, resolved.sequence_length));
  }
  if (resolved.max_documents < 0) {
    return InvalidArgument(fmt::format("max_documents {} is negative", resolved.max_documents));
  }
  TESSERA_ASSIGN(std::unique_ptr<TokenStream> stream,
                 TokenStream::Open({.dataset = options.dataset,
                                    .column = options.column,
                                    .eos_id = options.eos_id,
                                    .vocab_size = options.vocab_size}));
  std::unique_ptr<EvalStream> eval =
      std::make_unique<DocumentEvalStream>(resolved, std::move(stream));
  return eval;
}

}  // namespace tessera
