// The rules of the source tree that a compiler does not check: arrows between folders, file sizes,
// headers' first lines, folder pages. Each check takes the root of a checkout.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tessera::architecture {

// One line a finding: "src/base/x.h:3: base must not include model (model/plan.h)".
using Findings = std::vector<std::string>;

// Every `#include "folder/..."` below src/ follows an allowed arrow between folders.
Findings CheckArrows(const std::filesystem::path& root);
// Sources and scripts have at most 800 lines; generated files, whose first lines
// say "... by scripts/...", are free.
Findings CheckFileSizes(const std::filesystem::path& root);
// Headers begin with a comment that says what they are for, then `#pragma once`.
Findings CheckHeaders(const std::filesystem::path& root);
// Every folder of src/ has a README.md of at most 40 lines.
Findings CheckFolderPages(const std::filesystem::path& root);

}  // namespace tessera::architecture
