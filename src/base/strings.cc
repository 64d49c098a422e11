#include "base/strings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace tessera {

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= 1024.0 && unit + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string FormatCount(double count) {
  const double magnitude = std::abs(count);
  if (magnitude < 1e3) return fmt::format("{:.0f}", count);
  if (magnitude < 1e6) return fmt::format("{:.1f}k", count / 1e3);
  if (magnitude < 1e9) return fmt::format("{:.2f}M", count / 1e6);
  if (magnitude < 1e12) return fmt::format("{:.2f}B", count / 1e9);
  return fmt::format("{:.2f}T", count / 1e12);
}

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 10) return fmt::format("{:.1f}s", seconds);
  const int64_t whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole % 86400 / 3600);
}

namespace {

// Removes single underscores between digits; nullopt where one stands elsewhere.
std::optional<std::string> WithoutUnderscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_') {
      const bool between_digits = i > 0 && i + 1 < text.size() && std::isdigit(text[i - 1]) &&
                                  std::isdigit(text[i + 1]);
      if (!between_digits) return std::nullopt;
      continue;
    }
    out.push_back(text[i]);
  }
  return out;
}

}  // namespace

std::optional<int64_t> ParseInt(std::string_view text) {
  const auto clean = WithoutUnderscores(text);
  if (!clean || clean->empty() || std::isspace((*clean)[0])) return std::nullopt;
  errno = 0;
  char* end = nullptr;
  const long long value = std::strtoll(clean->c_str(), &end, 10);
  if (errno != 0 || end != clean->c_str() + clean->size()) return std::nullopt;
  return value;
}

std::optional<double> ParseDouble(std::string_view text) {
  const auto clean = WithoutUnderscores(text);
  if (!clean || clean->empty() || std::isspace((*clean)[0])) return std::nullopt;
  // from_chars reads no locale and, in this format, no hexadecimal digits; a sign is only '-'.
  const bool plus = (*clean)[0] == '+';
  const char* first = clean->data() + (plus ? 1 : 0);
  const char* last = clean->data() + clean->size();
  if (plus && first != last && *first == '-') return std::nullopt;
  double value = 0;
  const auto [end, code] = std::from_chars(first, last, value, std::chars_format::general);
  // Out of range is an infinity, or a number that vanishes; neither is what was meant.
  if (code != std::errc() || end != last || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  size_t start = 0;
  while (true) {
    const size_t end = text.find(separator, start);
    parts.push_back(text.substr(start, end - start));
    if (end == std::string_view::npos) return parts;
    start = end + 1;
  }
}

std::string_view Trim(std::string_view text) {
  static constexpr std::string_view kSpace = " \t\r\n\f\v";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  return fmt::format("{}", fmt::join(parts, separator));
}

int64_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

std::optional<std::string> NearestKey(std::string_view key,
                                      const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  int64_t best_distance = std::max<int64_t>(2, static_cast<int64_t>(key.size()) / 3) + 1;
  for (const std::string& candidate : candidates) {
    const int64_t distance = EditDistance(key, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace tessera
