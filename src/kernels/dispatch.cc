// The public functions of the op headers: each calls the active instruction set's variant.
#include "base/error.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels {

int64_t ChainGrain(Compute compute) {
  return compute == Compute::kBf16 ? ActiveTable().bf16_chain_grain : 1;
}
int64_t GemmWorkspaceBytes(int num_threads) {
  return ActiveTable().gemm_workspace_bytes(num_threads);
}
void Gemm(const GemmArgs& args, void* workspace, ThreadPool& pool) {
  TESSERA_CHECK(!args.accumulate || args.c_dtype == DType::kF32);
  TESSERA_CHECK(!args.symmetric || (args.m == args.n && args.packed_b == nullptr &&
                                    args.bias == nullptr && args.pre_activation == nullptr &&
                                    args.epilogue == GemmEpilogue::kNone &&
                                    args.row_sums == nullptr));
  if (args.m == 0 || args.n == 0) return;
  ActiveTable().gemm(args, workspace, pool);
}
void GemmBatch(const GemmArgs* args, int64_t count, void* workspace, ThreadPool& pool) {
  ActiveTable().gemm_batch(args, count, workspace, pool);
}
int64_t PackedBBytes(int64_t k, int64_t n, DType storage, Compute compute) {
  return ActiveTable().packed_b_bytes(k, n, storage, compute);
}
void PackB(const MatrixRef& b, int64_t k, int64_t n, DType storage, Compute compute, void* packed,
           ThreadPool& pool) {
  ActiveTable().pack_b(b, k, n, storage, compute, packed, pool);
}

int64_t AttentionWorkspaceBytes(const AttentionShape& shape, int num_threads) {
  return ActiveTable().attention_workspace_bytes(shape, num_threads);
}
void AttentionForward(const AttentionForwardArgs& args, void* workspace, ThreadPool& pool) {
  ActiveTable().attention_forward(args, workspace, pool);
}
void AttentionBackward(const AttentionBackwardArgs& args, void* workspace, ThreadPool& pool) {
  ActiveTable().attention_backward(args, workspace, pool);
}
int64_t AttentionDecodeWorkspaceBytes(const AttentionDecodeArgs& args, int num_threads) {
  return ActiveTable().attention_decode_workspace_bytes(args, num_threads);
}
void AttentionDecode(const AttentionDecodeArgs& args, void* workspace, ThreadPool& pool) {
  ActiveTable().attention_decode(args, workspace, pool);
}

void NormForward(const NormForwardArgs& args, ThreadPool& pool) {
  TESSERA_CHECK(args.residual == nullptr || args.sum != nullptr);
  ActiveTable().norm_forward(args, pool);
}
int64_t NormBackwardWorkspaceBytes(int64_t rows, int64_t width, int64_t sequence) {
  if (sequence <= 0) sequence = rows;
  if (rows <= 0) return 0;
  const int64_t sequences = (rows + sequence - 1) / sequence;
  const int64_t runs = sequences * ((sequence + kNormRun - 1) / kNormRun);
  return runs * 2 * width * static_cast<int64_t>(sizeof(float));
}
void NormBackward(const NormBackwardArgs& args, void* workspace, ThreadPool& pool) {
  TESSERA_CHECK(workspace != nullptr || (args.dgain == nullptr && args.dbias == nullptr));
  ActiveTable().norm_backward(args, workspace, pool);
}
void ActivationForward(const ActivationArgs& args, ThreadPool& pool) {
  ActiveTable().activation_forward(args, pool);
}
void ActivationBackward(const ActivationArgs& args, ThreadPool& pool) {
  ActiveTable().activation_backward(args, pool);
}
void EmbeddingForward(const EmbeddingForwardArgs& args, ThreadPool& pool) {
  ActiveTable().embedding_forward(args, pool);
}
void EmbeddingBackward(const EmbeddingBackwardArgs& args, ThreadPool& pool) {
  ActiveTable().embedding_backward(args, pool);
}
void QkvForward(const QkvArgs& args, ThreadPool& pool) {
  TESSERA_CHECK(args.in != args.out || (args.norm == QkNorm::kNone && args.clip == 0));
  TESSERA_CHECK(args.heads + args.kv_heads <= 2048);  // kMostHeads
  ActiveTable().qkv_forward(args, pool);
}
void QkvBackward(const QkvBackwardArgs& args, ThreadPool& pool) {
  TESSERA_CHECK(args.forward.heads + args.forward.kv_heads <= 2048);  // kMostHeads
  ActiveTable().qkv_backward(args, pool);
}
void CrossEntropy(const CrossEntropyArgs& args, ThreadPool& pool) {
  for (int64_t row = 0; row < args.rows; ++row) TESSERA_CHECK(args.targets[row] < args.vocab);
  ActiveTable().cross_entropy(args, pool);
}
void AdamW(const AdamWArgs& args, ThreadPool& pool) { ActiveTable().adamw(args, pool); }
void Lion(const LionArgs& args, ThreadPool& pool) { ActiveTable().lion(args, pool); }
int64_t MuonWorkspaceBytes(int64_t rows, int64_t cols, int64_t count, int num_threads) {
  return ActiveTable().muon_workspace_bytes(rows, cols, count, num_threads);
}
double MuonFlops(int64_t rows, int64_t cols, const MuonOptions& options) {
  return ActiveTable().muon_flops(rows, cols, options);
}
void Muon(const MuonArgs* matrices, int64_t count, const MuonOptions& options, void* workspace,
          ThreadPool& pool) {
  if (count == 0) return;
  TESSERA_CHECK(matrices[0].rows > 0 && matrices[0].cols > 0);
  for (int64_t i = 1; i < count; ++i) {
    TESSERA_CHECK(matrices[i].rows == matrices[0].rows && matrices[i].cols == matrices[0].cols,
                  "the matrices of one call of Muon share their shape");
  }
  ActiveTable().muon(matrices, count, options, workspace, pool);
}
double SumSquares(const float* x, int64_t n, double* partials, ThreadPool& pool) {
  return ActiveTable().sum_squares(x, n, partials, pool);
}
void CastToBf16(const float* x, bf16* y, int64_t n, Rounding rounding, const RngKey& key,
                int64_t first_index, ThreadPool& pool) {
  ActiveTable().cast_to_bf16(x, y, n, rounding, key, first_index, pool);
}
void CastToFloat(const bf16* x, float* y, int64_t n, ThreadPool& pool) {
  ActiveTable().cast_to_float(x, y, n, pool);
}
void Fill(float* x, float value, int64_t n, ThreadPool& pool) {
  ActiveTable().fill(x, value, n, pool);
}
void Scale(float* x, float factor, int64_t n, ThreadPool& pool) {
  ActiveTable().scale(x, factor, n, pool);
}
void AddScaled(float a, const float* x, float* y, int64_t n, ThreadPool& pool) {
  ActiveTable().add_scaled(a, x, y, n, pool);
}
void Blend(float a, const float* x, float b, float* y, int64_t n, ThreadPool& pool) {
  ActiveTable().blend(a, x, b, y, n, pool);
}
void AddActivation(const void* x, void* y, int64_t n, DType dtype, ThreadPool& pool) {
  ActiveTable().add_activation(x, y, n, dtype, pool);
}
void Dropout(const void* x, void* y, int64_t n, DType dtype, float p, const RngKey& key,
             int64_t first_index, ThreadPool& pool) {
  ActiveTable().dropout(x, y, n, dtype, p, key, first_index, pool);
}

}  // namespace tessera::kernels
