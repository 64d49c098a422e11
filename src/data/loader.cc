#include "data/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "data/document_table.h"
#include "data/loader_parts.h"
#include "data/native_order.h"
#include "data/permutation.h"
#include "data/row_reader.h"
#include "data/sample_order.h"
#include "data/shard_scheduler.h"
#include "store/object_store.h"

namespace tessera {

void ResizeBatch(int64_t rows, int64_t length, TokenBatch* batch) {
  const size_t size = static_cast<size_t>(rows * length);
  batch->sequence_length = length;
  batch->tokens.resize(size);
  batch->targets.resize(size);
  batch->segment_start.resize(size);
  batch->samples.resize(static_cast<size_t>(rows));
  batch->streams.resize(static_cast<size_t>(rows));
}

Status CheckSequenceLength(int64_t length, int64_t batch_size) {
  // One batch must fit memory; the product's bound also keeps row offsets far from overflow.
  if (length < 1 || batch_size < 1 || length > (int64_t{1} << 31) / batch_size) {
    return InvalidArgument(fmt::format("batch_size {} x sequence_length {}: both must be at least 1 "
                                       "and their product at most 2^31",
                                       batch_size, length));
  }
  return {};
}

namespace {

constexpr int64_t kBlockSize = int64_t{1} << 18;
constexpr int64_t kPredownload = int64_t{1} << 16;
constexpr int64_t kReplacements = 256;  // Samples that are tried in the place of a bad one.

using ShardId = ShardScheduler::ShardId;

bool IsDataFault(const Error& error) {
  return error.code == ErrorCode::kCorrupt || error.code == ErrorCode::kNotFound;
}

// One stream of the loader.
struct Stream {
  std::unique_ptr<ShardCache> cache;
  std::unique_ptr<RowReader> rows;
};

class PrefetchingLoader : public Loader {
 public:
  explicit PrefetchingLoader(const LoaderOptions& options)
      : options_(options),
        rows_(options.batch_size / options.world),
        row_(static_cast<size_t>(options.sequence_length) + 1),
        row_segment_(static_cast<size_t>(options.sequence_length) + 1),
        ring_(static_cast<size_t>(options.prefetch) + 1) {
    for (TokenBatch& batch : ring_) ResizeBatch(rows_, options.sequence_length, &batch);
  }

  ~PrefetchingLoader() override {
    stopping_ = true;  // Ends downloads and their pauses.
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    space_.notify_all();
    if (producer_.joinable()) producer_.join();
  }

  Status Start() {
    const bool one_dataset = options_.streams.empty();
    std::vector<StreamOptions> given = options_.streams;
    if (one_dataset) {
      given.emplace_back().name = "dataset";
      given.back().local = options_.dataset.string();
    }
    for (size_t i = 0; i < given.size(); ++i) {
      const Status status = OpenStream(given[i], one_dataset);
      if (!status.ok()) {
        return one_dataset ? status
                           : status.error().WithContext(fmt::format("stream '{}'", given[i].name));
      }
      total_tokens_ += streams_[i].rows->tokens();
      documents_ += streams_[i].rows->documents();
    }
    TESSERA_TRY(MakeOrder(given, one_dataset));
    std::vector<ShardCache*> caches;
    std::vector<const RowReader*> readers;
    for (const Stream& stream : streams_) {
      caches.push_back(stream.cache.get());
      readers.push_back(stream.rows.get());
    }
    const int64_t predownload = options_.streaming.predownload > 0
                                    ? options_.streaming.predownload
                                    : std::max(kPredownload, 8 * rows_);
    TESSERA_ASSIGN(scheduler_, ShardScheduler::Start({.predownload = predownload,
                                                      .cache_limit = options_.streaming.cache_limit,
                                                      .threads = options_.streaming.download_threads,
                                                      .batch_size = options_.batch_size,
                                                      .rank = options_.rank,
                                                      .rows = rows_,
                                                      .close_released = [this] { CloseReleased(); }},
                                                     caches, readers, order_.get()));
    producer_ = std::thread([this] { Produce(); });
    return {};
  }

  int64_t samples_per_epoch() const override { return order_->samples_per_epoch(); }
  int64_t total_tokens() const override { return total_tokens_; }
  int64_t documents() const override { return documents_; }
  bool rows_are_windows() const override { return windows_; }

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
    const int64_t samples = samples_per_epoch();
    if (state.epoch < 0 || state.sample < 0 || state.sample >= samples ||
        state.epoch >= (INT64_MAX - state.sample) / samples) {
      return InvalidArgument(fmt::format("loader state epoch {} sample {} does not fit a dataset of {} "
                                         "samples of {} tokens: was the run started with another "
                                         "dataset or sequence length?",
                                         state.epoch, state.sample, samples, options_.sequence_length));
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      position_ = state.epoch * samples + state.sample;
      next_ = position_;
      ready_ = 0;
      error_.reset();
      ++generation_;  // What the producer is making now is thrown away.
    }
    space_.notify_one();
    return {};
  }

