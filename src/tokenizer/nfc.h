// Unicode normalization form C (UAX #15) of text that may hold invalid bytes.
#pragma once

#include <string>
#include <string_view>

namespace tessera {

// False when the text is in form C for certain; true when it may change.
bool MayNeedNfc(std::string_view text);
// Form C. A byte that is not valid UTF-8 stays as it is and composes with nothing.
std::string NormalizeNfc(std::string_view text);

}  // namespace tessera
