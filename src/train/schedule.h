// Learning-rate schedules as pure functions of a run's progress.
//
// With t the progress in the unit of the schedule, w = t_warmup, m = t_max, u = min(1, t/w) (1 when
// w = 0), f = clamp((t - w) / (m - w), 0, 1) and a = alpha_f:
//   constant_with_warmup       u
//   linear_decay_with_warmup   t < w: u; else 1 + f (a - 1)
//   cosine_with_warmup         t < w: u; else a + (1 - a) (1 + cos(pi f)) / 2
//   inv_sqrt_with_warmup       t < w: u; else d(t) = a + (1 - a) / sqrt((t - w + s) / s), s =
//   t_scale;
//                              from t_max - t_cooldown on linear from d there to alpha_f_cooldown
//   warmup_stable_decay        min(u, 1 - g (1 - a)), g = clamp((t - (m - t_decay)) / t_decay, 0,
//   1);
//                              with decay_shape sqrt: 1 - sqrt(g) (1 - a)
// These are Composer's and llm-foundry's formulas (warmup_stable_decay is ours).
//
// The progress to pass is the one that the update completes: step n counts from 1, tokens and
// epochs include the batch of this update, seconds are those passed when it is applied. So the
// first update already moves the weights (1/w of the rate) and the last one has the final value.
// Composer instead uses the multiplier of t - 1 in batch t and that of 0 in both of the first two
// batches: with warm-up its first two steps change nothing.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "train/duration.h"

namespace tessera {

enum class ScheduleKind { kConstant, kLinear, kCosine, kInverseSqrt, kWarmupStableDecay };
enum class DecayShape { kLinear, kSqrt };

std::string_view ScheduleKindName(ScheduleKind kind);  // "cosine_with_warmup" ...
std::string_view DecayShapeName(DecayShape shape);     // "linear", "sqrt"

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kConstant;
  Duration t_warmup = {};
  Duration t_max = {1.0, TimeUnit::kFraction};
  double alpha_f = 0;           // final multiplier
  Duration t_scale = {};        // inverse square root
  Duration t_cooldown = {};     // inverse square root
  double alpha_f_cooldown = 0;  // inverse square root
  Duration t_decay = {};        // warm-up-stable-decay
  DecayShape decay_shape = DecayShape::kLinear;

  bool operator==(const ScheduleConfig&) const = default;
};

class Schedule {
 public:
  // Resolves fractions against max_duration. Errors: units that can't be compared with each other
  // (only constant and warm-up-stable-decay may count the warm-up in another unit than the rest),
  // a warm-up or decay longer than t_max, a missing t_scale.
  static Result<Schedule> Create(const ScheduleConfig& config, const Duration& max_duration);

  // The factor for the learning rate of the update that reaches `progress`.
  double Multiplier(const Progress& progress) const;
  const ScheduleConfig& config() const { return config_; }

 private:
  explicit Schedule(const ScheduleConfig& config) : config_(config) {}
  ScheduleConfig config_;  // without fractions
};

}  // namespace tessera
