// The held-out score of a model: loss, perplexity, bits per byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "model/engine.h"

namespace tessera {

struct Evaluation {
  double loss = 0;                      // mean negative log likelihood of a target, nats
  double perplexity = 0;                // exp(loss)
  std::optional<double> bits_per_byte;  // absent where the dataset does not tell bytes
  int64_t documents = 0;
  int64_t targets = 0;
  int64_t bytes = 0;
  double seconds = 0;
};
Json EvaluationToJson(const Evaluation& evaluation);

struct EvaluationOptions {
  std::filesystem::path dataset;  // the split's folder
  int64_t sequence_length = 0;
  int64_t batch_size = 1;
  int64_t max_batches = -1;  // -1: all
  std::optional<int32_t> eos_id;
  std::optional<int64_t> vocab_size;
  std::string column = "tokens";
  std::function<void(int64_t done, int64_t total)> progress;
};

// Every document alone, each token once. Cancelled when a stop is requested.
Result<Evaluation> Evaluate(Engine& engine, const EvaluationOptions& options);

}  // namespace tessera
