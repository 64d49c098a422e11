#include "data/mosaic_partition.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera {

namespace {

// The matrix of places, a row for each canonical node, in closed form.
class CanonicalRows {
 public:
  static Result<CanonicalRows> Make(int64_t samples, int64_t canonical, int64_t nodes) {
    CanonicalRows rows;
    rows.samples_ = samples;
    rows.canonical_ = canonical;
    rows.columns_ = (samples + canonical - 1) / canonical;
    if (canonical < nodes) {
      rows.ratio_ = nodes / canonical;
      rows.padding_ = (rows.ratio_ - rows.columns_ % rows.ratio_) % rows.ratio_;
    }
    // With fewer samples than canonical nodes the samples are repeated instead.
    rows.tiled_ = !(samples > canonical || (samples == canonical && canonical >= nodes));
    if (rows.padding_ > 0 && !rows.tiled_) {
      // Padding columns repeat earlier ones; a slice that begins before the first column is cut.
      const int64_t all = rows.columns_ + rows.padding_;
      rows.repeat_from_ = std::max<int64_t>(all - 2 * rows.padding_ - rows.ratio_ + 1, 0);
      const int64_t repeat_to = std::max<int64_t>(all - rows.padding_ - rows.ratio_ + 1, 0);
      rows.repeat_width_ = repeat_to - rows.repeat_from_;
      if (rows.repeat_width_ != rows.padding_ && rows.repeat_width_ != 1) {
        return InvalidArgument(fmt::format("{} samples are too few for {} nodes over {} canonical nodes",
                                           samples, nodes, canonical));
      }
    }
    return rows;
  }

  int64_t places() const { return canonical_ * (columns_ + padding_); }

  // The place that comes at position t when the matrix is read column by column.
  int64_t At(int64_t t) const {
    const int64_t row = t % canonical_;
    int64_t column = t / canonical_;
    if (tiled_) return (row * (columns_ + padding_) + column) % samples_;
    if (column >= columns_) {
      const int64_t step = repeat_width_ == 1 ? 0 : column - columns_;
      column = repeat_from_ + step;
    }
    const int64_t begin = Boundary(row);
    const bool is_short = Boundary(row + 1) - begin < columns_;
    return begin + column - (is_short && column == columns_ - 1 ? 1 : 0);
  }

 private:
  int64_t Boundary(int64_t row) const {
    return static_cast<int64_t>(static_cast<__int128>(row) * samples_ / canonical_);
  }

  int64_t samples_ = 0;
  int64_t canonical_ = 1;
  int64_t columns_ = 0;  // Samples of the longest row.
  int64_t ratio_ = 0;
  int64_t padding_ = 0;  // Columns added so that nodes share a row evenly.
  int64_t repeat_from_ = 0;
  int64_t repeat_width_ = 0;
  bool tiled_ = false;
};

Result<std::vector<int64_t>> PartitionOrig(const MosaicPartitionOptions& options,
                                           const MosaicWorld& world) {
  const int64_t nodes = world.nodes;
  const int64_t canonical = options.canonical_nodes;
  if (std::max(nodes, canonical) % std::min(nodes, canonical) != 0) {
    return InvalidArgument(fmt::format(
        "{} nodes and {} canonical nodes: one must divide the other; set num_canonical_nodes to a "
        "multiple of the nodes",
        nodes, canonical));
  }
  const int64_t dropped = options.drop_first - options.drop_first % nodes;
  TESSERA_ASSIGN(const CanonicalRows rows, CanonicalRows::Make(options.samples, canonical, nodes));
  const int64_t ranks = world.ranks_per_node;
  // Places of each node, then with repeated ones so that its ranks get equally many.
  const int64_t own = std::max<int64_t>(rows.places() - dropped, 0) / nodes;
  const int64_t missing = (ranks - own % ranks) % ranks;
  const int64_t per_rank = (own + missing) / ranks;
  const int64_t round = world.workers_per_rank * world.batch_size;
  const int64_t batches = (per_rank + round - 1) / round * world.workers_per_rank;
  std::vector<int64_t> places;
  places.reserve(static_cast<size_t>(batches * world.global_batch()));
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t node = 0; node < nodes; ++node) {
      for (int64_t rank = 0; rank < ranks; ++rank) {
        for (int64_t slot = 0; slot < world.batch_size; ++slot) {
          const int64_t i = batch * world.batch_size + slot;
          if (i >= per_rank) {
            places.push_back(-1);
            continue;
          }
          int64_t j = i * ranks + rank;
          if (j >= own) {
            const bool enough = ranks + missing - 1 <= own;
            j = enough ? j - ranks - missing + 1 : (j - own) % own;
          }
          places.push_back(rows.At(dropped + j * nodes + node));
        }
      }
    }
  }
  return places;
}

}  // namespace

Result<std::vector<int64_t>> PartitionLikeMosaic(const MosaicPartitionOptions& options) {
  const MosaicWorld& world = options.world;
  if (options.samples < 1 || options.canonical_nodes < 1 || world.nodes < 1 ||
      world.ranks_per_node < 1 || world.workers_per_rank < 1 || world.batch_size < 1 ||
      options.drop_first < 0) {
    return InvalidArgument(fmt::format(
        "{} samples, {} canonical nodes, {} nodes of {} ranks of {} workers with batches of {}, {} "
        "samples seen: all but the last must be at least 1",
        options.samples, options.canonical_nodes, world.nodes, world.ranks_per_node,
        world.workers_per_rank, world.batch_size, options.drop_first));
  }
  const int64_t ranks = world.ranks();
  if (options.samples + ranks - options.samples % ranks < options.drop_first) {
    return InvalidArgument(fmt::format("the epoch has {} samples, so it can't be resumed behind {}",
                                       options.samples, options.drop_first));
  }
  const int64_t nodes = world.nodes;
  const int64_t canonical = options.canonical_nodes;
  const bool divides = std::max(nodes, canonical) % std::min(nodes, canonical) == 0;
  if (options.algorithm == MosaicPartition::kOrig || options.initial_nodes == 0 || divides) {
    return PartitionOrig(options, world);
  }
  // As the run began, with the same global batch; the sequence is then dealt out to the new nodes,
  // which changes nothing in the order of training.
  MosaicWorld initial = world;
  initial.nodes = options.initial_nodes;
  if (world.global_batch() % initial.ranks() != 0) {
    return InvalidArgument(fmt::format(
        "a global batch of {} samples is not divisible by the {} ranks with which the run began; the "
        "global batch must not change when a run is resumed",
        world.global_batch(), initial.ranks()));
  }
  initial.batch_size = world.global_batch() / initial.ranks();
  return PartitionOrig(options, initial);
}

}  // namespace tessera
