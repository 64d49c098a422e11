// What `tessera doctor` finds out: measured rates of this machine, accelerators, optional parts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"

namespace tessera::cli {

// Best of several passes over arrays well above the last cache, on every thread of the pool.
struct MemoryRates {
  double read_gb_per_s = 0;   // Sum of one array.
  double triad_gb_per_s = 0;  // a = b + s * c: three arrays moved, as STREAM counts.
  int64_t array_bytes = 0;
};
// Takes about half a second. Uses at most an eighth of `available_bytes`, and says 0 rates where
// that is less than 4 MiB an array.
MemoryRates MeasureMemoryRates(int64_t available_bytes, int64_t l3_bytes, ThreadPool& pool);

// Matrix products of 1024 x 3072 x 768 on every thread of the pool, best of five.
struct GemmRates {
  double f32_gflops = 0;
  double bf16_gflops = 0;        // bf16 operands, with the multiplier that training would choose.
  bool bf16_multiplies = false;  // False: bf16 is only the storage, products are made in fp32.
};
GemmRates MeasureGemmRates(ThreadPool& pool);

struct Gpu {
  std::string name;
  std::string memory;  // As nvidia-smi writes it: "143771 MiB".
  std::string driver;
};
// What nvidia-smi lists; empty where it is absent or finds none.
std::vector<Gpu> FindGpus();
// True where the device files of a GPU exist, with or without nvidia-smi.
bool HasGpuDeviceFiles();
// The version of the CUDA toolkit ("13.0"), nullopt where none is installed.
std::optional<std::string> FindCudaToolkit();

// Something that Tessera runs without, what it is good for, and what brings it.
struct OptionalPart {
  std::string name;
  bool present = false;
  std::string purpose;
  std::string install;
};
std::vector<OptionalPart> FindOptionalParts();

// The path of an executable on $PATH.
std::optional<std::string> FindProgram(const std::string& name);

// The part of `nvcc --version` that is the release: "13.0".
std::optional<std::string> ParseNvccRelease(const std::string& text);
// The lines of `nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader`.
std::vector<Gpu> ParseGpuList(const std::string& text);

}  // namespace tessera::cli
