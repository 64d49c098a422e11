// `tessera bench tokenize`: encoding and training rates beside the memory read rate of the same
// run.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/median.h"
#include "base/strings.h"
#include "base/threads.h"
#include "base/time.h"
#include "cli/commands.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::vector<std::string> files;
  std::string tokenizer;
  int64_t vocab_size = 16384;
  int threads = 0;
  int repeats = 5;
  bool json = false;
};

// Seconds of one pass over the documents by `threads` threads; documents are handed out one by one.
double EncodeSeconds(ThreadPool& pool, std::vector<Encoder>& encoders,
                     const std::vector<std::string>& documents, std::atomic<int64_t>* tokens) {
  std::atomic<size_t> next{0};
  const Stopwatch watch;
  pool.Run([&](int thread) {
    Encoder& encoder = encoders[static_cast<size_t>(thread)];
    std::vector<int32_t> ids;
    int64_t count = 0;
    for (size_t d = next.fetch_add(1); d < documents.size(); d = next.fetch_add(1)) {
      ids.clear();
      encoder.Encode(documents[d], &ids);
      count += static_cast<int64_t>(ids.size());
    }
    tokens->fetch_add(count);
  });
  return watch.Seconds();
}

// Bytes per second at which the pool's threads read 256 MiB from memory.
double ReadRate(ThreadPool& pool) {
  std::vector<uint64_t> data(size_t{32} << 20, 1);
  std::vector<double> seconds;
  std::atomic<uint64_t> sink{0};
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Stopwatch watch;
    pool.ParallelForGrain(
        static_cast<int64_t>(data.size()), 1 << 16, [&](int64_t begin, int64_t end) {
          sink += std::accumulate(data.begin() + begin, data.begin() + end, uint64_t{0});
        });
    seconds.push_back(watch.Seconds());
  }
  return static_cast<double>(data.size() * sizeof(uint64_t)) / Median(seconds);
}

struct Rates {
  int threads = 1;
  double cold = 0, warm = 0, memory = 0;  // Bytes per second.
};

Rates Measure(const Tokenizer& tokenizer, const std::vector<std::string>& documents, double bytes,
              int threads, int repeats, int64_t* tokens) {
  ThreadPool pool(threads);
  std::vector<double> cold, warm;
  std::atomic<int64_t> count{0};
  for (int repeat = 0; repeat < repeats; ++repeat) {
    // New encoders: empty caches.
    std::vector<Encoder> encoders;
    for (int t = 0; t < pool.num_threads(); ++t) encoders.emplace_back(tokenizer);
    count = 0;
    cold.push_back(EncodeSeconds(pool, encoders, documents, &count));
    *tokens = count;
    warm.push_back(EncodeSeconds(pool, encoders, documents, &count));
  }
  return {pool.num_threads(), bytes / Median(cold), bytes / Median(warm), ReadRate(pool)};
}

