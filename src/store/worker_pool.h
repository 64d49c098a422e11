// Threads for transfers, apart from the compute threads: they wait for the network most of the time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

namespace tessera {

class WorkerPool {
 public:
  // Threads start when there is first work for them.
  explicit WorkerPool(int threads);
  // Runs what was submitted to its end.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return max_threads_; }

  // Calls fn(0) .. fn(n-1), in this order of starting, on the workers and on the calling thread; so
  // it makes progress even when all workers are busy. After an error no further call starts; the
  // first error is returned.
  Status ForEach(int64_t n, const std::function<Status(int64_t)>& fn);

  // The submitter bounds how many of its tasks wait.
  void Submit(std::function<void()> task);

 private:
  void Loop();

  int max_threads_;
  std::mutex mutex_;  // Guards everything below.
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> workers_;
  int idle_ = 0;
  bool stop_ = false;
};

}  // namespace tessera
