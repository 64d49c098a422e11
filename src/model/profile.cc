#include "model/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/files.h"
#include "base/median.h"
#include "base/memory.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"

namespace tessera {

OpProfile::OpProfile(int64_t trace_events) {
  events_.reserve(static_cast<size_t>(std::max<int64_t>(trace_events, 0)));
}

OpProfile::Slot OpProfile::AddSlot(std::string_view name, std::string_view form,
                                   OpClass op_class) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].name == name && rows_[i].form == form) return static_cast<Slot>(i);
  }
  Row row;
  row.name = name;
  row.form = form;
  row.op_class = op_class;
  rows_.push_back(std::move(row));
  return static_cast<Slot>(rows_.size() - 1);
}

void OpProfile::AddMoves(Slot slot, const std::vector<OpMove>& moves) {
  std::vector<OpMove>& all = rows_[static_cast<size_t>(slot)].moves;
  all.insert(all.end(), moves.begin(), moves.end());
}

void OpProfile::Record(Slot slot, int64_t layer, int64_t begin_ns, int64_t end_ns,
                       const OpWork& work) {
  Row& row = rows_[static_cast<size_t>(slot)];
  ++row.calls;
  row.seconds += 1e-9 * static_cast<double>(end_ns - begin_ns);
  row.work.flops += work.flops;
  row.work.bytes += work.bytes;
  row.work.vector_ops += work.vector_ops;
  if (meter_ != nullptr) {
    row.busiest_work += meter_->busiest();
    row.mean_work += meter_->mean();
    row.uncounted_regions += meter_->uncounted_regions();
  }
  if (events_.size() < events_.capacity()) {
    events_.push_back({begin_ns, end_ns, step_, slot, static_cast<int32_t>(layer),
                       static_cast<int32_t>(pass_)});
  } else {
    ++dropped_;
  }
}

void OpProfile::Reset() {
  for (Row& row : rows_) {
    row.calls = 0;
    row.seconds = 0;
    row.work = {};
    row.busiest_work = row.mean_work = 0;
    row.uncounted_regions = 0;
  }
  events_.clear();
  dropped_ = 0;
}

Json OpProfile::Trace() const {
  constexpr int kOpsRow = 1, kPhasesRow = 0;
  Json events = Json::array();
  const auto name_row = [&events](int row, const char* name) {
    events.push_back({{"ph", "M"}, {"pid", 1}, {"tid", row}, {"name", "thread_name"},
                      {"args", {{"name", name}}}});
  };
  name_row(kPhasesRow, "steps");
  name_row(kOpsRow, "ops");
  int64_t first = 0;
  for (size_t i = 0; i < events_.size(); ++i) {
    first = i == 0 ? events_[i].begin_ns : std::min(first, events_[i].begin_ns);
  }
  for (const Event& event : events_) {
    const Row& row = rows_[static_cast<size_t>(event.slot)];
    Json args = {{"step", event.step}};
    if (event.pass >= 0) args["micro_batch"] = event.pass;
    if (event.layer >= 0) args["layer"] = event.layer;
    if (!row.form.empty()) args["form"] = row.form;
    events.push_back({{"ph", "X"},
                      {"pid", 1},
                      {"tid", row.op_class == OpClass::kPhase ? kPhasesRow : kOpsRow},
                      {"name", row.name},
                      {"cat", row.op_class == OpClass::kProduct     ? "product"
                              : row.op_class == OpClass::kAttention ? "attention"
                              : row.op_class == OpClass::kOther     ? "other"
                                                                    : "phase"},
                      {"ts", 1e-3 * static_cast<double>(event.begin_ns - first)},
                      {"dur", 1e-3 * static_cast<double>(event.end_ns - event.begin_ns)},
                      {"args", std::move(args)}});
  }
  return {{"traceEvents", std::move(events)},
          {"displayTimeUnit", "ms"},
          {"otherData", {{"dropped_events", dropped_}}}};
}

Status OpProfile::WriteTrace(const std::filesystem::path& path) const {
  return WriteFileAtomic(path, JsonText(Trace()) + "\n");
}

