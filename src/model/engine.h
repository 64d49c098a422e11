// Runs a plan: weights, gradients and optimizer state in memory, forward, backward, update.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "model/plan.h"
#include "model/profile.h"

namespace tessera {

// One parameter in memory. Pointers stay valid for the engine's life.
struct Parameter {
  ParameterSpec spec;
  UpdateRule rule = UpdateRule::kAdamW;
  float* value = nullptr;    // fp32 master, [rows, cols]
  float* grad = nullptr;     // sum over the step; null without training
  float* state0 = nullptr;   // AdamW m, Lion m, Muon momentum
  float* state1 = nullptr;   // AdamW v; null for others
  float* average = nullptr;  // averaged weights, or null
};

// Names in a profile that are no kinds of op (OpKindName).
inline constexpr std::string_view kProfileOptimizer = "optimizer";
inline constexpr std::string_view kProfileMuon = "muon";
inline constexpr std::string_view kProfileGradientNorm = "gradient norm";

// A global batch: `sequences` rows of sequence_length.
struct StepBatch {
  int64_t sequences = 0;
  const int32_t* tokens = nullptr;         // [sequences, T]
  const int32_t* targets = nullptr;        // [sequences, T]; negative: ignored
  const int32_t* segment_start = nullptr;  // [sequences, T], used with document_mask; may be null
};

struct LossOptions {
  double label_smoothing = 0;
  double z_loss = 0;
};

struct StepResult {
  double loss = 0;         // mean over counted targets, with smoothing and z-loss
  double nll = 0;          // mean negative log likelihood alone, nats
  int64_t targets = 0;     // counted targets
  double grad_norm = 0;    // global L2 norm before clipping
  bool finite = true;      // loss and gradient norm are finite
};

// Hyperparameters of one update, already scheduled.
struct UpdateOptions {
  int64_t step = 1;        // 1-based count of updates, for the bias correction
  double grad_clip = 0;    // global norm; 0: none
  // AdamW, or Lion
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  bool decoupled_by_lr = true;  // decay = lr * weight_decay; false: weight_decay * lr / initial_lr
  double initial_lr = 0;
  // Muon (matrices), with AdamW above for the rest
  double muon_lr = 0, muon_momentum = 0.95, muon_weight_decay = 0;
  // AdamW learning-rate factors by kind, for runs that use Muon or tuned recipes
  double embedding_lr_factor = 1, head_lr_factor = 1, vector_lr_factor = 1;
};

// Rows of the bigram table for tokens [rows, length]: the hash of (previous token, token).
void FillBigramRows(const int32_t* tokens, int64_t rows, int64_t length, int64_t buckets,
                    int32_t* out);

class Engine {
 public:
  // Allocates everything of the plan (huge pages where the system has them, touched at once).
  static Result<std::unique_ptr<Engine>> Create(Plan plan, ThreadPool& pool);
  ~Engine();

  const Plan& plan() const;
  std::span<Parameter> parameters();

  // Counter-based: the same weights for any sharding, threads or machine.
  void InitializeWeights(uint64_t seed);
  // After values were written from outside (a checkpoint): refreshes working copies.
  void WeightsChanged();

  // Forward and backward over the whole global batch, in micro-batches; leaves gradients of the
  // mean loss over all counted targets. `step` and `seed` key the dropout.
  StepResult ForwardBackward(const StepBatch& batch, const LossOptions& loss, uint64_t seed,
                             int64_t step);
  // Applies the update with the gradients of the last ForwardBackward and refreshes working copies.
  void Update(const UpdateOptions& options);
  // average = decay * average + (1 - decay) * value; the first call copies.
  void UpdateAverage(double decay);
  // After Parameter::average was written from outside (a checkpoint): the next UpdateAverage goes on
  // from it instead of copying the weights.
  void AverageLoaded();
  // Exchanges weights and averages (to evaluate or save the average), and back.
  void SwapAverage();

  // Between steps: gives the memory of gradients and activations back to the system, for work beside
  // the engine. The next step takes it again.
  void ReleaseStepMemory();

  // Sum of negative log likelihood (nats) over counted targets of `sequences` rows, no gradient.
  // Rows may exceed the micro-batch. token_nll, when not null, gets [sequences, T].
  double Evaluate(const StepBatch& batch, float* token_nll = nullptr);
  // Logits [rows of one sequence, vocab] for tests and golden files: `sequences` is the
  // plan's micro-batch.
  void Logits(const int32_t* tokens, int64_t sequences, float* logits);

  // Counts every call of a step in `profile`, which outlives the engine or is replaced by null
  // before its end. Nothing is allocated while steps run.
  void SetProfile(OpProfile* profile);

  // Seconds, FLOPs and bytes by kind of op since the last call, counted by the engine itself.
  struct OpTime {
    std::string name;
    double seconds = 0, flops = 0, bytes = 0;
    int64_t calls = 0;
  };
  void EnableProfile(bool on);
  std::vector<OpTime> TakeProfile();

 private:
  Engine();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
