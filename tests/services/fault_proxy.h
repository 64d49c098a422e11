// An HTTP proxy for tests that delays, limits, refuses, cuts off and resets, repeatably by a seed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace tessera::services {

struct ProxyRequest {
  std::string method;
  std::string target;  // Path and query.
  std::map<std::string, std::string, std::less<>> headers;  // Lower-case names.
  std::string body;
  int attempt = 1;  // Counts requests of the same method, target and range.

  std::string Header(std::string_view name) const;
};

enum class FaultKind {
  kNone,
  kAnswer,        // Answers by itself: `status`, `head`, `body`.
  kReset,         // Resets the connection; the server gets nothing.
  kResetInBody,   // Resets after `bytes` of the request's body; the server gets nothing.
  kTruncate,      // Closes after `bytes` of the answer's body.
  kLoseAnswer,    // The server does the work; the connection is reset before the answer.
  kCorrupt,       // Flips one bit of the answer's body, byte `bytes` modulo its length.
  kStall,         // Does not answer for `seconds`, then resets.
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  int status = 503;
  std::string head;  // Further header lines, each with "\r\n".
  std::string body;
  int64_t bytes = 0;
  double seconds = 0;
};

// 503 with S3's XML; 500 likewise.
Fault SlowDown();
Fault InternalErrorAnswer();
// Any error of S3.
Fault S3ErrorAnswer(int status, const std::string& code, const std::string& message);

struct FaultOptions {
  // Where requests go: a server, or the files of a folder (GET and HEAD with ranges).
  std::string upstream_host = "127.0.0.1";
  int upstream_port = 0;
  std::string folder;

  int listen_port = 0;  // 0: any free one.
  double latency_s = 0;               // Before each request is passed on.
  int64_t bandwidth_bytes_per_s = 0;  // Each direction, over all connections; 0: no limit.

  // Probabilities for each request. The choice depends on the seed, the method, the target, the
  // range and the attempt alone, not on time or threads.
  uint64_t seed = 1;
  double internal_error = 0;
  double slow_down = 0;
  double reset = 0;
  double truncate = 0;
  double lose_answer = 0;
  // From this attempt on nothing fails by chance, so that bounded retries suffice.
  int last_faulty_attempt = 5;

  // Goes before chance; FaultKind::kNone leaves it to chance.
  std::function<Fault(const ProxyRequest&)> script;
};

struct FaultCounters {
  int64_t requests = 0;
  int64_t faults = 0;
  int64_t connections = 0;
  int64_t most_at_once = 0;  // Requests.
  int64_t answer_bytes = 0;
};

// Threads serve the connections until it is destroyed.
class FaultProxy {
 public:
  static Result<std::unique_ptr<FaultProxy>> Start(FaultOptions options);
  ~FaultProxy();
  FaultProxy(const FaultProxy&) = delete;
  FaultProxy& operator=(const FaultProxy&) = delete;

  int port() const { return port_; }
  std::string url() const;  // "http://127.0.0.1:PORT"
  FaultCounters counters() const;

 private:
  // When a byte may pass that limits both users of one direction.
  struct Gate {
    std::mutex mutex;
    double free_at_s = 0;
  };
  class Connection;

  explicit FaultProxy(FaultOptions options) : options_(std::move(options)) {}
  void Accept();
  Fault Choose(const ProxyRequest& request);
  void Throttle(Gate& gate, int64_t bytes);
  void Sleep(double seconds) const;

  FaultOptions options_;
  int listen_fd_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  Gate in_, out_;
  mutable std::mutex mutex_;  // Guards what follows.
  std::map<std::string, int> attempts_;
  FaultCounters counters_;
  int64_t running_ = 0;
  std::vector<std::thread> connections_;
  std::thread accept_thread_;
};

}  // namespace tessera::services