double OpLimits::GbpsAt(const std::vector<Bandwidth>& measured, double bytes) {
  if (measured.empty()) return 0;
  if (bytes <= measured.front().bytes) return measured.front().gbps;
  for (size_t i = 1; i < measured.size(); ++i) {
    const Bandwidth &low = measured[i - 1], &high = measured[i];
    if (bytes > high.bytes) continue;
    const double at = std::log(bytes / low.bytes) / std::log(high.bytes / low.bytes);
    return low.gbps + at * (high.gbps - low.gbps);
  }
  return measured.back().gbps;
}

double OpLimits::MoveSeconds(const OpMove& move) const {
  const auto at = [this, &move](const Rates& rate) {
    double update = GbpsAt(rate.update, move.distance), copy = GbpsAt(rate.copy, move.distance);
    // Half of what an update or a copy moves is read.
    double fastest = std::max({GbpsAt(rate.read, move.distance), update / 2, copy / 2});
    if (move.row_bytes > 0 && !row_read.empty()) {
      update = std::min(update, GbpsAt(row_update, move.row_bytes));
      fastest = std::min(fastest, std::max(GbpsAt(row_read, move.row_bytes), update / 2));
    }
    if (fastest <= 0) return 0.0;
    const double read = 1 / fastest;
    double each = read;
    if (move.way == OpMove::Way::kInPlace) each = update > 0 ? 2 / update - read : read;
    if (move.way == OpMove::Way::kFresh) each = copy > 0 ? 2 / copy - read : read;
    return 1e-9 * move.bytes * each;
  };
  if (rates.empty()) return 0;
  const double idle = gflops > 0 ? move.flops / (gflops * 1e9) : 0;
  for (size_t i = 1; i < rates.size(); ++i) {
    const Rates &sooner = rates[i - 1], &later = rates[i];
    if (idle >= later.idle_seconds) continue;
    const double part = (idle - sooner.idle_seconds) / (later.idle_seconds - sooner.idle_seconds);
    return at(sooner) + part * (at(later) - at(sooner));
  }
  return at(rates.back());
}

namespace {

// Writes every 16 bytes of them anew.
void UpdateAll(char* at, int64_t bytes) {
  typedef uint64_t Words __attribute__((vector_size(16)));
  for (int64_t i = 0; i < bytes; i += static_cast<int64_t>(sizeof(Words))) {
    Words words;
    std::memcpy(&words, at + i, sizeof(words));
    words += 1;
    std::memcpy(at + i, &words, sizeof(words));
  }
}

}  // namespace

