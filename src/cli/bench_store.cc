// `tessera bench store`: objects and bytes a second that a store takes and gives.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/time.h"
#include "cli/commands.h"
#include "store/object_store.h"

namespace tessera::cli {

namespace {

struct Flags {
  std::string url;
  int64_t objects = 1000;
  int64_t bytes = 1'000'000;
  int parallel = 16;
  bool keep = false;
  bool json = false;
};

struct Phase {
  double seconds = 0;
  StoreCounters counters;
};

std::string RandomBytes(int64_t count) {
  std::string bytes(static_cast<size_t>(count), '\0');
  const RngKey key{.seed = 1, .purpose = RngPurpose::kSampling};
  for (size_t i = 0; i < bytes.size(); i += 16) {
    const auto block = key.Block(i / 16);
    std::copy_n(reinterpret_cast<const char*>(block.data()), std::min<size_t>(16, bytes.size() - i),
                bytes.data() + i);
  }
  return bytes;
}

// Runs `work` once for each object on `parallel` threads, with a store of its own.
template <class Work>
Result<Phase> Measure(const Flags& flags, const Work& work) {
  StoreOptions options;
  options.connections = flags.parallel;
  TESSERA_ASSIGN(const std::unique_ptr<ObjectStore> store, OpenObjectStore(flags.url, options));
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::optional<Error> error;
  const auto loop = [&] {
    for (int64_t i = next++; i < flags.objects; i = next++) {
      const Status status = work(*store, fmt::format("tessera-bench/{:06}", i));
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      if (!error) error = status.error();
      next = flags.objects;
    }
  };
  const Stopwatch watch;
  std::vector<std::thread> threads;
  for (int t = 1; t < flags.parallel; ++t) threads.emplace_back(loop);
  loop();
  for (std::thread& thread : threads) thread.join();
  if (error) return *error;
  return Phase{watch.Seconds(), store->counters()};
}

Json Report(const Flags& flags, const Phase& phase) {
  const double objects = static_cast<double>(flags.objects);
  return {{"seconds", phase.seconds},
          {"objects_per_s", objects / phase.seconds},
          {"bytes_per_s", objects * static_cast<double>(flags.bytes) / phase.seconds},
          {"requests", phase.counters.requests},
          {"retries", phase.counters.retries},
          {"connections", phase.counters.connections_opened}};
}

void Print(const char* name, const Flags& flags, const Phase& phase) {
  const double objects = static_cast<double>(flags.objects);
  const double bytes = objects * static_cast<double>(flags.bytes);
  fmt::print("{:<4} {:>8.1f} objects/s  {:>11}/s  {:.2f} s, {} retries, {} connections\n", name,
             objects / phase.seconds, FormatBytes(static_cast<int64_t>(bytes / phase.seconds)),
             phase.seconds, phase.counters.retries, phase.counters.connections_opened);
}

Status Run(const Flags& flags) {
  if (flags.objects < 1 || flags.bytes < 0 || flags.bytes > int64_t{1} << 30 ||
      flags.parallel < 1 || flags.parallel > 1024) {
    return InvalidArgument("--objects must be at least 1, --bytes 0 to 2^30, --parallel 1 to 1024");
  }
  const std::string content = RandomBytes(flags.bytes);
  TESSERA_ASSIGN(const Phase put, Measure(flags, [&](ObjectStore& store, const std::string& key) {
                   const auto done = store.Put(key, content);
                   return done.ok() ? Status() : Status(done.error());
                 }));
  TESSERA_ASSIGN(const Phase get, Measure(flags, [&](ObjectStore& store, const std::string& key) {
                   const auto done = store.Get(key);
                   if (!done.ok()) return Status(done.error());
                   return *done == content ? Status()
                                           : Status(Corrupt(key + " is not what was put"));
                 }));
  if (!flags.keep) {
    TESSERA_ASSIGN([[maybe_unused]] const Phase removed,
                   Measure(flags, [](ObjectStore& store, const std::string& key) {
                     return store.Remove(key);
                   }));
  }
  if (flags.json) {
    const Json json = {
        {"url", flags.url},           {"objects", flags.objects},  {"object_bytes", flags.bytes},
        {"parallel", flags.parallel}, {"put", Report(flags, put)}, {"get", Report(flags, get)}};
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  Print("put", flags, put);
  Print("get", flags, get);
  return {};
}

}  // namespace

void RegisterBenchStore(Command bench, Outcome& outcome) {
  auto flags = std::make_shared<Flags>();
  Command store = bench.AddCommand("store", "Put and get objects of one size, verified");
  store.AddOption("url", flags->url, "Where; objects go to tessera-bench/ below it").Required();
  store.AddOption("--objects", flags->objects).ShowDefault();
  store.AddOption("--bytes", flags->bytes, "Of each object").ShowDefault();
  store.AddOption("--parallel", flags->parallel, "Requests at once").ShowDefault();
  store.AddFlag("--keep", flags->keep, "Leave the objects there");
  store.AddFlag("--json", flags->json, "Report as JSON");
  store.SetFooter(
      "Examples:\n"
      "  tessera bench store --json s3://bucket/trial\n"
      "  tessera bench store --objects 100 --bytes 64000000 --parallel 4 s3://bucket/trial\n"
      "  bench/peers/store.sh s3://bucket/trial    s3cmd and awscli beside it");
  store.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
