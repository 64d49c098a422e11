#include "model/init.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"

namespace tessera {

namespace {

enum class Distribution { kConstant, kNormal, kUniform };

struct Law {
  Distribution distribution = Distribution::kConstant;
  double value = 0;  // the constant, or the standard deviation
};

Law LawOf(const ModelConfig& config, const ParameterSpec& spec) {
  if (spec.kind == ParameterKind::kGain) return {Distribution::kConstant, 1};
  if (spec.kind == ParameterKind::kBias) return {Distribution::kConstant, 0};
  const double fan_in = static_cast<double>(spec.cols);
  const double layers = static_cast<double>(config.n_layers);
  const bool table =
      spec.kind == ParameterKind::kEmbedding || spec.kind == ParameterKind::kPosition;

  if (config.init == InitScheme::kModern) {
    // Blocks start as the identity and the head as uniform: the first steps learn frequencies,
    // and no branch has to be unlearned.
    if (spec.residual_projection || spec.kind == ParameterKind::kHead) return {};
    if (spec.name == "transformer.bigram.weight") return {};
    if (table) {
      return {Distribution::kNormal,
              config.embedding_init_std >= 0 ? config.embedding_init_std : 1.0};
    }
    return {Distribution::kUniform, 1 / std::sqrt(fan_in)};
  }

  double std = config.init_std;
  double residual_divisor = std::sqrt(2 * layers);
  switch (config.init) {
    case InitScheme::kNormal: break;
    case InitScheme::kKaimingNormal: std = std::sqrt(2 / fan_in); break;
    case InitScheme::kSmall: std = std::sqrt(2 / (5 * static_cast<double>(config.d_model))); break;
    case InitScheme::kNeox:
      std = std::sqrt(2 / (5 * static_cast<double>(config.d_model)));
      residual_divisor = layers / std::sqrt(10.0);
      break;
    case InitScheme::kModern: break;
  }
  if (table && config.embedding_init_std >= 0) std = config.embedding_init_std;
  if (spec.residual_projection) std /= residual_divisor;
  return {Distribution::kNormal, std};
}

}  // namespace

void InitializeParameter(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed,
                         float* value, ThreadPool& pool) {
  const Law law = LawOf(config, spec);
  const RngKey key{seed, RngPurpose::kInit, HashName(spec.name)};
  const double std = law.value;
  const double bound = std * std::sqrt(3.0);  // a uniform law on [-b, b] has std b / sqrt(3)
  const int64_t size = spec.size();
  pool.ParallelForGrain((size + 3) / 4, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float out[4];
      if (law.distribution == Distribution::kConstant) {
        for (float& x : out) x = static_cast<float>(std);
      } else {
        const auto words = key.Block(static_cast<uint64_t>(block));
        for (size_t pair = 0; pair < 2; ++pair) {
          const double u1 = (words[2 * pair] + 1.0) * 0x1p-32;
          const double u2 = words[2 * pair + 1] * 0x1p-32;
          if (law.distribution == Distribution::kNormal) {
            const double radius = std * std::sqrt(-2 * std::log(u1));
            out[2 * pair] = static_cast<float>(radius * std::cos(6.283185307179586 * u2));
            out[2 * pair + 1] = static_cast<float>(radius * std::sin(6.283185307179586 * u2));
          } else {
            out[2 * pair] = static_cast<float>(bound * (2 * u1 - 1));
            out[2 * pair + 1] = static_cast<float>(bound * (2 * u2 - 1));
          }
        }
      }
      const int64_t count = std::min<int64_t>(4, size - block * 4);
      std::copy(out, out + count, value + block * 4);
    }
  });
}

}  // namespace tessera
