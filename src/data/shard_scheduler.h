// Brings the shards that a loader is about to read and makes room by what it will read last.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "data/row_reader.h"
#include "data/sample_order.h"
#include "data/shard_cache.h"

namespace tessera {

struct ShardSchedulerOptions {
  int64_t predownload = 0;  // Rows of this rank whose shards are brought ahead.
  int64_t cache_limit = 0;  // Bytes of all streams' shards; 0: no limit.
  int threads = 8;          // Downloads at a time.
  // Rows [rank, rank + 1) * rows of each global batch are this process's.
  int64_t batch_size = 1;
  int64_t rank = 0;
  int64_t rows = 1;
  // Called within Ensure after shards were deleted to make room on a full disk: the reader closes what
  // TakeReleased gives, since a file that is still mapped keeps its space.
  std::function<void()> close_released = {};
};

// The k-th row of this rank stands at position Position(k) of the run. Rows are scanned ahead in that
// order, so shards are fetched by when they are first needed. When the limit is reached the shard goes
// whose next use is farthest (Belady's rule, which needs the future and has it here); shards of rows
// that were scanned stay. A full disk counts as a limit too: what is brought ahead waits, what the
// reader needs now takes the place of what it needs last. Thread-safe; `caches`, `readers` and `order` must outlive it.
class ShardScheduler {
 public:
  using ShardId = std::pair<int64_t, int64_t>;  // Stream, shard.

  static Result<std::unique_ptr<ShardScheduler>> Start(
      const ShardSchedulerOptions& options, std::vector<ShardCache*> caches,
      std::vector<const RowReader*> readers, SampleOrder* order);
  ~ShardScheduler();

  int64_t Position(int64_t own_row) const {
    return own_row / options_.rows * options_.batch_size + options_.rank * options_.rows +
           own_row % options_.rows;
  }

  // The reader is at this row now: those before are done with. Any row, also one further back.
  void SetRow(int64_t own_row);
  // The shards of another row are asked for next; those of the last one may go.
  void StartRow();
  // Blocks until a shard is here; it stays until StartRow. An error is final: retries are over.
  Status Ensure(int64_t stream, int64_t shard);
  // Deletes a shard that turned out damaged, so that the next Ensure brings it anew.
  void Discard(int64_t stream, int64_t shard);
  // Shards whose files were deleted since the last call, to be unmapped by the reader.
  std::vector<ShardId> TakeReleased();

  int64_t used_bytes() const;
  int64_t most_used_bytes() const;

 private:
  struct Touch {
    int64_t own_row;
    int64_t stream;
    IndexRange shards;
  };

  ShardScheduler(const ShardSchedulerOptions& options, std::vector<ShardCache*> caches,
                 std::vector<const RowReader*> readers, SampleOrder* order)
      : options_(options), caches_(std::move(caches)), readers_(std::move(readers)), order_(order) {}

  Status Adopt();
  void Work();
  void Scan(std::unique_lock<std::mutex>& lock);
  void Forget(const Touch& touch);
  void Reset(int64_t own_row);
  // Under the lock: whether so many bytes fit, after releasing what may be released. `force` also
  // gives up shards that were scanned, the last needed first.
  bool MakeRoom(int64_t bytes, bool force);
  bool ReleaseOne(bool force);
  bool FreeDiskForReader();
  void DiskIsFull(const ShardId& id);
  int64_t NextUse(const ShardId& id);
  void Begin(const ShardId& id, int64_t bytes);
  Status Fetch(const ShardId& id, const std::function<bool()>& on_full_disk);

  const ShardSchedulerOptions options_;
  const std::vector<ShardCache*> caches_;
  const std::vector<const RowReader*> readers_;
  SampleOrder* const order_;

  mutable std::mutex mutex_;  // Guards all below.
  std::condition_variable work_;
  bool stop_ = false;
  bool scanning_ = false;
  uint64_t generation_ = 0;  // Moves on when the row jumps.
  int64_t row_ = 0;
  int64_t cursor_ = 0;         // The next row to scan.
  std::deque<Touch> window_;   // Rows [row_, cursor_).
  std::map<ShardId, int64_t> ahead_;     // Rows of the window that touch a shard.
  std::map<ShardId, int64_t> next_use_;  // Of held shards outside of the window, where computed.
  std::deque<ShardId> pending_;          // To be fetched, by first use.
  std::set<ShardId> held_;
  std::set<ShardId> in_flight_;
  int64_t fetches_ended_ = 0;
  std::set<ShardId> needed_;  // Those that the reader's row has asked for.
  std::vector<ShardId> released_;
  int64_t disk_limit_ = 0;  // Of used_bytes_, where the disk turned out full; 0: none known.
  std::chrono::steady_clock::time_point disk_limit_until_;  // It may have been given space since.
  bool disk_limit_told_ = false;
  int64_t used_bytes_ = 0;
  int64_t most_used_bytes_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace tessera
