// Muon on batches of matrices of one shape.
//
// The Newton-Schulz steps run on Gram matrices. All factors of a step are polynomials in A = X X^T, so
// they commute and are symmetric: with N = b A + c A A a step is X <- (a I + N) X and
// A <- (a I + N) A (a I + N), and X itself is needed only at the end of some steps, a phase, as
// q X + R X, where q I + R is the product of the steps' factors. For a matrix of s x w (s <= w), with
// symmetric products halved, a phase of t steps costs 1.5 s^2 w + (4 t - 3) / 2 s^3 multiply-adds,
// where t steps on X cost t (1.5 s^2 w + s^3 / 2). The multiples of I stay out of the factors that are
// rounded, so each product's error is one of N, A or R alone.
//
// Rounding: with factors of relative error e, A carries an error of about e in each eigenvalue; a step
// multiplies small eigenvalues, and so that error, by a^2, hence the relative error of a direction that
// began near zero is below e a^(2 (t - 1)) |b| / a at the end of a phase.
//   fp32, e = 2^-24: 1.6e-3 after phases of five.
//   bf16, e = 2^-9: phases of three, but the last two steps on X itself, which take in the errors that
//   three leave. Of longer first phases products of factors that no longer commute, as they are
//   rounded, grow: four steps were off by several times the result for singular values over four
//   decades. Beside fp64, three and two of one are as exact as five steps on X with every tensor in
//   bf16, Muon's usual form (muon_test.cc). Of nearly square matrices steps on X cost no more.
#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/squares.h"
#include "kernels/cpu/table.h"

namespace tessera::kernels::TESSERA_ISA {

namespace {

constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
constexpr float kNormEps = 1e-7f;
// Elements whose squares are added up by one thread: fixed, so the norm is too.
constexpr int64_t kBlock = 4096;

constexpr int64_t Lines(int64_t bytes) { return RoundUp(bytes, 64); }

// Steps of the next phase when `left` are.
int64_t PhaseSteps(Compute compute, int64_t rows, int64_t cols, int64_t left) {
  if (compute == Compute::kF32) return Smaller(left, 5);
  if (Larger(rows, cols) < 2 * Smaller(rows, cols)) return 1;
  return Smaller(Larger(left - 2, 1), 3);
}

// Matrices in work at a time share these buffers, one slot each. Factors are what products read: of
// MuonOptions::compute's type, fp32 or bf16.
struct Slot {
  void* x;        // [rows, cols], a factor: the momentum's direction, later X
  float* next;    // [rows, cols]: X after a phase
  float* a;       // [side, side]
  float* r;       // [side, side]
  float* t;       // [side, side]: a product
  void* factor_n;  // [side, side] each
  void* factor_r;
  void* factor_a;  // fp32: a itself
  double* partials;
  float inverse_norm;
};

struct Layout {
  int64_t rows, cols, side, count, slots, blocks;
  int64_t matrix_bytes, square_bytes, partial_bytes, head_bytes, slot_bytes, gemm_bytes;

  Layout(int64_t num_rows, int64_t num_cols, int64_t num_matrices, int threads)
      : rows(num_rows),
        cols(num_cols),
        side(Smaller(num_rows, num_cols)),
        count(num_matrices),
        slots(Larger(1, Smaller(num_matrices, threads))),
        blocks(CeilDiv(num_rows * num_cols, kBlock)),
        matrix_bytes(Lines(num_rows * num_cols * 4)),
        square_bytes(Lines(side * side * 4)),
        partial_bytes(Lines(blocks * 8)),
        head_bytes(Lines(static_cast<int64_t>(sizeof(Slot) + sizeof(GemmArgs)) * slots)),
        slot_bytes(2 * matrix_bytes + 5 * square_bytes + partial_bytes),
        gemm_bytes(Lines(GemmWorkspaceBytes(threads))) {}

