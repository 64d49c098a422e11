#include "base/work_meter.h"

#include <algorithm>
#include <cstddef>

namespace tessera {

namespace {

constexpr size_t kMostItems = size_t{1} << 16;

}  // namespace

namespace internal {
WorkMeter* work_meter = nullptr;
}

void SetWorkMeter(WorkMeter* meter) { internal::work_meter = meter; }

WorkMeter::WorkMeter(int num_threads)
    : num_threads_(num_threads),
      parts_(static_cast<size_t>(num_threads) * 8),
      items_(kMostItems) {}

void WorkMeter::Begin() {
  std::fill(parts_.begin(), parts_.end(), 0.0);
  std::fill(items_.begin(), items_.end(), 0.0);
}

void WorkMeter::CountPart(int thread, double units) {
  parts_[static_cast<size_t>(thread) * 8] += units;
}

void WorkMeter::CountItem(int64_t item, double units) {
  if (item < static_cast<int64_t>(items_.size())) items_[static_cast<size_t>(item)] = units;
}

void WorkMeter::End() {
  ++regions_;
  for (const double units : items_) {
    if (units == 0) continue;
    size_t least = 0;
    for (size_t thread = 1; thread < static_cast<size_t>(num_threads_); ++thread) {
      if (parts_[thread * 8] < parts_[least * 8]) least = thread;
    }
    parts_[least * 8] += units;
  }
  double most = 0, sum = 0;
  for (size_t thread = 0; thread < static_cast<size_t>(num_threads_); ++thread) {
    most = std::max(most, parts_[thread * 8]);
    sum += parts_[thread * 8];
  }
  if (sum == 0) ++uncounted_;
  busiest_ += most;
  mean_ += sum / num_threads_;
}

void WorkMeter::Reset() {
  busiest_ = mean_ = 0;
  regions_ = uncounted_ = 0;
}

}  // namespace tessera
