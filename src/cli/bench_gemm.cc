// `tessera bench gemm`: matrix products beside the raw rate of the multipliers, in one run.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/median.h"
#include "base/threads.h"
#include "base/time.h"
#include "cli/commands.h"
#include "kernels/cpu/table.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"
#include "kernels/optimizer.h"

namespace tessera::cli {

namespace {

using kernels::Compute;

struct Flags {
  std::string filter;
  int threads = 0;
  int rounds = 5;
  double seconds = 0.05;
  bool json = false;
};

// The three products of a linear layer y = x W^T with W [outputs, inputs].
enum class Form { kForward, kInputGradient, kWeightGradient };

struct Layer {
  const char* name;
  int64_t tokens, inputs, outputs;
};
constexpr Layer kLayers[] = {
    {"gpt2 up", 4096, 768, 3072},         {"gpt2 down", 4096, 3072, 768},
    {"gpt2 qkv", 4096, 768, 2304},        {"gpt2 head chunk", 512, 768, 50304},
    {"small up", 2048, 256, 1024},        {"small down", 2048, 1024, 256},
    {"small qkv", 2048, 256, 768},        {"small head", 2048, 256, 4096},
    {"small head chunk", 512, 256, 4096},
};

struct Aligned {
  explicit Aligned(int64_t bytes)
      : data(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)), &std::free) {}
  std::unique_ptr<void, decltype(&std::free)> data;
};

// FLOP/s of the bare multiply-add instruction on every thread at once.
double PeakRate(double (*burst)(int64_t), int64_t iterations, ThreadPool& pool) {
  std::vector<double> flops(static_cast<size_t>(pool.num_threads()));
  const Stopwatch watch;
  pool.Run([&](int thread) { flops[static_cast<size_t>(thread)] = burst(iterations); });
  const double seconds = watch.Seconds();
  double total = 0;
  for (const double one : flops) total += one;
  return total / seconds;
}

struct Row {
  std::string name, form, dtype, compute;
  bool packed = false;
  int threads = 1;
  int64_t m = 0, n = 0, k = 0;
  double gflops = 0, peak_gflops = 0, fraction = 0;
};

// A burst of the peak and one of `product` in turns, so that both see the same machine; the
// medians over rounds.
template <class Product>
void Measure(const Flags& flags, Compute compute, ThreadPool& pool, Product&& product, Row& row) {
  const kernels::KernelTable& table = kernels::ActiveTable();
  double (*burst)(int64_t) = compute == Compute::kBf16 ? table.peak_bf16 : table.peak_f32;
  if (burst == nullptr) burst = table.peak_f32;
  const double flops =
      2.0 * static_cast<double>(row.m) * static_cast<double>(row.n) * static_cast<double>(row.k);
  // The peak runs as long as the product does: a burst shorter than a time slice of the scheduler
  // would not see what other programs take.
  const double flops_per_iteration = burst(1);
  const double guess = PeakRate(burst, 50000, pool) / flops_per_iteration / pool.num_threads();
  const int64_t iterations = std::max<int64_t>(1000, static_cast<int64_t>(guess * flags.seconds));
  product();
  std::vector<double> rates, peaks, fractions;
  for (int round = 0; round < flags.rounds; ++round) {
    const double peak = PeakRate(burst, iterations, pool);
    int64_t calls = 0;
    const Stopwatch watch;
    double seconds = 0;
    do {
      product();
      ++calls;
      seconds = watch.Seconds();
    } while (seconds < flags.seconds);
    const double rate = flops * static_cast<double>(calls) / seconds;
    rates.push_back(rate / 1e9);
    peaks.push_back(peak / 1e9);
    fractions.push_back(rate / peak);
  }
  row.gflops = Median(rates);
  row.peak_gflops = Median(peaks);
  row.fraction = Median(fractions);
}

void FillRandom(void* data, DType dtype, int64_t count) {
  uint32_t state = 12345;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    if (dtype == DType::kBf16) {
      static_cast<bf16*>(data)[i] = ToBf16(value);
    } else {
      static_cast<float*>(data)[i] = value;
    }
  }
}

