#include "data/shard_scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "base/strings.h"

namespace tessera {

namespace {

constexpr int64_t kScanRows = 256;    // Rows that are looked at in one go.
constexpr int64_t kProbedRows = 256;  // Rows of a shard whose next use stands for all.
constexpr std::chrono::seconds kDiskLimitLife(30);

}  // namespace

Result<std::unique_ptr<ShardScheduler>> ShardScheduler::Start(const ShardSchedulerOptions& options,
                                                              std::vector<ShardCache*> caches,
                                                              std::vector<const RowReader*> readers,
                                                              SampleOrder* order) {
  if (options.threads < 1 || options.threads > 256 || options.predownload < 0 ||
      options.cache_limit < 0) {
    return InvalidArgument(fmt::format("predownload {}, cache_limit {}, {} download threads: at least 0, "
                                       "0, and 1 to 256",
                                       options.predownload, options.cache_limit, options.threads));
  }
  int64_t largest = 0;
  for (const ShardCache* cache : caches) {
    for (size_t i = 0; i < cache->index().shards.size(); ++i) {
      largest = std::max(largest, cache->FetchBytes(static_cast<int64_t>(i)));
    }
  }
  if (options.cache_limit > 0 && options.cache_limit < 4 * largest) {
    return InvalidArgument(fmt::format("cache_limit {} is below four times the largest shard, {}: shards "
                                       "would be fetched again and again; set it to at least {}",
                                       FormatBytes(options.cache_limit), FormatBytes(largest),
                                       FormatBytes(4 * largest)));
  }
  std::unique_ptr<ShardScheduler> scheduler(
      new ShardScheduler(options, std::move(caches), std::move(readers), order));
  TESSERA_TRY(scheduler->Adopt());
  const bool any_remote = std::any_of(scheduler->caches_.begin(), scheduler->caches_.end(),
                                      [](const ShardCache* cache) { return cache->remote(); });
  for (int i = 0; any_remote && i < options.threads; ++i) {
    scheduler->threads_.emplace_back([raw = scheduler.get()] { raw->Work(); });
  }
  return scheduler;
}

ShardScheduler::~ShardScheduler() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Status ShardScheduler::Adopt() {
  for (size_t stream = 0; stream < caches_.size(); ++stream) {
    TESSERA_ASSIGN(const std::vector<int64_t> present, caches_[stream]->AdoptPresent());
    for (const int64_t shard : present) {
      held_.insert({static_cast<int64_t>(stream), shard});
      used_bytes_ += caches_[stream]->StoredBytes(shard);
    }
  }
  most_used_bytes_ = used_bytes_;
  if (options_.cache_limit > 0) (void)MakeRoom(0, false);
  return {};
}

void ShardScheduler::Forget(const Touch& touch) {
  for (int64_t shard = touch.shards.first; shard <= touch.shards.last; ++shard) {
    const auto it = ahead_.find({touch.stream, shard});
    if (it != ahead_.end() && --it->second == 0) ahead_.erase(it);
  }
}

void ShardScheduler::Reset(int64_t own_row) {
  window_.clear();
  ahead_.clear();
  pending_.clear();
  next_use_.clear();
  cursor_ = own_row;
  ++generation_;
}

void ShardScheduler::SetRow(int64_t own_row) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (own_row < row_ || own_row > cursor_) Reset(own_row);
    row_ = own_row;
    while (!window_.empty() && window_.front().own_row < own_row) {
      Forget(window_.front());
      window_.pop_front();
    }
  }
  work_.notify_all();
}

// Downloads that wait for the space of these files go on once they are unmapped: at the reader's next
// batch, which wakes them.
std::vector<ShardScheduler::ShardId> ShardScheduler::TakeReleased() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(released_, {});
}

int64_t ShardScheduler::used_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return used_bytes_;
}

int64_t ShardScheduler::most_used_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return most_used_bytes_;
}

