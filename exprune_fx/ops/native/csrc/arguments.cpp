#include "arguments.h"

#include <cstring>

namespace exprune {

namespace {

GuardKind guard_of(const std::string& name) {
  if (name == "none") return GuardKind::None;
  if (name == "threshold") return GuardKind::Threshold;
  if (name == "stats_test") return GuardKind::StatsTest;
  if (name == "finite_population") return GuardKind::FinitePopulation;
  if (name == "calibrated") return GuardKind::Calibrated;
  if (name == "bound") return GuardKind::Bound;
  STD_TORCH_CHECK(false, "exprune: unknown guard '", name, "'");
}

Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::Relu;
  if (name == "relu6") return Activation::Relu6;
  if (name == "relu_squared") return Activation::ReluSquared;
  STD_TORCH_CHECK(false, "exprune: unknown activation '", name, "'");
}

// Strides of a weight [outputs, channels, kh, kw] whose channels are neighbours.
struct Layout {
  int64_t output, row, column, channels;
};

Layout layout_of(const Tensor& weight) {
  const auto strides = weight.strides();
  return {strides[0], strides[2], strides[3], weight.size(1)};
}

// Adds the segment of channels first .. last.
void add_segment(Built& built, const Image& image, const Layout& layout, int64_t first, int64_t last, bool merge) {
  const Geometry& g = built.site.geometry;
  const bool whole = first == 0 && last == layout.channels && image.channels == layout.channels;
  const bool one = merge && whole && g.dilation_columns == 1 && (layout.column == layout.channels || g.kernel_columns == 1);
  built.of_row.push_back(static_cast<int32_t>(built.runs.size()));
  for (int64_t ky = 0; ky < g.kernel_rows; ++ky) {
    for (int64_t kx = 0; kx < (one ? 1 : g.kernel_columns); ++kx) {
      const int64_t input = (ky * g.dilation_rows * image.width + kx * g.dilation_columns) * image.channels + first;
      built.runs.push_back({input, ky * layout.row + kx * layout.column + first,
                            one ? layout.channels * g.kernel_columns : last - first});
    }
    built.of_row.push_back(static_cast<int32_t>(built.runs.size()));
  }
}

void add_segments(Built& built, const Head& head) {
  Site& site = built.site;
  const bool squares = site.guard.kind == GuardKind::StatsTest || site.guard.kind == GuardKind::FinitePopulation;
  const Layout weight = layout_of(built.weight);
  const int64_t segments = site.stages + 1, rows = site.geometry.kernel_rows;
  int64_t seen = 0;
  if (site.principal) {
    add_segment(built, site.head_input, layout_of(built.up), 0, site.head_input.channels, true);
  } else {
    for (int64_t stage : head.stages) {
      add_segment(built, site.input, weight, seen, stage * site.block, !squares);
      seen = stage * site.block;
    }
  }
  add_segment(built, site.input, weight, seen, weight.channels, true);
  // Each segment's row boundaries were pushed as rows + 1 numbers that count all runs; make them point into the runs.
  for (int64_t s = 0; s < segments; ++s) {
    built.segments.push_back({built.runs.data(), built.of_row.data() + s * (rows + 1)});
  }
}

int64_t padded(int64_t size, int64_t padding) { return size + 2 * padding; }

float* scratch(Purpose purpose, int64_t numbers) {
  return static_cast<float*>(host().scratch(purpose, numbers * static_cast<int64_t>(sizeof(float))));
}

// The input, widened and with a border of zeros; the tensor itself where it is that already.
Image image_of(const Source& source, const Geometry& g, int64_t channels) {
  Image image{nullptr, channels, padded(g.columns_in, g.padding_columns), padded(g.rows_in, g.padding_rows)};
  const bool border = g.padding_rows != 0 || g.padding_columns != 0;
  const bool dense = (source.channel == 1 || channels == 1) && (g.columns_in == 1 || source.column == channels) &&
                     (g.rows_in == 1 || source.row == channels * g.columns_in) &&
                     (g.images == 1 || source.image == channels * g.columns_in * g.rows_in);
  if (!border && dense && source.dtype == Dtype::Float32) {
    image.data = static_cast<const float*>(source.data);
    return image;
  }
  float* data = scratch(kInputImage, g.images * image.height * image.width * channels);
  kernels().widen_image(source, g, data, image, host());
  image.data = data;
  return image;
}

Image head_image(const Built& built, const Tensor& down) {
  const Site& site = built.site;
  const Geometry& g = site.geometry;
  Image image{nullptr, down.size(0), site.input.width, site.input.height};
  const int64_t numbers = g.images * image.height * image.width * image.channels;
  float* data = scratch(kHeadImage, numbers);
  if (g.padding_rows || g.padding_columns) std::memset(data, 0, sizeof(float) * static_cast<size_t>(numbers));
  const Rows rows{down.data_ptr(), down.strides()[0]};
  kernels().dense_pixels(site.input, g, site.dtype, rows, data, image, host());
  image.data = data;
  return image;
}

Tensor with_channels_last(const Tensor& weight) {
  if (channel_last(weight)) return weight;
  return torch::stable::contiguous(weight, torch::headeronly::MemoryFormat::ChannelsLast);
}

void set_guard(Built& built, const Head& head, int64_t terms) {
  Site& site = built.site;
  Guard& guard = site.guard;
  guard.kind = guard_of(head.guard);
  guard.number = static_cast<float>(head.number);
  built.seen = head.stages;
  guard.seen = built.seen.data();
  guard.terms = terms;
  guard.elements = numel(built.weight) / (site.outputs ? site.outputs : 1);
  STD_TORCH_CHECK((guard.kind == GuardKind::None) == head.stages.empty(), "exprune: guard '", head.guard, "' with ",
                  head.stages.size(), " stages");
  const bool bound = guard.kind == GuardKind::Bound;
  if (bound || guard.kind == GuardKind::Calibrated) {
    STD_TORCH_CHECK(head.limits.has_value(), "exprune: guard '", head.guard, "' needs its limits");
    built.limits = widened(head.limits, site.stages * (bound ? 2 : 1) * site.outputs, "limits");
    guard.limits = built.limits.data();
  }
}

}  // namespace

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