  int64_t Bytes() const { return gemm_bytes + head_bytes + slots * slot_bytes; }
};

// T: the type of factors.
template <class T>
class MuonRun {
 public:
  MuonRun(const MuonArgs* matrices, const MuonOptions& options, const Layout& layout,
          void* workspace, ThreadPool& pool)
      : matrices_(matrices),
        options_(options),
        layout_(layout),
        pool_(pool),
        gemm_workspace_(workspace) {
    char* next = static_cast<char*>(workspace) + layout.gemm_bytes;
    slots_ = reinterpret_cast<Slot*>(next);
    gemms_ = reinterpret_cast<GemmArgs*>(slots_ + layout.slots);
    next += layout.head_bytes;
    const auto take = [&next](int64_t bytes) {
      char* taken = next;
      next += bytes;
      return taken;
    };
    const int64_t factor_bytes = Lines(layout.side * layout.side * kBytes);
    for (int64_t i = 0; i < layout.slots; ++i) {
      char* const end = next + layout.slot_bytes;
      Slot& slot = slots_[i];
      slot = {};
      slot.x = take(layout.matrix_bytes);
      slot.next = reinterpret_cast<float*>(take(layout.matrix_bytes));
      slot.partials = reinterpret_cast<double*>(take(layout.partial_bytes));
      for (float** square : {&slot.a, &slot.r, &slot.t}) {
        *square = reinterpret_cast<float*>(take(layout.square_bytes));
      }
      slot.factor_n = take(factor_bytes);
      slot.factor_r = take(factor_bytes);
      slot.factor_a = kRounds ? take(factor_bytes) : reinterpret_cast<char*>(slot.a);
      next = end;
    }
  }

  void Run() {
    for (first_ = 0; first_ < layout_.count; first_ += layout_.slots) {
      active_ = Smaller(layout_.slots, layout_.count - first_);
      Direct();
      Orthogonalize();
      Apply();
    }
  }

 private:
  static constexpr bool kRounds = sizeof(T) == 2;
  static constexpr int64_t kBytes = sizeof(T);
  static constexpr DType kType = kRounds ? DType::kBf16 : DType::kF32;

  static T* Factor(void* p) { return static_cast<T*>(p); }

