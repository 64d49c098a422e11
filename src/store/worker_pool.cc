#include "store/worker_pool.h"

#include <algorithm>
#include <memory>
#include <optional>

namespace tessera {

WorkerPool::WorkerPool(int threads) : max_threads_(std::max(1, threads)) {}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    wake_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
    --idle_;
    if (tasks_.empty()) return;
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

void WorkerPool::Submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (static_cast<int>(tasks_.size()) > idle_ &&
        static_cast<int>(workers_.size()) < max_threads_) {
      workers_.emplace_back([this] { Loop(); });
    }
  }
  wake_.notify_one();
}

Status WorkerPool::ForEach(int64_t n, const std::function<Status(int64_t)>& fn) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable done;
    int64_t next = 0, end = 0;
    int running = 0;
    std::optional<Error> error;
  };
  const auto shared = std::make_shared<Shared>();
  shared->end = n;
  // A helper that starts after the end finds no index, so it never touches `fn`.
  const auto work = [shared, &fn] {
    std::unique_lock lock(shared->mutex);
    while (shared->next < shared->end && !shared->error) {
      const int64_t index = shared->next++;
      ++shared->running;
      lock.unlock();
      Status status = fn(index);
      lock.lock();
      --shared->running;
      if (!status.ok() && !shared->error) shared->error = status.error();
    }
    if (shared->running == 0) shared->done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(n - 1, max_threads_);
  for (int64_t i = 0; i < helpers; ++i) Submit(work);
  work();
  std::unique_lock lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->running == 0; });
  // Helpers that have not started yet must not start now.
  shared->next = shared->end;
  if (shared->error) return *shared->error;
  return {};
}

}  // namespace tessera