std::vector<float> widened(const Maybe& tensor, int64_t expected, const char* what) {
  if (!tensor.has_value()) return {};
  STD_TORCH_CHECK(numel(*tensor) == expected, "exprune: ", what, " has ", numel(*tensor), " numbers, not ", expected);
  const Tensor wide = torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
  std::vector<float> numbers(static_cast<size_t>(expected));
  if (expected) std::memcpy(numbers.data(), wide.data_ptr(), sizeof(float) * numbers.size());
  return numbers;
}

bool channel_last(const Tensor& weight) { return weight.size(1) == 1 || weight.strides()[1] == 1; }

void build(Built& built, const Source& source, const Geometry& geometry, const Tensor& weight, const Maybe& bias,
           const Head& head, int64_t block, const std::string& activation) {
  Site& site = built.site;
  site.dtype = dtype_of(weight, "the weight");
  STD_TORCH_CHECK(source.dtype == site.dtype, "exprune: input and weight differ in dtype");
  site.geometry = geometry;
  built.weight = with_channels_last(weight);
  site.outputs = weight.size(0);
  site.pixels = geometry.images * geometry.rows_out * geometry.columns_out;
  site.weight = site.head_weight = {built.weight.data_ptr(), built.weight.strides()[0]};
  site.block = block;
  site.stages = static_cast<int64_t>(head.stages.size());
  site.principal = head.down.has_value();
  site.activation = activation_of(activation);
  built.bias = widened(bias, site.outputs, "the bias");
  site.bias = bias.has_value() ? built.bias.data() : nullptr;
  const int64_t channels = weight.size(1);
  set_guard(built, head, channels / block);
  int64_t before = 0;
  for (int64_t stage : head.stages) {
    STD_TORCH_CHECK(stage > before && (site.principal || stage * block <= channels), "exprune: stages must increase");
    before = stage;
  }
  site.input = site.head_input = image_of(source, geometry, channels);
  if (site.principal) {
    STD_TORCH_CHECK(head.up.has_value() && site.stages == 1, "exprune: a principal head needs down, up and one rank");
    STD_TORCH_CHECK(dtype_of(*head.down, "down") == site.dtype && dtype_of(*head.up, "up") == site.dtype,
                    "exprune: down and up must have the weight's dtype");
    built.up = with_channels_last(*head.up);
    site.head_weight = {built.up.data_ptr(), built.up.strides()[0]};
    site.head_input = head_image(built, torch::stable::contiguous(*head.down));
  }
  const bool squares = site.guard.kind == GuardKind::StatsTest || site.guard.kind == GuardKind::FinitePopulation;
  constexpr int64_t kManyPixels = 64;  // of an image: a register tile of pixels is filled whatever the batch
  site.head_in_pixel_lanes = site.stages > 0 && !squares && geometry.rows_out * geometry.columns_out >= kManyPixels;
  add_segments(built, head);
  site.segments = built.segments.data();
  if (site.guard.kind == GuardKind::Bound) {
    float* norms = scratch(kNorms, (site.stages + 1) * site.pixels);
    kernels().input_norms(site, norms, host());
    site.guard.input_norms = norms;
  }
}

}  // namespace exprune
