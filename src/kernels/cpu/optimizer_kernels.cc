// AdamW, Lion and the sum of squares: one pass over memory each.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/squares.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr int64_t kSquaresBlock = 4096;  // as SumSquaresPartials

template <bool kRounded>
void UpdateAdamWAs(const AdamWArgs& args, ThreadPool& pool) {
  ParallelElements(pool, args.n, [&args](int64_t begin, int64_t end) {
    float* p = args.p;
    float* m = args.m;
    float* v = args.v;
    const float* g = args.g;
    const F32 beta1 = Set(args.beta1), beta2 = Set(args.beta2), eps = Set(args.eps);
    const F32 rest1 = Set(1.0f - args.beta1), rest2 = Set(1.0f - args.beta2);
    const F32 keep = Set(1.0f - args.decay), grad_scale = Set(args.grad_scale);
    const F32 step = Set(args.lr / args.bias_correction1);
    const F32 unbias = Set(1.0f / args.bias_correction2);
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 grad = Load(g + i, part) * grad_scale;
      const F32 mean = Fma(beta1, Load(m + i, part), rest1 * grad);
      const F32 square = Fma(beta2, Load(v + i, part), rest2 * (grad * grad));
      Store(m + i, mean, part);
      Store(v + i, square, part);
      const F32 update = step * mean / (Sqrt(square * unbias) + eps);
      const F32 value = Fma(Load(p + i, part), keep, -update);
      Store(p + i, value, part);
      if constexpr (kRounded) Store(args.rounded + i, value, part);
    });
  });
}

void UpdateAdamW(const AdamWArgs& args, ThreadPool& pool) {
  if (args.rounded != nullptr) UpdateAdamWAs<true>(args, pool);
  else UpdateAdamWAs<false>(args, pool);
}

void UpdateLion(const LionArgs& args, ThreadPool& pool) {
  ParallelElements(pool, args.n, [&args](int64_t begin, int64_t end) {
    float* p = args.p;
    float* m = args.m;
    const float* g = args.g;
    const F32 beta1 = Set(args.beta1), beta2 = Set(args.beta2), lr = Set(args.lr);
    const F32 rest1 = Set(1.0f - args.beta1), rest2 = Set(1.0f - args.beta2);
    const F32 keep = Set(1.0f - args.decay), grad_scale = Set(args.grad_scale);
    ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 grad = Load(g + i, part) * grad_scale;
      const F32 mean = Load(m + i, part);
      const F32 c = Fma(beta1, mean, rest1 * grad);
      const F32 update = Select(c > Zero(), lr, Select(c < Zero(), -lr, c));  // c is 0 or NaN
      Store(p + i, Load(p + i, part) * keep - update, part);
      Store(m + i, Fma(beta2, mean, rest2 * grad), part);
    });
  });
}

double SquaresOf(const float* x, int64_t n, double* partials, ThreadPool& pool) {
  const int64_t blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
  pool.ParallelForGrain(blocks, 2, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kSquaresBlock;
      const int64_t count = n - first < kSquaresBlock ? n - first : kSquaresBlock;
      partials[b] = BlockSquares(x + first, count);
    }
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partials[b];
  return total;
}

}  // namespace

void FillOptimizer(KernelTable& table) {
  table.adamw = UpdateAdamW;
  table.lion = UpdateLion;
  table.sum_squares = SquaresOf;
}

}  // namespace tessera::kernels::TESSERA_ISA
