// Failure as a value: Error, Result<T>, Status, and the checks for programmer errors.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace tessera {

enum class ErrorCode {
  kInvalidArgument,  // The caller's input is wrong: a flag, a key, a value.
  kNotFound,         // A file, a key or a bucket does not exist.
  kExists,           // Something is there that must not be overwritten.
  kIo,               // The operating system refused a read or a write.
  kCorrupt,          // Data does not match its format, length or checksum.
  kUnavailable,      // A service does not answer now.
  kTimeout,
  kCancelled,  // A person or a signal asked to stop.
  kOutOfMemory,
  kUnsupported,  // Valid input that this build or machine can't process.
  kInternal,     // A bug in Tessera.
};

// The stable lower-case name of a code, for example "invalid_argument".
std::string_view ErrorCodeName(ErrorCode code);

// The exit code of the process that ends with this kind of error: 2 for wrong input, 3 for I/O and
// missing files, 4 for corrupt data, 5 for memory, 75 for what may pass by itself, 130 for
// cancelled, 70 for internal.
int ExitCodeFor(ErrorCode code);

// A message says what failed, with which values, and what to do next.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  bool retryable = false;

  // Puts "where: " before the message: the file, the key or the step that was being worked on.
  Error WithContext(std::string_view where) const;
  std::string ToString() const;
};

Error InvalidArgument(std::string message);
Error NotFound(std::string message);
Error IoError(std::string message);
Error Corrupt(std::string message);
Error Unsupported(std::string message);
Error OutOfMemory(std::string message);
Error Internal(std::string message);
// An I/O error from errno: "cannot open 'x': No space left on device".
Error ErrnoError(std::string_view what, std::string_view path, int error_number);

// Value or Error. Access to the wrong side is a programmer error and aborts.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  const Error& error() const { return std::get<1>(state_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Error> state_;
};

// Success or Error, for functions that return nothing.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

// The same payload thrown where deep compute must end a step; caught at that boundary.
class ErrorException : public std::exception {
 public:
  explicit ErrorException(Error error) : error_(std::move(error)), text_(error_.ToString()) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const Error& error() const { return error_; }

 private:
  Error error_;
  std::string text_;
};

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);

}  // namespace tessera

// Aborts with file, line and message. For programmer errors only: never reachable by user input.
#define TESSERA_CHECK(condition, ...)                                                     \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      ::tessera::CheckFailed(__FILE__, __LINE__, #condition, ::std::string(__VA_ARGS__)); \
    }                                                                                     \
  } while (false)

#define TESSERA_CONCAT_INNER(a, b) a##b
#define TESSERA_CONCAT(a, b) TESSERA_CONCAT_INNER(a, b)

// Returns the error of a Status or Result expression to the caller.
#define TESSERA_TRY(expression)                                  \
  do {                                                           \
    if (auto tessera_status = (expression); !tessera_status.ok()) { \
      return tessera_status.error();                             \
    }                                                            \
  } while (false)

// TESSERA_ASSIGN(auto x, F()): declares x from a Result or returns its error to the caller.
#define TESSERA_ASSIGN(declaration, expression)                              \
  auto TESSERA_CONCAT(tessera_result_, __LINE__) = (expression);             \
  if (!TESSERA_CONCAT(tessera_result_, __LINE__).ok()) {                     \
    return TESSERA_CONCAT(tessera_result_, __LINE__).error();                \
  }                                                                          \
  declaration = std::move(TESSERA_CONCAT(tessera_result_, __LINE__)).value()
