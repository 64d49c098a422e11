#include "data/sample_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

namespace tessera {

namespace {

class NativeSampleOrder : public SampleOrder {
 public:
  explicit NativeSampleOrder(NativeOrder order) : order_(std::move(order)) {}
  int64_t samples_per_epoch() const override { return order_.samples_per_epoch(); }
  Result<StreamSample> At(int64_t position) override {
    return order_.At(position / samples_per_epoch(), position % samples_per_epoch());
  }
  int64_t NextUse(const StreamSample& sample, int64_t from) override {
    return order_.NextUse(sample, from).value_or(INT64_MAX);
  }

 private:
  const NativeOrder order_;
};

class MosaicSampleOrder : public SampleOrder {
 public:
  explicit MosaicSampleOrder(const MosaicOrderOptions& options) : options_(options) {
    begins_.push_back(0);
    for (const std::vector<int64_t>& shards : options_.shards) {
      begins_.push_back(std::accumulate(shards.begin(), shards.end(), begins_.back()));
    }
  }

  Status Start() {
    TESSERA_ASSIGN(const std::shared_ptr<const Epoch> first, Get(0));
    samples_per_epoch_ = static_cast<int64_t>(first->samples.size());
    if (samples_per_epoch_ > 0) return {};
    return InvalidArgument(fmt::format("the streams together don't fill a global batch of {}",
                                       options_.world.global_batch()));
  }

  int64_t samples_per_epoch() const override { return samples_per_epoch_; }

  Result<StreamSample> At(int64_t position) override {
    TESSERA_ASSIGN(const std::shared_ptr<const Epoch> epoch, Get(position / samples_per_epoch_));
    const int64_t id = epoch->samples[static_cast<size_t>(position % samples_per_epoch_)];
    if (id < 0) return StreamSample{-1, 0};
    const auto stream = std::upper_bound(begins_.begin(), begins_.end(), id) - begins_.begin() - 1;
    return StreamSample{stream, id - begins_[static_cast<size_t>(stream)]};
  }

  int64_t NextUse(const StreamSample& sample, int64_t from) override {
    const int64_t id = begins_[static_cast<size_t>(sample.stream)] + sample.sample;
    const int64_t begin = from / samples_per_epoch_ * samples_per_epoch_;
    const Result<std::shared_ptr<const Epoch>> epoch = Get(from / samples_per_epoch_);
    if (!epoch.ok()) return INT64_MAX;
    const int64_t place = (*epoch)->place_of[static_cast<size_t>(id)];
    // Where it comes in the next epoch is not worth making that epoch's order now.
    return place >= 0 && begin + place >= from ? begin + place : begin + samples_per_epoch_;
  }

 private:
  struct Epoch {
    std::vector<int64_t> samples;   // By place; -1 is padding.
    std::vector<int64_t> place_of;  // By sample; -1 where it is not used.
  };
  using Made = Result<std::shared_ptr<const Epoch>>;

  Made Make(int64_t number) const {
    TESSERA_ASSIGN(MosaicEpoch order, MakeMosaicEpoch(options_, number));
    auto epoch = std::make_shared<Epoch>();
    epoch->samples = std::move(order.samples);
    // Global batches that are padding alone train nothing.
    const size_t global = static_cast<size_t>(options_.world.global_batch());
    size_t used = epoch->samples.size();
    while (used > 0 && epoch->samples[used - 1] < 0) --used;
    epoch->samples.resize((used + global - 1) / global * global, -1);
    if (number > 0 && static_cast<int64_t>(epoch->samples.size()) != samples_per_epoch_) {
      return Internal(fmt::format("epoch {} has {} places, epoch 0 {}", number, epoch->samples.size(),
                                  samples_per_epoch_));
    }
    epoch->place_of.assign(static_cast<size_t>(begins_.back()), -1);
    for (size_t place = 0; place < epoch->samples.size(); ++place) {
      const int64_t id = epoch->samples[place];
      if (id >= 0) epoch->place_of[static_cast<size_t>(id)] = static_cast<int64_t>(place);
    }
    return std::shared_ptr<const Epoch>(std::move(epoch));
  }

  // The first to ask for an epoch makes it; others wait for that one alone.
  Made Get(int64_t number) {
    std::promise<Made> promise;
    std::shared_future<Made> future;
    bool mine = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = epochs_.find(number);
      if (found != epochs_.end()) {
        future = found->second;
      } else {
        mine = true;
        future = promise.get_future().share();
        // Keeps this one and the neighbour that was asked for last.
        while (epochs_.size() >= 2) {
          epochs_.erase(number > epochs_.begin()->first ? epochs_.begin() : std::prev(epochs_.end()));
        }
        epochs_.emplace(number, future);
      }
    }
    if (mine) promise.set_value(Make(number));
    return future.get();
  }

  const MosaicOrderOptions options_;
  std::vector<int64_t> begins_;  // [streams + 1]: first sample of each stream.
  int64_t samples_per_epoch_ = 0;
  std::mutex mutex_;  // Guards epochs_.
  std::map<int64_t, std::shared_future<Made>> epochs_;
};

}  // namespace

std::unique_ptr<SampleOrder> MakeSampleOrder(NativeOrder order) {
  return std::make_unique<NativeSampleOrder>(std::move(order));
}

Result<std::unique_ptr<SampleOrder>> MakeSampleOrder(const MosaicOrderOptions& options) {
  auto order = std::make_unique<MosaicSampleOrder>(options);
  TESSERA_TRY(order->Start());
  return std::unique_ptr<SampleOrder>(std::move(order));
}

}  // namespace tessera
