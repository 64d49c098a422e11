#include "data/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "data/permutation.h"
#include "data/token_stream.h"

namespace tessera {

namespace {

constexpr int32_t kIgnoredTarget = -100;

void ResizeBatch(int64_t rows, int64_t length, TokenBatch* batch) {
  const size_t size = static_cast<size_t>(rows * length);
  batch->sequence_length = length;
  batch->tokens.resize(size);
  batch->targets.resize(size);
  batch->segment_start.resize(size);
  batch->samples.resize(static_cast<size_t>(rows));
}

// Which sample stands at a position of an epoch: the keyed order, or the concatenation's own.
class SampleOrder {
 public:
  SampleOrder(int64_t samples, uint64_t seed, bool shuffle)
      : samples_(samples), seed_(seed), shuffle_(shuffle) {}
  int64_t samples() const { return samples_; }
  int64_t At(int64_t epoch, int64_t position) const {
    if (!shuffle_) return position;
    return Permutation(samples_, seed_, static_cast<uint64_t>(epoch)).Forward(position);
  }

 private:
  int64_t samples_;
  uint64_t seed_;
  bool shuffle_;
};

class PrefetchingLoader : public Loader {
 public:
  PrefetchingLoader(const LoaderOptions& options, std::unique_ptr<TokenStream> stream)
      : options_(options),
        stream_(std::move(stream)),
        order_((stream_->size() - 1 + options.sequence_length - 1) / options.sequence_length,
               options.seed, options.shuffle),
        rows_(options.batch_size / options.world),
        total_tokens_(stream_->size()),
        documents_(stream_->documents()),
        row_(static_cast<size_t>(options.sequence_length) + 1),
        row_segment_(static_cast<size_t>(options.sequence_length) + 1),
        ring_(static_cast<size_t>(options.prefetch) + 1) {
    for (TokenBatch& batch : ring_) ResizeBatch(rows_, options.sequence_length, &batch);
    producer_ = std::thread([this] { Produce(); });
  }

  ~PrefetchingLoader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    space_.notify_all();
    producer_.join();
  }

  int64_t samples_per_epoch() const override { return order_.samples(); }
  int64_t total_tokens() const override { return total_tokens_; }
  int64_t documents() const override { return documents_; }

  Result<const TokenBatch*> Next() override {
    std::unique_lock<std::mutex> lock(mutex_);
    // The producer always ends in a batch or an error: the wait is bounded by one batch's reads.
    filled_.wait(lock, [&] { return ready_ > 0 || error_.has_value(); });
    if (ready_ == 0) return *error_;
    const TokenBatch* batch = &ring_[head_];
    head_ = (head_ + 1) % ring_.size();
    --ready_;
    position_ += options_.batch_size;
    lock.unlock();
    space_.notify_one();
    return batch;
  }

  LoaderState state() const override { return StateOf(position_); }

  Status Seek(const LoaderState& state) override {
    if (state.epoch < 0 || state.sample < 0 || state.sample >= order_.samples() ||
        state.epoch >= (INT64_MAX - state.sample) / order_.samples()) {
      return InvalidArgument(fmt::format("loader state epoch {} sample {} does not fit a dataset of {} "
                                         "samples of {} tokens: was the run started with another "
                                         "dataset or sequence length?",
                                         state.epoch, state.sample, order_.samples(),
                                         options_.sequence_length));
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      position_ = state.epoch * order_.samples() + state.sample;
      next_ = position_;
      ready_ = 0;
      error_.reset();
      ++generation_;  // What the producer is making now is thrown away.
    }
    space_.notify_one();
    return {};
  }

 private:
  LoaderState StateOf(int64_t position) const {
    return {position / order_.samples(), position % order_.samples()};
  }

