// The order of a run's samples as the loader follows it: native or mosaicml-streaming's.
#pragma once

#include <cstdint>
#include <memory>

#include "base/error.h"
#include "data/mosaic_order.h"
#include "data/native_order.h"

namespace tessera {

// Positions count over all epochs: epoch * samples_per_epoch() + position. Thread-safe.
class SampleOrder {
 public:
  virtual ~SampleOrder() = default;
  virtual int64_t samples_per_epoch() const = 0;
  // Stream -1 stands for padding: a row without targets.
  virtual Result<StreamSample> At(int64_t position) = 0;
  // A position at or after `from` at which the sample may be used, INT64_MAX where none is known. The
  // first one of a native order; of a mosaic order the last one in this epoch, or the next's begin.
  virtual int64_t NextUse(const StreamSample& sample, int64_t from) = 0;
};

std::unique_ptr<SampleOrder> MakeSampleOrder(NativeOrder order);
// From resolved options. An epoch's order is made when it is first asked for, which takes about a
// second for 10 million samples, and two are kept.
Result<std::unique_ptr<SampleOrder>> MakeSampleOrder(const MosaicOrderOptions& options);

}  // namespace tessera
