// Against the reference implementation: Python's safetensors reads what we write, byte for byte as
// it would have written it, and we read what it writes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/files.h"
#include "base/test_folder.h"
#include "tensor/safetensors.h"

namespace tessera {
namespace {

constexpr const char* kScript = R"py(
import sys
import numpy as np
from safetensors.numpy import load_file, save_file
ours, theirs = sys.argv[1:3]
tensors = load_file(ours)
assert tensors["b"].tolist() == [1, 2, 3] and tensors["b"].dtype == np.uint8
assert tensors["z.a"].shape == (2, 1) and tensors["z.a"].tolist() == [[1.0], [-2.0]]
assert tensors["c"].shape == () and int(tensors["c"]) == 7
assert tensors["h"].dtype == np.float16 and tensors["e"].shape == (0, 5)
save_file(tensors, theirs, metadata={"format": "pt"})
)py";

TEST(SafetensorsPeer, SameBytesAsTheReference) {
  const std::string python = std::string(TESSERA_SOURCE_DIR) + "/.venv/bin/python";
  if (!PathExists(python)) GTEST_SKIP() << "needs the Python environment .venv";
  if (std::system((python + " -c 'import numpy, safetensors.numpy' 2>/dev/null").c_str()) != 0) {
    GTEST_SKIP() << "needs numpy and safetensors in .venv";
  }
  const TestFolder folder;
  const float a[2] = {1.0f, -2.0f};
  const uint8_t b[3] = {1, 2, 3};
  const int64_t c[1] = {7};
  const uint16_t h[2] = {0x3c00, 0xc000};
  const std::vector<TensorView> tensors = {{"b", DType::kU8, {3}, b},
                                           {"z.a", DType::kF32, {2, 1}, a},
                                           {"c", DType::kI64, {}, c},
                                           {"h", DType::kF16, {2}, h},
                                           {"e", DType::kF32, {0, 5}, nullptr}};
  ASSERT_TRUE(WriteSafetensors(folder / "ours", tensors, {{"format", "pt"}}).ok());
  folder.Write("check.py", kScript);
  const std::string command = python + " " + (folder / "check.py").string() + " " +
                              (folder / "ours").string() + " " + (folder / "theirs").string();
  ASSERT_EQ(std::system(command.c_str()), 0);
  const auto ours = ReadFile(folder / "ours");
  const auto theirs = ReadFile(folder / "theirs");
  ASSERT_TRUE(ours.ok() && theirs.ok());
  EXPECT_EQ(*ours, *theirs);
  float read[2] = {};
  const TensorTarget target = {"z.a", DType::kF32, {2, 1}, read};
  ASSERT_TRUE(ReadSafetensors(folder / "theirs", {&target, 1}).ok());
  EXPECT_EQ(std::memcmp(read, a, sizeof(a)), 0);
}

}  // namespace
}  // namespace tessera
