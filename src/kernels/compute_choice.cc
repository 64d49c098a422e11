// Measures which multiplier this processor runs faster.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "kernels/cpu/table.h"
#include "kernels/gemm.h"

namespace tessera::kernels {

namespace {

// GFLOP/s: the median of five bursts of about 0.3 ms, after one that wakes the wide units.
double MeasureGflops(double (*burst)(int64_t iterations)) {
  using Clock = std::chrono::steady_clock;
  const auto run = [&](int64_t iterations) {
    const Clock::time_point start = Clock::now();
    const double flops = burst(iterations);
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    return flops / std::max(ns, 1.0);
  };
  constexpr int64_t kFirst = 2000;
  const double guess = run(kFirst);
  const double flops_per_iteration = burst(1);
  const int64_t iterations =
      std::max<int64_t>(kFirst, static_cast<int64_t>(guess * 300e3 / flops_per_iteration));
  std::array<double, 5> rates = {};
  for (double& rate : rates) rate = run(iterations);
  std::nth_element(rates.begin(), rates.begin() + 2, rates.end());
  return rates[2];
}

ComputeChoice Choose() {
  ComputeChoice choice;
  const KernelTable& table = ActiveTable();
  choice.f32_gflops = MeasureGflops(table.peak_f32);
  if (table.peak_bf16 != nullptr) choice.bf16_gflops = MeasureGflops(table.peak_bf16);
  if (choice.bf16_gflops >= 1.2 * choice.f32_gflops) choice.compute = Compute::kBf16;

  const char* wanted = std::getenv("TESSERA_COMPUTE");
  if (wanted != nullptr && *wanted != '\0') {
    const std::string_view name = wanted;
    if (name == "f32") {
      choice.compute = Compute::kF32;
    } else if (name == "bf16") {
      choice.compute = Compute::kBf16;
    } else {
      throw ErrorException(
          InvalidArgument(fmt::format("TESSERA_COMPUTE={}: use f32 or bf16", name)));
    }
  }
  return choice;
}

}  // namespace

double PeakGflops(Compute compute, ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  const KernelTable& table = ActiveTable();
  const bool pairs = compute == Compute::kBf16 && table.peak_bf16 != nullptr;
  double (*burst)(int64_t) = pairs ? table.peak_bf16 : table.peak_f32;
  constexpr int64_t kIterations = 200000;
  constexpr int kBursts = 5;
  const double flops = burst(1) * kIterations * pool.num_threads();
  double best = 0;
  for (int i = 0; i < kBursts; ++i) {
    const Clock::time_point start = Clock::now();
    pool.Run([&](int) { burst(kIterations); });
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    best = std::max(best, flops / std::max(ns, 1.0));
  }
  return best;
}

const ComputeChoice& MeasuredCompute() {
  static const ComputeChoice choice = Choose();
  return choice;
}

}  // namespace tessera::kernels
