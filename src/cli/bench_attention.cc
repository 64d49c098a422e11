// `tessera bench attention`: forward and backward beside the measured multiply-add rate, decoding
// beside the measured read bandwidth, in one run.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/threads.h"
#include "base/time.h"
#include "cli/commands.h"
#include "cli/machine_probe.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"

namespace tessera::cli {

namespace {

struct Flags {
  int threads = 0;
  double seconds = 0.5;
  std::string dtype = "fp32";
  bool json = false;
};

struct TrainingCase {
  int64_t batch, length, heads, kv_heads, head_size;
  bool alibi;
  int64_t document;  // Tokens of each packed document; 0: none.
};
constexpr TrainingCase kTrainingCases[] = {
    {4, 1024, 12, 12, 64, false, 0},  // GPT-2 124M
    {8, 256, 4, 4, 64, false, 0},     // the quickstart
    {1, 2048, 16, 4, 128, false, 0},  // grouped queries
    {4, 1024, 12, 12, 64, true, 0},   // MPT
    {4, 2048, 8, 8, 64, false, 256},  // packed documents
};

struct DecodeCase {
  int64_t batch, past, heads, kv_heads, head_size;
};
constexpr DecodeCase kDecodeCases[] = {
    {16, 4095, 12, 12, 64},
    {16, 4095, 16, 4, 64},
    {1, 32767, 32, 8, 128},
};

struct Free {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Bytes = std::unique_ptr<char[], Free>;
Bytes Allocate(int64_t bytes) {
  return Bytes(static_cast<char*>(
      ::operator new[](static_cast<size_t>(std::max<int64_t>(bytes, 64)), std::align_val_t{64})));
}

// Normal values; long tensors repeat a block of 2^16.
Bytes RandomTensor(int64_t n, DType dtype, uint64_t stream) {
  const RngKey key{.seed = 1, .purpose = RngPurpose::kCalibration, .stream = stream};
  constexpr int64_t kBlock = 1 << 16;
  Bytes data = Allocate(n * DTypeBytes(dtype));
  const auto put = [&](int64_t i, float x) {
    if (dtype == DType::kBf16) {
      reinterpret_cast<bf16*>(data.get())[i] = ToBf16(x);
    } else {
      reinterpret_cast<float*>(data.get())[i] = x;
    }
  };
  std::vector<float> block(static_cast<size_t>(std::min(n, kBlock)));
  for (size_t i = 0; i < block.size(); ++i) block[i] = key.Normal(i);
  for (int64_t i = 0; i < n; ++i) put(i, block[static_cast<size_t>(i % kBlock)]);
  return data;
}

// The shortest of at least three passes, as many as fit in `seconds`: other programs on the machine
// only ever make a pass longer.
template <class Fn>
double BestSeconds(double seconds, const Fn& fn) {
  fn();
  double best = 1e30;
  const Stopwatch total;
  for (int pass = 0; pass < 3 || total.Seconds() < seconds; ++pass) {
    const Stopwatch watch;
    fn();
    best = std::min(best, watch.Seconds());
  }
  return best;
}

// As a run in this type multiplies.
kernels::Compute ComputeOf(DType dtype) {
  return dtype == DType::kBf16 ? kernels::MeasuredCompute().compute : kernels::Compute::kF32;
}

struct TrainingRates {
  double forward_gflops = 0, backward_gflops = 0, both_gflops = 0;
};

TrainingRates MeasureTraining(const TrainingCase& c, DType dtype, double seconds,
                              ThreadPool& pool) {
  const int64_t tokens = c.batch * c.length;
  const int64_t stride = (c.heads + 2 * c.kv_heads) * c.head_size;
  const int64_t width = c.heads * c.head_size, kv_width = c.kv_heads * c.head_size;
  const int64_t item = DTypeBytes(dtype);
  const Bytes qkv = RandomTensor(tokens * stride, dtype, 1);
  const Bytes dout = RandomTensor(tokens * width, dtype, 2);
  const Bytes out = Allocate(tokens * width * item);
  const Bytes dqkv = Allocate(tokens * stride * item);
  std::vector<float> lse(static_cast<size_t>(c.batch * c.heads * c.length));
  std::vector<float> slopes(static_cast<size_t>(c.heads));
  kernels::FillAlibiSlopes(c.heads, 8.0f, slopes.data());
  std::vector<int32_t> starts(static_cast<size_t>(tokens));
  // Scores that a row computes, summed: T^2 / 2 of a causal sequence, as kernels/attention.h
  // counts.
  double scores = 0.5 * static_cast<double>(c.length) * static_cast<double>(c.length);
  if (c.document > 0) {
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t t = i % c.length;
      starts[static_cast<size_t>(i)] = static_cast<int32_t>(t / c.document * c.document);
    }
    scores *= static_cast<double>(c.document) / static_cast<double>(c.length);
  }

