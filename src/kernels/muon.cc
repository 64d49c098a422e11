// Muon on batches of matrices of one shape.
//
// In fp32 the Newton-Schulz steps run on Gram matrices. All factors of a step are polynomials in
// A = X X^T, so they commute and are symmetric: with M = a I + b A + c A A a step is X <- M X and
// A <- M A M, and X itself is needed only at the end, as Q X with Q the product of all M. For a
// matrix of s x w (s <= w) five steps cost 8.5 s^3 + 1.5 s^2 w multiply-adds with the symmetric
// products halved, where the plain form costs 10 s^3 + 10 s^2 w.
//
// Rounding: A carries an error of about 2^-24 in each eigenvalue; a step multiplies small
// eigenvalues, and so that error, by a^2, hence the relative error of a direction that began near
// zero is below 2^-24 a^(2 (steps - 1)) |b| / a, 1.6e-3 after five steps. Longer runs start again
// from X every five. With Compute::kBf16 the plain form is used, as bf16 would not carry that.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <new>
#include <utility>

#include "base/error.h"
#include "kernels/gemm.h"
#include "kernels/optimizer.h"

namespace tessera::kernels {

namespace {

constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
constexpr float kNormEps = 1e-7f;
constexpr int kStepsPerGram = 5;
// Elements whose squares are added up by one thread: fixed, so the norm is too.
constexpr int64_t kBlock = 4096;

constexpr int64_t RoundUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Matrices in work at a time share these buffers, one slot each.
struct Slot {
  float* u = nullptr;     // [rows, cols]: the momentum's direction, later X
  float* v = nullptr;     // [rows, cols]
  float* square[4] = {};  // [side, side] each
  double* partials = nullptr;
  float inverse_norm = 1;
};

struct Layout {
  int64_t rows, cols, side, count, slots, blocks;
  int64_t matrix_bytes, square_bytes, partial_bytes, slot_bytes, gemm_bytes;

  Layout(int64_t num_rows, int64_t num_cols, int64_t num_matrices, int threads)
      : rows(num_rows),
        cols(num_cols),
        side(std::min(num_rows, num_cols)),
        count(num_matrices),
        slots(std::max<int64_t>(1, std::min<int64_t>(num_matrices, threads))),
        blocks((num_rows * num_cols + kBlock - 1) / kBlock),
        matrix_bytes(RoundUp(num_rows * num_cols * 4)),
        square_bytes(RoundUp(side * side * 4)),
        partial_bytes(RoundUp(blocks * 8)),
        slot_bytes(RoundUp(static_cast<int64_t>(sizeof(Slot) + sizeof(GemmArgs))) +
                   2 * matrix_bytes + 4 * square_bytes + partial_bytes),
        gemm_bytes(RoundUp(GemmWorkspaceBytes(threads))) {}

  int64_t Bytes() const { return gemm_bytes + slots * slot_bytes; }
};

// Sum of squares of up to kBlock floats in eight chains.
double SquaresOf(const float* x, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      const double value = x[i + lane];
      sums[lane] += value * value;
    }
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

class MuonRun {
 public:
  MuonRun(const MuonArgs* matrices, const MuonOptions& options, const Layout& layout,
          void* workspace, ThreadPool& pool)
      : matrices_(matrices),
        options_(options),
        layout_(layout),
        pool_(pool),
        gemm_workspace_(workspace) {
    std::byte* next = static_cast<std::byte*>(workspace) + layout.gemm_bytes;
    const auto take = [&next](int64_t bytes) {
      std::byte* taken = next;
      next += bytes;
      return taken;
    };
    slots_ = reinterpret_cast<Slot*>(next);
    gemms_ = reinterpret_cast<GemmArgs*>(slots_ + layout.slots);
    take(layout.slots * RoundUp(static_cast<int64_t>(sizeof(Slot) + sizeof(GemmArgs))));
    for (int64_t i = 0; i < layout.slots; ++i) {
      Slot slot;
      slot.u = reinterpret_cast<float*>(take(layout.matrix_bytes));
      slot.v = reinterpret_cast<float*>(take(layout.matrix_bytes));
      for (float*& square : slot.square) {
        square = reinterpret_cast<float*>(take(layout.square_bytes));
      }
      slot.partials = reinterpret_cast<double*>(take(layout.partial_bytes));
      new (&slots_[i]) Slot(slot);
      new (&gemms_[i]) GemmArgs();
    }
  }

  void Run() {
    for (first_ = 0; first_ < layout_.count; first_ += layout_.slots) {
      active_ = std::min(layout_.slots, layout_.count - first_);
      Direct();
      if (options_.compute == Compute::kBf16) {
        OrthogonalizeBf16();
      } else {
        OrthogonalizeGram();
      }
      Apply();
    }
  }

