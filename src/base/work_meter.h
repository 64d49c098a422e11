// How evenly parallel regions share their work: counted units of each thread, not time, so that more
// threads than cores can be judged too.
#pragma once

#include <cstdint>
#include <vector>

namespace tessera {

// While one is active (SetWorkMeter), every region of a ThreadPool is a Begin and an End, between
// which the kernels count. Two kinds of work, in any unit that is proportional to its cost:
// - a part that belongs to a thread, by the cut;
// - an item of a list from which threads take the next one when they are free. Which thread takes it
//   depends on time, so the meter deals the items out in order, each to the thread with the least
//   work so far, as threads of equal speed would.
class WorkMeter {
 public:
  explicit WorkMeter(int num_threads);

  void Begin();
  void End();
  // From the thread itself, between Begin and End.
  void CountPart(int thread, double units);
  // From any thread; each item once a region.
  void CountItem(int64_t item, double units);

  // Sums over the regions since Reset: the work of the busiest thread, and the mean of all.
  double busiest() const { return busiest_; }
  double mean() const { return mean_; }
  int64_t regions() const { return regions_; }
  int64_t uncounted_regions() const { return uncounted_; }  // nothing was counted in them
  void Reset();

 private:
  int num_threads_;
  std::vector<double> parts_;  // [threads * 8]: a cache line each
  std::vector<double> items_;
  double busiest_ = 0, mean_ = 0;
  int64_t regions_ = 0, uncounted_ = 0;
};

// For the whole process; null counts nothing. Not while a region runs.
void SetWorkMeter(WorkMeter* meter);

namespace internal {
extern WorkMeter* work_meter;
}

// always_inline, with the rest behind calls: also used in objects built for other instruction sets.
[[gnu::always_inline]] inline void CountPart(int thread, double units) {
  if (internal::work_meter != nullptr) internal::work_meter->CountPart(thread, units);
}
[[gnu::always_inline]] inline void CountItem(int64_t item, double units) {
  if (internal::work_meter != nullptr) internal::work_meter->CountItem(item, units);
}

}  // namespace tessera