void OpLimitsMeter::Measure() {
  OpLimits limits;
  // A multiply-add counts two FLOPs and is one vector instruction.
  int64_t vector_calls = 0;
  double vector_seconds = 0;  // of 10^9 operations each
  const auto measure_vectors = [&] {
    ++vector_calls;
    vector_seconds += 2 / kernels::PeakGflops(kernels::Compute::kF32, pool_);
  };
  constexpr int64_t kLargest = int64_t{256} << 20;  // beyond the last cache
  Result<MemoryRegion> region = MemoryRegion::Allocate(kLargest, "measuring bandwidth", pool_);
  if (!region.ok()) throw ErrorException(region.error());
  float* base = region->as<float>();
  const auto seconds_since = [](int64_t begin) {
    return 1e-9 * static_cast<double>(OpProfile::Now() - begin);
  };
  std::vector<double> seconds;
  // The median call of at least five that follow each other, or of three to five after an idle time
  // each.
  const auto measure = [&](double moved, double idle, auto&& move) -> OpLimits::Bandwidth {
    seconds.clear();
    double spent = 0;
    move();
    const size_t least = idle > 0.01 ? 3 : 5;
    while (seconds.size() < least || (idle <= 0 && spent < 0.02 && seconds.size() < 2000)) {
      if (idle > 0) {
        pool_.Run([&](int) {  // without touching memory, and awake
          const int64_t begin = OpProfile::Now();
          while (seconds_since(begin) < idle) {
          }
        });
      }
      const int64_t begin = OpProfile::Now();
      move();
      seconds.push_back(seconds_since(begin));
      spent += seconds.back();
    }
    return {moved, moved / Median(seconds) * 1e-9};
  };
  for (const double idle : {0.0, 2e-3, 8e-3, 32e-3}) {
    OpLimits::Rates rates;
    rates.idle_seconds = idle;
    for (int64_t bytes = int64_t{1} << 18; bytes <= kLargest; bytes *= 4) {
      measure_vectors();  // here and there, as a host may give both threads one core for a while
      const int64_t count = bytes / 4;
      rates.update.push_back(measure(8.0 * static_cast<double>(count), idle, [&] {
        kernels::AddScaled(0.5f, base, base, count, pool_);
      }));
      const auto read = [&](int64_t ahead) {
        return measure(static_cast<double>(bytes), idle, [&] {
          pool_.ParallelForGrain(bytes / 512, 32, [&](int64_t begin, int64_t end) {
            ReadMemory(reinterpret_cast<const char*>(base) + begin * 512, (end - begin) * 512, ahead);
          });
        });
      };
      const OpLimits::Bandwidth plain = read(0), ahead = read(4096);
      rates.read.push_back(plain.gbps > ahead.gbps ? plain : ahead);
      const int64_t half = bytes / 8 / 16 * 16;
      rates.copy.push_back(measure(8.0 * static_cast<double>(half), idle, [&] {
        pool_.ParallelForGrain(half, 4096, [&](int64_t begin, int64_t end) {
          std::copy(base + begin, base + end, base + half + begin);
        });
      }));
    }
    limits.rates.push_back(std::move(rates));
  }
  limits.vector_gops = static_cast<double>(vector_calls) / vector_seconds;
  // Rows far from one another, asked for some rows ahead as an embedding does. The step is odd
  // and the places are a power of two, so that no two threads meet in a row.
  for (int64_t row = 512; row <= 8192; row *= 2) {
    constexpr int64_t kMoved = int64_t{8} << 20, kAhead = 4;
    const uint64_t places = static_cast<uint64_t>(kLargest / row);
    int64_t first = 0;
    const auto rows = [&](double moved, auto&& use) {
      OpLimits::Bandwidth one = measure(moved, 0, [&] {
        first += kMoved / row;
        pool_.ParallelForGrain(kMoved / row, 16, [&](int64_t begin, int64_t end) {
          const auto place = [&](int64_t i) {
            const uint64_t step = static_cast<uint64_t>(first + i) * 0x9E3779B97F4A7C15ull;
            return base + static_cast<int64_t>(step % places) * (row / 4);
          };
          for (int64_t i = begin; i < end; ++i) {
            const float* ahead = place(i + kAhead);
            for (int64_t line = 0; line < row / 4; line += 16) __builtin_prefetch(ahead + line);
            use(place(i));
          }
        });
      });
      one.bytes = static_cast<double>(row);
      return one;
    };
    limits.row_read.push_back(rows(static_cast<double>(kMoved), [row](const float* from) {
      ReadMemory(from, row, 0);
    }));
    limits.row_update.push_back(rows(2.0 * static_cast<double>(kMoved), [row](float* to) {
      UpdateAll(reinterpret_cast<char*>(to), row);
    }));
  }
  constexpr int kRegions = 20000;
  double best_region = 1e30;
  for (int round = 0; round < 5; ++round) {
    const int64_t begin = OpProfile::Now();
    for (int i = 0; i < kRegions / 5; ++i) pool_.Run([](int) {});
    best_region = std::min(best_region, 1e6 * seconds_since(begin) / (kRegions / 5));
  }
  limits.region_us = best_region;
  OpProfile scratch(kRegions);
  const OpProfile::Slot slot = scratch.AddSlot("empty", "", OpClass::kOther);
  const int64_t begin = OpProfile::Now();
  for (int i = 0; i < kRegions; ++i) scratch.Time(slot, 0, {}, [] {});
  limits.record_us = 1e6 * seconds_since(begin) / kRegions;
  measured_.push_back(std::move(limits));
}