 private:
  // fn(slot, begin, end) on ranges of [0, n) of every active slot, cut at multiples of kBlock.
  template <class Fn>
  void ForEach(int64_t n, Fn&& fn) {
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    pool_.ParallelFor(active_ * blocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = i % blocks * kBlock;
        fn(i / blocks, start, std::min(n, start + kBlock));
      }
    });
  }

  // The momentum and its direction u, and the norm of u.
  void Direct() {
    const float scale = options_.grad_scale, keep = options_.momentum, add = 1 - keep;
    ForEach(layout_.rows * layout_.cols, [&](int64_t i, int64_t begin, int64_t end) {
      const MuonArgs& matrix = matrices_[first_ + i];
      const float* __restrict g = matrix.g;
      float* __restrict buffer = matrix.momentum_buffer;
      float* __restrict u = slots_[i].u;
      if (options_.nesterov) {
        for (int64_t x = begin; x < end; ++x) {
          const float fresh = add * (scale * g[x]);
          const float sum = keep * buffer[x] + fresh;
          buffer[x] = sum;
          u[x] = fresh + keep * sum;
        }
      } else {
        for (int64_t x = begin; x < end; ++x) {
          const float sum = keep * buffer[x] + add * (scale * g[x]);
          buffer[x] = sum;
          u[x] = sum;
        }
      }
      slots_[i].partials[begin / kBlock] = SquaresOf(u + begin, end - begin);
    });
    for (int64_t i = 0; i < active_; ++i) {
      double sum = 0;
      for (int64_t b = 0; b < layout_.blocks; ++b) sum += slots_[i].partials[b];
      slots_[i].inverse_norm = static_cast<float>(1.0 / (std::sqrt(sum) + kNormEps));
    }
  }

