// Where the time of a step goes: calls, seconds, arithmetic and least memory traffic of every form of
// op, beside this machine's limits, and a timeline of the calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/threads.h"
#include "base/work_meter.h"

namespace tessera {

// What a call has to do, whoever does it.
struct OpWork {
  double flops = 0;       // of products; a multiply-add is two
  double bytes = 0;       // every operand read once, every result written once
  double vector_ops = 0;  // fp32 vector instructions times lanes, of element-wise ops
};

// A part of what a call moves.
struct OpMove {
  double bytes = 0;
  double distance = 0;  // bytes that the step touches from the part's last use to this one: a cache
                        // of that size would still hold it
  enum class Way {
    kRead,
    kInPlace,  // written back to lines that the op reads
    kFresh,    // written to lines that the op does not read
  } way = Way::kRead;
  double flops = 0;  // of products since that use, which say how long ago it was
  double row_bytes = 0;  // of rows that lie anywhere in a table in memory; 0: one after the other
};

enum class OpClass {
  kProduct,    // matrix products of linear layers and of the head
  kAttention,  // attention, forward and backward
  kOther,      // everything else of a step
  kPhase,      // parts of a step that hold ops, for the timeline only
};

class OpProfile {
 public:
  using Slot = int32_t;
  struct Row {
    std::string name;  // the kind of op: "linear"
    std::string form;  // sizes or part: "4096 x 2304 x 768"; may be empty
    OpClass op_class = OpClass::kOther;
    int64_t calls = 0;
    double seconds = 0;
    OpWork work;  // sums over the calls
    std::vector<OpMove> moves;  // of the ops that share the row, once each
    // With a meter: work of the busiest thread and the mean, summed over parallel regions.
    double busiest_work = 0, mean_work = 0;
    int64_t uncounted_regions = 0;
  };

  // Keeps the first `trace_events` calls for the timeline. All memory is taken here and in AddSlot.
  explicit OpProfile(int64_t trace_events = 0);

  // The row of (name, form), made when it is new.
  Slot AddSlot(std::string_view name, std::string_view form, OpClass op_class);

  // Where the bytes of one op of the row lie when it runs. Without this a call's bytes count as
  // touched by the call before.
  void AddMoves(Slot slot, const std::vector<OpMove>& moves);

  // What the following calls belong to, for the timeline.
  void set_step(int64_t step) { step_ = step; }
  void set_pass(int64_t pass) { pass_ = pass; }

  // Also notes how evenly the threads share the work of each row.
  void set_meter(WorkMeter* meter) { meter_ = meter; }

  // Runs fn and counts it. Allocates nothing.
  template <class Fn>
  void Time(Slot slot, int64_t layer, const OpWork& work, Fn&& fn) {
    if (meter_ != nullptr) meter_->Reset();
    const int64_t begin = Now();
    fn();
    Record(slot, layer, begin, Now(), work);
  }
  void Record(Slot slot, int64_t layer, int64_t begin_ns, int64_t end_ns, const OpWork& work);
  static int64_t Now() {  // nanoseconds on the monotonic clock
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  const std::vector<Row>& rows() const { return rows_; }
  // Zero calls and an empty timeline; the rows stay.
  void Reset();

  // The timeline in Chrome's trace event format (chrome://tracing, ui.perfetto.dev): ops in one row,
  // the parts of a step in another, times in microseconds from the first event.
  Json Trace() const;
  // Writes Trace() whole or not at all.
  Status WriteTrace(const std::filesystem::path& path) const;
  int64_t dropped_events() const { return dropped_; }

 private:
  struct Event {
    int64_t begin_ns = 0, end_ns = 0, step = 0;
    Slot slot = 0;
    int32_t layer = -1, pass = -1;
  };

  std::vector<Row> rows_;
  std::vector<Event> events_;  // capacity is fixed when made
  int64_t step_ = 0, pass_ = -1;
  int64_t dropped_ = 0;
  WorkMeter* meter_ = nullptr;
};

// Runs fn, counted where there is a profile: off, it is one comparison.
template <class Fn>
void TimeOp(OpProfile* profile, OpProfile::Slot slot, int64_t layer, const OpWork& work, Fn&& fn) {
  if (profile == nullptr) {
    fn();
  } else {
    profile->Time(slot, layer, work, std::forward<Fn>(fn));
  }
}

// The limits that rows are held against, measured in the same run.
struct OpLimits {
  double gflops = 0;        // of the best matrix product
  double vector_gops = 0;   // fp32 vector instructions times lanes
  struct Bandwidth {
    double bytes = 0;  // of the arrays that were moved
    double gbps = 0;   // read and written
  };
  // By growing size, as small arrays stay in caches: an array read; an array updated in place; and an
  // array copied to another, where memory also fetches the lines written. Before each the arrays lay
  // unused for `idle_seconds`: a last-level cache that other guests of a host share keeps little for
  // long.
  struct Rates {
    double idle_seconds = 0;
    std::vector<Bandwidth> read, update, copy;
  };
  std::vector<Rates> rates;  // by growing idle_seconds, the first 0
  std::vector<Bandwidth> row_read, row_update;  // of rows of so many bytes anywhere in memory
  double region_us = 0;              // an empty parallel region: what an op without work costs
  double record_us = 0;              // what counting one call costs
  // Bandwidth for calls that move this much, between the sizes measured.
  static double GbpsAt(const std::vector<Bandwidth>& measured, double bytes);
  // The least time of a part's move: what the op reads at the best rate of reading; what it writes
  // over that at what an update costs beyond its reading, and what it writes fresh at what a copy does;
  // all between the idle times measured, with products at `gflops`.
  double MoveSeconds(const OpMove& move) const;
};

// Measures the limits again and again between the parts of a run, as the rates of a shared machine
// move by half within minutes. Times of ops are means over a run, so the limits are of mean times too.
class OpLimitsMeter {
 public:
  explicit OpLimitsMeter(ThreadPool& pool) : pool_(pool) {}
  // Takes about six seconds, and 256 MiB while it runs.
  void Measure();
  // Of what was measured, at least once. `gflops` is the caller's best product.
  OpLimits Limits(double gflops) const;

 private:
  ThreadPool& pool_;
  std::vector<OpLimits> measured_;
};

// Rows beside the limits, with the largest first, and their sums. `steps` and `step_seconds` (of one
// step, 0 when unknown) belong to what was counted.
Json ProfileToJson(const OpProfile& profile, const OpLimits& limits, int64_t steps,
                   double step_seconds);
// The same for people, from that JSON.
std::string FormatProfile(const Json& profile);

}  // namespace tessera
