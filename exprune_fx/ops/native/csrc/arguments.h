// From the operators' arguments to a Site: what is checked, widened, laid out, and cut into runs.
#pragma once

#define TORCH_TARGET_VERSION 0x020b000000000000  // 2.11, the oldest torch that is supported
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "problem.h"

namespace exprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

const Kernels& kernels();
const Host& host();

// A rule and its numbers, as the operators take them.
struct Head {
  Maybe down, up;
  Sizes stages;
  std::string guard;
  double number;
  Maybe limits;
};

// What a site was built from: it owns all that the site points to.
struct Built {
  Site site{};
  Tensor weight, up;
  std::vector<Run> runs;
  std::vector<int32_t> of_row;
  std::vector<Segment> segments;
  Sizes seen;
  std::vector<float> bias, limits;
  Tensor residual;
};

Dtype dtype_of(const Tensor& tensor, const char* what);
int64_t numel(const Tensor& tensor);
std::vector<float> widened(const Maybe& tensor, int64_t expected, const char* what);
bool channel_last(const Tensor& weight);

// Fills in all but the result: geometry and source say how the input lies, weight is [outputs, channels, kh, kw].
void build(Built& built, const Source& source, const Geometry& geometry, const Tensor& weight, const Maybe& bias,
           const Head& head, int64_t block, const std::string& activation);

}  // namespace exprune