  // c = X X^T over the long side of x: [rows, cols] of `dtype`; x is not transposed in memory.
  GemmArgs GramOf(const void* x, DType dtype, void* c, DType c_dtype) const {
    const bool tall = layout_.rows > layout_.cols;
    GemmArgs args;
    args.m = args.n = layout_.side;
    args.k = std::max(layout_.rows, layout_.cols);
    args.a = {x, dtype, layout_.cols, tall};
    args.b = {x, dtype, layout_.cols, !tall};
    args.c = c;
    args.c_dtype = c_dtype;
    args.ldc = layout_.side;
    args.symmetric = true;
    return args;
  }
  // c = left right of symmetric matrices that commute.
  GemmArgs SquareProduct(const void* left, const void* right, DType dtype, float* c) const {
    GemmArgs args;
    args.m = args.n = args.k = layout_.side;
    args.a = {left, dtype, layout_.side, false};
    args.b = {right, dtype, layout_.side, false};
    args.c = c;
    args.ldc = layout_.side;
    args.symmetric = true;
    return args;
  }
  // c = q X along the short side, as q x or, for a tall x, x q (q is symmetric).
  GemmArgs Apply(const void* q, const void* x, DType dtype, float* c) const {
    GemmArgs args;
    args.m = layout_.rows;
    args.n = layout_.cols;
    args.k = layout_.side;
    args.a = {q, dtype, layout_.side, false};
    args.b = {x, dtype, layout_.cols, false};
    if (layout_.rows > layout_.cols) std::swap(args.a, args.b);
    args.c = c;
    args.ldc = layout_.cols;
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

  void OrthogonalizeGram() {
    const int64_t side = layout_.side;
    constexpr DType kF32 = DType::kF32;
    for (int64_t done = 0; done < options_.steps;) {
      const int64_t steps = std::min<int64_t>(kStepsPerGram, options_.steps - done);
      Multiply([&](const Slot& slot) { return GramOf(slot.u, kF32, slot.square[0], kF32); });
      if (done == 0) {
        ForEach(side * side, [&](int64_t i, int64_t begin, int64_t end) {
          const float factor = slots_[i].inverse_norm * slots_[i].inverse_norm;
          for (int64_t x = begin; x < end; ++x) slots_[i].square[0][x] *= factor;
        });
      }
      // square: A, M, Q, spare; Q is M itself after the first step.
      for (int64_t step = 0; step < steps; ++step) {
        Multiply([&](const Slot& slot) {
          return SquareProduct(slot.square[0], slot.square[0], kF32, slot.square[1]);
        });
        ForEach(side * side, [&](int64_t i, int64_t begin, int64_t end) {
          const float* __restrict a = slots_[i].square[0];
          float* __restrict m = slots_[i].square[1];
          for (int64_t x = begin; x < end; ++x) m[x] = kC * m[x] + kB * a[x];
          for (int64_t row = (begin + side) / (side + 1); row * (side + 1) < end; ++row) {
            m[row * (side + 1)] += kA;
          }
        });
        if (step > 0) {
          Multiply([&](const Slot& slot) {
            return SquareProduct(slot.square[1], slot.square[2], kF32, slot.square[3]);
          });
          for (int64_t i = 0; i < active_; ++i) std::swap(slots_[i].square[2], slots_[i].square[3]);
        }
        if (step + 1 < steps) {
          Multiply([&](const Slot& slot) {
            return SquareProduct(slot.square[1], slot.square[0], kF32, slot.square[3]);
          });
          Multiply([&](const Slot& slot) {
            return SquareProduct(slot.square[3], slot.square[1], kF32, slot.square[0]);
          });
        }
        if (step == 0) {
          for (int64_t i = 0; i < active_; ++i) std::swap(slots_[i].square[1], slots_[i].square[2]);
        }
      }
      if (done == 0) {
        ForEach(side * side, [&](int64_t i, int64_t begin, int64_t end) {
          for (int64_t x = begin; x < end; ++x) slots_[i].square[2][x] *= slots_[i].inverse_norm;
        });
      }
      Multiply([&](const Slot& slot) { return Apply(slot.square[2], slot.u, kF32, slot.v); });
      for (int64_t i = 0; i < active_; ++i) std::swap(slots_[i].u, slots_[i].v);
      done += steps;
    }
    if (options_.steps == 0) Normalize();
  }

  void Normalize() {
    ForEach(layout_.rows * layout_.cols, [&](int64_t i, int64_t begin, int64_t end) {
      for (int64_t x = begin; x < end; ++x) slots_[i].u[x] *= slots_[i].inverse_norm;
    });
  }

  // X, A and B in bf16, sums in fp32.
  void OrthogonalizeBf16() {
    const int64_t side = layout_.side, n = layout_.rows * layout_.cols;
    constexpr DType kBf16 = DType::kBf16;
    Normalize();
    for (int step = 0; step < options_.steps; ++step) {
      // u: fp32 X, becomes a X; v: X in bf16; square: A in bf16, B in fp32 and in bf16.
      ForEach(n, [&](int64_t i, int64_t begin, int64_t end) {
        bf16* rounded = reinterpret_cast<bf16*>(slots_[i].v);
        for (int64_t x = begin; x < end; ++x) {
          rounded[x] = ToBf16(slots_[i].u[x]);
          slots_[i].u[x] = kA * ToFloat(rounded[x]);
        }
      });
      Multiply([&](const Slot& slot) { return GramOf(slot.v, kBf16, slot.square[0], kBf16); });
      Multiply([&](const Slot& slot) {
        return SquareProduct(slot.square[0], slot.square[0], kBf16, slot.square[1]);
      });
      ForEach(side * side, [&](int64_t i, int64_t begin, int64_t end) {
        const bf16* a = reinterpret_cast<const bf16*>(slots_[i].square[0]);
        bf16* b = reinterpret_cast<bf16*>(slots_[i].square[2]);
        for (int64_t x = begin; x < end; ++x) {
          b[x] = ToBf16(kB * ToFloat(a[x]) + kC * slots_[i].square[1][x]);
        }
      });
      Multiply([&](const Slot& slot) {
        GemmArgs args = Apply(slot.square[2], slot.v, kBf16, slot.u);
        args.accumulate = true;
        return args;
      });
    }
  }

  void Apply() {
    const float keep = 1 - options_.decay, rate = options_.lr * options_.scale;
    ForEach(layout_.rows * layout_.cols, [&](int64_t i, int64_t begin, int64_t end) {
      float* __restrict p = matrices_[first_ + i].p;
      const float* __restrict u = slots_[i].u;
      for (int64_t x = begin; x < end; ++x) p[x] = p[x] * keep - rate * u[x];
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

}  // namespace

int64_t MuonWorkspaceBytes(int64_t rows, int64_t cols, int64_t count, int num_threads) {
  return Layout(rows, cols, count, num_threads).Bytes();
}

void Muon(const MuonArgs* matrices, int64_t count, const MuonOptions& options, void* workspace,
          ThreadPool& pool) {
  TESSERA_CHECK(count == 0 || (matrices[0].rows > 0 && matrices[0].cols > 0));
  for (int64_t i = 1; i < count; ++i) {
    TESSERA_CHECK(matrices[i].rows == matrices[0].rows && matrices[i].cols == matrices[0].cols,
                  "the matrices of one call of Muon share their shape");
  }
  if (count == 0) return;
  const Layout layout(matrices[0].rows, matrices[0].cols, count, pool.num_threads());
  MuonRun(matrices, options, layout, workspace, pool).Run();
}

}  // namespace tessera::kernels
