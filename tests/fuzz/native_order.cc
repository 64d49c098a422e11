// Arbitrary numbers as the shape of a sample order: what is accepted names samples that exist, and
// NextUse finds every sample where the order put it.
#include "data/native_order.h"

#include <fuzzer/FuzzedDataProvider.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  FuzzedDataProvider input(data, size);
  NativeOrderOptions options;
  const int64_t limits[] = {40, 100'000, int64_t{1} << 40, INT64_MAX};
  const auto number = [&](int64_t lowest) {
    return input.ConsumeIntegralInRange<int64_t>(
        lowest, limits[input.ConsumeIntegralInRange<size_t>(0, 3)]);
  };
  const int streams = input.ConsumeIntegralInRange<int>(1, 4);
  for (int i = 0; i < streams; ++i) {
    options.streams.push_back({.samples = number(-2), .chunk = number(1)});
  }
  const int weighting = input.ConsumeIntegralInRange<int>(0, 3);
  for (int i = 0; weighting > 0 && i < streams; ++i) {
    StreamWeight weight;
    const double share = input.ConsumeBool() ? input.ConsumeFloatingPointInRange<double>(0, 4)
                                             : input.ConsumeFloatingPoint<double>();
    if (weighting == 1) weight.proportion = share;
    if (weighting == 2) weight.repeat = share;
    if (weighting == 3) weight.choose = number(-2);
    options.weights.push_back(weight);
  }
  options.epoch_size = number(-2);
  options.seed = input.ConsumeIntegral<uint64_t>();
  options.shuffle = input.ConsumeBool();
  options.block_size = number(-2);
  options.batching = static_cast<BatchingMethod>(input.ConsumeIntegralInRange<int>(0, 3));
  options.global_batch = number(-2);
  options.device_batch = number(-2);
  options.fixed_sampling = input.ConsumeBool();
  const Result<NativeOrder> order = NativeOrder::Make(options);
  if (!order.ok()) return 0;

  const int64_t length = order->samples_per_epoch();
  if (length < 1) std::abort();
  for (const int64_t epoch :
       {int64_t{0}, int64_t{1}, input.ConsumeIntegralInRange<int64_t>(0, 40)}) {
    for (const int64_t position : {int64_t{0}, length - 1, length / 2,
                                   input.ConsumeIntegralInRange<int64_t>(0, length - 1)}) {
      const StreamSample sample = order->At(epoch, position);
      if (sample.stream < 0 || sample.stream >= streams || sample.sample < 0 ||
          sample.sample >= options.streams[static_cast<size_t>(sample.stream)].samples) {
        std::abort();
      }
      int64_t run_position = 0;
      if (__builtin_mul_overflow(epoch, length, &run_position) ||
          __builtin_add_overflow(run_position, position, &run_position)) {
        continue;
      }
      // NextUse takes a time that grows with the passes that an epoch makes over the stream.
      const int64_t stream_samples = options.streams[static_cast<size_t>(sample.stream)].samples;
      if (order->taken(sample.stream) / stream_samples > 100) continue;
      const std::optional<int64_t> next = order->NextUse(sample, run_position);
      if (next != run_position) std::abort();
    }
  }
  return 0;
}
