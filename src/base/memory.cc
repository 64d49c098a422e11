#include "base/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/strings.h"
#include "base/threads.h"

namespace tessera {

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

Result<MemoryRegion> MemoryRegion::Allocate(int64_t bytes, std::string_view purpose,
                                            ThreadPool& pool) {
  MemoryRegion region;
  if (bytes <= 0) return region;
  // Only whole huge pages are asked for as such: the resident set then stays what was asked for.
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return OutOfMemory(fmt::format("cannot get {} for {}: {}; `tessera plan` lists what a run needs",
                                   FormatBytes(bytes), purpose, std::strerror(errno)));
  }
  region.data_ = static_cast<std::byte*>(data);
  region.bytes_ = bytes;
  if (bytes >= 2 * kHugePage) ::madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  std::byte* bytes_of_region = region.data_;
  pool.ParallelForGrain(bytes, kHugePage, [bytes_of_region](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += 4096) {
      *static_cast<volatile std::byte*>(bytes_of_region + at) = std::byte{0};
    }
  });
  return region;
}

void MemoryRegion::Discard() {
  if (data_ != nullptr) ::madvise(data_, static_cast<size_t>(bytes_), MADV_DONTNEED);
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MemoryRegion::~MemoryRegion() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
}

void ReadMemory(const void* from, int64_t bytes, int64_t ahead) {
  typedef uint64_t Words __attribute__((vector_size(16)));
  const char* const at = static_cast<const char*>(from);
  Words sums[8] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
    if (ahead > 0) {
      __builtin_prefetch(at + i + ahead);
      __builtin_prefetch(at + i + ahead + 64);
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      Words words;
      std::memcpy(&words, at + i + 16 * k, sizeof(words));
      sums[k] ^= words;
    }
  }
  volatile uint64_t sink = 0;
  for (const Words& sum : sums) sink = sink ^ sum[0] ^ sum[1];
}

}  // namespace tessera