  Report report() const override {
    Report report;
    for (size_t i = 0; i < streams_.size(); ++i) {
      const ShardCache& cache = *streams_[i].cache;
      report.streams.push_back({.name = cache.options().name,
                                .rows = streams_[i].rows->rows(),
                                .rows_an_epoch = taken_.empty() ? 0 : taken_[i],
                                .downloads = cache.downloads(),
                                .downloaded_bytes = cache.downloaded_bytes()});
    }
    report.cache_bytes = scheduler_->used_bytes();
    report.most_cache_bytes = scheduler_->most_used_bytes();
    const std::lock_guard<std::mutex> lock(report_mutex_);
    report.quarantined = quarantine_notes_;
    report.replaced_rows = replaced_rows_;
    return report;
  }

 private:
  Status OpenStream(const StreamOptions& given, bool one_dataset) {
    Stream stream;
    const StreamingOptions& streaming = options_.streaming;
    const bool native = streaming.shuffle_algo == "native";
    bool samples = streaming.rows == RowKind::kSamples;
    RowReaderOptions rows;
    if (one_dataset) {
      // Read in place, whatever it is.
      StreamOptions in_place = given;
      in_place.validate_hash = "none";
      TESSERA_ASSIGN(stream.cache, ShardCache::Open(in_place, &stopping_));
    } else {
      TESSERA_ASSIGN(stream.cache, ShardCache::Open(given, &stopping_));
      const bool table = PathExists(stream.cache->folder() / kDocumentTableFile);
      if (streaming.rows == RowKind::kAuto) samples = !native || !table;
      if (!samples && !table && stream.cache->remote()) {
        return InvalidArgument(fmt::format(
            "'{}' has no {}, without which windows over a remote dataset can't be cut: set rows: samples",
            WithoutCredentials(given.remote), kDocumentTableFile));
      }
      if (stream.cache->remote() && options_.shuffle_documents) {
        return InvalidArgument(
            "shuffle_documents would need every shard of a remote dataset at once: leave it off");
      }
    }
    if (!native && !samples) {
      return InvalidArgument(fmt::format("shuffle_algo {} orders stored samples: set rows: samples",
                                         streaming.shuffle_algo));
    }
    rows.stream = {.dataset = stream.cache->folder(),
                   .column = options_.column,
                   .eos_id = options_.eos_id,
                   .vocab_size = options_.vocab_size,
                   .insert_eos = options_.insert_eos,
                   .shuffle_documents = options_.shuffle_documents,
                   .seed = options_.seed};
    if (stream.cache->remote()) {
      const int64_t number = static_cast<int64_t>(streams_.size());
      rows.stream.before_open = [this, number](int64_t shard) { return Ensure(number, shard); };
    }
    windows_ = windows_ && !samples;
    rows.sequence_length = options_.sequence_length;
    rows.samples_as_rows = samples;
    rows.encode = streaming.encode;
    TESSERA_ASSIGN(stream.rows, RowReader::Open(rows));
    streams_.push_back(std::move(stream));
    return {};
  }

