#include <cmath>

#include "base/error.h"
#include "kernels/attention.h"

namespace tessera::kernels {

// With p the least power of two >= heads: m_k = 2^(-k bias_max / p), k = 1..p. Where heads < p the
// slopes are m_2, m_4, ... and then m_1, m_3, ..., as many as there are heads: the order of MPT.
void FillAlibiSlopes(int64_t heads, float bias_max, float* slopes) {
  TESSERA_CHECK(heads > 0 && slopes != nullptr);
  int64_t power = 1;
  while (power < heads) power *= 2;
  const auto slope = [&](int64_t k) {
    return static_cast<float>(
        std::exp2(-static_cast<double>(k) * bias_max / static_cast<double>(power)));
  };
  for (int64_t h = 0; h < heads; ++h) {
    int64_t k = h + 1;
    if (power != heads) k = h < power / 2 ? 2 * (h + 1) : 2 * (h - power / 2) + 1;
    slopes[h] = slope(k);
  }
}

}  // namespace tessera::kernels