OpLimits OpLimitsMeter::Limits(double gflops) const {
  OpLimits limits = measured_.front();  // for the sizes and times, which are all the same
  limits.gflops = gflops;
  const double count = static_cast<double>(measured_.size());
  const auto mean = [&](auto&& of) {
    double sum = 0;
    for (const OpLimits& one : measured_) sum += of(one);
    return sum / count;
  };
  limits.vector_gops = 1 / mean([](const OpLimits& one) { return 1 / one.vector_gops; });
  limits.region_us = mean([](const OpLimits& one) { return one.region_us; });
  limits.record_us = mean([](const OpLimits& one) { return one.record_us; });
  const auto mean_rates = [&](std::vector<OpLimits::Bandwidth>* sizes, auto&& of) {
    for (size_t i = 0; i < sizes->size(); ++i) {
      (*sizes)[i].gbps = 1 / mean([&](const OpLimits& one) { return 1 / of(one)[i].gbps; });
    }
  };
  mean_rates(&limits.row_read, [](const OpLimits& one) -> const auto& { return one.row_read; });
  mean_rates(&limits.row_update, [](const OpLimits& one) -> const auto& { return one.row_update; });
  for (size_t i = 0; i < limits.rates.size(); ++i) {
    for (const auto list : {&OpLimits::Rates::read, &OpLimits::Rates::update, &OpLimits::Rates::copy}) {
      mean_rates(&(limits.rates[i].*list),
                 [&](const OpLimits& one) -> const auto& { return one.rates[i].*list; });
    }
  }
  return limits;
}

namespace {

struct Bound {
  const char* name = "";
  double seconds = 0;  // the least time of all calls
};

double MovingSeconds(const OpProfile::Row& row, const OpLimits& limits) {
  const double calls = static_cast<double>(std::max<int64_t>(row.calls, 1));
  if (row.moves.empty()) return limits.MoveSeconds({row.work.bytes, row.work.bytes / calls});
  double bytes = 0, seconds = 0;
  for (const OpMove& move : row.moves) {
    bytes += move.bytes;
    seconds += limits.MoveSeconds(move);
  }
  return bytes > 0 ? seconds / bytes * row.work.bytes : 0;
}

Bound BoundOf(const OpProfile::Row& row, const OpLimits& limits) {
  Bound bound;
  const auto consider = [&bound](const char* name, double seconds) {
    if (seconds > bound.seconds) bound = {name, seconds};
  };
  // What an op multiplies and what else it computes take turns in the same units.
  const double vector =
      limits.vector_gops > 0 ? row.work.vector_ops / (limits.vector_gops * 1e9) : 0;
  const double product = limits.gflops > 0 ? row.work.flops / (limits.gflops * 1e9) : 0;
  consider(product > vector ? "compute" : "vector", product + vector);
  consider("bandwidth", MovingSeconds(row, limits));
  return bound;
}

}  // namespace

Json ProfileToJson(const OpProfile& profile, const OpLimits& limits, int64_t steps,
                   double step_seconds) {
  const double count = static_cast<double>(std::max<int64_t>(steps, 1));
  std::vector<const OpProfile::Row*> rows;
  double products = 0, attention = 0, other = 0, calls = 0;
  for (const OpProfile::Row& row : profile.rows()) {
    if (row.calls == 0 || row.op_class == OpClass::kPhase) continue;
    rows.push_back(&row);
    double& sum = row.op_class == OpClass::kProduct     ? products
                  : row.op_class == OpClass::kAttention ? attention
                                                        : other;
    sum += row.seconds / count;
    calls += static_cast<double>(row.calls) / count;
  }
  std::stable_sort(rows.begin(), rows.end(), [](const OpProfile::Row* a, const OpProfile::Row* b) {
    return a->seconds > b->seconds;
  });
  const double counted = products + attention + other;
  const double step = step_seconds > 0 ? step_seconds : counted;
  const auto share = [step](double seconds) { return step > 0 ? seconds / step : 0.0; };
  Json ops = Json::array();
  for (const OpProfile::Row* row : rows) {
    const Bound bound = BoundOf(*row, limits);
    const double seconds = std::max(row->seconds, 1e-12);
    ops.push_back({{"op", row->name},
                   {"form", row->form},
                   {"calls_per_step", static_cast<double>(row->calls) / count},
                   {"seconds_per_step", row->seconds / count},
                   {"flops_per_step", row->work.flops / count},
                   {"bytes_per_step", row->work.bytes / count},
                   {"gflops", row->work.flops / seconds * 1e-9},
                   {"gbps", row->work.bytes / seconds * 1e-9},
                   {"limit", bound.name},
                   {"fraction_of_limit", bound.seconds / seconds},
                   {"share", share(row->seconds / count)}});
  }
  const auto by_size = [](const std::vector<OpLimits::Bandwidth>& measured) {
    Json list = Json::array();
    for (const OpLimits::Bandwidth& one : measured) {
      list.push_back({{"bytes", one.bytes}, {"gbps", one.gbps}});
    }
    return list;
  };
  Json rates = Json::array();
  for (const OpLimits::Rates& one : limits.rates) {
    rates.push_back({{"idle_seconds", one.idle_seconds},
                     {"reading", by_size(one.read)},
                     {"updating", by_size(one.update)},
                     {"copying", by_size(one.copy)}});
  }
  return {{"steps", steps},
          {"step_seconds", step},
          {"ops", std::move(ops)},
          {"sums",
           {{"products", {{"seconds", products}, {"share", share(products)}}},
            {"attention", {{"seconds", attention}, {"share", share(attention)}}},
            {"other", {{"seconds", other}, {"share", share(other)}}},
            {"uncounted", {{"seconds", step - counted}, {"share", share(step - counted)}}}}},
          {"op_calls_per_step", calls},
          {"limits",
           {{"gflops", limits.gflops},
            {"vector_gops", limits.vector_gops},
            {"bandwidth", std::move(rates)},
            {"rows", {{"reading", by_size(limits.row_read)}, {"updating", by_size(limits.row_update)}}},
            {"empty_op_us", limits.region_us},
            {"record_us", limits.record_us}}}};
}

