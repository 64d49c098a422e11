// What training and evaluation batches share.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "data/loader.h"

namespace tessera {

inline constexpr int32_t kIgnoredTarget = -100;

void ResizeBatch(int64_t rows, int64_t length, TokenBatch* batch);
Status CheckSequenceLength(int64_t length, int64_t batch_size);

}  // namespace tessera
