// Text helpers: sizes and counts as people read them, numbers parsed strictly, nearest key.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// "512 B", "1.5 KiB", "31.2 GiB".
std::string FormatBytes(int64_t bytes);
// "950", "12.3k", "4.56M", "1.23B": decimal thousands.
std::string FormatCount(double count);
// "0.8s", "42s", "3m07s", "5h12m", "3d04h".
std::string FormatDuration(double seconds);

// Whole-string parses; nullopt on anything else. Underscores between digits are allowed ("10_000").
std::optional<int64_t> ParseInt(std::string_view text);
std::optional<double> ParseDouble(std::string_view text);

std::vector<std::string_view> Split(std::string_view text, char separator);
std::string_view Trim(std::string_view text);
std::string Join(const std::vector<std::string>& parts, std::string_view separator);

// Levenshtein distance in bytes.
int64_t EditDistance(std::string_view a, std::string_view b);
// The candidate nearest to `key`, or nullopt when none is near enough to be a likely typing error.
std::optional<std::string> NearestKey(std::string_view key,
                                      const std::vector<std::string>& candidates);

}  // namespace tessera
