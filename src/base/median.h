// The middle of repeated measurements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace tessera {

// The upper one of the two in the middle where the count is even; `values` has at least one.
inline double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace tessera
