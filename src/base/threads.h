// A fixed pool of pinned compute threads. Work is dealt out in fixed shares, which keep their data in
// the same caches from op to op; a thread that is done takes from the others' shares, as cores are
// not equally fast where neighbours use the other half of a core, or a host takes one away. Parallel
// regions allocate nothing and cost about a microsecond: workers spin for a while before they sleep.
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

  // Deals items [0, n) out in one contiguous share a thread and calls fn(thread, begin, end) on parts
  // of the shares until nothing is left. A thread takes from the front of its own share, a quarter
  // of what is left there and at least `least` items; once that is empty, from the back of the
  // fullest other one, where at least `least_moved` items are left of it: items may be cheaper for
  // the thread whose share they are. Which thread gets what depends on time, so results must not: each
  // item has to be independent of the others, and of where a part begins or ends. Under a WorkMeter
  // each thread keeps its share, whole.
  template <class Fn>
  void RunShares(int64_t n, int64_t least, Fn&& fn, int64_t least_moved = 1) {
    if (n <= 0) return;
    if (num_threads_ == 1 || n <= least) {
      RunAlone(static_cast<double>(n), [&] { fn(0, int64_t{0}, n); });
      return;
    }
    if (internal::work_meter != nullptr || n > kMostShared) {
      Run([&](int thread) {
        const int64_t begin = n * thread / num_threads_, end = n * (thread + 1) / num_threads_;
        if (begin >= end) return;
        CountPart(thread, static_cast<double>(end - begin));
        fn(thread, begin, end);
      });
      return;
    }
    DealShares(n);
    Run([&](int thread) {
      int64_t begin = 0, end = 0;
      while (TakePart(thread, least, least_moved, &begin, &end)) fn(thread, begin, end);
    });
  }

  // Splits [0, n) over the threads as RunShares does and calls fn(begin, end).
  template <class Fn>
  void ParallelFor(int64_t n, Fn&& fn) {
    ParallelForGrain(n, 1, fn);
  }

  // The same with cuts at multiples of `grain`.
  template <class Fn>
  void ParallelForGrain(int64_t n, int64_t grain, Fn&& fn) {
    const int64_t blocks = (n + grain - 1) / grain;
    if (blocks == 1) {
      // A meter counts blocks, as it does for the shares of longer ranges.
      RunAlone(static_cast<double>(n) / static_cast<double>(grain), [&] { fn(int64_t{0}, n); });
      return;
    }
    const int64_t least = blocks / (num_threads_ * int64_t{32});
    RunShares(blocks, least > 1 ? least : 1, [&](int, int64_t first, int64_t last) {
      const int64_t end = last * grain;
      fn(first * grain, end < n ? end : n);
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

  // Items of a share lie in 32 bits.
  static constexpr int64_t kMostShared = int64_t{1} << 31;
  // What is left of a thread's share: begin in the low half, end in the high one.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };

  void DealShares(int64_t n);
  bool TakePart(int thread, int64_t least, int64_t least_moved, int64_t* begin, int64_t* end);
  void RunErased(Function function, void* context);
  void RunOnAll(Function function, void* context);
  void WorkerLoop(int thread);

  int num_threads_ = 1;
  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;
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
