// `tessera store`: look at, copy and remove the objects of folders, S3 and web servers.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/files.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/signals.h"
#include "base/strings.h"
#include "base/time.h"
#include "cli/commands.h"
#include "store/atomic_file.h"
#include "store/object_store.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

struct Flags {
  std::string source, target;
  bool recursive = false;
  bool abandon = false;
  double older_than_hours = 24;
  bool json = false;
  StoreOptions store;
};

// Set when a person asks to stop, so that transfers end and clean up.
std::atomic<bool> cancelled{false};

class CancelOnStop {
 public:
  CancelOnStop() : watcher_([this] { Watch(); }) {}
  ~CancelOnStop() {
    done_ = true;
    watcher_.join();
  }

 private:
  void Watch() {
    while (!done_) {
      if (StopRequested()) cancelled = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  StopSignals signals_;
  std::atomic<bool> done_{false};
  std::thread watcher_;
};

void PrintJson(const Json& json) { fmt::print("{}\n", JsonText(json, 2)); }

Json JsonOf(const ObjectInfo& info) {
  Json json = {{"key", info.key}, {"bytes", info.bytes}, {"etag", info.etag}};
  json["modified"] = info.modified_unix_s < 0 ? Json() : Json(UtcTimestamp(info.modified_unix_s));
  if (info.crc32c >= 0) json["crc32c"] = fmt::format("{:08x}", info.crc32c);
  return json;
}

std::string Modified(int64_t unix_s) {
  return unix_s < 0 ? std::string(20, '-') : UtcTimestamp(unix_s);
}

// A store and a prefix in it. A URL that ends with '/' is a folder; a path that is one needs no
// '/'.
Result<ObjectLocation> OpenPrefix(const std::string& url, const StoreOptions& options) {
  ObjectLocation location;
  if (!IsRemoteUrl(url)) {
    std::error_code ignored;
    const std::string path = url.starts_with("file://") ? url.substr(7) : url;
    if (fs::is_directory(path, ignored)) {
      TESSERA_ASSIGN(location.store, OpenObjectStore(url, options));
      return location;
    }
  }
  return OpenObjectLocation(url, options);
}

Status List(const Flags& flags) {
  TESSERA_ASSIGN(const ObjectLocation location, OpenPrefix(flags.source, flags.store));
  ListOptions options;
  options.prefix = location.key;
  options.one_level = !flags.recursive;
  Json json = {{"objects", Json::array()}, {"folders", Json::array()}};
  int64_t objects = 0;
  int64_t bytes = 0;
  do {
    TESSERA_ASSIGN(ListPage page, location.store->List(options));
    for (const ObjectInfo& object : page.objects) {
      ++objects;
      bytes += object.bytes;
      if (flags.json) {
        json["objects"].push_back(JsonOf(object));
      } else {
        fmt::print("{}  {:>10}  {}\n", Modified(object.modified_unix_s), FormatBytes(object.bytes),
                   object.key);
      }
    }
    for (const std::string& folder : page.folders) {
      if (flags.json) {
        json["folders"].push_back(folder);
      } else {
        fmt::print("{:>20}  {:>10}  {}\n", "", "", folder);
      }
    }
    options.page = std::move(page.next_page);
  } while (!options.page.empty() && !cancelled);
  if (flags.json) {
    json["bytes"] = bytes;
    PrintJson(json);
  } else {
    fmt::print("{} objects, {}\n", objects, FormatBytes(bytes));
  }
  return {};
}

Status Stat(const Flags& flags) {
  TESSERA_ASSIGN(const ObjectLocation location, OpenObjectLocation(flags.source, flags.store));
  TESSERA_ASSIGN(const ObjectInfo info, location.store->Head(location.key));
  if (flags.json) {
    PrintJson(JsonOf(info));
    return {};
  }
  fmt::print("key       {}\nbytes     {} ({})\nmodified  {}\netag      {}\n", info.key, info.bytes,
             FormatBytes(info.bytes), Modified(info.modified_unix_s), info.etag);
  if (info.crc32c >= 0) fmt::print("crc32c    {:08x}\n", info.crc32c);
  return {};
}

Status Cat(const Flags& flags) {
  constexpr int64_t kPiece = int64_t{8} << 20;
  TESSERA_ASSIGN(const ObjectLocation location, OpenObjectLocation(flags.source, flags.store));
  TESSERA_ASSIGN(const ObjectInfo info, location.store->Head(location.key));
  std::string piece;
  for (int64_t offset = 0; offset < info.bytes; offset += kPiece) {
    piece.resize(static_cast<size_t>(std::min(kPiece, info.bytes - offset)));
    TESSERA_TRY(location.store->GetRange(location.key, offset,
                                         std::as_writable_bytes(std::span(piece)), info.etag));
    if (std::fwrite(piece.data(), 1, piece.size(), stdout) != piece.size()) {
      return IoError("cannot write to the output");
    }
  }
  return {};
}

// From one remote store to another, through this machine, in constant memory.
Status Relay(ObjectStore& from, const ObjectInfo& object, ObjectStore& to, const std::string& key,
             const TransferProgress& progress) {
  constexpr int64_t kPiece = int64_t{16} << 20;
  TESSERA_ASSIGN(const std::unique_ptr<ObjectWriter> writer, to.StartWrite(key, {}));
  std::string piece;
  for (int64_t offset = 0; offset < object.bytes; offset += kPiece) {
    piece.resize(static_cast<size_t>(std::min(kPiece, object.bytes - offset)));
    TESSERA_TRY(
        from.GetRange(object.key, offset, std::as_writable_bytes(std::span(piece)), object.etag));
    TESSERA_TRY(writer->Write(piece));
    progress(static_cast<int64_t>(piece.size()));
  }
  Result<ObjectInfo> written = writer->Finish();
  return written.ok() ? Status() : Status(written.error());
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  return folder.empty() || folder.ends_with('/') ? folder + name : folder + "/" + name;
}

struct CopyJob {
  ObjectInfo object;   // Its key in the source's store.
  std::string target;  // The key, or the path of a file.
};

// Runs the jobs on a few threads: small objects wait mostly for the server.
Status RunAll(const std::vector<CopyJob>& jobs, int threads,
              const std::function<Status(const CopyJob&)>& run) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::optional<Error> error;
  const auto work = [&] {
    for (size_t i = next++; i < jobs.size(); i = next++) {
      const Status status = run(jobs[i]);
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      if (!error) error = status.error();
      next = jobs.size();
    }
  };
  std::vector<std::thread> workers;
  const int extra =
      static_cast<int>(std::min<size_t>(jobs.size(), static_cast<size_t>(threads))) - 1;
  for (int i = 0; i < extra; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  if (error) return *error;
  return {};
}

Status Copy(const Flags& flags) {
  TESSERA_ASSIGN(const ObjectLocation from, flags.recursive
                                                ? OpenPrefix(flags.source, flags.store)
                                                : OpenObjectLocation(flags.source, flags.store));
  const bool to_file = !IsRemoteUrl(flags.target);
  const bool from_file = !IsRemoteUrl(flags.source);
  std::string folder;  // The target's key or path, without the name of the object.
  ObjectLocation to;
  std::error_code ignored;
  if (to_file) {
    folder = flags.target.starts_with("file://") ? flags.target.substr(7) : flags.target;
    if (fs::is_directory(folder, ignored)) folder = JoinPath(folder, "");
  } else {
    TESSERA_ASSIGN(to, OpenObjectLocation(flags.target, flags.store));
    folder = to.key;
  }
  std::vector<CopyJob> jobs;
  int64_t bytes = 0;
  if (flags.recursive) {
    const size_t base = from.key.rfind('/') + 1;  // 0 without a '/'.
    TESSERA_TRY(ForEachObject(*from.store, from.key, [&](const ObjectInfo& object) {
      jobs.push_back(
          {object, JoinPath(folder, object.key.substr(std::min(base, object.key.size())))});
      bytes += object.bytes;
      return Status();
    }));
    if (jobs.empty()) return NotFound(fmt::format("no object begins with {}", flags.source));
  } else {
    TESSERA_ASSIGN(const ObjectInfo info, from.store->Head(from.key));
    const std::string name = info.key.substr(info.key.rfind('/') + 1);
    jobs.push_back({info, folder.empty() || folder.ends_with('/') ? folder + name : folder});
    bytes = info.bytes;
  }
  ProgressOptions options;
  options.total = bytes;
  options.unit = ProgressUnit::kBytes;
  if (flags.json) options.mode = ProgressMode::kSilent;
  const Stopwatch watch;
  ProgressMeter meter("copying", options);
  const TransferProgress progress = [&](int64_t delta) { meter.Add(delta); };
  FileBatch batch;
  const auto run = [&](const CopyJob& job) -> Status {
    if (to_file) {
      TESSERA_TRY(MakeDirectories(fs::absolute(job.target).parent_path()));
      thread_local std::vector<std::byte> scratch;
      const auto done = from.store->Download(job.object.key, job.target,
                                             {.progress = progress,
                                              .expected_bytes = job.object.bytes,
                                              .batch = &batch,
                                              .scratch = &scratch});
      return done.ok() ? Status() : Status(done.error());
    }
    if (from_file) {
      const std::string path = JoinPath(from.store->url(), job.object.key);
      const auto done = to.store->Upload(path, job.target, {}, progress);
      return done.ok() ? Status() : Status(done.error());
    }
    return Relay(*from.store, job.object, *to.store, job.target, progress);
  };
  const Status copied = RunAll(jobs, flags.store.connections, run);
  // What came whole before another object failed is kept.
  const Status committed = batch.Commit();
  TESSERA_TRY(copied);
  TESSERA_TRY(committed);
  const double seconds = watch.Seconds();
  if (flags.json) {
    StoreCounters counters = from.store->counters();
    if (to.store != nullptr) {
      const StoreCounters other = to.store->counters();
      counters.requests += other.requests;
      counters.retries += other.retries;
    }
    PrintJson({{"objects", jobs.size()},
               {"bytes", bytes},
               {"seconds", seconds},
               {"bytes_per_s", static_cast<double>(bytes) / seconds},
               {"requests", counters.requests},
               {"retries", counters.retries}});
  } else {
    meter.Finish();
  }
  return {};
}

Status Remove(const Flags& flags) {
  TESSERA_ASSIGN(const ObjectLocation location,
                 flags.recursive ? OpenPrefix(flags.source, flags.store)
                                 : OpenObjectLocation(flags.source, flags.store));
  std::vector<CopyJob> jobs;
  if (flags.recursive) {
    TESSERA_TRY(ForEachObject(*location.store, location.key, [&](const ObjectInfo& object) {
      jobs.push_back({object, ""});
      return Status();
    }));
  } else {
    // A missing object would not be an error of the store; of a person it is.
    TESSERA_ASSIGN(const ObjectInfo info, location.store->Head(location.key));
    jobs.push_back({info, ""});
  }
  ProgressOptions options;
  options.total = static_cast<int64_t>(jobs.size());
  options.noun = "objects";
  if (flags.json) options.mode = ProgressMode::kSilent;
  ProgressMeter meter("removing", options);
  TESSERA_TRY(RunAll(jobs, flags.store.connections, [&](const CopyJob& job) {
    const Status status = location.store->Remove(job.object.key);
    meter.Add(1);
    return status;
  }));
  if (flags.json) {
    PrintJson({{"removed", jobs.size()}});
  } else {
    meter.Finish();
  }
  return {};
}

Status Pending(const Flags& flags) {
  TESSERA_ASSIGN(const std::unique_ptr<ObjectStore> store,
                 OpenObjectStore(flags.source, flags.store));
  TESSERA_ASSIGN(const std::vector<PendingWrite> writes, store->PendingWrites());
  const double limit = static_cast<double>(UnixSeconds()) - flags.older_than_hours * 3600;
  Json json = Json::array();
  for (const PendingWrite& write : writes) {
    const bool abandon = flags.abandon && static_cast<double>(write.started_unix_s) <= limit;
    if (abandon) TESSERA_TRY(store->AbandonWrite(write));
    if (flags.json) {
      json.push_back({{"key", write.key},
                      {"id", write.id},
                      {"started", UtcTimestamp(write.started_unix_s)},
                      {"abandoned", abandon}});
    } else {
      fmt::print("{}  {}{}\n", Modified(write.started_unix_s), write.key,
                 abandon ? "  (abandoned)" : "");
    }
  }
  if (flags.json) PrintJson(json);
  return {};
}

void AddStoreOptions(Command command, const std::shared_ptr<Flags>& flags) {
  command.AddOption("--endpoint", flags->store.endpoint, "S3 endpoint, http(s)://host[:port]");
  command.AddOption("--region", flags->store.region, "S3 region");
  command.AddOption("--profile", flags->store.profile, "Profile of ~/.aws");
  command.AddFlag("--anonymous", flags->store.anonymous, "Do not sign (public buckets)");
  command.AddOption("--connections", flags->store.connections, "Requests at once, at most")
      .ShowDefault()
      .Range(1, 1024);
  command.AddFlag("--json", flags->json, "Report as JSON");
}

}  // namespace

void RegisterStore(Command app, Outcome& outcome) {
  Command store =
      app.AddCommand("store", "Look at, copy and remove objects of folders, S3 and web servers");
  store.RequireCommand();
  store.SetFooter(
      "URLs: a path, file:///path, s3://bucket/key, https://host/path\n"
      "Keys and endpoint of S3: AWS_* variables and ~/.aws, see docs/object-store.md");
  const auto add = [&](const char* name, const char* help, Status (*run)(const Flags&),
                       const char* examples) {
    auto flags = std::make_shared<Flags>();
    Command command = store.AddCommand(name, help);
    AddStoreOptions(command, flags);
    command.SetFooter(examples);
    command.SetCallback([flags, run, &outcome] {
      const CancelOnStop watch;
      flags->store.cancelled = &cancelled;
      outcome.status = run(*flags);
    });
    return std::pair(command, flags);
  };
  const auto [ls, ls_flags] = add("ls", "List objects", List,
                                  "Examples:\n"
                                  "  tessera store ls s3://bucket/data/\n"
                                  "  tessera store ls --recursive --json s3://bucket/data/");
  ls.AddOption("url", ls_flags->source, "Objects whose keys begin with it").Required();
  ls.AddFlag("-r,--recursive", ls_flags->recursive, "Folders too");
  const auto [cp, cp_flags] = add("cp", "Copy objects", Copy,
                                  "Examples:\n"
                                  "  tessera store cp model.safetensors s3://bucket/models/\n"
                                  "  tessera store cp -r s3://bucket/data/ /local/data/");
  cp.AddOption("from", cp_flags->source).Required();
  cp.AddOption("to", cp_flags->target).Required();
  cp.AddFlag("-r,--recursive", cp_flags->recursive, "Every object whose key begins with it");
  const auto [cat, cat_flags] = add("cat", "Write an object to the output", Cat,
                                    "Examples:\n"
                                    "  tessera store cat s3://bucket/data/index.json");
  cat.AddOption("url", cat_flags->source).Required();
  const auto [rm, rm_flags] = add("rm", "Remove objects", Remove,
                                  "Examples:\n"
                                  "  tessera store rm s3://bucket/old/index.json\n"
                                  "  tessera store rm -r s3://bucket/old/");
  rm.AddOption("url", rm_flags->source).Required();
  rm.AddFlag("-r,--recursive", rm_flags->recursive, "Every object whose key begins with it");
  const auto [stat, stat_flags] = add("stat", "Size, time and etag of an object", Stat,
                                      "Examples:\n"
                                      "  tessera store stat --json s3://bucket/data/index.json");
  stat.AddOption("url", stat_flags->source).Required();
  const auto [pending, pending_flags] =
      add("pending", "Writes that killed processes left unfinished", Pending,
          "Examples:\n"
          "  tessera store pending s3://bucket/checkpoints\n"
          "  tessera store pending --abandon --older-than 48 s3://bucket/checkpoints");
  pending.AddOption("url", pending_flags->source).Required();
  pending.AddFlag("--abandon", pending_flags->abandon, "Remove those that are old enough");
  pending.AddOption("--older-than", pending_flags->older_than_hours, "Hours").ShowDefault();
}

}  // namespace tessera::cli