  kernels::AttentionBackwardArgs args;
  kernels::AttentionForwardArgs& forward = args.forward;
  forward.shape.batch = c.batch;
  forward.shape.length = c.length;
  forward.shape.heads = c.heads;
  forward.shape.kv_heads = c.kv_heads;
  forward.shape.head_size = c.head_size;
  forward.shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
  forward.shape.alibi_slopes = c.alibi ? slopes.data() : nullptr;
  forward.shape.segment_start = c.document > 0 ? starts.data() : nullptr;
  forward.dtype = dtype;
  forward.compute = ComputeOf(dtype);
  forward.q = qkv.get();
  forward.k = qkv.get() + width * item;
  forward.v = qkv.get() + (width + kv_width) * item;
  forward.q_stride = forward.kv_stride = stride;
  forward.out = out.get();
  forward.out_stride = width;
  forward.lse = lse.data();
  args.dout = dout.get();
  args.dq = dqkv.get();
  args.dk = dqkv.get() + width * item;
  args.dv = dqkv.get() + (width + kv_width) * item;
  const Bytes workspace =
      Allocate(kernels::AttentionWorkspaceBytes(forward.shape, pool.num_threads()));

  const double flops =
      4.0 * scores * static_cast<double>(c.head_size) * static_cast<double>(c.batch * c.heads);
  const double forward_s =
      BestSeconds(seconds, [&] { kernels::AttentionForward(forward, workspace.get(), pool); });
  const double backward_s =
      BestSeconds(seconds, [&] { kernels::AttentionBackward(args, workspace.get(), pool); });
  return {flops / forward_s / 1e9, 2.5 * flops / backward_s / 1e9,
          3.5 * flops / (forward_s + backward_s) / 1e9};
}

// GB/s of keys and values.
double MeasureDecode(const DecodeCase& c, DType dtype, double seconds, ThreadPool& pool) {
  const int64_t capacity = c.past + 1, row = c.kv_heads * c.head_size;
  const int64_t cache = c.batch * capacity * row;
  const Bytes q = RandomTensor(c.batch * c.heads * c.head_size, dtype, 3);
  const Bytes k = RandomTensor(cache, dtype, 4);
  const Bytes v = RandomTensor(cache, dtype, 5);
  const Bytes out = Allocate(c.batch * c.heads * c.head_size * DTypeBytes(dtype));
  const std::vector<int64_t> past(static_cast<size_t>(c.batch), c.past);
  kernels::AttentionDecodeArgs args;
  args.shape.batch = c.batch;
  args.shape.length = 1;
  args.shape.heads = c.heads;
  args.shape.kv_heads = c.kv_heads;
  args.shape.head_size = c.head_size;
  args.shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
  args.dtype = dtype;
  args.q = q.get();
  args.q_stride = args.out_stride = c.heads * c.head_size;
  args.k_cache = k.get();
  args.v_cache = v.get();
  args.capacity = capacity;
  args.past = past.data();
  args.out = out.get();
  const Bytes workspace =
      Allocate(kernels::AttentionDecodeWorkspaceBytes(args, pool.num_threads()));
  const double best =
      BestSeconds(seconds, [&] { kernels::AttentionDecode(args, workspace.get(), pool); });
  return 2.0 * static_cast<double>(cache * DTypeBytes(dtype)) / best / 1e9;
}

std::string Describe(const TrainingCase& c) {
  return fmt::format("B{} T{} H{}/{} D{}{}{}", c.batch, c.length, c.heads, c.kv_heads, c.head_size,
                     c.alibi ? " alibi" : "",
                     c.document > 0 ? fmt::format(" documents of {}", c.document) : "");
}

void RunBench(const Flags& flags) {
  const DType dtype = flags.dtype == "bf16" ? DType::kBf16 : DType::kF32;
  ThreadPool pool(flags.threads);
  const MemoryRates memory =
      MeasureMemoryRates(ReadMemoryInfo().available_bytes, ThisCpu().l3_bytes, pool);
  const kernels::Compute compute = ComputeOf(dtype);
  double peak = kernels::PeakGflops(compute, pool);
  std::vector<TrainingRates> training;
  for (const TrainingCase& c : kTrainingCases) {
    training.push_back(MeasureTraining(c, dtype, flags.seconds, pool));
    peak = std::max(peak, kernels::PeakGflops(compute, pool));
  }
  std::vector<double> decode;
  for (const DecodeCase& c : kDecodeCases) {
    decode.push_back(MeasureDecode(c, dtype, flags.seconds, pool));
  }

  Json rows = Json::array(), decode_rows = Json::array();
  if (!flags.json) {
    fmt::print("{} threads, {}, {}: peak {:.0f} GF/s {}, memory read {:.1f} GB/s\n\n",
               pool.num_threads(), kernels::IsaName(kernels::ActiveIsa()), flags.dtype, peak,
               compute == kernels::Compute::kBf16 ? "bf16" : "fp32", memory.read_gb_per_s);
    fmt::print("{:<34} {:>13} {:>13} {:>9}\n", "training (causal)", "forward GF/s", "backward GF/s",
               "of peak");
  }
  for (size_t i = 0; i < training.size(); ++i) {
    const TrainingCase& c = kTrainingCases[i];
    const TrainingRates& r = training[i];
    if (!flags.json) {
      fmt::print("{:<34} {:>13.0f} {:>13.0f} {:>8.0f}%\n", Describe(c), r.forward_gflops,
                 r.backward_gflops, 100 * r.both_gflops / peak);
    }
    rows.push_back({{"batch", c.batch},
                    {"length", c.length},
                    {"heads", c.heads},
                    {"kv_heads", c.kv_heads},
                    {"head_size", c.head_size},
                    {"alibi", c.alibi},
                    {"document", c.document},
                    {"forward_gflops", r.forward_gflops},
                    {"backward_gflops", r.backward_gflops},
                    {"gflops", r.both_gflops},
                    {"fraction", r.both_gflops / peak}});
  }
  if (!flags.json) fmt::print("\n{:<34} {:>13} {:>23}\n", "decode", "GB/s", "of read bandwidth");
  for (size_t i = 0; i < decode.size(); ++i) {
    const DecodeCase& c = kDecodeCases[i];
    const double fraction = memory.read_gb_per_s > 0 ? decode[i] / memory.read_gb_per_s : 0.0;
    if (!flags.json) {
      fmt::print(
          "{:<34} {:>13.1f} {:>22.0f}%\n",
          fmt::format("B{} past {} H{}/{} D{}", c.batch, c.past, c.heads, c.kv_heads, c.head_size),
          decode[i], 100 * fraction);
    }
    decode_rows.push_back({{"batch", c.batch},
                           {"past", c.past},
                           {"heads", c.heads},
                           {"kv_heads", c.kv_heads},
                           {"head_size", c.head_size},
                           {"gb_per_s", decode[i]},
                           {"fraction", fraction}});
  }
  if (flags.json) {
    const Json report = {{"threads", pool.num_threads()},
                         {"isa", std::string(kernels::IsaName(kernels::ActiveIsa()))},
                         {"dtype", flags.dtype},
                         {"compute", compute == kernels::Compute::kBf16 ? "bf16" : "fp32"},
                         {"peak_gflops", peak},
                         {"read_gb_per_s", memory.read_gb_per_s},
                         {"training", rows},
                         {"decode", decode_rows}};
    fmt::print("{}\n", JsonText(report, 2));
  }
}

}  // namespace

void RegisterBenchAttention(Command bench, Outcome& /*outcome*/) {
  Command command = bench.AddCommand(
      "attention", "Attention forward, backward and decoding beside this machine's limits");
  auto flags = std::make_shared<Flags>();
  command.AddOption("--threads", flags->threads, "Threads; 0: every core").Range(0, 4096);
  command.AddOption("--seconds", flags->seconds, "Time of each measurement").Range(0.01, 60.0);
  command.AddOption("--dtype", flags->dtype, "Type of queries, keys and values")
      .OneOf({"fp32", "bf16"});
  command.AddFlag("--json", flags->json, "Print one JSON object");
  command.SetFooter(
      "Examples:\n"
      "  tessera bench attention\n"
      "  tessera bench attention --dtype bf16 --threads 1 --json\n"
      "FLOPs count the causal half of the scores. Each figure is the best pass.");
  command.SetCallback([flags] { RunBench(*flags); });
}

}  // namespace tessera::cli
