#include "base/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/strings.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera {

namespace {

void CpuRelax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Subnormal numbers cost 100 cycles each and carry nothing here: flush them, on every thread alike.
void FlushDenormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

// About 50 microseconds: longer than the gap between two ops, shorter than a time slice.
constexpr int kSpins = 2000;

}  // namespace

int AvailableCores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cores = 1;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = CPU_COUNT(&mask);
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string line;
  std::getline(quota_file, line);
  return CoresWithinQuota(line, cores);
}

int CoresWithinQuota(std::string_view cpu_max, int cores) {
  cores = std::max(cores, 1);
  const std::string_view text = Trim(cpu_max);
  const size_t space = text.find(' ');
  if (space == std::string_view::npos) return cores;
  const auto quota = ParseInt(text.substr(0, space));
  const auto period = ParseInt(text.substr(space + 1));
  if (!quota || !period || *quota < 1 || *period < 1) return cores;
  const int64_t limit = *quota / *period + (*quota % *period != 0 ? 1 : 0);
  return static_cast<int>(std::min<int64_t>(limit, cores));
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads > 0 ? num_threads : AvailableCores()) {
  FlushDenormals();
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(num_threads_));
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &mask)) cores.push_back(core);
    }
  }
  // The calling thread is not pinned, but a worker should not be put where it runs now.
  const auto here = std::find(cores.begin(), cores.end(), sched_getcpu());
  if (here != cores.end()) std::rotate(cores.begin(), here, cores.end());
  // Pinning helps only where each thread has a core of its own.
  const bool pin = static_cast<int>(cores.size()) == num_threads_ && num_threads_ > 1;
  for (int thread = 1; thread < num_threads_; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
    if (pin) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cores[static_cast<size_t>(thread)], &one);
      pthread_setaffinity_np(workers_.back().native_handle(), sizeof(one), &one);
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

namespace {

uint64_t PackRange(int64_t begin, int64_t end) {
  return static_cast<uint64_t>(begin) | static_cast<uint64_t>(end) << 32;
}
int64_t RangeBegin(uint64_t range) { return static_cast<int64_t>(range & 0xffffffffu); }
int64_t RangeEnd(uint64_t range) { return static_cast<int64_t>(range >> 32); }

}  // namespace

void ThreadPool::DealShares(int64_t n) {
  for (int64_t thread = 0; thread < num_threads_; ++thread) {
    // The start of the region publishes these.
    shares_[static_cast<size_t>(thread)].left.store(
        PackRange(n * thread / num_threads_, n * (thread + 1) / num_threads_),
        std::memory_order_relaxed);
  }
}

bool ThreadPool::TakePart(int thread, int64_t least, int64_t least_moved, int64_t* begin,
                          int64_t* end) {
  const auto some = [least](int64_t left) { return std::min(left, std::max(least, left / 4)); };
  std::atomic<uint64_t>& own = shares_[static_cast<size_t>(thread)].left;
  uint64_t range = own.load(std::memory_order_relaxed);
  while (RangeBegin(range) < RangeEnd(range)) {
    const int64_t first = RangeBegin(range), last = RangeEnd(range);
    const int64_t next = first + some(last - first);
    // Relaxed: a part's data were published by the start of the region, its results are by its end.
    if (own.compare_exchange_weak(range, PackRange(next, last), std::memory_order_relaxed)) {
      *begin = first;
      *end = next;
      return true;
    }
  }
  while (true) {
    std::atomic<uint64_t>* fullest = nullptr;
    uint64_t most = 0;
    for (int i = 0; i < num_threads_; ++i) {
      std::atomic<uint64_t>& other = shares_[static_cast<size_t>(i)].left;
      const uint64_t left = other.load(std::memory_order_relaxed);
      if (RangeEnd(left) - RangeBegin(left) > RangeEnd(most) - RangeBegin(most)) {
        fullest = &other;
        most = left;
      }
    }
    if (fullest == nullptr || RangeEnd(most) - RangeBegin(most) < least_moved) return false;
    const int64_t first = RangeBegin(most), last = RangeEnd(most);
    const int64_t next = last - some(last - first);
    if (fullest->compare_exchange_weak(most, PackRange(first, next), std::memory_order_relaxed)) {
      *begin = next;
      *end = last;
      return true;
    }
  }
}

void ThreadPool::RunErased(Function function, void* context) {
  if (internal::work_meter != nullptr) internal::work_meter->Begin();
  RunOnAll(function, context);
  if (internal::work_meter != nullptr) internal::work_meter->End();
}

void ThreadPool::RunOnAll(Function function, void* context) {
  if (num_threads_ == 1) {
    function(context, 0);
    return;
  }
  function_ = function;
  context_ = context;
  running_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    // The lock orders this wake-up after a worker's decision to sleep.
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  function(context, 0);
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    CpuRelax();
    if (spin > kSpins) std::this_thread::yield();
  }
}

void ThreadPool::WorkerLoop(int thread) {
  FlushDenormals();
  uint64_t seen = 0;
  while (true) {
    int spin = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spin < kSpins) {
        CpuRelax();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    ++seen;
    if (stop_.load()) return;
    function_(context_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace tessera
