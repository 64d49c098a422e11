// Runs a trained model forward with a key/value cache: the prompt in chunks, then token by token.
// The same kernels, in the same order, as the training engine's forward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/qkv.h"
#include "model/config.h"
#include "tensor/dtype.h"

namespace tessera {

struct InferenceOptions {
  int64_t max_length = 0;  // tokens of prompt and answer; 0: the model's max_seq_len
  DType dtype = DType::kF32;  // of matrices, activations and cache; kF32 or kBf16
  kernels::Compute compute = kernels::Compute::kF32;  // of products with more than four rows
  int64_t prefill_chunk = 512;  // tokens of the prompt that run together
};

class Engine;

// The longest sequence that the architecture can run: max_seq_len where positions have a table
// (learned, rotary), without limit otherwise.
int64_t LongestSequence(const ModelConfig& config);

// One sequence at a time. Not thread-safe; nothing is allocated after Create.
class InferenceModel {
 public:
  // A parameter in memory: matrices and tables in options.dtype, gains and biases in fp32.
  struct Weight {
    ParameterSpec spec;
    DType dtype = DType::kF32;
    void* data = nullptr;  // [rows, cols]
  };

  // Allocates weights (zero), cache and buffers. Invalid argument when the configuration is
  // inconsistent or max_length is more than the architecture has positions for. `pool` must
  // outlive the model.
  static Result<std::unique_ptr<InferenceModel>> Create(const ModelConfig& config,
                                                        const InferenceOptions& options,
                                                        ThreadPool& pool);
  // Bytes that Create allocates.
  static int64_t MemoryBytes(const ModelConfig& config, const InferenceOptions& options,
                             int num_threads);

  // In the order of ListParameters.
  std::span<const Weight> parameters() const { return weights_; }
  // Copies spec.size() values of type kF32 or kBf16 into a parameter, rounded to nearest.
  void SetWeight(size_t index, const void* values, DType dtype);

  // Appends tokens to the sequence (at least one) and gives the logits [vocab_size] that predict
  // what follows the last of them: scaled and soft-capped, valid until the next call. Invalid
  // argument, with the sequence as it was, when a token is outside the vocabulary or the sequence
  // would exceed max_length.
  Result<std::span<const float>> Prefill(std::span<const int32_t> tokens);
  Result<std::span<const float>> Decode(int32_t token) { return Prefill({&token, 1}); }

  // Starts a new sequence.
  void Reset() { position_ = 0; }

  int64_t position() const { return position_; }  // tokens in the cache
  int64_t max_length() const { return options_.max_length; }
  int64_t prefill_chunk() const { return options_.prefill_chunk; }
  const ModelConfig& config() const { return config_; }

 private:
  using WeightIndex = int32_t;  // into weights_; kAbsent where the architecture has none
  static constexpr WeightIndex kAbsent = -1;
  struct NormWeights {
    WeightIndex gain = kAbsent, bias = kAbsent;
  };
  struct LinearWeights {
    WeightIndex matrix = kAbsent, bias = kAbsent;
    int64_t in = 0, out = 0;
  };
  struct Block {
    NormWeights norm_1, norm_2, q_norm, k_norm;
    LinearWeights qkv, out_proj, up, down;
  };
  // Byte offsets into one region.
  struct Buffers {
    int64_t tokens = 0, bigrams = 0;  // [1 + chunk]: the token before the chunk comes first
    int64_t stream = 0, branch = 0, norm = 0;  // [chunk, d_model]
    int64_t qkv_raw = 0, qkv = 0, attention = 0;
    int64_t up = 0, hidden = 0;  // without `up` where the product applies the activation
    int64_t logits = 0, workspace = 0;
    int64_t bytes = 0;
  };

  InferenceModel(const ModelConfig& config, const InferenceOptions& options, ThreadPool& pool);
  static InferenceOptions Normalized(const ModelConfig& config, const InferenceOptions& options);
  static Buffers PlaceBuffers(const ModelConfig& config, const InferenceOptions& options,
                              int num_threads);
  static kernels::AttentionDecodeArgs DecodeArgs(const ModelConfig& config,
                                                 const InferenceOptions& options, int64_t rows);
  Status Allocate();
  void BindWeights();
  void FillTables();

  void RunChunk(const int32_t* tokens, int64_t rows);
  void RunHead(int64_t rows);
  void Embed(int64_t rows);
  void Attend(int64_t layer, int64_t rows);
  // hidden = act(up of norm).
  void Expand(const LinearWeights& up, int64_t rows);
  void Linear(const LinearWeights& weights, const void* x, void* y, int64_t rows,
              kernels::GemmEpilogue epilogue = kernels::GemmEpilogue::kNone);
  // y = norm(stream), after stream += branch where `add_branch`.
  void Norm(const NormWeights& weights, bool add_branch, int64_t first_row, int64_t rows);

  const float* Vector(WeightIndex index) const;
  kernels::MatrixRef Matrix(WeightIndex index) const;
  template <class T = void>
  T* At(int64_t offset) const {
    return reinterpret_cast<T*>(buffers_.data() + offset);
  }

  const ModelConfig config_;
  const InferenceOptions options_;
  ThreadPool& pool_;
  const int64_t element_;  // bytes of an activation
  int64_t rotary_size_ = 0;
  std::vector<Weight> weights_;
  std::vector<Block> blocks_;
  WeightIndex tokens_table_ = kAbsent, bigram_table_ = kAbsent, positions_table_ = kAbsent;
  NormWeights final_norm_;
  LinearWeights head_;
  std::vector<float> rope_cos_, rope_sin_, alibi_slopes_;
  MemoryRegion weight_memory_;
  MemoryRegion cache_;  // [layer][key, value][max_length, Hkv, D]
  MemoryRegion buffers_;
  Buffers at_;
  int64_t position_ = 0;
  int32_t last_token_ = -1;  // the token at position_ - 1
};

// Gives `model` the present weights of an engine of the same architecture, to write samples in the
// middle or at the end of a run.
void CopyWeights(Engine& engine, InferenceModel* model);

}  // namespace tessera
