// docs/run-file.md, made from the schema so that it can't go stale (run_reference_test.cc
// compares).
#include <fmt/format.h>

#include "base/strings.h"
#include "train/run_schema.h"

namespace tessera {

namespace {

constexpr const char* kIntroduction = R"(# The run file

<!-- Made by `tessera plan --reference > docs/run-file.md`; a test compares. -->

One YAML file says what to train on what. `tessera train RUN.yaml` runs it, `tessera plan RUN.yaml` tells
its memory and time first, `tessera plan RUN.yaml --config` prints it with every default filled in. The words are those of
llm-foundry and Composer where they have one. `recipes/` holds complete files.

- **Overrides**: `tessera train RUN.yaml max_duration=40ba optimizer.lr=3e-4 data.sources.mine=PATH`. A value that begins
  with `[`, `{` or a quotation mark is read as YAML, any other is taken as it stands. `key=null` brings the default back.
- **Errors** come all at once, each with file and line (or the override), the key, what was found and what is allowed.
  Unknown keys are errors that name the nearest key.
- **Durations** are a number and a unit: `ba` (batches: optimizer steps), `tok` (tokens), `ep` (epochs), `sec` (also `s`, `min`,
  `h`: seconds of training, over all resumptions), `dur` (share of max_duration). Digits may be grouped: `10_000_000tok`.
- **Sizes** are bytes, or a number and `KiB`, `MiB`, `GiB`, `TiB`, `kB`, `MB`, `GB`, `TB`.
- `null` stands for the default, except where "or null" is allowed: there it means none.
- Anchors and aliases work. Bounds: 1 MiB, 32 levels, 20,000 values.
)";

constexpr const char* kSchedules = R"(
## Schedules

With t the progress in the schedule's unit, w = t_warmup, m = t_max, a = alpha_f, u = min(1, t / w) and
f = (t - w) / (m - w) clamped to [0, 1], every learning rate is multiplied by:

| name | multiplier |
|---|---|
| constant_with_warmup | u |
| linear_decay_with_warmup | u until w, then 1 + f (a - 1) |
| cosine_with_warmup | u until w, then a + (1 - a) (1 + cos(pi f)) / 2 |
| inv_sqrt_with_warmup | u until w, then d(t) = a + (1 - a) / sqrt((t - w + s) / s) with s = t_scale; over the last t_cooldown linear from d to alpha_f_cooldown |
| warmup_stable_decay | min(u, 1 - g (1 - a)), g = (t - (m - t_decay)) / t_decay clamped to [0, 1]; decay_shape sqrt: sqrt(g) in place of g |

All lengths of a schedule need one unit (`dur` takes that of max_duration); only constant_with_warmup and
warmup_stable_decay may count the warm-up in another one, such as 20ba in a run of 180sec.

One difference from Composer: update n uses the multiplier at t = n (tokens and epochs with the batch of this update, seconds
passed when it is applied). Composer uses that of t = n - 2, and that of 0 in both of its first two batches, so with
warm-up its first two steps change nothing. Here the first update already moves the weights by 1/w of the rate, and the last one has the
final value.
)";

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string DefaultText(const RunKey& key) {
  if (!key.default_text.empty()) return key.default_text;
  if (!key.write) return "";
  const OrderedJson value = key.write(DefaultRunConfig());
  if (value.is_null()) return key.null_means_none ? "`null`" : "none";
  if (value.is_array() && value.empty()) return "none";
  return fmt::format("`{}`", value.is_string() ? value.get<std::string>() : JsonText(value));
}

// The longest documented section that holds the key.
std::string SectionOf(std::string_view path) {
  const std::string_view first = path.substr(0, path.find('.'));
  for (const auto& [name, unused] : RunSections()) {
    if (!name.empty() && name == first) return name;
  }
  return "";
}

}  // namespace

std::string RunFileReference() {
  std::string out = kIntroduction;
  for (const auto& [section, about] : RunSections()) {
    out += fmt::format(
        "\n## {}\n\n{}\n\n| key | type | allowed | default | meaning |\n|---|---|---|---|---|\n",
        section.empty() ? "The run" : "`" + section + "`", about);
    for (const RunKey& key : RunSchema()) {
      if (SectionOf(key.path) != section) continue;
      out += fmt::format("| `{}` | {} | {} | {} | {} |\n", key.path, key.type, Escape(key.allowed),
                         Escape(DefaultText(key)), Escape(key.doc));
    }
  }
  out += kSchedules;
  return out;
}

}  // namespace tessera
