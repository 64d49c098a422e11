// `tessera data order`: the samples of an epoch in the order in which a run trains on them.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/strings.h"
#include "cli/commands.h"
#include "data/dataset.h"
#include "data/mds.h"
#include "data/mosaic_order.h"
#include "data/native_order.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

constexpr const char* kNative = "native";

struct Flags {
  std::vector<std::string> datasets;  // Each a stream.
  std::vector<std::string> shards;    // "100,200,50": a stream made of sizes alone.
  std::vector<double> proportions, repeats;
  std::vector<int64_t> chooses;
  std::string order = "py1e";
  std::string batching = "random";
  std::string partition = "relaxed";
  std::string sampling = "balanced";
  int64_t granularity = 1;
  uint64_t seed = 9176;
  MosaicWorld world;
  int64_t canonical_nodes = 0;
  int64_t initial_nodes = 0;
  int64_t block_size = 0;
  int64_t epoch_size = 0;
  int64_t epoch = 0;
  int64_t sample_in_epoch = 0;
  int64_t rank = -1;
  int64_t limit = -1;
  bool shuffle = true;
  bool json = false;
};

Result<std::vector<int64_t>> ShardSizes(const std::string& dataset) {
  fs::path folder = dataset;
  std::error_code code;
  if (fs::exists(folder / kDatasetManifest, code)) folder /= kTrainFolder;
  TESSERA_ASSIGN(const MdsIndex index, ReadMdsIndex(folder));
  std::vector<int64_t> sizes;
  for (const MdsShard& shard : index.shards) sizes.push_back(shard.samples);
  return sizes;
}

Result<std::vector<int64_t>> ParseSizes(const std::string& text) {
  std::vector<int64_t> sizes;
  for (const std::string_view part : Split(text, ',')) {
    const std::optional<int64_t> size = ParseInt(Trim(part));
    if (!size || *size < 0) {
      return InvalidArgument(fmt::format("--shards {}: expected sizes such as 100,100,40", text));
    }
    sizes.push_back(*size);
  }
  return sizes;
}

template <class T, class Set>
Status SetWeights(const char* flag, const std::vector<T>& values, size_t streams, const Set& set) {
  if (values.empty()) return {};
  if (values.size() != streams) {
    return InvalidArgument(fmt::format("--{} has {} values for {} streams; give one for each", flag,
                                       values.size(), streams));
  }
  for (size_t i = 0; i < streams; ++i) set(i, values[i]);
  return {};
}

Result<MosaicOrderOptions> OptionsOf(const Flags& flags) {
  MosaicOrderOptions options;
  for (const std::string& dataset : flags.datasets) {
    TESSERA_ASSIGN(options.shards.emplace_back(), ShardSizes(dataset));
  }
  for (const std::string& sizes : flags.shards) {
    TESSERA_ASSIGN(options.shards.emplace_back(), ParseSizes(sizes));
  }
  const size_t streams = options.shards.size();
  if (streams == 0) return InvalidArgument("name a dataset, or --shards");
  options.weights.resize(streams);
  TESSERA_TRY(SetWeights("proportion", flags.proportions, streams,
                         [&](size_t i, double value) { options.weights[i].proportion = value; }));
  TESSERA_TRY(SetWeights("repeat", flags.repeats, streams,
                         [&](size_t i, double value) { options.weights[i].repeat = value; }));
  TESSERA_TRY(SetWeights("choose", flags.chooses, streams,
                         [&](size_t i, int64_t value) { options.weights[i].choose = value; }));
  const auto algorithm = MosaicShuffleFromName(flags.order);
  if (!algorithm && flags.order != kNative) {
    return InvalidArgument(
        fmt::format("--order {}: expected native, py1e, py1s, py1br, py2s or naive", flags.order));
  }
  options.algorithm = algorithm.value_or(MosaicShuffle::kNaive);
  const auto batching = BatchingMethodFromName(flags.batching);
  if (!batching) {
    return InvalidArgument(fmt::format(
        "--batching-method {}: expected random, stratified, per_stream or device_per_stream",
        flags.batching));
  }
  options.batching = *batching;
  options.partition =
      flags.partition == "orig" ? MosaicPartition::kOrig : MosaicPartition::kRelaxed;
  options.fixed_sampling = flags.sampling == "fixed";
  options.sampling_granularity = flags.granularity;
  options.seed = flags.seed;
  options.world = flags.world;
  options.canonical_nodes = flags.canonical_nodes;
  options.initial_nodes = flags.initial_nodes;
  options.block_size = flags.block_size;
  options.epoch_size = flags.epoch_size;
  options.shuffle = flags.shuffle;
  return ResolveMosaicOrder(std::move(options));
}

