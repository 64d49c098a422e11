#include "train/run_file_reader.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <map>
#include <sstream>
#include <utility>

#include "base/strings.h"

namespace tessera {

namespace {

constexpr size_t kShownBytes = 60;

// Builds the tree from the parser's events, so that aliases, depth and size are bounded while the
// text is read and not after it has been blown up.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string_view source, std::vector<RunFileProblem>* problems)
      : source_(source), problems_(problems) {}

  YamlValue TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& /*mark*/) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(Make(YamlValue::Kind::kNull, mark), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) Fail(mark, "an alias refers to the value that holds it");
    nodes_ += it->second.nodes;
    CheckBounds(mark, it->second.depth);
    Place(it->second.value);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    YamlValue value = Make(YamlValue::Kind::kScalar, mark);
    value.text = text;
    value.quoted = tag == "!" || tag == "tag:yaml.org,2002:str" || tag == "!!str";
    if (!value.quoted && (text == "null" || text == "~" || text == "Null" || text == "NULL")) {
      value.kind = YamlValue::Kind::kNull;
    }
    Add(std::move(value), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    Open(Make(YamlValue::Kind::kList, mark), anchor, mark);
  }
  void OnSequenceEnd() override { CloseFrame(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    Open(Make(YamlValue::Kind::kMap, mark), anchor, mark);
  }
  void OnMapEnd() override { CloseFrame(); }

 private:
  struct Frame {
    YamlValue value;
    YAML::anchor_t anchor = 0;
    int64_t first_node = 0;
    int64_t depth_below = 0;
    bool has_key = false;
    std::string key;
    int64_t key_line = 0;
  };
  struct Anchored {
    YamlValue value;
    int64_t nodes = 1;
    int64_t depth = 0;
  };

  [[noreturn]] void Fail(const YAML::Mark& mark, std::string_view what) const {
    throw ErrorException(InvalidArgument(fmt::format("{}:{}: {}", source_, mark.line + 1, what)));
  }

  YamlValue Make(YamlValue::Kind kind, const YAML::Mark& mark) {
    ++nodes_;
    CheckBounds(mark, 0);
    YamlValue value;
    value.kind = kind;
    value.line = mark.line + 1;
    return value;
  }

  void CheckBounds(const YAML::Mark& mark, int64_t depth_below) const {
    if (nodes_ > kMaxYamlNodes) {
      Fail(mark, fmt::format("more than {} values; a run file is far smaller", kMaxYamlNodes));
    }
    if (static_cast<int64_t>(frames_.size()) + depth_below > kMaxYamlDepth) {
      Fail(mark, fmt::format("nested deeper than {} levels", kMaxYamlDepth));
    }
  }

  void Open(YamlValue value, YAML::anchor_t anchor, const YAML::Mark& mark) {
    Frame frame;
    frame.value = std::move(value);
    frame.anchor = anchor;
    frame.first_node = nodes_;
    frames_.push_back(std::move(frame));
    CheckBounds(mark, 0);
  }

  void CloseFrame() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    if (frame.anchor != 0) {
      anchors_[frame.anchor] = {frame.value, nodes_ - frame.first_node + 1, frame.depth_below + 1};
    }
    if (!frames_.empty()) {
      frames_.back().depth_below = std::max(frames_.back().depth_below, frame.depth_below + 1);
    }
    Place(std::move(frame.value));
  }

  void Add(YamlValue value, YAML::anchor_t anchor) {
    if (anchor != 0) anchors_[anchor] = {value, 1, 0};
    Place(std::move(value));
  }

  void Place(YamlValue value) {
    if (frames_.empty()) {
      root_ = std::move(value);
      return;
    }
    Frame& frame = frames_.back();
    if (frame.value.kind == YamlValue::Kind::kList) {
      frame.value.items.push_back(std::move(value));
      return;
    }
    if (!frame.has_key) {
      frame.has_key = true;
      frame.key = value.text;
      frame.key_line = value.line;
      if (value.kind != YamlValue::Kind::kScalar || value.text.empty()) {
        problems_->push_back(
            {value.line, "", fmt::format("a key must be a word, found {}", value.Describe())});
        frame.key.clear();
      }
      return;
    }
    frame.has_key = false;
    if (frame.key.empty()) return;
    // A plain value on the next line, or none at all, is still found by its key.
    value.line = value.kind == YamlValue::Kind::kNull ? frame.key_line : value.line;
    if (const YamlValue* first = frame.value.Find(frame.key)) {
      problems_->push_back({frame.key_line, "",
                            fmt::format("the key '{}' stands here a second time; it was set in "
                                        "line {}: remove one of them",
                                        frame.key.substr(0, kShownBytes), first->line)});
      return;
    }
    frame.value.members.push_back({std::move(frame.key), std::move(value)});
  }

