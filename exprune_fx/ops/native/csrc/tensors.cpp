#include "tensors.h"

#include "arguments.h"

namespace exprune {

Dtype dtype_of(const Tensor& tensor, const char* what) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::Float32;
    case ScalarType::BFloat16:
      return Dtype::BFloat16;
    case ScalarType::Half:
      return Dtype::Half;
    default:
      STD_TORCH_CHECK(false, "exprune: ", what, " must be float32, bfloat16 or float16");
  }
}

int64_t numel(const Tensor& tensor) {
  int64_t count = 1;
  for (int64_t size : tensor.sizes()) count *= size;
  return count;
}

Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor channels_last(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const int64_t channels = tensor.size(1), columns = tensor.size(3), rows = tensor.size(2);
  const bool lies_so = strides[1] == 1 && strides[3] == channels && strides[2] == columns * channels &&
                       strides[0] == rows * columns * channels;
  return lies_so ? tensor : torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

Floats widened(const Maybe& tensor, int64_t expected, const char* what) {
  if (!tensor.has_value()) return {};
  STD_TORCH_CHECK(numel(*tensor) == expected, "exprune: ", what, " has ", numel(*tensor), " numbers, not ", expected);
  const Dtype dtype = dtype_of(*tensor, what);
  Floats wide{nullptr, made_contiguous(*tensor), nullptr};
  if (dtype == Dtype::Float32) {
    wide.data = static_cast<const float*>(wide.kept.data_ptr());
    return wide;
  }
  wide.made.reset(new float[static_cast<size_t>(expected)]);
  kernels(dtype).widen(wide.kept.data_ptr(), expected, wide.made.get());
  wide.data = wide.made.get();
  return wide;
}

Tensor row_major(const Tensor& matrix) {
  return matrix.size(1) == 1 || matrix.strides()[1] == 1 ? matrix : made_contiguous(matrix);
}

RowsOf rows_of(const Tensor& x, int64_t features) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(-1) == features, "exprune: input and weight differ in features");
  const int64_t rows = features ? numel(x) / features : 0;
  if (x.dim() != 2 && x.is_contiguous()) return {x, rows, features, 1};
  const Tensor matrix = x.dim() == 2 ? x : torch::stable::reshape(x, {rows, features});
  const auto strides = matrix.strides();
  return {matrix, matrix.size(0), strides[0], strides[1]};
}

Tensor new_like(const Tensor& like, const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t numbers = 1;
  for (size_t dim = sizes.size(); dim-- > 0; numbers *= sizes[dim] ? sizes[dim] : 1) strides[dim] = numbers;
  return new_like(like, sizes, strides);
}

Tensor new_like(const Tensor& like, const Sizes& sizes, const Sizes& strides) {
  int32_t dtype;
  STD_TORCH_CHECK(aoti_torch_get_dtype(like.get(), &dtype) == AOTI_TORCH_SUCCESS, "exprune: a tensor without a dtype");
  AtenTensorHandle made;
  const AOTITorchError error = aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                        dtype, aoti_torch_device_type_cpu(), 0, &made);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "exprune: no memory for a result");
  return Tensor(made);
}

}  // namespace exprune
