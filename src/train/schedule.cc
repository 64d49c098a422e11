#include "train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera {

namespace {

// Share of the warm-up that is done.
double WarmupShare(const ScheduleConfig& config, const Progress& progress) {
  if (config.t_warmup.is_zero()) return 1.0;
  return std::min(1.0, ProgressIn(progress, config.t_warmup.unit) / config.t_warmup.value);
}

double Interpolate(double from, double to, double share) { return from + share * (to - from); }

double InverseSqrt(const ScheduleConfig& config, double t) {
  const double scale = config.t_scale.value;
  return config.alpha_f +
         (1.0 - config.alpha_f) / std::sqrt((t - config.t_warmup.value + scale) / scale);
}

}  // namespace

std::string_view ScheduleKindName(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kConstant:
      return "constant_with_warmup";
    case ScheduleKind::kLinear:
      return "linear_decay_with_warmup";
    case ScheduleKind::kCosine:
      return "cosine_with_warmup";
    case ScheduleKind::kInverseSqrt:
      return "inv_sqrt_with_warmup";
    case ScheduleKind::kWarmupStableDecay:
      return "warmup_stable_decay";
  }
  return "?";
}

std::string_view DecayShapeName(DecayShape shape) {
  return shape == DecayShape::kSqrt ? "sqrt" : "linear";
}

Result<Schedule> Schedule::Create(const ScheduleConfig& config, const Duration& max_duration) {
  TESSERA_CHECK(max_duration.unit != TimeUnit::kFraction, "max_duration is no share of itself");
  ScheduleConfig c = config;
  for (Duration* duration : {&c.t_warmup, &c.t_max, &c.t_scale, &c.t_cooldown, &c.t_decay}) {
    *duration = ResolveFraction(*duration, max_duration);
  }
  const auto same_unit = [&](const Duration& duration, std::string_view name) -> Status {
    if (duration.is_zero() || duration.unit == c.t_max.unit) return {};
    return InvalidArgument(fmt::format(
        "scheduler.{} is {}, t_max is {}: {} needs both in one unit, or {} as a share of the run "
        "(dur)",
        name, FormatDuration(duration), FormatDuration(c.t_max), ScheduleKindName(c.kind), name));
  };
  const auto fits = [&](double length, std::string_view what) -> Status {
    if (length <= c.t_max.value) return {};
    return InvalidArgument(fmt::format(
        "scheduler.{}: {}{} is longer than t_max, {}; shorten it, or give it as a share (dur)", what,
        length, TimeUnitName(c.t_max.unit), FormatDuration(c.t_max)));
  };
  switch (c.kind) {
    case ScheduleKind::kConstant:
      break;
    case ScheduleKind::kLinear:
    case ScheduleKind::kCosine:
      // A warm-up longer than the run is a short trial of a long recipe.
      TESSERA_TRY(same_unit(c.t_warmup, "t_warmup"));
      break;
    case ScheduleKind::kInverseSqrt:
      TESSERA_TRY(same_unit(c.t_warmup, "t_warmup"));
      TESSERA_TRY(same_unit(c.t_scale, "t_scale"));
      TESSERA_TRY(same_unit(c.t_cooldown, "t_cooldown"));
      if (c.t_scale.value <= 0) {
        return InvalidArgument(
            "scheduler.t_scale must be set and positive for inv_sqrt_with_warmup (the rate falls "
            "to 1/sqrt(2) that long after the warm-up)");
      }
      TESSERA_TRY(fits(c.t_warmup.value + c.t_cooldown.value, "t_warmup + t_cooldown"));
      break;
    case ScheduleKind::kWarmupStableDecay:
      TESSERA_TRY(same_unit(c.t_decay, "t_decay"));
      TESSERA_TRY(fits(c.t_decay.value, "t_decay"));
      break;
  }
  return Schedule(c);
}

double Schedule::Multiplier(const Progress& progress) const {
  const ScheduleConfig& c = config_;
  const double warm = WarmupShare(c, progress);
  if (c.kind == ScheduleKind::kConstant) return warm;

  const double t = ProgressIn(progress, c.t_max.unit);
  if (c.kind == ScheduleKind::kWarmupStableDecay) {
    if (c.t_decay.is_zero()) return warm;
    const double share =
        std::clamp((t - (c.t_max.value - c.t_decay.value)) / c.t_decay.value, 0.0, 1.0);
    const double fallen = c.decay_shape == DecayShape::kSqrt ? std::sqrt(share) : share;
    return std::min(warm, Interpolate(1.0, c.alpha_f, fallen));
  }

  if (warm < 1.0) return warm;
  if (c.kind == ScheduleKind::kInverseSqrt) {
    const double cooldown_start = c.t_max.value - c.t_cooldown.value;
    if (c.t_cooldown.is_zero() || t <= cooldown_start) return InverseSqrt(c, t);
    const double share = std::min(1.0, (t - cooldown_start) / c.t_cooldown.value);
    return Interpolate(InverseSqrt(c, cooldown_start), c.alpha_f_cooldown, share);
  }
  const double length = c.t_max.value - c.t_warmup.value;
  const double share = length > 0 ? std::clamp((t - c.t_warmup.value) / length, 0.0, 1.0) : 1.0;
  if (c.kind == ScheduleKind::kLinear) return Interpolate(1.0, c.alpha_f, share);
  return Interpolate(c.alpha_f, 1.0, 0.5 * (1.0 + std::cos(std::numbers::pi * share)));
}

}  // namespace tessera