  // fn(slot, begin, end) on ranges of [0, n) of every active slot, cut at multiples of kBlock.
  template <class Fn>
  TESSERA_INLINE void ForBlocks(int64_t n, Fn&& fn) {
    const int64_t blocks = CeilDiv(n, kBlock);
    pool_.ParallelFor(active_ * blocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = i % blocks * kBlock;
        fn(i / blocks, start, Smaller(n, start + kBlock));
      }
    });
  }
  // body(slot, i, part) on the vectors of [0, n) of every active slot (loops.h).
  template <class Body>
  TESSERA_INLINE void ForElements(int64_t n, Body&& body) {
    ForBlocks(n, [&](int64_t slot, int64_t begin, int64_t end) {
      const Slot own = slots_[slot];
      ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA { body(own, i, part); });
    });
  }
  template <class Body>
  TESSERA_INLINE void ForSquares(Body&& body) {
    ForElements(layout_.side * layout_.side, body);
  }
  template <class Body>
  TESSERA_INLINE void ForMatrices(Body&& body) {
    ForElements(layout_.rows * layout_.cols, body);
  }

  // The momentum, its direction as a factor, and the norm of that.
  void Direct() {
    const F32 scale = Set(options_.grad_scale), keep = Set(options_.momentum);
    const F32 add = Set(1 - options_.momentum);
    const bool nesterov = options_.nesterov;
    ForBlocks(layout_.rows * layout_.cols, [&](int64_t slot, int64_t begin, int64_t end) {
      const MuonArgs& matrix = matrices_[first_ + slot];
      const float* g = matrix.g + begin;
      float* buffer = matrix.momentum_buffer + begin;
      alignas(64) float direction[kBlock];
      ForVectors(0, end - begin, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        const F32 fresh = add * (scale * Load(g + i, part));
        const F32 sum = Fma(keep, Load(buffer + i, part), fresh);
        Store(buffer + i, sum, part);
        Store(direction + i, nesterov ? Fma(keep, sum, fresh) : sum, part);
      });
      slots_[slot].partials[begin / kBlock] = BlockSquares(direction, end - begin);
      T* x = Factor(slots_[slot].x) + begin;
      ForVectors(0, end - begin, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(x + i, Load(direction + i, part), part);
      });
    });
    for (int64_t i = 0; i < active_; ++i) {
      double sum = 0;
      for (int64_t b = 0; b < layout_.blocks; ++b) sum += slots_[i].partials[b];
      slots_[i].inverse_norm = static_cast<float>(1.0 / (__builtin_sqrt(sum) + kNormEps));
    }
  }

  // A product of [side, side].
  GemmArgs Square(const MatrixRef& a, const MatrixRef& b, int64_t k, float* c) const {
    GemmArgs args;
    args.m = args.n = layout_.side;
    args.k = k;
    args.a = a;
    args.b = b;
    args.c = c;
    args.ldc = layout_.side;
    args.symmetric = true;
    return args;
  }
  // c = X X^T over the long side of x; x is not transposed in memory.
  GemmArgs GramOf(const void* x, float* c) const {
    const bool tall = layout_.rows > layout_.cols;
    return Square({x, kType, layout_.cols, tall}, {x, kType, layout_.cols, !tall},
                  Larger(layout_.rows, layout_.cols), c);
  }
  // c (+)= left right of symmetric factors that commute.
  GemmArgs ProductOf(const void* left, const void* right, float* c, bool accumulate) const {
    const auto factor = [&](const void* data) {
      return MatrixRef{data, kType, layout_.side, false};
    };
    GemmArgs args = Square(factor(left), factor(right), layout_.side, c);
    args.accumulate = accumulate;
    return args;
  }
  // c += r X along the short side, as r x or, for a tall x, x r (r is symmetric).
  GemmArgs AppliedTo(const void* r, const void* x, float* c) const {
    const bool tall = layout_.rows > layout_.cols;
    const MatrixRef square = {r, kType, layout_.side, false}, matrix = {x, kType, layout_.cols, false};
    GemmArgs args;
    args.m = layout_.rows;
    args.n = layout_.cols;
    args.k = layout_.side;
    args.a = tall ? matrix : square;
    args.b = tall ? square : matrix;
    args.c = c;
    args.ldc = layout_.cols;
    args.accumulate = true;
    return args;
  }
  // One product a slot.
  template <class Make>
  void Multiply(Make&& make) {
    for (int64_t i = 0; i < active_; ++i) {
      gemms_[i] = make(slots_[i]);
      gemms_[i].compute = options_.compute;
    }
    GemmBatch(gemms_, active_, gemm_workspace_, pool_);
  }

  // Leaves X in `next`.
  void Orthogonalize() {
    for (int64_t done = 0; done < options_.steps;) {
      if (done > 0) TakeNext();
      const int64_t steps =
          PhaseSteps(options_.compute, layout_.rows, layout_.cols, options_.steps - done);
      RunPhase(steps, done == 0);
      done += steps;
    }
    if (options_.steps == 0) {
      ForMatrices([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(slot.next + i, Set(slot.inverse_norm) * Load(Factor(slot.x) + i, part), part);
      });
    }
  }

  // X = next.
  void TakeNext() {
    if constexpr (kRounds) {
      ForMatrices([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(Factor(slot.x) + i, Load(slot.next + i, part), part);
      });
    } else {
      for (int64_t i = 0; i < active_; ++i) {
        float* const x = slots_[i].next;
        slots_[i].next = static_cast<float*>(slots_[i].x);
        slots_[i].x = x;
      }
    }
  }

  // `steps` steps on X. Before the first phase X is still to be divided by its norm.
  void RunPhase(int64_t steps, bool first) {
    Multiply([&](const Slot& slot) { return GramOf(slot.x, slot.a); });
    if (first || kRounds) {
      ForSquares([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        const F32 factor = Set(first ? slot.inverse_norm * slot.inverse_norm : 1.0f);
        const F32 a = Load(slot.a + i, part) * factor;
        Store(slot.a + i, a, part);
        if constexpr (kRounds) Store(Factor(slot.factor_a) + i, a, part);
      });
    }
    float q = 1;
    for (int64_t step = 0; step < steps; ++step) {
      Multiply([&](const Slot& slot) {
        return ProductOf(slot.factor_a, slot.factor_a, slot.t, false);
      });
      NextFactors(step == 0, q);
      if (step > 0) {
        Multiply([&](const Slot& slot) {
          return ProductOf(slot.factor_n, slot.factor_r, slot.r, true);
        });
      }
      q *= kA;
      if (step + 1 < steps) NextGram();
    }
    // q I + R meets X; without the norm, X must be divided by it first.
    ForSquares([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 factor = Set(first ? slot.inverse_norm : 1.0f);
      Store(Factor(slot.factor_r) + i, factor * Load(slot.r + i, part), part);
    });
    ForMatrices([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 factor = Set(first ? q * slot.inverse_norm : q);
      Store(slot.next + i, factor * Load(Factor(slot.x) + i, part), part);
    });
    Multiply([&](const Slot& slot) { return AppliedTo(slot.factor_r, slot.x, slot.next); });
  }

  // N = b A + c A A from t = A A, as a factor; R = N, or a R + q N beside the factor of the old R, to
  // which N R is then added.
  void NextFactors(bool first, float q) {
    ForSquares([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 n = Fma(Set(kC), Load(slot.t + i, part), Set(kB) * Load(slot.a + i, part));
      Store(Factor(slot.factor_n) + i, n, part);
      if (first) {
        Store(slot.r + i, n, part);
      } else {
        const F32 r = Load(slot.r + i, part);
        Store(Factor(slot.factor_r) + i, r, part);
        Store(slot.r + i, Fma(Set(kA), r, Set(q) * n), part);
      }
    });
  }

  // A <- (a I + N) A (a I + N) = a^2 A + N (2 a A + N A).
  void NextGram() {
    Multiply([&](const Slot& slot) {
      return ProductOf(slot.factor_n, slot.factor_a, slot.t, false);
    });
    ForSquares([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
      const F32 a = Load(slot.a + i, part);
      Store(Factor(slot.factor_r) + i, Fma(Set(2 * kA), a, Load(slot.t + i, part)), part);
      Store(slot.a + i, Set(kA * kA) * a, part);
    });
    Multiply([&](const Slot& slot) {
      return ProductOf(slot.factor_n, slot.factor_r, slot.a, true);
    });
    if constexpr (kRounds) {
      ForSquares([&](const Slot& slot, int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(Factor(slot.factor_a) + i, Load(slot.a + i, part), part);
      });
    }
  }

  void Apply() {
    const F32 keep = Set(1 - options_.decay), rate = Set(options_.lr * options_.scale);
    ForBlocks(layout_.rows * layout_.cols, [&](int64_t slot, int64_t begin, int64_t end) {
      float* p = matrices_[first_ + slot].p;
      const float* x = slots_[slot].next;
      ForVectors(begin, end, [&](int64_t i, auto part) TESSERA_INLINE_LAMBDA {
        Store(p + i, Load(p + i, part) * keep - rate * Load(x + i, part), part);
      });
    });
  }

  const MuonArgs* matrices_;
  const MuonOptions& options_;
  const Layout& layout_;
  ThreadPool& pool_;
  void* gemm_workspace_;
  Slot* slots_ = nullptr;
  GemmArgs* gemms_ = nullptr;
  int64_t first_ = 0, active_ = 0;
};

