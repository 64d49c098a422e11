#include "fault_proxy.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "base/files.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/time.h"

namespace tessera::services {

namespace {

constexpr size_t kMaxHead = 64 << 10;
constexpr int64_t kMaxBody = int64_t{1} << 30;
constexpr size_t kPiece = 64 << 10;

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

std::string Decoded(std::string_view path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '%' && i + 2 < path.size()) {
      out += static_cast<char>(std::stoi(std::string(path.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += path[i];
    }
  }
  return out;
}

// A socket with what was read ahead of its use.
class Socket {
 public:
  Socket(int fd, const std::atomic<bool>& stop) : fd_(fd), stop_(stop) {
    const int one = 1;
    if (fd_ >= 0) ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  ~Socket() { Close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void Reset() {
    if (fd_ < 0) return;
    const linger hard = {.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    Close();
  }

  bool Send(std::string_view data) {
    while (!data.empty()) {
      if (!Wait(POLLOUT)) return false;
      const ssize_t sent = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (sent <= 0) return false;
      data.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // Up to and with the empty line; empty at the end of the connection.
  std::string ReadHead() {
    while (true) {
      const size_t end = ahead_.find("\r\n\r\n");
      if (end != ahead_.npos) {
        std::string head = ahead_.substr(0, end + 4);
        ahead_.erase(0, end + 4);
        return head;
      }
      if (ahead_.size() > kMaxHead || !Fill()) return "";
    }
  }
  // At least one byte, at most `limit`; empty at the end.
  std::string ReadSome(size_t limit) {
    if (ahead_.empty() && !Fill()) return "";
    std::string out = ahead_.substr(0, limit);
    ahead_.erase(0, out.size());
    return out;
  }
  bool ReadExactly(size_t bytes, std::string* out) {
    while (bytes > 0) {
      const std::string piece = ReadSome(bytes);
      if (piece.empty()) return false;
      *out += piece;
      bytes -= piece.size();
    }
    return true;
  }
  bool ReadLine(std::string* line) {
    while (true) {
      const size_t end = ahead_.find("\r\n");
      if (end != ahead_.npos) {
        *line = ahead_.substr(0, end);
        ahead_.erase(0, end + 2);
        return true;
      }
      if (ahead_.size() > kMaxHead || !Fill()) return false;
    }
  }

 private:
  bool Wait(short events) const {
    while (!stop_ && fd_ >= 0) {
      pollfd entry = {.fd = fd_, .events = events, .revents = 0};
      const int ready = ::poll(&entry, 1, 50);
      if (ready > 0) return true;
      if (ready < 0 && errno != EINTR) return false;
    }
    return false;
  }
  bool Fill() {
    if (!Wait(POLLIN)) return false;
    char buffer[kPiece];
    const ssize_t got = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (got <= 0) return false;
    ahead_.append(buffer, static_cast<size_t>(got));
    return true;
  }

  int fd_;
  const std::atomic<bool>& stop_;
  std::string ahead_;
};

struct Head {
  std::string first;
  std::map<std::string, std::string, std::less<>> fields;
};

Head ParseHead(std::string_view text) {
  Head head;
  bool first = true;
  for (std::string_view line : Split(text, '\n')) {
    line = Trim(line);
    if (line.empty()) continue;
    if (first) {
      head.first = line;
      first = false;
      continue;
    }
    const size_t colon = line.find(':');
    if (colon != line.npos) head.fields[Lower(line.substr(0, colon))] = Trim(line.substr(colon + 1));
  }
  return head;
}

std::string Field(const Head& head, std::string_view name) {
  const auto it = head.fields.find(name);
  return it == head.fields.end() ? "" : it->second;
}

int ConnectTo(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return -1;
  int fd = -1;
  for (addrinfo* at = found; at != nullptr && fd < 0; at = at->ai_next) {
    fd = ::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
    if (fd >= 0 && ::connect(fd, at->ai_addr, at->ai_addrlen) != 0) {
      ::close(fd);
      fd = -1;
    }
  }
  ::freeaddrinfo(found);
  return fd;
}

// An answer of the proxy itself or of the upstream, whole in memory.
struct Answer {
  int status = 200;
  std::string head;  // With the status line and the empty line.
  std::string body;
};

std::string_view Reason(int status) {
  switch (status) {
    case 200: return "OK";
    case 206: return "Partial Content";
    case 404: return "Not Found";
    case 416: return "Range Not Satisfiable";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "Answer";
  }
}

Answer MakeAnswer(int status, const std::string& fields, std::string body) {
  return {.status = status,
          .head = fmt::format("HTTP/1.1 {} {}\r\n{}Content-Length: {}\r\n\r\n", status, Reason(status),
                              fields, body.size()),
          .body = std::move(body)};
}

Answer FromFolder(const std::string& folder, const ProxyRequest& request) {
  const std::string path =
      Decoded(std::string_view(request.target).substr(0, request.target.find('?')));
  if (path.find("..") != path.npos) return MakeAnswer(404, "", "no such file\n");
  const std::filesystem::path file = std::filesystem::path(folder) / path.substr(1);
  struct stat info = {};
  if (::stat(file.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return MakeAnswer(404, "", "no such file\n");
  }
  const int64_t size = info.st_size;
  std::string fields = fmt::format("ETag: \"{:x}-{:x}-{:x}\"\r\nAccept-Ranges: bytes\r\n", info.st_ino,
                                   size, info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec);
  int64_t begin = 0;
  int64_t end = size;
  int status = 200;
  const std::string range = request.Header("range");
  if (range.starts_with("bytes=")) {
    const std::string_view spec = std::string_view(range).substr(6);
    const size_t dash = spec.find('-');
    begin = ParseInt(spec.substr(0, dash)).value_or(0);
    end = std::min(size, ParseInt(spec.substr(dash + 1)).value_or(size - 1) + 1);
    if (begin >= size) return MakeAnswer(416, fmt::format("Content-Range: bytes */{}\r\n", size), "");
    status = 206;
    fields += fmt::format("Content-Range: bytes {}-{}/{}\r\n", begin, end - 1, size);
  }
  Result<MappedFile> map = MappedFile::Open(file);
  if (!map.ok()) return MakeAnswer(404, "", "no such file\n");
  const auto bytes = map->bytes().subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return MakeAnswer(status, fields,
                    std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace

std::string ProxyRequest::Header(std::string_view name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

Fault S3ErrorAnswer(int status, const std::string& code, const std::string& message) {
  Fault fault;
  fault.kind = FaultKind::kAnswer;
  fault.status = status;
  fault.head = "Content-Type: application/xml\r\n";
  fault.body = fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{}</Code><Message>{}</Message>"
      "<RequestId>fault-proxy</RequestId></Error>",
      code, message);
  return fault;
}
Fault SlowDown() { return S3ErrorAnswer(503, "SlowDown", "Please reduce your request rate."); }
Fault InternalErrorAnswer() {
  return S3ErrorAnswer(500, "InternalError", "We encountered an internal error. Please try again.");
}

// One client's connection, with one of its own to the upstream.
class FaultProxy::Connection {
 public:
  Connection(FaultProxy& proxy, int fd) : proxy_(proxy), client_(fd, proxy.stop_) {}

  void Run() {
    while (!proxy_.stop_ && Serve()) {
    }
  }

 private:
  // False at the end of the connection.
  bool Serve() {
    ProxyRequest request;
    const std::string text = client_.ReadHead();
    if (text.empty()) return false;
    const Head head = ParseHead(text);
    const auto words = Split(head.first, ' ');
    if (words.size() != 3) return false;
    request.method = words[0];
    request.target = words[1];
    request.headers = head.fields;
    const int64_t length = ParseInt(Field(head, "content-length")).value_or(0);
    if (length < 0 || length > kMaxBody) return false;
    {
      const std::lock_guard lock(proxy_.mutex_);
      request.attempt =
          ++proxy_.attempts_[request.method + " " + request.target + " " + request.Header("range")];
      ++proxy_.counters_.requests;
      proxy_.counters_.most_at_once = std::max(proxy_.counters_.most_at_once, ++proxy_.running_);
    }
    const bool goes_on = Handle(request, text, static_cast<size_t>(length));
    const std::lock_guard lock(proxy_.mutex_);
    --proxy_.running_;
    return goes_on;
  }

  bool Handle(ProxyRequest& request, const std::string& head_text, size_t length) {
    const Fault fault = proxy_.Choose(request);
    if (fault.kind == FaultKind::kReset) {
      client_.Reset();
      return false;
    }
    const size_t wanted = fault.kind == FaultKind::kResetInBody
                              ? std::min(length, static_cast<size_t>(fault.bytes))
                              : length;
    while (request.body.size() < wanted) {
      const std::string piece = client_.ReadSome(std::min(kPiece, wanted - request.body.size()));
      if (piece.empty()) return false;
      proxy_.Throttle(proxy_.in_, static_cast<int64_t>(piece.size()));
      request.body += piece;
    }
    if (fault.kind == FaultKind::kResetInBody) {
      client_.Reset();
      return false;
    }
    proxy_.Sleep(proxy_.options_.latency_s);
    if (fault.kind == FaultKind::kStall) {
      proxy_.Sleep(fault.seconds);
      client_.Reset();
      return false;
    }
    Answer answer;
    if (fault.kind == FaultKind::kAnswer) {
      answer = MakeAnswer(fault.status, fault.head, fault.body);
    } else if (!proxy_.options_.folder.empty()) {
      answer = FromFolder(proxy_.options_.folder, request);
    } else if (!Ask(request, head_text, &answer)) {
      client_.Reset();
      return false;
    }
    if (fault.kind == FaultKind::kLoseAnswer) {
      client_.Reset();
      return false;
    }
    if (request.method == "HEAD") answer.body.clear();
    if (fault.kind == FaultKind::kCorrupt && !answer.body.empty()) {
      answer.body[static_cast<size_t>(fault.bytes) % answer.body.size()] ^= 1;
    }
    if (fault.kind == FaultKind::kTruncate) {
      answer.body.resize(std::min(answer.body.size(), static_cast<size_t>(fault.bytes)));
    }
    if (!client_.Send(answer.head)) return false;
    for (size_t at = 0; at < answer.body.size(); at += kPiece) {
      const std::string_view piece = std::string_view(answer.body).substr(at, kPiece);
      proxy_.Throttle(proxy_.out_, static_cast<int64_t>(piece.size()));
      if (!client_.Send(piece)) return false;
    }
    {
      const std::lock_guard lock(proxy_.mutex_);
      proxy_.counters_.answer_bytes += static_cast<int64_t>(answer.body.size());
    }
    return fault.kind != FaultKind::kTruncate;
  }

  // Passes the request on as it came, so that its signature stays valid.
  bool Ask(const ProxyRequest& request, const std::string& head_text, Answer* answer) {
    for (int attempt = 0; attempt < 2; ++attempt) {
      const bool fresh = upstream_ == nullptr;
      if (fresh) {
        const int fd = ConnectTo(proxy_.options_.upstream_host, proxy_.options_.upstream_port);
        if (fd < 0) return false;
        upstream_ = std::make_unique<Socket>(fd, proxy_.stop_);
      }
      if (upstream_->Send(head_text) && upstream_->Send(request.body) && Receive(request, answer)) {
        return true;
      }
      upstream_.reset();
      // A kept connection may have been closed by the server meanwhile.
      if (fresh) return false;
    }
    return false;
  }

  bool Receive(const ProxyRequest& request, Answer* answer) {
    const std::string text = upstream_->ReadHead();
    if (text.empty()) return false;
    const Head head = ParseHead(text);
    answer->status = static_cast<int>(ParseInt(std::string_view(head.first).substr(9, 3)).value_or(0));
    answer->head = text;
    answer->body.clear();
    if (request.method == "HEAD" || answer->status == 204 || answer->status == 304) return true;
    if (Lower(Field(head, "transfer-encoding")) != "chunked") {
      const int64_t length = ParseInt(Field(head, "content-length")).value_or(0);
      return upstream_->ReadExactly(static_cast<size_t>(length), &answer->body);
    }
    std::string line;
    while (upstream_->ReadLine(&line)) {
      const size_t bytes = std::stoul(line, nullptr, 16);
      if (!upstream_->ReadExactly(bytes, &answer->body) || !upstream_->ReadLine(&line)) return false;
      if (bytes != 0) continue;
      std::string fields;
      for (const auto& [name, value] : head.fields) {
        if (name != "transfer-encoding") fields += fmt::format("{}: {}\r\n", name, value);
      }
      *answer = MakeAnswer(answer->status, fields, std::move(answer->body));
      return true;
    }
    return false;
  }

  FaultProxy& proxy_;
  Socket client_;
  std::unique_ptr<Socket> upstream_;
};

Result<std::unique_ptr<FaultProxy>> FaultProxy::Start(FaultOptions options) {
  std::unique_ptr<FaultProxy> proxy(new FaultProxy(std::move(options)));
  proxy->listen_fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  ::setsockopt(proxy->listen_fd_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(proxy->options_.listen_port));
  socklen_t length = sizeof(address);
  auto* plain = reinterpret_cast<sockaddr*>(&address);
  if (::bind(proxy->listen_fd_, plain, length) != 0 || ::listen(proxy->listen_fd_, 256) != 0 ||
      ::getsockname(proxy->listen_fd_, plain, &length) != 0) {
    return ErrnoError("cannot listen on", fmt::format("127.0.0.1:{}", proxy->options_.listen_port), errno);
  }
  proxy->port_ = ntohs(address.sin_port);
  proxy->accept_thread_ = std::thread([raw = proxy.get()] { raw->Accept(); });
  return proxy;
}

FaultProxy::~FaultProxy() {
  stop_ = true;
  if (accept_thread_.joinable()) accept_thread_.join();
  for (std::thread& connection : connections_) connection.join();
  if (listen_fd_ >= 0) ::close(listen_fd_);
}

std::string FaultProxy::url() const { return fmt::format("http://127.0.0.1:{}", port_); }

FaultCounters FaultProxy::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void FaultProxy::Accept() {
  while (!stop_) {
    pollfd entry = {.fd = listen_fd_, .events = POLLIN, .revents = 0};
    if (::poll(&entry, 1, 50) <= 0) continue;
    const int fd = ::accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    const std::lock_guard lock(mutex_);
    ++counters_.connections;
    connections_.emplace_back([this, fd] { Connection(*this, fd).Run(); });
  }
}

Fault FaultProxy::Choose(const ProxyRequest& request) {
  Fault fault;
  if (options_.script) fault = options_.script(request);
  if (fault.kind == FaultKind::kNone && request.attempt <= options_.last_faulty_attempt) {
    const RngKey key{.seed = options_.seed,
                     .purpose = RngPurpose::kSampling,
                     .stream = HashName(request.method + " " + request.target + " " + request.Header("range"))};
    const uint64_t index = static_cast<uint64_t>(request.attempt) * 4;
    double u = key.Uniform(index);
    const auto hit = [&u](double probability) {
      u -= probability;
      return u < 0;
    };
    if (hit(options_.internal_error)) {
      fault = InternalErrorAnswer();
    } else if (hit(options_.slow_down)) {
      fault = SlowDown();
    } else if (hit(options_.reset)) {
      fault.kind = FaultKind::kReset;
    } else if (hit(options_.truncate)) {
      fault.kind = FaultKind::kTruncate;
      fault.bytes = static_cast<int64_t>(key.Uniform(index + 1) * 1'000'000);
    } else if (hit(options_.lose_answer)) {
      fault.kind = FaultKind::kLoseAnswer;
    }
  }
  if (fault.kind != FaultKind::kNone) {
    const std::lock_guard lock(mutex_);
    ++counters_.faults;
  }
  return fault;
}

void FaultProxy::Throttle(Gate& gate, int64_t bytes) {
  if (options_.bandwidth_bytes_per_s <= 0) return;
  double until;
  {
    const std::lock_guard lock(gate.mutex);
    gate.free_at_s = std::max(gate.free_at_s, MonotonicSeconds()) +
                     static_cast<double>(bytes) / static_cast<double>(options_.bandwidth_bytes_per_s);
    until = gate.free_at_s;
  }
  Sleep(until - MonotonicSeconds());
}

void FaultProxy::Sleep(double seconds) const {
  const double end = MonotonicSeconds() + seconds;
  for (double left = seconds; left > 0 && !stop_; left = end - MonotonicSeconds()) {
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(left, 0.05)));
  }
}

}  // namespace tessera::services