  void Produce() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      space_.wait(lock, [&] {
        return stop_ || (!error_ && ready_ < static_cast<size_t>(options_.prefetch));
      });
      if (stop_) return;
      // head_ - 1 is what the caller holds; head_ + ready_ never reaches it.
      TokenBatch* batch = &ring_[(head_ + ready_) % ring_.size()];
      const int64_t position = next_;
      const uint64_t generation = generation_;
      lock.unlock();
      Status status = Fill(position, batch);
      lock.lock();
      if (generation != generation_) continue;
      if (status.ok()) {
        ++ready_;
        next_ = position + options_.batch_size;
      } else {
        error_ = status.error();
      }
      filled_.notify_one();
    }
  }

  // Batch of the global samples [position, position + batch_size), this rank's rows.
  Status Fill(int64_t position, TokenBatch* batch) {
    const int64_t length = options_.sequence_length;
    batch->rows = rows_;
    batch->first = StateOf(position);
    batch->target_count = 0;
    batch->bytes_covered = 0;
    for (int64_t row = 0; row < rows_; ++row) {
      const LoaderState at = StateOf(position + options_.rank * rows_ + row);
      const int64_t sample = order_.At(at.epoch, at.sample);
      batch->samples[static_cast<size_t>(row)] = sample;
      const int64_t begin = sample * length;
      const int64_t count = std::min(length + 1, total_tokens_ - begin);
      TESSERA_TRY(stream_->Read(begin, count, row_.data(), row_segment_.data()));
      // The last sample of the concatenation is filled up; its tail is a segment of its own.
      std::fill(row_.begin() + count, row_.end(), stream_->eos_id());
      std::fill(row_segment_.begin() + count, row_segment_.end(), static_cast<int32_t>(count));
      const int64_t offset = row * length;
      std::copy_n(row_.begin(), length, batch->tokens.begin() + offset);
      std::copy_n(row_segment_.begin(), length, batch->segment_start.begin() + offset);
      const auto targets = batch->targets.begin() + offset;
      std::copy_n(row_.begin() + 1, count - 1, targets);
      std::fill(targets + (count - 1), targets + length, kIgnoredTarget);
      batch->target_count += count - 1;
      batch->bytes_covered += stream_->BytesOf(begin + 1, count - 1);
    }
    return {};
  }

  const LoaderOptions options_;
  std::unique_ptr<TokenStream> stream_;  // Used by the producer alone once it runs.
  const SampleOrder order_;
  const int64_t rows_;
  const int64_t total_tokens_;
  const int64_t documents_;
  std::vector<int32_t> row_;          // [T + 1], the producer's
  std::vector<int32_t> row_segment_;  // [T + 1], the producer's
  int64_t position_ = 0;              // Of the next batch that Next returns; the caller's.

  std::mutex mutex_;  // Guards all below.
  std::condition_variable filled_;
  std::condition_variable space_;
  std::vector<TokenBatch> ring_;  // prefetch + 1: one is in the caller's hands.
  size_t head_ = 0;
  size_t ready_ = 0;
  int64_t next_ = 0;
  uint64_t generation_ = 0;
  std::optional<Error> error_;
  bool stop_ = false;
  std::thread producer_;
};

Status CheckSequenceLength(int64_t length, int64_t batch_size) {
  // One batch must fit memory; the product's bound also keeps row offsets far from overflow.
  if (length < 1 || batch_size < 1 || length > (int64_t{1} << 31) / batch_size) {
    return InvalidArgument(fmt::format("batch_size {} x sequence_length {}: both must be at least 1 "
                                       "and their product at most 2^31",
                                       batch_size, length));
  }
  return {};
}

}  // namespace

Json LoaderStateToJson(const LoaderState& state) {
  return {{"epoch", state.epoch}, {"sample", state.sample}};
}

Result<LoaderState> LoaderStateFromJson(const Json& json, std::string_view source) {
  LoaderState state;
  TESSERA_ASSIGN(state.epoch, JsonInt(json, "epoch", source));
  TESSERA_ASSIGN(state.sample, JsonInt(json, "sample", source));
  if (state.epoch < 0 || state.sample < 0) {
    return Corrupt(fmt::format("{}: loader state epoch {} sample {}", source, state.epoch,
                               state.sample));
  }
  return state;
}

Result<std::unique_ptr<Loader>> Loader::Open(const LoaderOptions& options) {
  TESSERA_TRY(CheckSequenceLength(options.sequence_length, options.batch_size));
  if (options.world < 1 || options.rank < 0 || options.rank >= options.world ||
      options.batch_size % options.world != 0) {
    return InvalidArgument(fmt::format("rank {} of {}: the rank must be below the world's size, which "
                                       "must divide batch_size {}",
                                       options.rank, options.world, options.batch_size));
  }
  if (options.prefetch < 1 || options.prefetch > 1024) {
    return InvalidArgument(fmt::format("prefetch {} is not between 1 and 1024", options.prefetch));
  }
  TESSERA_ASSIGN(std::unique_ptr<TokenStream> stream,
                 TokenStream::Open({.dataset = options.dataset,
                                    .column = options.column,
                                    .eos_id = options.eos_id,
                                    .vocab_size = options.vocab_size,
                                    .insert_eos = options.insert_eos,
                                    .shuffle_documents = options.shuffle_documents,
                                    .seed = options.seed}));
  if (stream->size() < 2) {
    return InvalidArgument(fmt::format("'{}' holds a single token; nothing can be predicted",
                                       options.dataset.string()));
  }
  std::unique_ptr<Loader> loader =
      std::make_unique<PrefetchingLoader>(options, std::move(stream));
  return loader;
}

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
