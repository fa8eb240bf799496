// What the operators do with tensors, without torch's dispatcher wherever that can be: with caches that the weights
// have emptied, one call through it takes as long as a small kernel.
#pragma once

#define TORCH_TARGET_VERSION 0x020b000000000000  // 2.11, the oldest torch that is supported
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <memory>
#include <optional>
#include <vector>

#include "problem.h"

namespace exprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

Dtype dtype_of(const Tensor& tensor, const char* what);
int64_t numel(const Tensor& tensor);

// Numbers as float32: the tensor's own where it is that already, else a copy.
struct Floats {
  const float* data = nullptr;
  Tensor kept;
  std::unique_ptr<float[]> made;
};

Floats widened(const Maybe& tensor, int64_t expected, const char* what);

// A tensor's numbers row by row, and an image's or a kernel's with its channels as neighbours: the tensor itself where
// they lie so.
Tensor made_contiguous(const Tensor& tensor);
Tensor channels_last(const Tensor& tensor);

// A matrix whose columns are neighbours: the tensor itself where it is one.
Tensor row_major(const Tensor& matrix);

// [..., features] as [rows, features], by the strides of both.
struct RowsOf {
  Tensor kept;
  int64_t rows, row_stride, column_stride;
};

RowsOf rows_of(const Tensor& x, int64_t features);

// New memory on the CPU with the dtype of another tensor: contiguous, or with these strides.
Tensor new_like(const Tensor& like, const Sizes& sizes);
Tensor new_like(const Tensor& like, const Sizes& sizes, const Sizes& strides);

}  // namespace exprune
