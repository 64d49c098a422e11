// Large zeroed memory straight from the operating system, in huge pages where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace tessera {

class ThreadPool;

class MemoryRegion {
 public:
  MemoryRegion() = default;
  // Maps `bytes` (0 gives an empty region), asks for huge pages and touches every page from the
  // pool's threads, so that a step never waits for the kernel and the resident set is what the
  // plan says. `purpose` is for the error.
  static Result<MemoryRegion> Allocate(int64_t bytes, std::string_view purpose, ThreadPool& pool);
  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  // Gives the pages back to the system. The content is lost: it reads as zero, and touching it takes
  // pages again.
  void Discard();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Reads `bytes` (a multiple of 128) as fast as plain loads do, for measurements, with lines asked for
// `ahead` bytes before their turn where that is not 0.
void ReadMemory(const void* from, int64_t bytes, int64_t ahead);

}  // namespace tessera
