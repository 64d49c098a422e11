// `tessera bench load`: batches a second from the loader beside this machine's memory read limit.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/time.h"
#include "cli/commands.h"
#include "data/loader.h"
#include "data/mds_reader.h"
#include "data/mds_writer.h"
#include "data/native_order.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

struct Flags {
  std::string dataset;  // Empty: made for the run.
  int64_t sequence_length = 2048;
  int64_t batch_size = 16;
  int64_t megabytes = 256;
  double seconds = 2;
  int64_t eos = -1;
  int64_t vocab = 0;
  bool shuffle = true;
  bool json = false;
};

constexpr int64_t kVocabulary = 50257;

// Random ids in documents of 1 to 4,000 tokens, as uint16.
Status WriteDataset(const fs::path& folder, int64_t bytes) {
  TESSERA_ASSIGN(MdsWriter writer,
                 MdsWriter::Create(
                     {.folder = folder, .columns = {{"tokens", "ndarray:uint16"}}, .hashes = {}}));
  const RngKey key{.seed = 1, .purpose = RngPurpose::kSampling};
  std::vector<int32_t> ids;
  std::string value;
  uint64_t index = 0;
  for (int64_t written = 0; written < bytes; written += static_cast<int64_t>(value.size())) {
    ids.resize(1 + key.Block(index++)[0] % 4000);
    for (size_t i = 0; i < ids.size(); i += 4) {
      const auto block = key.Block(index++);
      for (size_t k = i; k < std::min(i + 4, ids.size()); ++k) {
        ids[k] = static_cast<int32_t>(block[k - i] % kVocabulary);
      }
    }
    value.clear();
    AppendMdsTokens(ids, 2, &value);
    const std::string_view view = value;
    TESSERA_TRY(writer.Write(std::span(&view, 1)));
  }
  return writer.Finish();
}

// Bytes a second at which one thread reads memory that no cache holds; the best of five passes.
double MemoryReadLimit() {
  constexpr size_t kWords = size_t{256} << 17;  // 256 MiB of 8-byte words.
  std::vector<uint64_t> words(kWords);
  std::iota(words.begin(), words.end(), uint64_t{1});
  double best = 0;
  uint64_t sink = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const Stopwatch watch;
    uint64_t sums[8] = {};
    for (size_t i = 0; i < kWords; i += 8) {
      for (size_t k = 0; k < 8; ++k) sums[k] += words[i + k];
    }
    for (const uint64_t sum : sums) sink += sum;
    best = std::max(best, static_cast<double>(kWords * 8) / watch.Seconds());
  }
  // Keeps the sums alive.
  return sink == 0 ? 0 : best;
}

// Samples a second that one thread reads into int32 ids, `stride` samples apart: 1 reads in stored
// order, a large prime at random places.
Result<double> MdsReadRate(const fs::path& folder, const std::string& column, int64_t stride,
                           double seconds) {
  TESSERA_ASSIGN(MdsReader reader, MdsReader::Open(folder));
  std::vector<std::string_view> values;
  std::vector<int32_t> ids;
  const Stopwatch watch;
  int64_t done = 0;
  while (done % 64 != 0 || watch.Seconds() < seconds) {
    const int64_t sample = done++ * stride % reader.samples();
    const MdsShard& shard = reader.ShardOf(sample);
    const int64_t at = shard.FindColumn(column);
    if (at < 0) return InvalidArgument(fmt::format("{}: no column '{}'", reader.Where(sample), column));
    TESSERA_TRY(reader.Columns(sample, &values));
    TESSERA_ASSIGN(const MdsTokens tokens,
                   ParseMdsTokens(shard.columns[static_cast<size_t>(at)].encoding,
                                  values[static_cast<size_t>(at)]));
    ids.resize(static_cast<size_t>(tokens.count));
    if (CopyMdsTokens(tokens, 0, tokens.count, ids.data()) < 0) {
      return Corrupt(fmt::format("{}: a token id is negative", reader.Where(sample)));
    }
  }
  return static_cast<double>(done) / watch.Seconds();
}

// Milliseconds to find a batch of 512 samples anywhere in a mixture of 10^12 tokens in rows of 2,048.
Result<double> OrderJumpMs() {
  TESSERA_ASSIGN(const NativeOrder order,
                 NativeOrder::Make({.streams = {{.samples = 300'000'000, .chunk = 8192},
                                                {.samples = 188'281'250, .chunk = 8192}},
                                    .weights = {{.proportion = 0.7}, {.proportion = 0.3}},
                                    .seed = 1,
                                    .block_size = int64_t{1} << 18}));
  double worst = 0;
  int64_t sum = 0;
  for (int64_t jump = 1; jump <= 100; ++jump) {
    const Stopwatch watch;
    for (int64_t row = 0; row < 512; ++row) {
      sum += order.At(jump, jump * 4'000'037 + row).sample;
    }
    worst = std::max(worst, 1000 * watch.Seconds());
  }
  return sum < 0 ? 0 : worst;
}

