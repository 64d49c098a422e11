// The rate of the best matrix product in this run, beside which a whole step or a prompt is held.
#pragma once

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "tensor/dtype.h"

namespace tessera::cli {

// The best GFLOP/s that a product of 4096 x 3072 x 768 reaches in a type: of fp32 inputs, or the
// better one of fp32 and bf16 inputs for runs in bf16, which may multiply in either. It is measured
// again and again between the parts of a benchmark, so that both see the same machine.
class ProductLimit {
 public:
  static Result<ProductLimit> Create(DType dtype, ThreadPool& pool);
  // Runs every type once and keeps the best rate seen; returns the better one of now.
  double Measure(ThreadPool& pool);
  double best_gflops() const { return best_; }

 private:
  DType dtype_ = DType::kF32;
  MemoryRegion x_, w_, y_, workspace_;
  double best_ = 0;
};

}  // namespace tessera::cli