int64_t WorkspaceBytes(int64_t rows, int64_t cols, int64_t count, int num_threads) {
  return Layout(rows, cols, count, num_threads).Bytes();
}

double Flops(int64_t rows, int64_t cols, const MuonOptions& options) {
  const double side = static_cast<double>(Smaller(rows, cols));
  const double large = static_cast<double>(Larger(rows, cols));
  double products = 0;
  for (int64_t left = options.steps; left > 0;) {
    const int64_t steps = PhaseSteps(options.compute, rows, cols, left);
    products += 1.5 * large + 0.5 * static_cast<double>(4 * steps - 3) * side;
    left -= steps;
  }
  return 2 * side * side * products;
}

void RunMuon(const MuonArgs* matrices, int64_t count, const MuonOptions& options, void* workspace,
             ThreadPool& pool) {
  const Layout layout(matrices[0].rows, matrices[0].cols, count, pool.num_threads());
  if (options.compute == Compute::kBf16) {
    MuonRun<bf16>(matrices, options, layout, workspace, pool).Run();
  } else {
    MuonRun<float>(matrices, options, layout, workspace, pool).Run();
  }
}

}  // namespace

void FillMuon(KernelTable& table) {
  table.muon = RunMuon;
  table.muon_flops = Flops;
  table.muon_workspace_bytes = WorkspaceBytes;
}

}  // namespace tessera::kernels::TESSERA_ISA