Status Bench(Flags flags) {
  if (flags.files.empty()) {
    const std::string sources = "/usr/share/doc/python3-doc/html/_sources";
    if (PathExists(sources)) flags.files = {sources};
    if (flags.files.empty()) {
      return NotFound(
          "no text to encode: give --files, or install python3-doc, whose sources are the default");
    }
  }
  std::vector<std::string> documents;
  for (const std::string& pattern : flags.files) {
    TESSERA_ASSIGN(const std::vector<std::string> paths, ExpandFiles(pattern));
    for (const std::string& path : paths) {
      TESSERA_ASSIGN(std::string text, ReadFile(path));
      documents.push_back(std::move(text));
    }
  }
  double bytes = 0;
  for (const std::string& text : documents) bytes += static_cast<double>(text.size());
  if (bytes == 0) return InvalidArgument("the files hold no text");

  Json json = {{"files", documents.size()}, {"bytes", static_cast<int64_t>(bytes)}};
  std::optional<Tokenizer> tokenizer;
  if (!flags.tokenizer.empty()) {
    TESSERA_ASSIGN(tokenizer, Tokenizer::Load(flags.tokenizer));
  } else {
    const std::vector<std::string_view> views(documents.begin(), documents.end());
    std::vector<double> seconds;
    for (int repeat = 0; repeat < std::min(3, flags.repeats); ++repeat) {
      const Stopwatch watch;
      TESSERA_ASSIGN(tokenizer, TrainBpe(views, {.vocab_size = flags.vocab_size,
                                                 .num_threads = flags.threads}));
      seconds.push_back(watch.Seconds());
    }
    json["train_seconds"] = Median(seconds);
    json["train_mb_per_s"] = bytes / Median(seconds) / 1e6;
  }
  json["vocab_size"] = tokenizer->vocab_size();

  std::vector<int> thread_counts = {1};
  const int all = flags.threads > 0 ? flags.threads : AvailableCores();
  if (all > 1) thread_counts.push_back(all);
  int64_t tokens = 0;
  for (const int threads : thread_counts) {
    const Rates rates = Measure(*tokenizer, documents, bytes, threads, flags.repeats, &tokens);
    json["encode"].push_back({{"threads", rates.threads},
                              {"cold_mb_per_s", rates.cold / 1e6},
                              {"warm_mb_per_s", rates.warm / 1e6},
                              {"memory_read_mb_per_s", rates.memory / 1e6},
                              {"cold_fraction", rates.cold / rates.memory},
                              {"warm_fraction", rates.warm / rates.memory}});
  }
  json["tokens"] = tokens;
  json["bytes_per_token"] = bytes / static_cast<double>(tokens);
  if (flags.json) {
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  fmt::print("{} files, {}, {} tokens, {:.2f} bytes a token, vocabulary {}\n", documents.size(),
             FormatBytes(static_cast<int64_t>(bytes)), tokens,
             json["bytes_per_token"].get<double>(), tokenizer->vocab_size());
  if (json.contains("train_seconds")) {
    fmt::print("train   {:.2f} s ({:.1f} MB/s)\n", json["train_seconds"].get<double>(),
               json["train_mb_per_s"].get<double>());
  }
  for (const Json& row : json["encode"]) {
    fmt::print(
        "encode  {} thread{}: cold {:.1f} MB/s ({:.2f}% of the memory read rate {:.0f} MB/s), "
        "warm {:.1f} MB/s ({:.2f}%)\n",
        row["threads"].get<int>(), row["threads"] == 1 ? "" : "s",
        row["cold_mb_per_s"].get<double>(), 100 * row["cold_fraction"].get<double>(),
        row["memory_read_mb_per_s"].get<double>(), row["warm_mb_per_s"].get<double>(),
        100 * row["warm_fraction"].get<double>());
  }
  return {};
}

}  // namespace

void RegisterBenchTokenize(Command bench, Outcome& outcome) {
  Command command =
      bench.AddCommand("tokenize", "Train and encode: MB/s cold and warm, beside memory");
  auto flags = std::make_shared<Flags>();
  command.AddOption("--files", flags->files,
                    "Files, folders or patterns; default: the sources of python3-doc");
  command.AddOption("--tokenizer", flags->tokenizer,
                    "A tokenizer.json to encode with; default: train one on the files");
  command.AddOption("--vocab-size", flags->vocab_size, "Of the tokenizer that is trained")
      .ShowDefault();
  command.AddOption("--threads", flags->threads, "0: every core").Range(0, 1024);
  command.AddOption("--repeats", flags->repeats, "Passes of which the median counts")
      .Range(1, 1000)
      .ShowDefault();
  command.AddFlag("--json", flags->json, "Print JSON");
  command.SetFooter(
      "Cold: each pass begins with empty piece caches. The limit is the rate at which the same\n"
      "threads read memory.\n"
      "Example:\n  tessera bench tokenize --files 'corpus/**/*.txt' --vocab-size 32768 --json");
  command.SetCallback([flags, &outcome] { outcome.status = Bench(*flags); });
}

}  // namespace tessera::cli
