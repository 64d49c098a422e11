#include "train/samples.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/cpu_info.h"
#include "base/json.h"
#include "base/signals.h"
#include "base/strings.h"
#include "model/generation.h"

namespace tessera {

std::string ValidUtf8(const std::string& text) {
  return ParseJson(JsonText(Json(text)), "sample")->get<std::string>();
}

Result<std::vector<ReportSample>> WriteSampleTexts(Engine& engine, const Tokenizer& tokenizer,
                                                   const SampleSettings& settings, uint64_t seed,
                                                   ThreadPool& pool) {
  const Plan& plan = engine.plan();
  // The end-of-text token begins every document that the model has seen.
  std::vector<std::vector<int32_t>> prompts;
  size_t longest_prompt = 0;
  for (const std::string& prompt : settings.prompts) {
    std::vector<int32_t> tokens;
    if (tokenizer.eos_id()) tokens.push_back(*tokenizer.eos_id());
    tokenizer.Encode(prompt, &tokens);
    if (tokens.empty()) {
      return InvalidArgument(
          "samples.prompts has an empty text and the tokenizer no end-of-text "
          "token to start from");
    }
    longest_prompt = std::max(longest_prompt, tokens.size());
    prompts.push_back(std::move(tokens));
  }
  InferenceOptions options;
  options.max_length = std::min(LongestSequence(plan.config),
                                static_cast<int64_t>(longest_prompt) + settings.max_new_tokens);
  options.dtype = plan.options.precision == Precision::kAmpBf16 ? DType::kBf16 : DType::kF32;
  options.compute = plan.options.compute;
  const int64_t needed = InferenceModel::MemoryBytes(plan.config, options, pool.num_threads());
  const int64_t available = ReadMemoryInfo().available_bytes;
  if (needed > available) {
    return OutOfMemory(
        fmt::format("generation needs {} beside the training state, {} are free; "
                    "use tessera generate afterwards",
                    FormatBytes(needed), FormatBytes(available)));
  }
  TESSERA_ASSIGN(const std::unique_ptr<InferenceModel> model,
                 InferenceModel::Create(plan.config, options, pool));
  const std::span<Parameter> parameters = engine.parameters();
  const std::span<const InferenceModel::Weight> weights = model->parameters();
  TESSERA_CHECK(parameters.size() == weights.size(), "engine and inference list other parameters");
  for (size_t i = 0; i < weights.size(); ++i) {
    TESSERA_CHECK(parameters[i].spec.name == weights[i].spec.name, parameters[i].spec.name);
    model->SetWeight(i, parameters[i].value, DType::kF32);
  }

  std::vector<ReportSample> samples;
  for (size_t i = 0; i < prompts.size(); ++i) {
    GenerationOptions generation;
    generation.sampler.temperature = settings.temperature;
    generation.sampler.top_p = settings.top_p;
    generation.sampler.top_k = settings.top_k;
    generation.sampler.seed = seed + i;
    generation.max_new_tokens = settings.max_new_tokens;
    generation.stop_token = tokenizer.eos_id();
    if (plan.config.document_mask) generation.document_start = tokenizer.eos_id();
    generation.vocab_size = std::min(tokenizer.vocab_size(), plan.config.vocab_size);
    TESSERA_ASSIGN(const Generation written,
                   GenerateTokens(*model, prompts[i], generation,
                                  [](std::optional<int32_t>) { return !StopRequested(); }));
    samples.push_back({ValidUtf8(settings.prompts[i]),
                       ValidUtf8(tokenizer.Decode(written.tokens, /*skip_special=*/true))});
  }
  return samples;
}

}  // namespace tessera
