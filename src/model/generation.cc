#include "model/generation.h"

#include <algorithm>

#include "base/time.h"

namespace tessera {

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken: return "stop_token";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kStopped: return "stopped";
  }
  return "?";
}

std::span<const int32_t> LastDocument(std::span<const int32_t> prompt,
                                      std::optional<int32_t> document_start) {
  if (!document_start) return prompt;
  const auto last = std::find(prompt.rbegin(), prompt.rend(), *document_start);
  if (last == prompt.rend()) return prompt;
  return prompt.subspan(static_cast<size_t>(prompt.rend() - last) - 1);
}

Result<Generation> GenerateTokens(InferenceModel& model, std::span<const int32_t> prompt,
                                  const GenerationOptions& options, const OnToken& on_token) {
  prompt = LastDocument(prompt, options.document_start);
  if (prompt.empty()) return InvalidArgument("the prompt is empty: generation needs one token");
  const std::vector<std::string> errors = CheckSamplerOptions(options.sampler);
  if (!errors.empty()) return InvalidArgument(errors.front());
  const int64_t vocab = options.vocab_size > 0
                            ? std::min(options.vocab_size, model.config().vocab_size)
                            : model.config().vocab_size;
  Sampler sampler(options.sampler, vocab, model.max_length());
  for (const int32_t token : prompt) sampler.Accept(token);

  Generation out;
  out.tokens.reserve(static_cast<size_t>(
      std::clamp<int64_t>(options.max_new_tokens, 0, model.max_length())));
  model.Reset();
  Stopwatch watch;
  std::span<const float> logits;
  const size_t chunk = static_cast<size_t>(model.prefill_chunk());
  for (size_t first = 0; first < prompt.size(); first += chunk) {
    if (first > 0 && on_token && !on_token(std::nullopt)) {
      out.reason = FinishReason::kStopped;
      out.prefill_seconds = watch.Seconds();
      return out;
    }
    const size_t count = std::min(chunk, prompt.size() - first);
    TESSERA_ASSIGN(logits, model.Prefill(prompt.subspan(first, count)));
  }
  out.prefill_seconds = watch.Seconds();

  while (static_cast<int64_t>(out.tokens.size()) < options.max_new_tokens) {
    const Stopwatch step;
    if (!out.tokens.empty()) {
      if (options.document_start == out.tokens.back()) model.Reset();
      if (model.position() >= model.max_length()) {
        out.reason = FinishReason::kContext;
        return out;
      }
      TESSERA_ASSIGN(logits, model.Decode(out.tokens.back()));
      ++out.decoded_tokens;
    }
    const auto place = static_cast<int64_t>(prompt.size() + out.tokens.size());
    TESSERA_ASSIGN(const int32_t token, sampler.Sample(logits, place));
    out.decode_seconds += step.Seconds();
    if (options.stop_token == token) {
      out.reason = FinishReason::kStopToken;
      return out;
    }
    sampler.Accept(token);
    out.tokens.push_back(token);
    if (on_token && !on_token(token)) {
      out.reason = FinishReason::kStopped;
      return out;
    }
  }
  out.reason = FinishReason::kLength;
  return out;
}

}  // namespace tessera
