#include "base/error.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tessera {

std::string_view ErrorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "invalid_argument";
    case ErrorCode::kNotFound: return "not_found";
    case ErrorCode::kExists: return "exists";
    case ErrorCode::kIo: return "io";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kUnavailable: return "unavailable";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kCancelled: return "cancelled";
    case ErrorCode::kOutOfMemory: return "out_of_memory";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kInternal: return "internal";
  }
  return "unknown";
}

int ExitCodeFor(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported: return 2;
    case ErrorCode::kNotFound:
    case ErrorCode::kExists:
    case ErrorCode::kIo: return 3;
    case ErrorCode::kCorrupt: return 4;
    case ErrorCode::kOutOfMemory: return 5;
    case ErrorCode::kUnavailable:
    case ErrorCode::kTimeout: return 75;
    case ErrorCode::kCancelled: return 130;
    case ErrorCode::kInternal: return 70;
  }
  return 70;
}

Error Error::WithContext(std::string_view where) const {
  return Error{code, fmt::format("{}: {}", where, message), retryable};
}

std::string Error::ToString() const {
  return fmt::format("{} [{}]", message, ErrorCodeName(code));
}

Error InvalidArgument(std::string message) {
  return Error{ErrorCode::kInvalidArgument, std::move(message)};
}
Error NotFound(std::string message) { return Error{ErrorCode::kNotFound, std::move(message)}; }
Error IoError(std::string message) { return Error{ErrorCode::kIo, std::move(message)}; }
Error Corrupt(std::string message) { return Error{ErrorCode::kCorrupt, std::move(message)}; }
Error Unsupported(std::string message) {
  return Error{ErrorCode::kUnsupported, std::move(message)};
}
Error OutOfMemory(std::string message) {
  return Error{ErrorCode::kOutOfMemory, std::move(message)};
}
Error Internal(std::string message) { return Error{ErrorCode::kInternal, std::move(message)}; }

Error ErrnoError(std::string_view what, std::string_view path, int error_number) {
  const ErrorCode code = error_number == ENOENT   ? ErrorCode::kNotFound
                         : error_number == EEXIST ? ErrorCode::kExists
                                                  : ErrorCode::kIo;
  return Error{code, fmt::format("{} '{}': {}", what, path, std::strerror(error_number)),
               error_number == EAGAIN || error_number == EINTR};
}

void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  fmt::print(stderr, "{}:{}: check failed: {}{}{}\nThis is a bug in Tessera; please report it.\n",
             file, line, condition, message.empty() ? "" : ": ", message);
  std::fflush(stderr);
  std::abort();
}

}  // namespace tessera