// Tessera's own order in the same form; samples of the last, partial batch are followed by padding.
Result<MosaicEpoch> NativeEpoch(const MosaicOrderOptions& mosaic, const Flags& flags) {
  const MosaicWorld& world = mosaic.world;
  NativeOrderOptions options{.weights = mosaic.weights,
                             .epoch_size = mosaic.epoch_size,
                             .seed = mosaic.seed,
                             .shuffle = mosaic.shuffle,
                             .block_size = flags.block_size,
                             .batching = mosaic.batching,
                             .global_batch = world.global_batch(),
                             .device_batch = world.batch_size,
                             .fixed_sampling = mosaic.fixed_sampling};
  std::vector<int64_t> begins;
  int64_t total = 0;
  for (const std::vector<int64_t>& shards : mosaic.shards) {
    const int64_t samples = std::accumulate(shards.begin(), shards.end(), int64_t{0});
    options.streams.push_back(NativeStreamOf(samples, static_cast<int64_t>(shards.size())));
    begins.push_back(total);
    total += samples;
  }
  TESSERA_ASSIGN(const NativeOrder order, NativeOrder::Make(std::move(options)));
  MosaicEpoch epoch{.world = world, .samples = {}};
  for (int64_t p = flags.sample_in_epoch; p < order.samples_per_epoch(); ++p) {
    const StreamSample at = order.At(flags.epoch, p);
    epoch.samples.push_back(begins[static_cast<size_t>(at.stream)] + at.sample);
  }
  const size_t global = static_cast<size_t>(world.global_batch());
  epoch.samples.resize((epoch.samples.size() + global - 1) / global * global, -1);
  return epoch;
}

Status Run(const Flags& flags) {
  TESSERA_ASSIGN(const MosaicOrderOptions options, OptionsOf(flags));
  const MosaicWorld& world = options.world;
  if (flags.rank >= world.ranks()) {
    return InvalidArgument(fmt::format("--rank {} of {} nodes with {} ranks: ranks are 0 to {}",
                                       flags.rank, world.nodes, world.ranks_per_node,
                                       world.ranks() - 1));
  }
  const bool native = flags.order == kNative;
  TESSERA_ASSIGN(const MosaicEpoch epoch,
                 native ? NativeEpoch(options, flags)
                        : MakeMosaicEpoch(options, flags.epoch, flags.sample_in_epoch));
  const bool one_rank = flags.rank >= 0;
  std::vector<int64_t> samples = one_rank ? epoch.OfRank(flags.rank) : epoch.samples;
  const int64_t width = one_rank ? world.batch_size : world.global_batch();
  if (flags.limit >= 0 && flags.limit < static_cast<int64_t>(samples.size())) {
    samples.resize(static_cast<size_t>(flags.limit));
  }
  if (flags.json) {
    Json json = {{"order", flags.order},
                 {"batching_method", flags.batching},
                 {"shuffle", flags.shuffle},
                 {"seed", flags.seed},
                 {"epoch", flags.epoch},
                 {"sample_in_epoch", flags.sample_in_epoch},
                 {"nodes", world.nodes},
                 {"ranks_per_node", world.ranks_per_node},
                 {"workers", world.workers_per_rank},
                 {"batch_size", world.batch_size},
                 {"global_batch_size", world.global_batch()},
                 {"batches", epoch.batches()},
                 {"samples", samples}};
    json["block_size"] = native ? flags.block_size : options.block_size;
    if (!native) json["canonical_nodes"] = options.canonical_nodes;
    if (one_rank) json["rank"] = flags.rank;
    fmt::print("{}\n", JsonText(json));
    return {};
  }
  for (size_t at = 0; at < samples.size(); at += static_cast<size_t>(width)) {
    const size_t end = std::min(samples.size(), at + static_cast<size_t>(width));
    fmt::print("{}\n", fmt::join(samples.begin() + static_cast<std::ptrdiff_t>(at),
                                 samples.begin() + static_cast<std::ptrdiff_t>(end), " "));
  }
  return {};
}

}  // namespace