// A folder of this process that is gone at the end.
class ScratchFolder {
 public:
  ScratchFolder()
      : path_(fs::temp_directory_path() / fmt::format("tessera-bench-load-{}", ::getpid())) {}
  ~ScratchFolder() { (void)RemoveTree(path_).ok(); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

Status Run(const Flags& flags) {
  if (flags.megabytes < 1 || flags.megabytes > 1 << 20 || !(flags.seconds > 0)) {
    return InvalidArgument("--megabytes must be 1 to 1048576 and --seconds above 0");
  }
  const ScratchFolder scratch;
  LoaderOptions options;
  options.dataset = flags.dataset;
  if (flags.dataset.empty()) {
    options.dataset = scratch.path();
    options.eos_id = 0;
    options.vocab_size = kVocabulary;
    TESSERA_TRY(WriteDataset(scratch.path(), flags.megabytes << 20));
  } else if (flags.eos >= 0) {
    options.eos_id = static_cast<int32_t>(flags.eos);
  } else if (!PathExists(options.dataset / ".." / "dataset.json")) {
    // Written by another program, which does not tell an id: its samples follow each other directly.
    options.insert_eos = false;
  }
  if (flags.vocab > 0) options.vocab_size = flags.vocab;
  options.sequence_length = flags.sequence_length;
  options.batch_size = flags.batch_size;
  options.shuffle = flags.shuffle;
  const Stopwatch open_watch;
  TESSERA_ASSIGN(const std::unique_ptr<Loader> loader, Loader::Open(options));
  const double open_seconds = open_watch.Seconds();
  const double limit = MemoryReadLimit();
  int64_t samples = 0;
  int64_t sum = 0;
  const Stopwatch watch;
  double seconds = 0;
  while ((seconds = watch.Seconds()) < flags.seconds) {
    TESSERA_ASSIGN(const TokenBatch* batch, loader->Next());
    samples += batch->rows;
    sum += batch->tokens.front();
  }
  // What the consumer gets: tokens, targets and segment starts of 4 bytes each.
  const double samples_per_s = static_cast<double>(samples) / seconds;
  const double bytes_per_s = samples_per_s * static_cast<double>(flags.sequence_length) * 12;
  const double seek_position = static_cast<double>(loader->samples_per_epoch());
  const Stopwatch seek_watch;
  TESSERA_TRY(loader->Seek({1000, static_cast<int64_t>(seek_position / 2)}));
  TESSERA_ASSIGN([[maybe_unused]] const TokenBatch* batch, loader->Next());
  const double seek_ms = 1000 * seek_watch.Seconds();
  TESSERA_ASSIGN(const double sequential_per_s,
                 MdsReadRate(options.dataset, options.column, 1, flags.seconds));
  TESSERA_ASSIGN(const double random_per_s,
                 MdsReadRate(options.dataset, options.column, 7919, flags.seconds));
  TESSERA_ASSIGN(const double jump_ms, OrderJumpMs());
  if (flags.json) {
    const Json json = {{"samples_per_s", samples_per_s},
                       {"stored_sequential_per_s", sequential_per_s},
                       {"stored_random_per_s", random_per_s},
                       {"order_jump_ms_at_1e12_tokens", jump_ms},
                       {"sequence_length", flags.sequence_length},
                       {"batch_size", flags.batch_size},
                       {"tokens_per_s", samples_per_s * static_cast<double>(flags.sequence_length)},
                       {"bytes_per_s", bytes_per_s},
                       {"memory_read_bytes_per_s", limit},
                       {"fraction", bytes_per_s / limit},
                       {"open_seconds", open_seconds},
                       {"seek_ms", seek_ms},
                       {"dataset_tokens", loader->total_tokens()},
                       {"samples", samples},
                       {"checksum", sum}};
    fmt::print("{}\n", JsonText(json, 2));
    return {};
  }
  fmt::print("{} samples/s of {} tokens, {}/s delivered\n", FormatCount(samples_per_s),
             flags.sequence_length, FormatBytes(static_cast<int64_t>(bytes_per_s)));
  fmt::print("memory read limit, one thread: {}/s; fraction {:.2f}\n",
             FormatBytes(static_cast<int64_t>(limit)), bytes_per_s / limit);
  fmt::print("stored samples read by one thread: {}/s in order, {}/s at random\n",
             FormatCount(sequential_per_s), FormatCount(random_per_s));
  fmt::print("worst jump to a batch of 512 at 10^12 tokens: {:.3f} ms\n", jump_ms);
  fmt::print("open {:.1f} ms, jump to another epoch and its first batch {:.2f} ms\n",
             1000 * open_seconds, seek_ms);
  return {};
}

}  // namespace

void RegisterBenchLoad(Command bench, Outcome& outcome) {
  auto flags = std::make_shared<Flags>();
  Command load = bench.AddCommand("load", "Samples a second from the training loader");
  load.AddOption("--dataset", flags->dataset, "A split's folder; made for the run where absent");
  load.AddOption("--eos", flags->eos,
                 "End-of-text id of a dataset that does not tell it; without one, its samples follow "
                 "each other directly")
      .Range(-1, 2147483646);
  load.AddOption("--vocab", flags->vocab, "Refuses ids from here on; 0 takes the dataset's")
      .Range(0, 2147483647);
  load.AddOption("--sequence-length", flags->sequence_length).ShowDefault();
  load.AddOption("--batch", flags->batch_size, "Samples in a batch").ShowDefault();
  load.AddOption("--megabytes", flags->megabytes, "Size of the dataset that is made").ShowDefault();
  load.AddOption("--seconds", flags->seconds).ShowDefault();
  load.AddFlag("!--no-shuffle", flags->shuffle, "Samples in stored order");
  load.AddFlag("--json", flags->json, "Report as JSON");
  load.SetFooter(
      "Examples:\n"
      "  tessera bench load --json\n"
      "  tessera bench load --dataset data/docs/train --sequence-length 1024\n"
      "  tessera bench load --dataset other/mds --eos 50256 --no-shuffle");
  load.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
