// Continues a prompt: model, sampler and the rules that end an answer.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "model/inference.h"
#include "model/sampler.h"

namespace tessera {

enum class FinishReason {
  kStopToken,  // the model ended its text
  kLength,     // max_new_tokens
  kContext,    // the sequence reached the model's max_length
  kStopped,    // the callback asked for the end
};
std::string_view FinishReasonName(FinishReason reason);  // "stop_token", "length", ...

struct GenerationOptions {
  SamplerOptions sampler = {};
  int64_t max_new_tokens = 256;
  std::optional<int32_t> stop_token = {};  // ends the answer and is no part of it
  int64_t vocab_size = 0;             // of the tokenizer, when the model has padding rows; 0: all
  // For models with document_mask: the token that begins a document, which sees nothing before it.
  // Of the prompt only its last document counts, and where the model itself draws the token, the
  // context starts anew.
  std::optional<int32_t> document_start = {};
};

// The part of the prompt from the last `document_start` on; all of it where there is none.
std::span<const int32_t> LastDocument(std::span<const int32_t> prompt,
                                      std::optional<int32_t> document_start);

struct Generation {
  std::vector<int32_t> tokens;  // without prompt and stop token
  FinishReason reason = FinishReason::kLength;
  double prefill_seconds = 0;
  double decode_seconds = 0;   // of passes through the model and draws, without the callback
  int64_t decoded_tokens = 0;  // passes of one token
};

// Called with each token as it is drawn, and with nullopt between chunks of a long prompt; false
// ends the generation.
using OnToken = std::function<bool(std::optional<int32_t> token)>;

// Starts a new sequence in `model` with `prompt` (at least one token) and continues it. The random
// numbers depend on the seed and each token's position only.
Result<Generation> GenerateTokens(InferenceModel& model, std::span<const int32_t> prompt,
                                  const GenerationOptions& options, const OnToken& on_token = {});

}  // namespace tessera
