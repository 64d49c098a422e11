// AdamW, Lion and the sum of squares: one pass over memory each.
#include "kernels/cpu/loops.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr int64_t kSquaresBlock = 4096;  // as SumSquaresPartials
constexpr int64_t kPageFloats = 1024;

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

// Sum of squares of one block in 32 chains of doubles (element i in chain i % 32), the chains added
// in order. Products of two floats are exact in double, so every instruction set gives the same
// bits.
double BlockSquares(const float* x, int64_t n) {
  constexpr int64_t kChains = 32;
  constexpr int64_t kHalf = kLanes / 2;
  typedef float HalfF32 __attribute__((vector_size(kHalf * 4)));
  typedef double F64 __attribute__((vector_size(kHalf * 8)));
  F64 sums[kChains / kHalf] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    // A page ahead, where a core's own prefetching stops: a third more of the memory's rate.
    __builtin_prefetch(x + i + kPageFloats);
    __builtin_prefetch(x + i + kPageFloats + kChains / 2);
    for (int64_t k = 0; k < kChains / kHalf; ++k) {
      HalfF32 v;
      std::memcpy(&v, x + i + k * kHalf, sizeof(v));
      const F64 wide = __builtin_convertvector(v, F64);
      sums[k] += wide * wide;
    }
  }
  double chains[kChains];
  std::memcpy(chains, sums, sizeof(chains));
  for (int64_t k = 0; i < n; ++i, ++k) chains[k] += static_cast<double>(x[i]) * x[i];
  double total = 0;
  for (int64_t k = 0; k < kChains; ++k) total += chains[k];
  return total;
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