  Status MakeOrder(const std::vector<StreamOptions>& given, bool one_dataset) {
    const StreamingOptions& streaming = options_.streaming;
    std::vector<StreamWeight> weights;
    for (const StreamOptions& stream : given) weights.push_back(stream.weight);
    if (streaming.shuffle_algo == "native") {
      NativeOrderOptions native{.weights = std::move(weights),
                                .epoch_size = streaming.epoch_size,
                                .seed = options_.seed,
                                .shuffle = options_.shuffle,
                                .block_size = streaming.shuffle_block_size,
                                .batching = streaming.batching_method,
                                .global_batch = options_.batch_size,
                                .device_batch = streaming.device_batch > 0 ? streaming.device_batch
                                                                           : options_.batch_size,
                                .fixed_sampling = streaming.fixed_sampling};
      if (native.block_size == 0 && !one_dataset) native.block_size = kBlockSize;
      for (const Stream& stream : streams_) {
        native.streams.push_back(NativeStreamOf(
            stream.rows->rows(), static_cast<int64_t>(stream.cache->index().shards.size())));
      }
      TESSERA_ASSIGN(NativeOrder order, NativeOrder::Make(std::move(native)));
      for (size_t i = 0; i < streams_.size(); ++i) taken_.push_back(order.taken(static_cast<int64_t>(i)));
      order_ = MakeSampleOrder(std::move(order));
      return {};
    }
    const auto algorithm = MosaicShuffleFromName(streaming.shuffle_algo);
    if (!algorithm) {
      return InvalidArgument(fmt::format(
          "shuffle_algo '{}' is not known: native, py1e, py1s, py1br, py2s or naive",
          streaming.shuffle_algo));
    }
    MosaicOrderOptions mosaic;
    for (const Stream& stream : streams_) {
      std::vector<int64_t>& sizes = mosaic.shards.emplace_back();
      for (const MdsShard& shard : stream.cache->index().shards) sizes.push_back(shard.samples);
    }
    mosaic.weights = std::move(weights);
    mosaic.epoch_size = streaming.epoch_size;
    mosaic.shuffle = options_.shuffle;
    mosaic.algorithm = *algorithm;
    mosaic.seed = options_.seed;
    mosaic.block_size = streaming.shuffle_block_size;
    mosaic.canonical_nodes = streaming.num_canonical_nodes;
    mosaic.fixed_sampling = streaming.fixed_sampling;
    mosaic.sampling_granularity = streaming.sampling_granularity;
    mosaic.batching = streaming.batching_method;
    // One reader of whole global batches: the same batches as for any number of nodes that divides the
    // canonical ones.
    mosaic.world.batch_size = options_.batch_size;
    TESSERA_ASSIGN(const MosaicOrderOptions resolved, ResolveMosaicOrder(std::move(mosaic)));
    TESSERA_ASSIGN(order_, MakeSampleOrder(resolved));
    return {};
  }