// The first own row behind the window that uses the shard, as a position of the run; from a sample of
// its rows, so it may be later than the true one, never earlier.
int64_t ShardScheduler::NextUse(const ShardId& id) {
  const int64_t from = Position(cursor_);
  const auto known = next_use_.find(id);
  if (known != next_use_.end() && known->second >= from) return known->second;
  const IndexRange rows = readers_[static_cast<size_t>(id.first)]->RowsOf(id.second);
  const int64_t count = rows.last - rows.first + 1;
  const int64_t probes = std::min(count, kProbedRows * (options_.batch_size / options_.rows));
  int64_t next = INT64_MAX;
  for (int64_t i = 0; i < probes; ++i) {
    const int64_t use = order_->NextUse({id.first, rows.first + i * count / probes}, from);
    const bool mine = use % options_.batch_size / options_.rows == options_.rank;
    if (use != INT64_MAX && mine) next = std::min(next, use);
  }
  next_use_[id] = next;
  return next;
}

bool ShardScheduler::ReleaseOne(bool force) {
  std::vector<std::pair<int64_t, ShardId>> candidates;
  for (const ShardId& id : held_) {
    if (needed_.count(id) == 0 && ahead_.count(id) == 0) candidates.emplace_back(NextUse(id), id);
  }
  std::sort(candidates.rbegin(), candidates.rend());
  if (force) {
    // Then those of the window, the last needed first.
    std::set<ShardId> seen;
    std::vector<ShardId> by_first_use;
    for (const Touch& touch : window_) {
      for (int64_t shard = touch.shards.first; shard <= touch.shards.last; ++shard) {
        const ShardId id = {touch.stream, shard};
        if (held_.count(id) > 0 && needed_.count(id) == 0 && seen.insert(id).second) {
          by_first_use.push_back(id);
        }
      }
    }
    for (auto it = by_first_use.rbegin(); it != by_first_use.rend(); ++it) candidates.emplace_back(0, *it);
  }
  for (const auto& [use, id] : candidates) {
    ShardCache* cache = caches_[static_cast<size_t>(id.first)];
    if (!cache->Release(id.second)) continue;
    held_.erase(id);
    next_use_.erase(id);
    released_.push_back(id);
    used_bytes_ -= cache->StoredBytes(id.second);
    // Needed again within the window: it must come back in time.
    if (ahead_.count(id) > 0) pending_.push_back(id);
    return true;
  }
  return false;
}

bool ShardScheduler::MakeRoom(int64_t bytes, bool force) {
  if (disk_limit_ > 0 && std::chrono::steady_clock::now() > disk_limit_until_) disk_limit_ = 0;
  int64_t limit = options_.cache_limit;
  if (disk_limit_ > 0 && (limit == 0 || disk_limit_ < limit)) limit = disk_limit_;
  if (limit == 0) return true;
  while (used_bytes_ + bytes > limit) {
    if (!ReleaseOne(force)) return false;
  }
  return true;
}

// The reader can't go on without its shard: anything else may go, and downloads under way are waited
// for, since they end as shards that may go.
bool ShardScheduler::FreeDiskForReader() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!ReleaseOne(true)) {
      if (in_flight_.size() <= 1) return false;
      // Downloads have deadlines.
      const int64_t before = fetches_ended_;
      work_.wait(lock, [&] { return fetches_ended_ != before; });
      return true;
    }
  }
  if (options_.close_released) options_.close_released();
  return true;
}

// A download ahead of time found no space: what is here by now is what fits.
void ShardScheduler::DiskIsFull(const ShardId& id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t complete = used_bytes_;
  for (const ShardId& other : in_flight_) {
    complete -= caches_[static_cast<size_t>(other.first)]->FetchBytes(other.second);
  }
  if (!std::exchange(disk_limit_told_, true)) {
    LogWarning("{}: the disk of its cache is full; training goes on with what fits, {}",
               caches_[static_cast<size_t>(id.first)]->Where(id.second), FormatBytes(complete));
  }
  disk_limit_ = std::max<int64_t>(complete, 1);
  disk_limit_until_ = std::chrono::steady_clock::now() + kDiskLimitLife;
  pending_.push_front(id);
}

// The shard's bytes are already counted; called without the lock.
Status ShardScheduler::Fetch(const ShardId& id, const std::function<bool()>& on_full_disk) {
  ShardCache* cache = caches_[static_cast<size_t>(id.first)];
  const Status status = cache->Fetch(id.second, [&](int64_t) { return on_full_disk(); });
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_flight_.erase(id);
    ++fetches_ended_;
    used_bytes_ -= cache->FetchBytes(id.second);
    if (status.ok() && held_.insert(id).second) used_bytes_ += cache->StoredBytes(id.second);
  }
  work_.notify_all();
  return status;
}

