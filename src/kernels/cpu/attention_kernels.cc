#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/table.h"

#if defined(TESSERA_TILES)
namespace tessera::kernels {
// The set that serves fp32 and decoding of few rows.
namespace TESSERA_PLAIN_ISA {
void FillAttention(KernelTable& table);
}
}  // namespace tessera::kernels
#endif

namespace tessera::kernels::TESSERA_ISA {

namespace {

int64_t WorkspaceBytes(const AttentionShape& shape, int num_threads) {
  return MaxOf(ForwardBytes(shape, num_threads), BackwardBytes(shape, num_threads));
}

#if defined(TESSERA_TILES)
const KernelTable& Plain() {
  static const KernelTable table = [] {
    KernelTable plain = {};
    TESSERA_PLAIN_ISA::FillAttention(plain);
    return plain;
  }();
  return table;
}

bool TakesTiles(const AttentionForwardArgs& args) {
  return args.dtype == DType::kBf16 && args.compute == Compute::kBf16;
}
bool TakesTiles(const AttentionDecodeArgs& args) {
  const AttentionShape& shape = args.shape;
  return args.dtype == DType::kBf16 && args.compute == Compute::kBf16 &&
         shape.length * (shape.heads / shape.kv_heads) > kTile;
}

int64_t LargerWorkspaceBytes(const AttentionShape& shape, int num_threads) {
  return MaxOf(WorkspaceBytes(shape, num_threads),
               Plain().attention_workspace_bytes(shape, num_threads));
}

int64_t LargerDecodeBytes(const AttentionDecodeArgs& args, int num_threads) {
  const int64_t plain = Plain().attention_decode_workspace_bytes(args, num_threads);
  return TakesTiles(args) ? MaxOf(plain, DecodeBytes(args, num_threads)) : plain;
}
#endif

}  // namespace

#if defined(TESSERA_TILES)

void FillAttention(KernelTable& table) {
  table.attention_workspace_bytes = LargerWorkspaceBytes;
  table.attention_forward = [](const AttentionForwardArgs& args, void* workspace, ThreadPool& pool) {
    if (!TakesTiles(args)) return Plain().attention_forward(args, workspace, pool);
    RunForward(args, workspace, pool);
  };
  table.attention_backward = [](const AttentionBackwardArgs& args, void* workspace,
                                ThreadPool& pool) {
    if (!TakesTiles(args.forward)) return Plain().attention_backward(args, workspace, pool);
    RunBackward(args, workspace, pool);
  };
  table.attention_decode_workspace_bytes = LargerDecodeBytes;
  table.attention_decode = [](const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool) {
    if (!TakesTiles(args)) return Plain().attention_decode(args, workspace, pool);
    RunDecode(args, workspace, pool);
  };
}

#else

void FillAttention(KernelTable& table) {
  table.attention_workspace_bytes = WorkspaceBytes;
  table.attention_forward = RunForward;
  table.attention_backward = RunBackward;
  table.attention_decode_workspace_bytes = DecodeBytes;
  table.attention_decode = RunDecode;
}

#endif

}  // namespace tessera::kernels::TESSERA_ISA