void RegisterDataOrder(Command data, Outcome& outcome) {
  auto flags = std::make_shared<Flags>();
  Command order = data.AddCommand(
      "order", "Print the samples of an epoch in the order in which a run trains on them");
  order.AddOption("DATASET", flags->datasets, "Folders with index.json; each is a stream");
  order.AddOption("--shards", flags->shards,
                  "A stream given by its shards' sizes alone, such as 100,100,40");
  order.AddOption("--order", flags->order, "native, py1e, py1s, py1br, py2s or naive")
      .ShowDefault();
  order.AddFlag("!--no-shuffle", flags->shuffle, "The order of a dataset that is not shuffled");
  order.AddOption("--seed", flags->seed, "shuffle_seed").ShowDefault();
  order.AddOption("--epoch", flags->epoch, "Counted from 0").ShowDefault();
  order.AddOption("--nodes", flags->world.nodes).ShowDefault();
  order.AddOption("--ranks-per-node", flags->world.ranks_per_node).ShowDefault();
  order.AddOption("--workers", flags->world.workers_per_rank, "Workers of a rank's DataLoader")
      .ShowDefault();
  order.AddOption("--batch", flags->world.batch_size, "Samples of one rank's batch").ShowDefault();
  order
      .AddOption("--canonical-nodes", flags->canonical_nodes,
                 "0: the nodes (64 times as many for py1s and py2s)")
      .ShowDefault();
  order
      .AddOption("--initial-nodes", flags->initial_nodes,
                 "Nodes with which a resumed run began; 0: --nodes")
      .ShowDefault();
  order
      .AddOption("--block-size", flags->block_size,
                 "shuffle_block_size; 0: max(4,000,000 / canonical nodes, 262,144)")
      .ShowDefault();
  order.AddOption("--sample-in-epoch", flags->sample_in_epoch, "Samples that were seen before")
      .ShowDefault();
  order
      .AddOption("--batching-method", flags->batching,
                 "random, stratified, per_stream or device_per_stream")
      .ShowDefault();
  order.AddOption("--proportion", flags->proportions, "Of each stream").Delimiter(',');
  order.AddOption("--repeat", flags->repeats, "Of each stream").Delimiter(',');
  order.AddOption("--choose", flags->chooses, "Of each stream").Delimiter(',');
  order.AddOption("--epoch-size", flags->epoch_size, "Samples; 0: derived").ShowDefault();
  order.AddOption("--sampling-method", flags->sampling).OneOf({"balanced", "fixed"}).ShowDefault();
  order.AddOption("--sampling-granularity", flags->granularity).ShowDefault();
  order.AddOption("--partition-algo", flags->partition).OneOf({"orig", "relaxed"}).ShowDefault();
  order.AddOption("--rank", flags->rank, "Only this rank's samples, as its DataLoader yields them")
      .NonNegative();
  order.AddOption("--limit", flags->limit, "Only so many samples").NonNegative();
  order.AddFlag("--json", flags->json, "Report as JSON");
  order.SetFooter(
      "One line is one global batch (with --rank, one batch of that rank); -1 is padding. The\n"
      "sequence is that of mosaicml-streaming's StreamingDataset with the same settings; native "
      "is\n"
      "Tessera's own, where --block-size 0 stands for the whole epoch.\n"
      "Examples:\n"
      "  tessera data order data/c4/train --order py1e --seed 17 --nodes 2 --ranks-per-node 8 "
      "--batch 4\n"
      "  tessera data order a/train b/train --proportion 0.7,0.3 --epoch 1 --json\n"
      "  tessera data order --shards 100,100,40 --order py1s --batch 8");
  order.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