Status ShardScheduler::Ensure(int64_t stream, int64_t shard) {
  ShardCache* cache = caches_[static_cast<size_t>(stream)];
  if (!cache->remote()) return {};
  const ShardId id = {stream, shard};
  const int64_t bytes = cache->FetchBytes(shard);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    needed_.insert(id);
    // Waits end when a download does, and those have deadlines.
    while (held_.count(id) == 0) {
      if (in_flight_.count(id) == 0) {
        // Where nothing is left to give (another process holds what is here), the limit gives way.
        if (MakeRoom(bytes, true) || in_flight_.empty()) break;
      }
      work_.wait(lock);
    }
    if (held_.count(id) > 0) return {};
    pending_.erase(std::remove(pending_.begin(), pending_.end(), id), pending_.end());
    Begin(id, bytes);
  }
  return Fetch(id, [this] { return FreeDiskForReader(); });
}

void ShardScheduler::Begin(const ShardId& id, int64_t bytes) {
  in_flight_.insert(id);
  used_bytes_ += bytes;
  most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
}

void ShardScheduler::StartRow() {
  const std::lock_guard<std::mutex> lock(mutex_);
  needed_.clear();
}

void ShardScheduler::Discard(int64_t stream, int64_t shard) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ShardCache* cache = caches_[static_cast<size_t>(stream)];
  if (!cache->Release(shard, /*even_if_shared=*/true)) return;
  if (held_.erase({stream, shard}) > 0) used_bytes_ -= cache->StoredBytes(shard);
  released_.emplace_back(stream, shard);
}

void ShardScheduler::Scan(std::unique_lock<std::mutex>& lock) {
  scanning_ = true;
  const uint64_t generation = generation_;
  const int64_t begin = cursor_;
  const int64_t end = std::min(begin + kScanRows, row_ + options_.predownload);
  lock.unlock();
  std::vector<Touch> touches;
  for (int64_t row = begin; row < end; ++row) {
    const Result<StreamSample> at = order_->At(Position(row));
    // The reader meets the same error and reports it.
    if (!at.ok() || at->stream < 0) continue;
    const size_t stream = static_cast<size_t>(at->stream);
    if (!caches_[stream]->remote()) continue;
    touches.push_back({row, at->stream, readers_[stream]->ShardsOf(at->sample)});
  }
  lock.lock();
  scanning_ = false;
  if (generation != generation_) return;
  cursor_ = end;
  for (const Touch& touch : touches) {
    if (touch.own_row < row_) continue;
    for (int64_t shard = touch.shards.first; shard <= touch.shards.last; ++shard) {
      const ShardId id = {touch.stream, shard};
      next_use_.erase(id);
      if (++ahead_[id] == 1 && held_.count(id) == 0 && in_flight_.count(id) == 0) {
        pending_.push_back(id);
      }
    }
    window_.push_back(touch);
  }
}

void ShardScheduler::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    if (stop_) return;
    if (!pending_.empty()) {
      const ShardId id = pending_.front();
      ShardCache* cache = caches_[static_cast<size_t>(id.first)];
      const int64_t bytes = cache->FetchBytes(id.second);
      if (held_.count(id) > 0 || in_flight_.count(id) > 0 || ahead_.count(id) == 0) {
        pending_.pop_front();
        continue;
      }
      // Files that the reader still has open keep their space.
      const auto closing = [this] { return disk_limit_ > 0 && !released_.empty(); };
      if (!closing() && MakeRoom(bytes, false) && !closing()) {
        pending_.pop_front();
        Begin(id, bytes);
        lock.unlock();
        bool disk_full = false;
        const Status status = Fetch(id, [&disk_full] {
          disk_full = true;
          return false;
        });
        if (!status.ok() && disk_full) DiskIsFull(id);
        if (!status.ok()) LogDebug("ahead of time: {}", status.error().ToString());
        lock.lock();
        continue;
      }
    } else if (!scanning_ && cursor_ < row_ + options_.predownload) {
      Scan(lock);
      work_.notify_all();
      continue;
    }
    work_.wait(lock);
  }
}

}  // namespace tessera
