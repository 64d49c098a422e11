// `tessera doctor`: what this machine has, how fast it is, what is missing and what brings it.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "base/cpu_info.h"
#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "cli/commands.h"
#include "cli/machine_probe.h"
#include "kernels/isa.h"

namespace tessera::cli {

namespace {

struct DoctorOptions {
  bool json = false;
  bool measure = true;
};

struct Findings {
  CpuInfo cpu;
  std::string isa;
  MemoryInfo memory;
  std::string folder;
  int64_t disk_free_bytes = 0;
  bool measured = false;
  MemoryRates memory_rates;
  GemmRates gemm_rates;
  std::vector<Gpu> gpus;
  bool gpu_device_files = false;
  std::optional<std::string> cuda;
  std::vector<OptionalPart> parts;
};

Findings Examine(const DoctorOptions& options) {
  Findings found;
  found.cpu = ThisCpu();
  found.isa = std::string(kernels::IsaName(kernels::ActiveIsa()));
  found.memory = ReadMemoryInfo();
  std::error_code code;
  found.folder = std::filesystem::current_path(code).string();
  if (const auto free_bytes = FreeDiskBytes("."); free_bytes.ok()) {
    found.disk_free_bytes = *free_bytes;
  }
  if (options.measure) {
    ThreadPool pool;
    found.memory_rates = MeasureMemoryRates(found.memory.available_bytes, found.cpu.l3_bytes, pool);
    found.gemm_rates = MeasureGemmRates(pool);
    found.measured = true;
  }
  found.gpus = FindGpus();
  found.gpu_device_files = HasGpuDeviceFiles();
  found.cuda = FindCudaToolkit();
  found.parts = FindOptionalParts();
  return found;
}

Json ToJson(const Findings& found) {
  const CpuInfo& cpu = found.cpu;
  Json json = {
      {"processor",
       {{"brand", cpu.brand},
        {"vendor", cpu.vendor},
        {"family", cpu.family},
        {"model", cpu.model},
        {"stepping", cpu.stepping},
        {"virtual", cpu.hypervisor},
        {"online_cores", cpu.online_cores},
        {"available_cores", cpu.available_cores},
        {"l1d_bytes", cpu.l1d_bytes},
        {"l2_bytes", cpu.l2_bytes},
        {"l3_bytes", cpu.l3_bytes},
        {"instruction_sets", cpu.InstructionSets()},
        {"instruction_set_used", found.isa}}},
      {"memory",
       {{"total_bytes", found.memory.total_bytes},
        {"available_bytes", found.memory.available_bytes},
        {"limited_by_cgroup", found.memory.limited_by_cgroup}}},
      {"disk", {{"folder", found.folder}, {"free_bytes", found.disk_free_bytes}}},
      {"gpus", Json::array()},
      {"cuda_toolkit", found.cuda ? Json(*found.cuda) : Json(nullptr)},
      {"optional", Json::array()},
  };
  if (found.measured) {
    json["memory_read_gb_per_s"] = found.memory_rates.read_gb_per_s;
    json["memory_triad_gb_per_s"] = found.memory_rates.triad_gb_per_s;
    json["gemm_f32_gflops"] = found.gemm_rates.f32_gflops;
    json["gemm_bf16_gflops"] = found.gemm_rates.bf16_gflops;
    json["gemm_bf16_multiplies"] = found.gemm_rates.bf16_multiplies;
  }
  for (const Gpu& gpu : found.gpus) {
    json["gpus"].push_back({{"name", gpu.name}, {"memory", gpu.memory}, {"driver", gpu.driver}});
  }
  for (const OptionalPart& part : found.parts) {
    json["optional"].push_back({{"name", part.name},
                                {"present", part.present},
                                {"purpose", part.purpose},
                                {"install", part.install}});
  }
  return json;
}

void PrintRow(std::string_view label, std::string_view text) {
  fmt::print("{:<14}{}\n", label, text);
}

void PrintText(const Findings& found) {
  const CpuInfo& cpu = found.cpu;
  PrintRow("Processor",
           fmt::format("{} (family {}, model {}, stepping {}){}", cpu.brand, cpu.family, cpu.model,
                       cpu.stepping, cpu.hypervisor ? ", virtual machine" : ""));
  PrintRow("Cores", fmt::format("{} usable of {}", cpu.available_cores, cpu.online_cores));
  PrintRow("Caches", fmt::format("L1d {}, L2 {}, L3 {}", FormatBytes(cpu.l1d_bytes),
                                 FormatBytes(cpu.l2_bytes), FormatBytes(cpu.l3_bytes)));
  const std::vector<std::string> sets = cpu.InstructionSets();
  PrintRow("Instructions", fmt::format("{}; the kernels use {}",
                                       sets.empty() ? "generic only" : Join(sets, " "), found.isa));
  PrintRow("Memory", fmt::format("{} in all{}, {} available", FormatBytes(found.memory.total_bytes),
                                 found.memory.limited_by_cgroup ? " (cgroup limit)" : "",
                                 FormatBytes(found.memory.available_bytes)));
  PrintRow("Disk", fmt::format("{} free at {}", FormatBytes(found.disk_free_bytes), found.folder));
  if (found.measured && found.memory_rates.array_bytes > 0) {
    PrintRow("Bandwidth", fmt::format("read {:.1f} GB/s, triad {:.1f} GB/s (best of 5, {} threads)",
                                      found.memory_rates.read_gb_per_s,
                                      found.memory_rates.triad_gb_per_s, cpu.available_cores));
  } else if (found.measured) {
    PrintRow("Bandwidth", "not measured: too little memory is available");
  }
  if (found.measured) {
    PrintRow("GEMM",
             fmt::format("fp32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s ({})",
                         found.gemm_rates.f32_gflops, found.gemm_rates.bf16_gflops,
                         found.gemm_rates.bf16_multiplies ? "bf16 is multiplied as bf16"
                                                          : "bf16 is storage, multiplied in fp32"));
  }
  if (found.gpus.empty()) {
    PrintRow("GPU", found.gpu_device_files
                        ? "device files exist, but nvidia-smi lists none: check the driver"
                        : "none");
  }
  for (const Gpu& gpu : found.gpus) {
    PrintRow("GPU", fmt::format("{}, {}, driver {}", gpu.name, gpu.memory, gpu.driver));
  }
  PrintRow("CUDA toolkit", found.cuda.value_or("none"));

  fmt::print("\nOptional parts\n");
  for (const OptionalPart& part : found.parts) {
    if (part.present) {
      fmt::print("  {:<13} present\n", part.name);
    } else {
      fmt::print("  {:<13} missing  {:<46} {}\n", part.name, part.purpose, part.install);
    }
  }
}

}  // namespace

void RegisterDoctor(Command app, Outcome& /*outcome*/) {
  Command doctor = app.AddCommand(
      "doctor", "What this machine has, how fast it is, what is missing, what to install");
  auto options = std::make_shared<DoctorOptions>();
  doctor.AddFlag("--json", options->json, "Print one JSON object");
  doctor.AddFlag("!--no-measure", options->measure, "Leave out the measured rates (faster)");
  doctor.SetFooter(
      "Examples:\n"
      "  tessera doctor\n"
      "  tessera doctor --json | jq .memory.available_bytes");
  doctor.SetCallback([options] {
    const Findings found = Examine(*options);
    if (options->json) {
      fmt::print("{}\n", JsonText(ToJson(found), 2));
    } else {
      PrintText(found);
    }
  });
}

}  // namespace tessera::cli
