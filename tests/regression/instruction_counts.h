// Instruction counts of cases, and how they compare with the committed ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace tessera {

using InstructionCounts = std::map<std::string, int64_t>;

// A case fails above kWorse times its committed count and is reported below kBetter times.
// Compilers of one family differ by some percent; twice the work is far outside.
inline constexpr double kWorse = 1.3, kBetter = 0.7;

struct Comparison {
  std::vector<std::string> failures;  // more instructions, or a case without a committed count
  std::vector<std::string> notes;     // fewer, or a committed count without a case
};
Comparison CompareCounts(const InstructionCounts& measured, const InstructionCounts& committed);

// The number behind "Collected :" in what callgrind prints on stderr.
Result<int64_t> ParseCollected(const std::string& text);

// "gcc" or "clang": counts are kept for each.
const char* CompilerFamily();

// instructions.json: {"isa": "avx2", "gcc": {case: count}}. Not found where the family is missing.
Result<InstructionCounts> CountsFromJson(const Json& json, const std::string& family);

// Counts one case, or all, of the program at `cases` under valgrind.
Result<int64_t> CountCase(const std::string& cases, const std::string& name);
Result<InstructionCounts> CountAll(const std::string& cases);

// True where valgrind can be run.
bool HasValgrind();

}  // namespace tessera
