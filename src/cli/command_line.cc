#include "cli/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "base/strings.h"

namespace tessera::cli {

Option Option::Required() {
  option_->required();
  return *this;
}

Option Option::ShowDefault() {
  option_->capture_default_str();
  return *this;
}

Option Option::Range(int low, int high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::Range(double low, double high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::NonNegative() {
  option_->check(CLI::NonNegativeNumber);
  return *this;
}

Option Option::OneOf(std::initializer_list<const char*> values) {
  option_->check(CLI::IsMember(std::vector<std::string>(values.begin(), values.end())));
  return *this;
}

Option Option::TypeName(const std::string& name) {
  option_->type_name(name);
  return *this;
}

Option Option::Excludes(Option other) {
  option_->excludes(other.option_);
  return *this;
}

Option Option::Delimiter(char separator) {
  option_->delimiter(separator);
  return *this;
}

Option Option::OnePerName() {
  option_->allow_extra_args(false);
  return *this;
}

Command Command::AddCommand(const std::string& name, const std::string& help) const {
  return Command(app_->add_subcommand(name, help));
}

template <class T>
Option Command::AddOption(const std::string& names, T& value, const std::string& help) const {
  return Option(app_->add_option(names, value, help));
}
template Option Command::AddOption(const std::string&, std::string&, const std::string&) const;
template Option Command::AddOption(const std::string&, std::filesystem::path&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, bool&, const std::string&) const;
template Option Command::AddOption(const std::string&, int&, const std::string&) const;
template Option Command::AddOption(const std::string&, int64_t&, const std::string&) const;
template Option Command::AddOption(const std::string&, uint64_t&, const std::string&) const;
template Option Command::AddOption(const std::string&, float&, const std::string&) const;
template Option Command::AddOption(const std::string&, double&, const std::string&) const;
template Option Command::AddOption(const std::string&, std::optional<int>&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, std::optional<int64_t>&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, std::optional<uint64_t>&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, std::vector<std::string>&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, std::vector<int64_t>&,
                                   const std::string&) const;
template Option Command::AddOption(const std::string&, std::vector<double>&,
                                   const std::string&) const;

Option Command::AddFlag(const std::string& names, bool& value, const std::string& help) const {
  return Option(app_->add_flag(names, value, help));
}

void Command::RequireCommand() const { app_->require_subcommand(1); }
void Command::SetFooter(const std::string& text) const { app_->footer(text); }
void Command::SetCallback(std::function<void()> run) const { app_->callback(std::move(run)); }

namespace {

// What CLI11 says about the arguments, with the command to ask next; a word that is no command is
// named, with the one that was probably meant.
Error UsageError(const CLI::App& app, std::string_view what, const std::string& first) {
  std::vector<std::string> names;
  for (const CLI::App* each : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(each->get_name());
    if (names.back() != first) continue;
    // The innermost subcommand that was recognised has the help that fits.
    std::string command = "tessera " + first;
    for (std::vector<CLI::App*> inner = each->get_subcommands(); !inner.empty();
         inner = inner.front()->get_subcommands()) {
      command += " " + inner.front()->get_name();
    }
    return InvalidArgument(fmt::format("{}; see `{} --help`", what, command));
  }
  if (first.empty() || first.starts_with("-")) {
    return InvalidArgument(fmt::format("{}; the commands are {}; see `tessera --help`",
                                       first.empty() ? "name a command" : what, Join(names, ", ")));
  }
  const auto nearest = NearestKey(first, names);
  return InvalidArgument(fmt::format("'{}' is no command{}; the commands are {}", first,
                                     nearest ? fmt::format(" (did you mean '{}'?)", *nearest) : "",
                                     Join(names, ", ")));
}

}  // namespace

Status RunCommandLine(int argc, char** argv, const std::string& description,
                      const std::string& version, const std::function<void(Command)>& declare) {
  CLI::App app{description};
  app.name("tessera");
  app.set_version_flag("--version", version);
  declare(Command(&app));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return UsageError(app, error.what(), argc > 1 ? argv[1] : "");
    }
    app.exit(error);  // Prints the help or the version.
  }
  return {};
}

}  // namespace tessera::cli
