// From the operators' arguments to a Site: what is checked, widened, laid out, and cut into runs.
#pragma once

#include <string>
#include <vector>

#include "problem.h"
#include "tensors.h"

namespace exprune {

const Kernels& kernels(Dtype dtype);
const Host& host();
bool has_vnni();  // and may use it

// A rule and its numbers, as the operators take them.
struct Head {
  Maybe down, up;
  Sizes stages;
  std::string guard;
  double number;
  Maybe limits;
  Sizes window = {};
  Maybe codes = {}, code_numbers = {}, code_rest = {};  // of a coded head: the first two, or none
};

// A linear weight's codes, as the operators take them: the first three, and a rest perhaps, or none.
struct CodeTensors {
  const Maybe& codes;
  const Maybe& numbers;
  const Maybe& slack;
  const Maybe& rest;
};

// A weight [outputs, channels(, kh, kw)] whose channels are neighbours.
struct Weight {
  Tensor kept;
  const void* data = nullptr;
  int64_t outputs = 0, channels = 0;
  int64_t output_stride = 0, row_stride = 0, column_stride = 0;
};

// What a site was built from: it owns all that the site points to.
struct Built {
  Site site{};
  Weight weight, up;
  std::vector<Plane> planes, head_planes;
  std::vector<Run> runs;
  std::vector<int32_t> of_row;
  std::vector<Chunk> chunks;
  std::vector<Segment> segments;
  Sizes seen;
  Floats bias, limits, residual;
  Tensor codes, code_rest;
  Floats code_numbers, code_slack;
  Sizes code_ends;
};

// Fills in all but the residual and the result. The geometry and the source say how the input lies.
void build(Built& built, const Source& source, const Geometry& geometry, const Tensor& weight, const Maybe& bias,
           const Head& head, int64_t block, const std::string& activation);

// Gives a linear site that was built its codes, if there are any.
void set_codes(Built& built, const CodeTensors& given);

}  // namespace exprune
