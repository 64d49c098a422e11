#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

int64_t WorkspaceBytes(const AttentionShape& shape, int num_threads) {
  return MaxOf(ForwardBytes(shape, num_threads), BackwardBytes(shape, num_threads));
}

}  // namespace

void FillAttention(KernelTable& table) {
  table.attention_workspace_bytes = WorkspaceBytes;
  table.attention_forward = RunForward;
  table.attention_backward = RunBackward;
  table.attention_decode_workspace_bytes = DecodeBytes;
  table.attention_decode = RunDecode;
}

}  // namespace tessera::kernels::TESSERA_ISA
