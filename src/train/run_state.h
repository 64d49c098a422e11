// Where a run is: everything besides tensors that the next step depends on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "data/loader.h"
#include "kernels/gemm.h"
#include "model/plan.h"
#include "train/duration.h"

namespace tessera {

struct RunState {
  Progress progress;          // steps, tokens, epochs, seconds of training
  int64_t updates = 0;        // steps whose update was applied
  int64_t skipped_steps = 0;  // steps with a loss or gradient that was not finite
  int64_t nonfinite_in_row = 0;
  int64_t replaced_samples = 0;  // trained on in the place of bad ones
  LoaderState loader;
  int64_t sequence_length = 0;  // the loader's position counts samples of this length
  int64_t batch_size = 0;
  bool average_started = false;
  int64_t last_eval_step = -1;
  Json last_eval;  // EvaluationToJson, or null
  double last_loss = 0;

  // What the bits of the run depend on.
  uint64_t seed = 0;
  int64_t virtual_ranks = 1;
  UpdateRule optimizer = UpdateRule::kAdamW;
  Precision precision = Precision::kFp32;
  kernels::Compute compute = kernels::Compute::kF32;
  std::string data_fingerprint;
  std::string tokenizer_fingerprint;
};

std::string_view ComputeName(kernels::Compute compute);  // "fp32", "bf16"

Json RunStateToJson(const RunState& state);
Result<RunState> RunStateFromJson(const Json& json, std::string_view source);

// The position in samples of `to_length` tokens that lies where `state` does in samples of
// `from_length`, never earlier by more than one sample and within an epoch of `samples`.
LoaderState ConvertLoaderState(const LoaderState& state, int64_t from_length, int64_t to_length,
                               int64_t samples);

}  // namespace tessera