std::string FormatProfile(const Json& profile) {
  std::string text =
      fmt::format("{:<17} {:<26} {:>7} {:>9} {:>6} {:>8} {:>7}  {}\n", "op", "form", "calls", "ms",
                  "share", "GFLOP/s", "GB/s", "of its limit");
  const auto number = [](const Json& value, const char* key) { return value.at(key).get<double>(); };
  for (const Json& op : profile.at("ops")) {
    const double flops = number(op, "gflops"), bytes = number(op, "gbps");
    text += fmt::format(
        "{:<17} {:<26} {:>7.0f} {:>9.3f} {:>5.1f}% {:>8} {:>7}  {:>4.0f}% {}\n",
        op.at("op").get<std::string>(), op.at("form").get<std::string>(),
        number(op, "calls_per_step"), 1e3 * number(op, "seconds_per_step"),
        100 * number(op, "share"), flops > 0 ? fmt::format("{:.1f}", flops) : "",
        bytes > 0 ? fmt::format("{:.1f}", bytes) : "", 100 * number(op, "fraction_of_limit"),
        op.at("limit").get<std::string>());
  }
  const Json& sums = profile.at("sums");
  const auto sum = [&](const char* key) {
    return fmt::format("{:.1f}%", 100 * number(sums.at(key), "share"));
  };
  const Json& limits = profile.at("limits");
  text += fmt::format("matrix products {}, attention {}, everything else {}, between ops {} of {:.3f} "
                      "ms a step\n",
                      sum("products"), sum("attention"), sum("other"), sum("uncounted"),
                      1e3 * number(profile, "step_seconds"));
  text += fmt::format("limits of this run: {:.1f} GFLOP/s, {:.1f} G vector operations/s\n",
                      number(limits, "gflops"), number(limits, "vector_gops"));
  const Json& bandwidth = limits.at("bandwidth");
  if (!bandwidth.empty()) {
    text += fmt::format("{:<26}", "GB/s of arrays of, MB");
    for (const Json& one : bandwidth.front().at("reading")) {
      text += fmt::format(" {:>6.1f}", 1e-6 * number(one, "bytes"));
    }
    text += "\n";
  }
  for (const char* way : {"reading", "updating", "copying"}) {
    for (const Json& rates : bandwidth) {
      const double idle = number(rates, "idle_seconds");
      text += fmt::format("{:<26}",
                          idle > 0 ? fmt::format("{}, {:g} ms unused", way, 1e3 * idle) : way);
      for (const Json& one : rates.at(way)) text += fmt::format(" {:>6.1f}", number(one, "gbps"));
      text += "\n";
    }
  }
  for (const char* way : {"reading", "updating"}) {
    const Json& rows = limits.at("rows").at(way);
    if (rows.empty()) continue;
    text += fmt::format("{:<26}", fmt::format("{} rows anywhere", way));
    for (const Json& one : rows) {
      text += fmt::format(" {:.1f} of {:.0f} B", number(one, "gbps"), number(one, "bytes"));
    }
    text += "\n";
  }
  text += fmt::format("an op without work: {:.2f} us; counting a call: {:.3f} us\n",
                      number(limits, "empty_op_us"), number(limits, "record_us"));
  return text;
}

}  // namespace tessera
