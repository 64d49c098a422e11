// Counts that many threads add to.
#pragma once

#include <atomic>

#include "store/object_store.h"

namespace tessera {

class AtomicCounters {
 public:
  void AddRequest() { requests_.fetch_add(1, std::memory_order_relaxed); }
  void AddRetry() { retries_.fetch_add(1, std::memory_order_relaxed); }
  void AddRead(int64_t bytes) { bytes_read_.fetch_add(bytes, std::memory_order_relaxed); }
  void AddWritten(int64_t bytes) { bytes_written_.fetch_add(bytes, std::memory_order_relaxed); }
  void AddConnections(int64_t count) { connections_.fetch_add(count, std::memory_order_relaxed); }

  StoreCounters Read() const {
    return {requests_.load(std::memory_order_relaxed), retries_.load(std::memory_order_relaxed),
            bytes_read_.load(std::memory_order_relaxed), bytes_written_.load(std::memory_order_relaxed),
            connections_.load(std::memory_order_relaxed)};
  }

 private:
  std::atomic<int64_t> requests_{0};
  std::atomic<int64_t> retries_{0};
  std::atomic<int64_t> bytes_read_{0};
  std::atomic<int64_t> bytes_written_{0};
  std::atomic<int64_t> connections_{0};
};

}  // namespace tessera
