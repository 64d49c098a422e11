#include "kernels/isa.h"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/cpu_info.h"
#include "base/error.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels {

namespace {

KernelTable MakeTable(Isa isa) {
  KernelTable table = {};
  const auto fill = [&table](auto... functions) { (functions(table), ...); };
#define TESSERA_FILL_ALL(set)                                                                 \
  fill(set::FillGemm, set::FillAttention, set::FillNorm, set::FillActivation,                 \
       set::FillEmbedding, set::FillQkv, set::FillLoss, set::FillOptimizer, set::FillMuon,      \
       set::FillElementwise)
  switch (isa) {
    case Isa::kGeneric: TESSERA_FILL_ALL(generic); break;
#if defined(__x86_64__)
    case Isa::kAvx2: TESSERA_FILL_ALL(avx2); break;
    case Isa::kAvx512: TESSERA_FILL_ALL(avx512); break;
    case Isa::kAvx512Bf16: TESSERA_FILL_ALL(avx512_bf16); break;
    case Isa::kAmx:
      TESSERA_FILL_ALL(avx512_bf16);
      fill(amx::FillGemm, amx::FillAttention);
      break;
#else
    default: TESSERA_CHECK(false, "this instruction set is not part of the build");
#endif
  }
#undef TESSERA_FILL_ALL
  return table;
}

Isa ChooseIsa() {
  const std::vector<Isa> supported = SupportedIsas();
  if (const char* wanted = std::getenv("TESSERA_ISA"); wanted != nullptr && *wanted != '\0') {
    for (const Isa isa : supported) {
      if (IsaName(isa) == wanted) return isa;
    }
    std::string names;
    for (const Isa isa : supported) names += fmt::format(" {}", IsaName(isa));
    throw ErrorException(InvalidArgument(fmt::format(
        "TESSERA_ISA={} is not available here; this machine runs:{}", wanted, names)));
  }
  return supported.back();
}

struct Active {
  std::atomic<Isa> isa;
  std::array<KernelTable, 5> tables = {};
  std::atomic<const KernelTable*> table;

  Active() : isa(ChooseIsa()) {
    for (const Isa supported : SupportedIsas()) {
      tables[static_cast<size_t>(supported)] = MakeTable(supported);
    }
    table = &tables[static_cast<size_t>(isa.load())];
  }
};

Active& State() {
  static Active active;
  return active;
}

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kGeneric: return "generic";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAmx: return "amx";
  }
  return "unknown";
}

namespace {

// Whether the processor multiplies tiles of bf16 and Linux lets this process use them.
bool MayUseTiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  static const bool may = [] {
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // the state component
    const CpuInfo& cpu = ThisCpu();
    return cpu.amx_tile && cpu.amx_bf16 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return may;
#else
  return false;
#endif
}

}  // namespace

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kGeneric};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::kAvx2);
  if (isas.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    isas.push_back(Isa::kAvx512);
  }
  if (isas.size() == 3 && __builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  if (isas.size() == 4 && MayUseTiles()) isas.push_back(Isa::kAmx);
#endif
  return isas;
}

Isa ActiveIsa() { return State().isa.load(); }

void SetActiveIsa(Isa isa) {
  Active& state = State();
  TESSERA_CHECK(state.tables[static_cast<size_t>(isa)].gemm != nullptr,
                "SetActiveIsa: this machine can't run that set");
  state.isa = isa;
  state.table = &state.tables[static_cast<size_t>(isa)];
}

const KernelTable& ActiveTable() { return *State().table.load(std::memory_order_acquire); }

}  // namespace tessera::kernels
