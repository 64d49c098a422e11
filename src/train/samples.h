// What a trained model writes after a run's prompts.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "model/engine.h"
#include "tokenizer/tokenizer.h"
#include "track/report.h"
#include "train/run_config.h"

namespace tessera {

// Continues each prompt with the engine's present weights, in the run's precision. The texts are
// valid UTF-8 and depend only on weights, prompts, settings and seed. Out of memory when the copy
// of the weights that generation needs does not fit beside the engine.
Result<std::vector<ReportSample>> WriteSampleTexts(Engine& engine, const Tokenizer& tokenizer,
                                                   const SampleSettings& settings, uint64_t seed,
                                                   ThreadPool& pool);

// `text` with every byte that is not part of valid UTF-8 replaced by U+FFFD: a text that ends at a
// token's border may end inside a character.
std::string ValidUtf8(const std::string& text);

}  // namespace tessera
