// A program bound to memory: a flat array of kernel calls that is run once per micro-batch.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "base/threads.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/qkv.h"
#include "model/engine.h"
#include "model/layout.h"
#include "model/profile.h"
#include "model/program.h"

namespace tessera {

// Addresses that the plan's offsets refer to.
struct Memory {
  float* values = nullptr;
  float* grads = nullptr;  // null in a forward-only plan
  float* lookup_grads = nullptr;  // [Layout::lookup_rows, d_model] of a tied table, or null
  bf16* working = nullptr;
  std::byte* arena = nullptr;
  std::byte* workspace = nullptr;
  // The micro-batch, [microbatch * T] each.
  int32_t* tokens = nullptr;
  int32_t* targets = nullptr;
  int32_t* segment_start = nullptr;
  int32_t* bigrams = nullptr;
  int32_t* lookup_rows = nullptr;  // of lookup_grads
  float* loss = nullptr;
  float* nll = nullptr;
  // Tables.
  const float* rope_cos = nullptr;
  const float* rope_sin = nullptr;
  const float* alibi_slopes = nullptr;
};

// What changes from one micro-batch to the next.
struct PassContext {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t first_sequence = 0;  // in the global batch: keys dropout
  float weight = 1;            // 1 / counted targets of the step
  LossOptions loss;
  bool training = false;       // dropout is on
  bool fresh_gradients = false;  // those that a product of the pass can overwrite are not yet zero
};

class Executor {
 public:
  // Everything referred to must outlive the executor.
  Executor(const Plan& plan, const Program& program, const Layout& layout, const Memory& memory);

  void Run(const PassContext& context, ThreadPool& pool);

  // Runs up to the head and leaves logits [rows, vocab] of the micro-batch in `logits`.
  void RunLogits(const PassContext& context, float* logits, ThreadPool& pool);

  // Counts every call of Run in `profile` from now on; null stops.
  void SetProfile(OpProfile* profile);

 private:
  // Where the parts of one op are counted, and what each does. Of most ops there is one part;
  // weight gradients have the bias as their second, the head has logits, loss and both gradients.
  struct OpForms {
    static constexpr size_t kParts = 4;
    OpProfile::Slot slot[kParts] = {};
    OpWork work[kParts];
    int64_t layer = -1;
  };

  struct EmbeddingCall {
    kernels::EmbeddingForwardArgs args;
    void* add_to = nullptr;  // y is added here afterwards
  };
  struct DropoutCall {
    const void* x;
    void* y;
    int64_t elements;
    int64_t row_elements;
    double p;
    int64_t layer;
    int site;
  };
  struct LossCall {
    kernels::GemmArgs logits;  // of one chunk; pointers advance
    kernels::GemmArgs dhidden, dweight;
    int64_t chunk = 0;
    bool backward = false;
  };
  struct AttentionCall {
    kernels::AttentionForwardArgs args;
    int64_t layer;
  };
  struct AttentionBackwardCall {
    kernels::AttentionBackwardArgs args;
    int64_t layer;
  };
  using Call = std::variant<EmbeddingCall, kernels::EmbeddingBackwardArgs, DropoutCall,
                            kernels::NormForwardArgs, kernels::NormBackwardArgs, kernels::GemmArgs,
                            kernels::QkvArgs, kernels::QkvBackwardArgs, AttentionCall,
                            AttentionBackwardCall, LossCall, kernels::ActivationArgs>;

  Call Bind(const Op& op) const;
  // `forms` is null where nothing is counted.
  void RunCall(const Op& op, Call& call, const PassContext& context, const OpForms* forms,
               ThreadPool& pool);
  void RunLoss(const Op& op, const LossCall& call, const PassContext& context,
               const OpForms* forms, ThreadPool& pool);
  static bool CountsParts(OpKind kind);
  OpForms FormsOf(const Op& op, OpProfile* profile) const;
  // What the element-wise op at `position` moves. `work` is that of all ops.
  std::vector<OpMove> MovesOf(size_t position, const std::vector<OpWork>& work) const;
  // Runs fn as the `portion` of a part's work.
  template <class Fn>
  void Timed(const OpForms* forms, size_t part, double portion, Fn&& fn) {
    if (forms == nullptr) {
      fn();
      return;
    }
    const OpWork& all = forms->work[part];
    profile_->Time(forms->slot[part], forms->layer,
                   {all.flops * portion, all.bytes * portion, all.vector_ops * portion}, fn);
  }
  kernels::Compute WeightGradientCompute(int64_t cut) const;
  kernels::GemmArgs LogitsProduct(const Op& op) const;
  bool LowPrecisionNorms() const { return plan_.config.low_precision_norm && dtype_ == DType::kBf16; }

  // Address helpers; null for kNone.
  void* At(BufferId id) const;
  float* StatAt(BufferId id) const { return static_cast<float*>(At(id)); }
  const float* Value(ParamId id) const;
  float* Grad(ParamId id) const;
  kernels::MatrixRef Weight(ParamId id) const;  // in the compute type
  kernels::AttentionShape Shape() const;
  kernels::QkvArgs BindQkv(const Op& op) const;

  const Plan& plan_;
  const Program& program_;
  const Layout& layout_;
  const Memory& memory_;
  const DType dtype_;
  std::vector<Call> calls_;
  OpProfile* profile_ = nullptr;
  std::vector<OpForms> forms_;  // of each op, where there is a profile
};

}  // namespace tessera
