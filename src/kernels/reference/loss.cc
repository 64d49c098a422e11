#include "kernels/reference/loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tessera::kernels::reference {

CrossEntropyRow CrossEntropy(const CrossEntropyOptions& options, const double* logits,
                             int64_t vocab, int64_t target, double* gradient) {
  CrossEntropyRow out;
  const double size = static_cast<double>(vocab), e = options.label_smoothing;
  std::vector<double> l(logits, logits + vocab);
  if (options.softcap > 0) {
    for (double& v : l) v = options.softcap * std::tanh(v / options.softcap);
  }
  out.argmax = std::max_element(logits, logits + vocab) - logits;
  const double max = *std::max_element(l.begin(), l.end());
  double sum = 0, mean = 0;
  for (const double v : l) {
    sum += std::exp(v - max);
    mean += v / size;
  }
  out.lse = max + std::log(sum);
  if (target < 0) {
    if (gradient != nullptr) std::fill(gradient, gradient + vocab, 0.0);
    return out;
  }
  out.nll = out.lse - l[static_cast<size_t>(target)];
  out.loss = (1 - e) * out.nll + 0.5 * options.z_loss * out.lse * out.lse;
  if (e > 0) out.loss += e * (out.lse - mean);
  if (gradient == nullptr) return out;
  for (int64_t j = 0; j < vocab; ++j) {
    const double v = l[static_cast<size_t>(j)], p = std::exp(v - out.lse);
    double d = p * (1 + options.z_loss * out.lse) - e / size;
    if (j == target) d -= 1 - e;
    if (options.softcap > 0) d *= 1 - (v / options.softcap) * (v / options.softcap);
    gradient[j] = options.weight * d;
  }
  return out;
}

}  // namespace tessera::kernels::reference