  LoaderState StateOf(int64_t position) const {
    return {position / samples_per_epoch(), position % samples_per_epoch()};
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

  // A shard is needed now. Given up where it is damaged or missing for good.
  Status Ensure(int64_t stream, int64_t shard) {
    const ShardId id = {stream, shard};
    if (quarantine_.count(id) > 0) {
      return Corrupt(fmt::format("{} was given up before",
                                 streams_[static_cast<size_t>(stream)].cache->Where(shard)));
    }
    const Status status = scheduler_->Ensure(stream, shard);
    if (status.ok() || !IsDataFault(status.error())) return status;
    quarantine_.insert(id);
    LogWarning("shard given up: {}", status.error().message);
    const std::lock_guard<std::mutex> lock(report_mutex_);
    quarantine_notes_.push_back(status.error().message);
    return status;
  }

  // The row, from shards that are brought anew where they turn out damaged.
  Result<int64_t> ReadRow(const StreamSample& at) {
    Stream& stream = streams_[static_cast<size_t>(at.stream)];
    if (stream.cache->remote()) scheduler_->StartRow();
    Result<int64_t> count = stream.rows->Read(at.sample, row_.data(), row_segment_.data());
    if (count.ok() || !IsDataFault(count.error()) || !stream.cache->remote()) return count;
    const IndexRange shards = stream.rows->ShardsOf(at.sample);
    bool again = false;
    for (int64_t shard = shards.first; shard <= shards.last; ++shard) {
      // Once is enough to tell a damaged copy from a damaged original.
      if (quarantine_.count({at.stream, shard}) > 0 || !discarded_.insert({at.stream, shard}).second) {
        continue;
      }
      scheduler_->Discard(at.stream, shard);
      again = true;
    }
    if (!again) return count;
    CloseReleased();
    return stream.rows->Read(at.sample, row_.data(), row_segment_.data());
  }

  // Another sample of the stream, the same on every rank and in every run with this seed.
  Result<int64_t> Replace(const StreamSample& bad, const Error& error) {
    const int64_t rows = streams_[static_cast<size_t>(bad.stream)].rows->rows();
    const uint64_t key = (static_cast<uint64_t>(bad.stream) << 48) ^ static_cast<uint64_t>(bad.sample);
    const Permutation candidates(rows, options_.seed, ~key);
    for (int64_t i = 0; i < std::min(rows, kReplacements); ++i) {
      const int64_t sample = candidates.Forward(i);
      if (sample == bad.sample) continue;
      const Result<int64_t> count = ReadRow({bad.stream, sample});
      if (!count.ok() && !IsDataFault(count.error())) return count;
      if (!count.ok()) continue;
      const std::lock_guard<std::mutex> lock(report_mutex_);
      if (++replaced_rows_ <= 100) {
        LogWarning("sample {} of stream '{}' is replaced by sample {}: {}", bad.sample,
                   streams_[static_cast<size_t>(bad.stream)].cache->options().name, sample,
                   error.message);
      }
      return count;
    }
    return error.WithContext(
        fmt::format("{} samples were tried instead and are bad too", std::min(rows, kReplacements)));
  }

  void CloseReleased() {
    for (const auto& [stream, shard] : scheduler_->TakeReleased()) {
      streams_[static_cast<size_t>(stream)].rows->CloseShard(shard);
    }
  }

  // Batch of the global samples [position, position + batch_size), this rank's rows.
  Status Fill(int64_t position, TokenBatch* batch) {
    batch->rows = rows_;
    batch->first = StateOf(position);
    batch->target_count = 0;
    batch->bytes_covered = 0;
    batch->replaced_rows = 0;
    // A position between batches (after the batch size changed) counts as the batch it lies in.
    scheduler_->SetRow(position / options_.batch_size * rows_);
    CloseReleased();
    for (int64_t row = 0; row < rows_; ++row) {
      TESSERA_ASSIGN(const StreamSample at, order_->At(position + options_.rank * rows_ + row));
      TESSERA_TRY(FillRow(at, row, batch));
    }
    return {};
  }

  Status FillRow(const StreamSample& at, int64_t row, TokenBatch* batch) {
    const int64_t length = options_.sequence_length;
    const bool padding = at.stream < 0;
    int64_t count = 0;
    if (!padding) {
      Result<int64_t> read = ReadRow(at);
      if (!read.ok() && options_.streaming.replace_bad_samples && IsDataFault(read.error())) {
        read = Replace(at, read.error());
        ++batch->replaced_rows;
      }
      if (!read.ok()) return Explain(read.error(), at);
      count = *read;
    }
    const size_t stream = padding ? 0 : static_cast<size_t>(at.stream);
    batch->samples[static_cast<size_t>(row)] = padding ? -1 : at.sample;
    batch->streams[static_cast<size_t>(row)] = static_cast<int32_t>(padding ? -1 : at.stream);
    // A short sample is filled up; its tail is a segment of its own.
    std::fill(row_.begin() + count, row_.end(), streams_[stream].rows->fill_id());
    std::fill(row_segment_.begin() + count, row_segment_.end(), static_cast<int32_t>(count));
    const int64_t offset = row * length;
    std::copy_n(row_.begin(), length, batch->tokens.begin() + offset);
    std::copy_n(row_segment_.begin(), length, batch->segment_start.begin() + offset);
    const auto targets = batch->targets.begin() + offset;
    const int64_t scored = std::max<int64_t>(count - 1, 0);
    std::copy_n(row_.begin() + 1, scored, targets);
    std::fill(targets + scored, targets + length, kIgnoredTarget);
    batch->target_count += scored;
    if (!padding) batch->bytes_covered += streams_[stream].rows->BytesOf(at.sample);
    return {};
  }

  Error Explain(const Error& error, const StreamSample& at) const {
    if (options_.streams.empty()) return error;
    Error out = error.WithContext(fmt::format(
        "sample {} of stream '{}'", at.sample,
        streams_[static_cast<size_t>(at.stream)].cache->options().name));
    if (IsDataFault(error)) out.message += "; replace_bad_samples: true goes on with other samples";
    return out;
  }

  const LoaderOptions options_;
  const int64_t rows_;
  std::atomic<bool> stopping_{false};
  std::vector<Stream> streams_;  // Read by the producer alone once it runs.
  std::vector<int64_t> taken_;   // [streams]: rows an epoch takes, where known.
  std::unique_ptr<SampleOrder> order_;
  std::unique_ptr<ShardScheduler> scheduler_;
  int64_t total_tokens_ = 0;
  int64_t documents_ = 0;
  bool windows_ = true;
  std::vector<int32_t> row_;          // [T + 1], the producer's
  std::vector<int32_t> row_segment_;  // [T + 1], the producer's
  std::set<ShardId> quarantine_;      // The producer's.
  std::set<ShardId> discarded_;       // The producer's.
  int64_t position_ = 0;              // Of the next batch that Next returns; the caller's.

  mutable std::mutex report_mutex_;  // Guards the two below.
  std::vector<std::string> quarantine_notes_;
  int64_t replaced_rows_ = 0;

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
  auto loader = std::make_unique<PrefetchingLoader>(options);
  TESSERA_TRY(loader->Start());
  return std::unique_ptr<Loader>(std::move(loader));
}

}  // namespace tessera