Row MeasureLayer(const Flags& flags, const Layer& layer, Form form, DType dtype, bool packed,
                 void* workspace, ThreadPool& pool) {
  const int64_t t = layer.tokens, in = layer.inputs, out = layer.outputs;
  const Compute compute =
      dtype == DType::kBf16 ? kernels::MeasuredCompute().compute : Compute::kF32;
  const int64_t size = DTypeBytes(dtype);
  kernels::GemmArgs args;
  args.compute = compute;
  args.c_dtype = dtype;
  Row row;
  switch (form) {
    case Form::kForward:
      row.form = "y = x W^T";
      args.m = t, args.n = out, args.k = in;
      args.a.ld = in;
      args.b.ld = in;
      args.b.transposed = true;
      break;
    case Form::kInputGradient:
      row.form = "dx = dy W";
      args.m = t, args.n = in, args.k = out;
      args.a.ld = out;
      args.b.ld = in;
      break;
    case Form::kWeightGradient:
      row.form = "dW += dy^T x";
      args.m = out, args.n = in, args.k = t;
      args.a.ld = out;
      args.a.transposed = true;
      args.b.ld = in;
      args.c_dtype = DType::kF32;
      args.accumulate = true;
      break;
  }
  args.ldc = args.n;
  const Aligned a(args.m * args.k * size), b(args.k * args.n * size), c(args.m * args.n * 4);
  FillRandom(a.data.get(), dtype, args.m * args.k);
  FillRandom(b.data.get(), dtype, args.k * args.n);
  FillRandom(c.data.get(), DType::kF32, args.m * args.n);
  args.a.data = a.data.get();
  args.a.dtype = dtype;
  args.b.data = b.data.get();
  args.b.dtype = dtype;
  args.c = c.data.get();
  const Aligned packed_b(packed ? kernels::PackedBBytes(args.k, args.n, dtype, compute) : 64);
  if (packed) {
    kernels::PackB(args.b, args.k, args.n, dtype, compute, packed_b.data.get(), pool);
    args.packed_b = packed_b.data.get();
  }
  row.name = layer.name;
  row.dtype = DTypeName(dtype);
  row.compute = compute == Compute::kBf16 ? "bf16" : "f32";
  row.packed = packed;
  row.threads = pool.num_threads();
  row.m = args.m;
  row.n = args.n;
  row.k = args.k;
  Measure(
      flags, compute, pool, [&] { kernels::Gemm(args, workspace, pool); }, row);
  return row;
}

// Decoding: one token against a matrix that is streamed from memory; GB/s of the matrix.
struct DecodeRow {
  std::string dtype;
  int threads = 1;
  double gb_per_s = 0;
};
DecodeRow MeasureDecode(const Flags& flags, DType dtype, void* workspace, ThreadPool& pool) {
  constexpr int64_t kInputs = 2048;
  const int64_t outputs = (int64_t{128} << 20) / (kInputs * DTypeBytes(dtype));
  const Aligned a(kInputs * 4), b(outputs * kInputs * DTypeBytes(dtype)), c(outputs * 4);
  FillRandom(a.data.get(), DType::kF32, kInputs);
  FillRandom(b.data.get(), dtype, outputs * kInputs);
  kernels::GemmArgs args;
  args.m = 1;
  args.n = outputs;
  args.k = kInputs;
  args.a = {a.data.get(), DType::kF32, kInputs, false};
  args.b = {b.data.get(), dtype, kInputs, true};
  args.c = c.data.get();
  args.ldc = outputs;
  args.exact_chain = false;
  std::vector<double> rates;
  kernels::Gemm(args, workspace, pool);
  for (int round = 0; round < flags.rounds; ++round) {
    const Stopwatch watch;
    kernels::Gemm(args, workspace, pool);
    rates.push_back(static_cast<double>(outputs * kInputs * DTypeBytes(dtype)) / watch.Seconds() /
                    1e9);
  }
  return {std::string(DTypeName(dtype)), pool.num_threads(), Median(rates)};
}

// One update of 24 matrices, in milliseconds.
struct MuonRow {
  int64_t rows = 0, cols = 0;
  int threads = 1;
  double ms = 0;
};
MuonRow MeasureMuon(const Flags& flags, int64_t rows, int64_t cols, ThreadPool& pool) {
  constexpr int64_t kCount = 24;
  const int64_t size = rows * cols;
  const Aligned p(kCount * size * 4), g(kCount * size * 4), m(kCount * size * 4);
  for (const Aligned* x : {&p, &g, &m}) FillRandom(x->data.get(), DType::kF32, kCount * size);
  std::vector<kernels::MuonArgs> args;
  for (int64_t i = 0; i < kCount; ++i) {
    const auto at = [&](const Aligned& x) { return static_cast<float*>(x.data.get()) + i * size; };
    args.push_back({rows, cols, at(p), at(g), at(m)});
  }
  kernels::MuonOptions options;
  options.lr = 0.01f;
  const Aligned workspace(kernels::MuonWorkspaceBytes(rows, cols, kCount, pool.num_threads()));
  std::vector<double> times;
  for (int round = 0; round <= flags.rounds; ++round) {
    const Stopwatch watch;
    kernels::Muon(args.data(), kCount, options, workspace.data.get(), pool);
    if (round > 0) times.push_back(watch.Seconds() * 1e3);
  }
  return {rows, cols, pool.num_threads(), Median(times)};
}

