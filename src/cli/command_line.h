// Commands and their options. The parser behind it, CLI11, is all inline code: it is compiled once,
// in command_line.cc, and not in every command.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "base/error.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tessera::cli {

// A handle; the command line owns the option.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}
  Option Required();
  Option ShowDefault();  // The variable's value at this moment, in --help.
  Option Range(int low, int high);
  Option Range(double low, double high);
  Option NonNegative();
  Option OneOf(std::initializer_list<const char*> values);
  Option TypeName(const std::string& name);
  Option Excludes(Option other);
  Option Delimiter(char separator);  // Of a list: `--x A,B` too.
  Option OnePerName();               // Of a list: `--x A --x B`, and never `--x A B`.

 private:
  CLI::Option* option_;
};

// A handle; the command line owns the command.
class Command {
 public:
  explicit Command(CLI::App* app) : app_(app) {}
  Command AddCommand(const std::string& name, const std::string& help) const;
  // Options are named "-o,--output"; a name without dashes is a positional argument. T is one of
  // std::string, std::filesystem::path, bool, int, int64_t, uint64_t, float, double, std::optional
  // of an integer, or std::vector of strings, int64_t or double. `value` must live as long as the
  // command line.
  template <class T>
  Option AddOption(const std::string& names, T& value, const std::string& help = {}) const;
  Option AddFlag(const std::string& names, bool& value, const std::string& help = {}) const;
  void RequireCommand() const;  // One of the commands below must be named.
  void SetFooter(const std::string& text) const;
  void SetCallback(std::function<void()> run) const;

 private:
  CLI::App* app_;
};

// Parses, and runs the callback of the command that was named, or prints what --help or --version
// asked for. The error is one of usage.
Status RunCommandLine(int argc, char** argv, const std::string& description,
                      const std::string& version, const std::function<void(Command)>& declare);

}  // namespace tessera::cli
