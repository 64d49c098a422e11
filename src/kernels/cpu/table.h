// The functions that each instruction set provides. Dispatch reads the active table once per call.
#pragma once

#include "base/threads.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/qkv.h"

namespace tessera::kernels {

struct KernelTable {
  // gemm_kernels.cc
  void (*gemm)(const GemmArgs&, void* workspace, ThreadPool&);
  void (*gemm_batch)(const GemmArgs*, int64_t count, void* workspace, ThreadPool&);
  int64_t (*gemm_workspace_bytes)(int num_threads);
  int64_t (*packed_b_bytes)(int64_t k, int64_t n, DType storage, Compute compute);
  void (*pack_b)(const MatrixRef&, int64_t k, int64_t n, DType storage, Compute compute, void*,
                 ThreadPool&);
  int64_t bf16_chain_grain;  // ChainGrain of Compute::kBf16
  // Raw multiply-add rate of one thread: runs `iterations` and returns the FLOPs done.
  double (*peak_f32)(int64_t iterations);
  double (*peak_bf16)(int64_t iterations);  // null where the set has no bf16 dot
  // attention_kernels.cc
  int64_t (*attention_workspace_bytes)(const AttentionShape&, int num_threads);
  void (*attention_forward)(const AttentionForwardArgs&, void* workspace, ThreadPool&);
  void (*attention_backward)(const AttentionBackwardArgs&, void* workspace, ThreadPool&);
  int64_t (*attention_decode_workspace_bytes)(const AttentionDecodeArgs&, int num_threads);
  void (*attention_decode)(const AttentionDecodeArgs&, void* workspace, ThreadPool&);
  // norm_kernels.cc
  void (*norm_forward)(const NormForwardArgs&, ThreadPool&);
  void (*norm_backward)(const NormBackwardArgs&, void* workspace, ThreadPool&);
  // activation_kernels.cc
  void (*activation_forward)(const ActivationArgs&, ThreadPool&);
  void (*activation_backward)(const ActivationArgs&, ThreadPool&);
  // embedding_kernels.cc
  void (*embedding_forward)(const EmbeddingForwardArgs&, ThreadPool&);
  void (*embedding_backward)(const EmbeddingBackwardArgs&, ThreadPool&);
  // qkv_kernels.cc
  void (*qkv_forward)(const QkvArgs&, ThreadPool&);
  void (*qkv_backward)(const QkvBackwardArgs&, ThreadPool&);
  // loss_kernels.cc
  void (*cross_entropy)(const CrossEntropyArgs&, ThreadPool&);
  // optimizer_kernels.cc
  void (*adamw)(const AdamWArgs&, ThreadPool&);
  void (*lion)(const LionArgs&, ThreadPool&);
  double (*sum_squares)(const float*, int64_t n, double* partials, ThreadPool&);
  // muon_kernels.cc
  void (*muon)(const MuonArgs*, int64_t count, const MuonOptions&, void* workspace, ThreadPool&);
  double (*muon_flops)(int64_t rows, int64_t cols, const MuonOptions&);
  int64_t (*muon_workspace_bytes)(int64_t rows, int64_t cols, int64_t count, int num_threads);
  // elementwise_kernels.cc
  void (*cast_to_bf16)(const float*, bf16*, int64_t n, Rounding, const RngKey&, int64_t first_index,
                       ThreadPool&);
  void (*cast_to_float)(const bf16*, float*, int64_t n, ThreadPool&);
  void (*fill)(float*, float, int64_t n, ThreadPool&);
  void (*scale)(float*, float, int64_t n, ThreadPool&);
  void (*add_scaled)(float, const float*, float*, int64_t n, ThreadPool&);
  void (*blend)(float, const float*, float, float*, int64_t n, ThreadPool&);
  void (*add_activation)(const void*, void*, int64_t n, DType, ThreadPool&);
  void (*dropout)(const void*, void*, int64_t n, DType, float p, const RngKey&, int64_t first_index,
                  ThreadPool&);
};

// The table of the active instruction set.
const KernelTable& ActiveTable();

// Each variant of each kernel file fills its part: declared for one set by this macro.
#define TESSERA_DECLARE_FILL(isa)              \
  namespace isa {                              \
  void FillGemm(KernelTable& table);           \
  void FillAttention(KernelTable& table);      \
  void FillNorm(KernelTable& table);           \
  void FillActivation(KernelTable& table);     \
  void FillEmbedding(KernelTable& table);      \
  void FillQkv(KernelTable& table);            \
  void FillLoss(KernelTable& table);           \
  void FillOptimizer(KernelTable& table);      \
  void FillMuon(KernelTable& table);           \
  void FillElementwise(KernelTable& table);    \
  }
TESSERA_DECLARE_FILL(generic)
TESSERA_DECLARE_FILL(avx2)
TESSERA_DECLARE_FILL(avx512)
TESSERA_DECLARE_FILL(avx512_bf16)
TESSERA_DECLARE_FILL(amx)
#undef TESSERA_DECLARE_FILL

}  // namespace tessera::kernels
