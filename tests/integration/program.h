// Runs the built program as a person would: arguments, output, exit code, signals.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tessera::integration {

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Runs in the new process before the program: drops rights, sets limits.
using ProcessSetup = std::function<void()>;

// A running program, with its output in files below `folder`.
class Program {
 public:
  Program(const std::filesystem::path& folder, const std::vector<std::string>& arguments,
          const ProcessSetup& setup = {}) {
    static int counter = 0;
    const std::string name = "program-" + std::to_string(counter++);
    out_ = folder / (name + ".out");
    err_ = folder / (name + ".err");
    std::vector<std::string> words = {TESSERA_BINARY};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      const int out = ::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      const int err = ::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      ::dup2(out, STDOUT_FILENO);
      ::dup2(err, STDERR_FILENO);
      if (setup) setup();
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Program() {
    if (running_) {
      ::kill(pid_, SIGKILL);
      Wait();
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void Signal(int number) const { ::kill(pid_, number); }
  // The exit code, or minus the signal that ended the program.
  int Wait() {
    if (running_) {
      int status = 0;
      ::waitpid(pid_, &status, 0);
      running_ = false;
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return code_;
  }
  // Waits at most `timeout_s` until `condition` holds; false when the program ended before.
  template <class Condition>
  bool WaitUntil(Condition condition, double timeout_s = 60) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
    while (std::chrono::steady_clock::now() < end) {
      if (condition()) return true;
      int status = 0;
      if (running_ && ::waitpid(pid_, &status, WNOHANG) == pid_) {
        running_ = false;
        code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        return condition();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  std::string out() const { return ReadText(out_); }
  std::string err() const { return ReadText(err_); }

 private:
  std::filesystem::path out_, err_;
  pid_t pid_ = -1;
  bool running_ = true;
  int code_ = 0;
};

}  // namespace tessera::integration