  std::string source_;
  std::vector<RunFileProblem>* problems_;
  YamlValue root_;
  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, Anchored> anchors_;
  int64_t nodes_ = 0;
};

}  // namespace

const YamlValue* YamlValue::Find(std::string_view key) const {
  for (const YamlMember& member : members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

std::string YamlValue::Describe() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return fmt::format("a list of {}", items.size());
    case Kind::kMap:
      return "a section";
    case Kind::kScalar:
      break;
  }
  if (text.size() > kShownBytes) return fmt::format("'{}...'", text.substr(0, kShownBytes));
  return fmt::format("'{}'", text);
}

Result<YamlValue> ParseYaml(std::string_view text, std::string_view source,
                            std::vector<RunFileProblem>* problems) {
  if (static_cast<int64_t>(text.size()) > kMaxRunFileBytes) {
    return InvalidArgument(fmt::format("{}: {} is too large for a run file (at most {})", source,
                                       FormatBytes(static_cast<int64_t>(text.size())),
                                       FormatBytes(kMaxRunFileBytes)));
  }
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(source, problems);
    if (!parser.HandleNextDocument(builder)) {
      YamlValue empty;
      empty.kind = YamlValue::Kind::kMap;
      return empty;
    }
    YamlValue root = builder.TakeRoot();
    TreeBuilder second(source, problems);
    if (parser.HandleNextDocument(second)) {
      return InvalidArgument(
          fmt::format("{}: holds more than one YAML document; remove the line '---'", source));
    }
    return root;
  } catch (const YAML::Exception& exception) {
    if (exception.mark.is_null()) {
      return InvalidArgument(fmt::format("{}: is not YAML: {}", source, exception.msg));
    }
    return InvalidArgument(fmt::format("{}:{}:{}: is not YAML: {}", source, exception.mark.line + 1,
                                       exception.mark.column + 1, exception.msg));
  } catch (const ErrorException& exception) {
    return exception.error();
  }
}

namespace {

void MarkAsOverride(std::string_view override_text, YamlValue* value) {
  value->line = 0;
  value->override_text = override_text;
  for (YamlValue& item : value->items) MarkAsOverride(override_text, &item);
  for (YamlMember& member : value->members) MarkAsOverride(override_text, &member.value);
}

Result<YamlValue> ParseOverrideValue(std::string_view text, std::string_view override_text,
                                     std::vector<RunFileProblem>* problems) {
  const std::string_view trimmed = Trim(text);
  YamlValue value;
  if (!trimmed.empty() &&
      std::string_view("[{\"'").find(trimmed.front()) != std::string_view::npos) {
    std::vector<RunFileProblem> found;
    TESSERA_ASSIGN(value, ParseYaml(trimmed, "value", &found));
    for (RunFileProblem& problem : found) {
      problems->push_back({0, std::string(override_text), std::move(problem.message)});
    }
  } else if (trimmed.empty() || trimmed == "null" || trimmed == "~") {
    value.kind = YamlValue::Kind::kNull;
  } else {
    value.kind = YamlValue::Kind::kScalar;
    value.text = trimmed;
  }
  MarkAsOverride(override_text, &value);
  return value;
}

}  // namespace

void ApplyOverride(std::string_view override_text, YamlValue* root,
                   std::vector<RunFileProblem>* problems) {
  const auto fail = [&](std::string message) {
    problems->push_back({0, std::string(override_text), std::move(message)});
  };
  const size_t equals = override_text.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    return fail("must have the form key.path=value");
  }
  const std::string_view path = Trim(override_text.substr(0, equals));
  const std::vector<std::string_view> parts = Split(path, '.');
  if (static_cast<int64_t>(parts.size()) > kMaxYamlDepth ||
      static_cast<int64_t>(override_text.size()) > kMaxRunFileBytes) {
    return fail("is too long");
  }
  Result<YamlValue> value =
      ParseOverrideValue(override_text.substr(equals + 1), override_text, problems);
  if (!value.ok()) return fail(value.error().message);

  YamlValue* at = root;
  std::string so_far;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].empty()) return fail("has an empty part between the dots of its key");
    if (at->is_null()) at->kind = YamlValue::Kind::kMap;
    if (at->kind != YamlValue::Kind::kMap) {
      return fail(
          fmt::format("'{}' is {} and no section; set it as a whole", so_far, at->Describe()));
    }
    so_far += (so_far.empty() ? "" : ".") + std::string(parts[i]);
    YamlValue* next = nullptr;
    for (YamlMember& member : at->members) {
      if (member.key == parts[i]) next = &member.value;
    }
    if (next == nullptr) {
      YamlValue made;
      MarkAsOverride(override_text, &made);
      at->members.push_back({std::string(parts[i]), std::move(made)});
      next = &at->members.back().value;
    }
    at = next;
  }
  *at = std::move(*value);
}

}  // namespace tessera