Status Run(const Flags& flags) {
  if (flags.threads < 0 || flags.rounds < 1 || !(flags.seconds > 0)) {
    return InvalidArgument("--threads must be 0 or more, --rounds 1 or more, --seconds above 0");
  }
  std::vector<int> counts = {1};
  const int all = flags.threads > 0 ? flags.threads : AvailableCores();
  if (all > 1) counts.push_back(all);
  const bool everything = flags.filter.empty();
  std::vector<Row> rows;
  std::vector<DecodeRow> decodes;
  std::vector<MuonRow> muons;
  if (!flags.json) {
    fmt::print("{:<17} {:<13} {:>5} {:>6} {:>6} {:>5} {:>7} {:>8} {:>8} {:>9}\n", "layer",
               "product", "m", "n", "k", "type", "threads", "GF/s", "peak", "fraction");
  }
  for (const int count : counts) {
    ThreadPool pool(count);
    const Aligned workspace(kernels::GemmWorkspaceBytes(count));
    for (const Layer& layer : kLayers) {
      for (const Form form : {Form::kForward, Form::kInputGradient, Form::kWeightGradient}) {
        for (const DType dtype : {DType::kF32, DType::kBf16}) {
          for (const bool packed : {false, true}) {
            if (packed && form == Form::kWeightGradient) continue;
            if (std::string(layer.name).find(flags.filter) == std::string::npos) continue;
            rows.push_back(
                MeasureLayer(flags, layer, form, dtype, packed, workspace.data.get(), pool));
            const Row& row = rows.back();
            if (!flags.json) {
              fmt::print(
                  "{:<17} {:<13} {:>5} {:>6} {:>6} {:>5} {:>7} {:>8.1f} {:>8.1f} {:>8.1f}%{}\n",
                  row.name, row.form, row.m, row.n, row.k, row.dtype, row.threads, row.gflops,
                  row.peak_gflops, 100 * row.fraction, row.packed ? " packed" : "");
              std::fflush(stdout);
            }
          }
        }
      }
    }
    if (everything || flags.filter == "decode") {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        decodes.push_back(MeasureDecode(flags, dtype, workspace.data.get(), pool));
      }
    }
    if (everything || flags.filter == "muon") {
      muons.push_back(MeasureMuon(flags, 256, 1024, pool));
      muons.push_back(MeasureMuon(flags, 256, 256, pool));
    }
  }
  if (flags.json) {
    Json out = {{"isa", kernels::IsaName(kernels::ActiveIsa())},
                {"rows", Json::array()},
                {"decode", Json::array()},
                {"muon", Json::array()}};
    for (const Row& row : rows) {
      out["rows"].push_back({{"layer", row.name},
                             {"product", row.form},
                             {"m", row.m},
                             {"n", row.n},
                             {"k", row.k},
                             {"dtype", row.dtype},
                             {"compute", row.compute},
                             {"packed", row.packed},
                             {"threads", row.threads},
                             {"gflops", row.gflops},
                             {"peak_gflops", row.peak_gflops},
                             {"fraction", row.fraction}});
    }
    for (const DecodeRow& row : decodes) {
      out["decode"].push_back(
          {{"dtype", row.dtype}, {"threads", row.threads}, {"gb_per_s", row.gb_per_s}});
    }
    for (const MuonRow& row : muons) {
      out["muon"].push_back({{"rows", row.rows},
                             {"cols", row.cols},
                             {"count", 24},
                             {"threads", row.threads},
                             {"ms", row.ms}});
    }
    fmt::print("{}\n", JsonText(out, 2));
    return {};
  }
  for (const DecodeRow& row : decodes) {
    fmt::print("decode, one token, {} weights, {} threads: {:.1f} GB/s\n", row.dtype, row.threads,
               row.gb_per_s);
  }
  for (const MuonRow& row : muons) {
    fmt::print("muon, 24 matrices of {} x {}, {} threads: {:.1f} ms\n", row.rows, row.cols,
               row.threads, row.ms);
  }
  return {};
}

}  // namespace

void RegisterBenchGemm(Command bench, Outcome& outcome) {
  auto flags = std::make_shared<Flags>();
  Command command = bench.AddCommand(
      "gemm", "Matrix products of GPT-2 and of a small model beside the raw multiply-add rate");
  command.AddOption("--layer", flags->filter,
                    "Only layers whose name contains this, or 'decode' or 'muon'");
  command.AddOption("--threads", flags->threads, "Threads of the second half (default: all cores)");
  command.AddOption("--rounds", flags->rounds, "Rounds of which the median is printed");
  command.AddOption("--seconds", flags->seconds, "Seconds of products in a round");
  command.AddFlag("--json", flags->json, "Print JSON");
  command.SetFooter(
      "Examples:\n"
      "  tessera bench gemm\n"
      "  tessera bench gemm --layer 'gpt2 up' --json\n"
      "The fraction is of the bare multiply-add instruction on the same threads, measured in "
      "turns\n"
      "with the products.");
  command.SetCallback([flags, &outcome] { outcome.status = Run(*flags); });
}

}  // namespace tessera::cli
