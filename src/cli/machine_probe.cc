#include "cli/machine_probe.h"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/files.h"
#include "base/memory.h"
#include "base/strings.h"
#include "base/time.h"
#include "kernels/gemm.h"

namespace tessera::cli {

namespace {

// What a command prints on stdout, at most 64 KiB; nullopt when it fails.
std::optional<std::string> Capture(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  char buffer[4096];
  for (size_t got = 0; (got = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    if (text.size() < 65536) text.append(buffer, got);
  }
  if (::pclose(pipe) != 0) return std::nullopt;
  return text;
}

OptionalPart Program(const char* name, const char* purpose, const char* package) {
  return {name, FindProgram(name).has_value(), purpose, std::string("apt-get install ") + package};
}

OptionalPart Documents(const char* package, const char* pattern) {
  return {package, ExpandFiles(pattern).ok(), "documents of the quickstart", "scripts/packages.sh"};
}

}  // namespace

MemoryRates MeasureMemoryRates(int64_t available_bytes, int64_t l3_bytes, ThreadPool& pool) {
  constexpr int kPasses = 5;
  constexpr int64_t kMinArrayBytes = int64_t{4} << 20;
  MemoryRates rates;
  // Four times the last cache, so that little of an array survives from pass to pass.
  const int64_t wanted = std::clamp<int64_t>(4 * l3_bytes, int64_t{64} << 20, int64_t{256} << 20);
  const int64_t array_bytes = std::min(wanted, available_bytes / 8 / 3);
  if (array_bytes < kMinArrayBytes) return rates;
  rates.array_bytes = array_bytes;
  const int64_t n = array_bytes / static_cast<int64_t>(sizeof(float));
  // Huge pages, as weights lie in.
  MemoryRegion regions[3];
  for (MemoryRegion& region : regions) {
    auto memory = MemoryRegion::Allocate(array_bytes, "the memory's rate", pool);
    if (!memory.ok()) return {};
    region = std::move(*memory);
  }
  float* const a = regions[0].as<float>();
  float* const b = regions[1].as<float>();
  float* const c = regions[2].as<float>();
  pool.ParallelFor(n, [&](int64_t begin, int64_t end) {
    std::fill(a + begin, a + end, 0.0f);
    std::fill(b + begin, b + end, 1.0f);
    std::fill(c + begin, c + end, 2.0f);
  });
  const double gigabytes = static_cast<double>(n) * sizeof(float) / 1e9;
  for (int pass = 0; pass < kPasses; ++pass) {
    Stopwatch watch;
    pool.ParallelFor(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) a[i] = b[i] + 0.5f * c[i];
    });
    rates.triad_gb_per_s = std::max(rates.triad_gb_per_s, 3 * gigabytes / watch.Lap());
    for (const int64_t ahead : {0, 1024, 4096}) {  // the last where a core's own prefetching stops
      watch.Lap();
      pool.ParallelForGrain(array_bytes, int64_t{1} << 16, [&](int64_t begin, int64_t end) {
        ReadMemory(reinterpret_cast<const char*>(b) + begin, (end - begin) / 128 * 128, ahead);
      });
      rates.read_gb_per_s = std::max(rates.read_gb_per_s, gigabytes / watch.Lap());
    }
  }
  return rates;
}

