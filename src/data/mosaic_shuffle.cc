#include "data/mosaic_shuffle.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "data/numpy_random.h"

namespace tessera {

namespace {

constexpr std::array<std::pair<std::string_view, MosaicShuffle>, 5> kNames = {
    {{"naive", MosaicShuffle::kNaive},
     {"py1s", MosaicShuffle::kPy1s},
     {"py2s", MosaicShuffle::kPy2s},
     {"py1br", MosaicShuffle::kPy1br},
     {"py1e", MosaicShuffle::kPy1e}}};

struct Span {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// Spans in their order and, per canonical node, the range of spans that it holds.
struct NodeSpans {
  std::vector<Span> spans;
  std::vector<Span> nodes;
};

// Cuts the sequence of spans into equal parts at floor(total * (node + 1) / nodes).
NodeSpans DivideSpans(std::vector<Span> spans, int64_t total, int64_t nodes) {
  NodeSpans out;
  size_t next = 0;
  int64_t done = 0;
  for (int64_t node = 0; node < nodes; ++node) {
    const int64_t node_end =
        static_cast<int64_t>(static_cast<__int128>(total) * (node + 1) / nodes);
    const int64_t first = static_cast<int64_t>(out.spans.size());
    for (; next < spans.size(); ++next) {
      Span& span = spans[next];
      if (done + span.size() > node_end) {
        if (const int64_t split = node_end - done; split > 0) {
          out.spans.push_back({span.begin, span.begin + split});
          span.begin += split;
          done += split;
        }
        break;
      }
      out.spans.push_back(span);
      done += span.size();
    }
    out.nodes.push_back({first, static_cast<int64_t>(out.spans.size())});
  }
  return out;
}

// Share of a block by a factor as Python's int(factor * block) has it.
int64_t Share(double factor, int64_t block) {
  return static_cast<int64_t>(factor * static_cast<double>(block));
}

// Block sizes are drawn from [0.75, 1.25) of the nominal one.
struct BlockRange {
  int64_t low = 0;
  int64_t high = 0;
  int64_t Draw(NumpyGenerator* rng) const { return rng->Integers(low, high); }
};

Result<BlockRange> BlockRangeOf(int64_t block_size) {
  const BlockRange range = {Share(0.75, block_size), Share(1.25, block_size)};
  if (range.low < 1 || range.low >= range.high) {
    return InvalidArgument(fmt::format(
        "shuffle_block_size {} is too small to draw block sizes from; set it to at least 4 (with "
        "several streams, each gets its proportion of it)",
        block_size));
  }
  return range;
}

std::vector<Span> UnitSpans(std::span<const int64_t> units) {
  std::vector<Span> spans;
  spans.reserve(units.size());
  int64_t begin = 0;
  for (const int64_t size : units) {
    spans.push_back({begin, begin + size});
    begin += size;
  }
  return spans;
}

std::span<Span> SpansOf(NodeSpans& all, const Span& node) {
  return std::span(all.spans).subspan(static_cast<size_t>(node.begin),
                                      static_cast<size_t>(node.size()));
}

// What py1s, py1br and py1e begin with: units in an order of the run, cut into canonical nodes, and
// within a node in an order of the epoch.
NodeSpans ShuffledSpans(std::span<const int64_t> units, int64_t total,
                        const MosaicShuffleOptions& options, NumpyGenerator* epoch_rng) {
  std::vector<Span> spans = UnitSpans(units);
  NumpyGenerator run_rng(options.seed);
  run_rng.Shuffle(spans);
  NodeSpans divided = DivideSpans(std::move(spans), total, options.canonical_nodes);
  for (const Span& node : divided.nodes) epoch_rng->Shuffle(SpansOf(divided, node));
  return divided;
}

std::span<int64_t> Slice(std::vector<int64_t>& ids, int64_t begin, int64_t end) {
  return std::span(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

void AppendIds(const Span& span, std::vector<int64_t>* ids) {
  for (int64_t id = span.begin; id < span.end; ++id) ids->push_back(id);
}

// Samples move within their shard's part only.
std::vector<int64_t> Py1s(std::span<const int64_t> units, int64_t total,
                          const MosaicShuffleOptions& options) {
  NumpyGenerator rng(options.seed + static_cast<uint64_t>(options.epoch));
  const NodeSpans divided = ShuffledSpans(units, total, options, &rng);
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(total));
  for (const Span& span : divided.spans) {
    const int64_t begin = static_cast<int64_t>(ids.size());
    AppendIds(span, &ids);
    rng.Shuffle(Slice(ids, begin, begin + span.size()));
  }
  return ids;
}

// Shards and the samples within each are shuffled for the run, and again for the epoch within each
// canonical node.
std::vector<int64_t> Py2s(std::span<const int64_t> units, int64_t total,
                          const MosaicShuffleOptions& options) {
  std::vector<Span> spans = UnitSpans(units);
  std::vector<int64_t> samples(static_cast<size_t>(total));
  std::iota(samples.begin(), samples.end(), int64_t{0});
  NumpyGenerator run_rng(options.seed);
  run_rng.Shuffle(spans);
  for (const Span& span : spans) run_rng.Shuffle(Slice(samples, span.begin, span.end));
  NodeSpans divided = DivideSpans(std::move(spans), total, options.canonical_nodes);
  NumpyGenerator epoch_rng(options.seed + static_cast<uint64_t>(options.epoch));
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(total));
  for (const Span& node : divided.nodes) {
    const std::span<Span> part = SpansOf(divided, node);
    epoch_rng.Shuffle(part);
    for (const Span& span : part) {
      const std::span<int64_t> own = Slice(samples, span.begin, span.end);
      epoch_rng.Shuffle(own);
      ids.insert(ids.end(), own.begin(), own.end());
    }
  }
  return ids;
}

// Samples move within blocks of random size whose borders are staggered between nodes.
Result<std::vector<int64_t>> Py1br(std::span<const int64_t> units, int64_t total,
                                   const MosaicShuffleOptions& options) {
  TESSERA_ASSIGN(const BlockRange range, BlockRangeOf(options.block_size));
  NumpyGenerator rng(options.seed + static_cast<uint64_t>(options.epoch));
  NodeSpans divided = ShuffledSpans(units, total, options, &rng);
  std::vector<int64_t> staggers(divided.nodes.size());
  for (int64_t& stagger : staggers) stagger = rng.Integers(0, range.low);
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(total));
  std::vector<Span> blocks;
  for (size_t node = 0; node < divided.nodes.size(); ++node) {
    const int64_t node_begin = static_cast<int64_t>(ids.size());
    for (const Span& span : SpansOf(divided, divided.nodes[node])) AppendIds(span, &ids);
    const int64_t node_end = static_cast<int64_t>(ids.size());
    // A block begins a stagger before where the last one was taken to end, so blocks overlap.
    blocks.clear();
    for (int64_t at = node_begin; at < node_end;) {
      const int64_t size = range.Draw(&rng);
      const Span block = {std::max(at - staggers[node], node_begin),
                          std::min(at + size - staggers[node], node_end)};
      blocks.push_back(block);
      at += block.size();
    }
    for (const Span& block : blocks) rng.Shuffle(Slice(ids, block.begin, block.end));
  }
  return ids;
}

// Every sample of a span moves by a uniform distance that keeps the span's samples within a block of
// random size; samples are then sorted by where they came to stand.
Result<std::vector<int64_t>> Py1e(std::span<const int64_t> units, int64_t total,
                                  const MosaicShuffleOptions& options) {
  TESSERA_ASSIGN(const BlockRange range, BlockRangeOf(options.block_size));
  NumpyGenerator rng(options.seed + static_cast<uint64_t>(options.epoch));
  NodeSpans divided = ShuffledSpans(units, total, options, &rng);
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(total));
  struct Placed {
    double position;
    int64_t id;
  };
  std::vector<Placed> placed;
  for (const Span& node : divided.nodes) {
    const std::span<const Span> spans = SpansOf(divided, node);
    const int64_t node_begin = static_cast<int64_t>(ids.size());
    for (const Span& span : spans) {
      const int64_t begin = static_cast<int64_t>(ids.size());
      AppendIds(span, &ids);
      rng.Shuffle(Slice(ids, begin, begin + span.size()));
    }
    const int64_t count = static_cast<int64_t>(ids.size()) - node_begin;
    if (count == 0) {
      return InvalidArgument(fmt::format(
          "{} samples leave one of {} canonical nodes without any: set num_canonical_nodes to at most "
          "the number of samples",
          total, options.canonical_nodes));
    }
    placed.clear();
    placed.reserve(static_cast<size_t>(count));
    int64_t offset = 0;
    for (const Span& span : spans) {
      const double cut =
          std::max(0.0, static_cast<double>(range.Draw(&rng) - span.size()) / 2.0);
      const double low = std::max(-cut, static_cast<double>(-offset));
      const double high = std::min(cut, static_cast<double>(count - offset - span.size()));
      for (int64_t i = 0; i < span.size(); ++i, ++offset) {
        placed.push_back({static_cast<double>(offset) + rng.Uniform(low, high),
                          ids[static_cast<size_t>(node_begin + offset)]});
      }
    }
    std::stable_sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
      return a.position < b.position;
    });
    for (int64_t i = 0; i < count; ++i) {
      ids[static_cast<size_t>(node_begin + i)] = placed[static_cast<size_t>(i)].id;
    }
  }
  return ids;
}

}  // namespace

std::optional<MosaicShuffle> MosaicShuffleFromName(std::string_view name) {
  for (const auto& [known, algorithm] : kNames) {
    if (known == name) return algorithm;
  }
  return std::nullopt;
}

Result<std::vector<int64_t>> ShuffleLikeMosaic(std::span<const int64_t> units,
                                               const MosaicShuffleOptions& options) {
  TESSERA_CHECK(options.canonical_nodes >= 1 && options.epoch >= 0, "options of a shuffle");
  const int64_t total = std::accumulate(units.begin(), units.end(), int64_t{0});
  switch (options.algorithm) {
    case MosaicShuffle::kNaive:
      return NumpyGenerator(options.seed + static_cast<uint64_t>(options.epoch)).Permutation(total);
    case MosaicShuffle::kPy1s: return Py1s(units, total, options);
    case MosaicShuffle::kPy2s: return Py2s(units, total, options);
    case MosaicShuffle::kPy1br: return Py1br(units, total, options);
    case MosaicShuffle::kPy1e: return Py1e(units, total, options);
  }
  return Internal("an unknown shuffle");
}

}  // namespace tessera
