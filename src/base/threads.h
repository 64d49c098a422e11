// A fixed pool of pinned compute threads with static partitions. Parallel regions allocate nothing
// and cost about a microsecond: workers spin for a short while before they sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/work_meter.h"

namespace tessera {

class ThreadPool {
 public:
  // `num_threads` counts the calling thread; 0 takes every core that this process may use.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls fn(thread_index) once on every thread, the caller being thread 0, and waits for all.
  // `fn` must not throw and must not start another region of the same pool.
  template <class Fn>
  void Run(Fn&& fn) {
    using Callable = std::remove_reference_t<Fn>;
    RunErased([](void* context, int thread) { (*static_cast<Callable*>(context))(thread); },
              const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // Splits [0, n) into one contiguous range a thread and calls fn(begin, end) on each that is not
  // empty. Where the cuts fall depends on the number of threads, so results must not: each index
  // has to be independent of the others.
  template <class Fn>
  void ParallelFor(int64_t n, Fn&& fn) {
    ParallelForGrain(n, 1, fn);
  }

  // The same with cuts at multiples of `grain`.
  template <class Fn>
  void ParallelForGrain(int64_t n, int64_t grain, Fn&& fn) {
    if (n <= 0) return;
    const int64_t blocks = (n + grain - 1) / grain;
    if (num_threads_ == 1 || blocks == 1) {
      RunAlone(static_cast<double>(n), [&] { fn(int64_t{0}, n); });
      return;
    }
    Run([&](int thread) {
      const int64_t begin = blocks * thread / num_threads_ * grain;
      int64_t end = blocks * (thread + 1) / num_threads_ * grain;
      if (end > n) end = n;
      if (begin >= end) return;
      CountPart(thread, static_cast<double>(end - begin));
      fn(begin, end);
    });
  }

  // Work that is too small to share, on the caller: for a meter a region with one busy thread.
  template <class Fn>
  static void RunAlone(double units, Fn&& fn) {
    if (internal::work_meter == nullptr) {
      fn();
      return;
    }
    internal::work_meter->Begin();
    CountPart(0, units);
    fn();
    internal::work_meter->End();
  }

 private:
  using Function = void (*)(void* context, int thread);

  void RunErased(Function function, void* context);
  void RunOnAll(Function function, void* context);
  void WorkerLoop(int thread);

  int num_threads_ = 1;
  std::vector<std::thread> workers_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;  // Guards the sleep of workers only.
  std::condition_variable wake_;
};

// Cores that this process may use (its affinity mask and cgroup quota), at least 1.
int AvailableCores();
// At most `cores`, within a cgroup's quota ("max 100000", or microseconds of processor time and of
// the period: "150000 100000" allows 2); all of them where the text is of another form.
int CoresWithinQuota(std::string_view cpu_max, int cores);

}  // namespace tessera