GemmRates MeasureGemmRates(ThreadPool& pool) {
  constexpr int64_t kM = 1024;
  constexpr int64_t kN = 3072;
  constexpr int64_t kK = 768;
  constexpr int kPasses = 5;
  const std::vector<float> a(kM * kK, 0.5f);
  const std::vector<float> b(kK * kN, 0.25f);
  // bf16 is the upper half of fp32: 0.5 is 0x3F00, 0.25 is 0x3E80.
  const std::vector<uint16_t> a_bf16(kM * kK, 0x3F00);
  const std::vector<uint16_t> b_bf16(kK * kN, 0x3E80);
  std::vector<float> c(kM * kN);
  constexpr size_t kAlignment = 64;
  const auto bytes = static_cast<size_t>(kernels::GemmWorkspaceBytes(pool.num_threads()));
  std::vector<std::byte> workspace(bytes + kAlignment);
  void* aligned = workspace.data();
  size_t space = workspace.size();
  std::align(kAlignment, bytes, aligned, space);

  kernels::GemmArgs args;
  args.m = kM;
  args.n = kN;
  args.k = kK;
  args.c = c.data();
  args.ldc = kN;
  const auto best_gflops = [&] {
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
      const Stopwatch watch;
      kernels::Gemm(args, aligned, pool);
      best = std::max(best, 2.0 * kM * kN * kK / watch.Seconds() / 1e9);
    }
    return best;
  };
  GemmRates rates;
  args.a = {a.data(), DType::kF32, kK, false};
  args.b = {b.data(), DType::kF32, kN, false};
  rates.f32_gflops = best_gflops();
  args.a = {a_bf16.data(), DType::kBf16, kK, false};
  args.b = {b_bf16.data(), DType::kBf16, kN, false};
  args.compute = kernels::MeasuredCompute().compute;
  rates.bf16_multiplies = args.compute == kernels::Compute::kBf16;
  rates.bf16_gflops = best_gflops();
  return rates;
}

std::optional<std::string> FindProgram(const std::string& name) {
  const char* path = std::getenv("PATH");
  if (path == nullptr) return std::nullopt;
  for (const std::string_view folder : Split(path, ':')) {
    const std::string candidate =
        (std::filesystem::path(folder.empty() ? "." : folder) / name).string();
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return std::nullopt;
}

std::vector<Gpu> ParseGpuList(const std::string& text) {
  std::vector<Gpu> gpus;
  for (const std::string_view line : Split(text, '\n')) {
    const std::vector<std::string_view> fields = Split(line, ',');
    if (fields.size() != 3) continue;
    gpus.push_back(
        {std::string(Trim(fields[0])), std::string(Trim(fields[1])), std::string(Trim(fields[2]))});
  }
  return gpus;
}

std::vector<Gpu> FindGpus() {
  if (!FindProgram("nvidia-smi")) return {};
  // A driver in trouble can let nvidia-smi hang.
  const auto text = Capture(
      "timeout 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader "
      "2>/dev/null");
  return text ? ParseGpuList(*text) : std::vector<Gpu>{};
}

bool HasGpuDeviceFiles() { return PathExists("/dev/nvidiactl") || PathExists("/dev/nvidia0"); }

std::optional<std::string> ParseNvccRelease(const std::string& text) {
  const std::string_view marker = "release ";
  const size_t start = text.find(marker);
  if (start == std::string::npos) return std::nullopt;
  const size_t begin = start + marker.size();
  const size_t end = text.find_first_not_of("0123456789.", begin);
  if (end == begin) return std::nullopt;
  return text.substr(begin, end == std::string::npos ? end : end - begin);
}

std::optional<std::string> FindCudaToolkit() {
  std::string nvcc = "/usr/local/cuda/bin/nvcc";
  if (const auto found = FindProgram("nvcc")) nvcc = *found;
  if (!PathExists(nvcc)) return std::nullopt;
  const auto text = Capture("'" + nvcc + "' --version 2>/dev/null");
  return text ? ParseNvccRelease(*text) : std::nullopt;
}

std::vector<OptionalPart> FindOptionalParts() {
  return {
      Program("gzip", "compressor that the quickstart compares with", "gzip"),
      Program("xz", "compressor that the quickstart compares with", "xz-utils"),
      Documents("python3-doc", "/usr/share/doc/python3.*[0-9]/html/_sources/library/*.rst.txt"),
      Documents("perl-doc", "/usr/share/perl/5.*.*/pod/perlfunc.pod"),
      Program("ccache", "faster builds", "ccache"),
      {"peers", PathExists(".venv/tessera-peers"), "tests that compare with other projects",
       "scripts/peers.sh"},
      // Its folder is on the path of root alone.
      {"debootstrap", PathExists("/usr/sbin/debootstrap"), "trying the set-up on a bare system",
       "apt-get install debootstrap"},
  };
}

}  // namespace tessera::cli
