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
  if (name == "pooled") return GuardKind::Pooled;
  STD_TORCH_CHECK(false, "exprune: unknown guard '", name, "'");
}

Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::Relu;
  if (name == "relu6") return Activation::Relu6;
  if (name == "relu_squared") return Activation::ReluSquared;
  STD_TORCH_CHECK(false, "exprune: unknown activation '", name, "'");
}

// --- planes: how the channels of an image are cut -------------------------------------------------------------------

constexpr int64_t kLine = 16;                // numbers of a cache line
constexpr int64_t kStep = 64;                // numbers that the widest kernel takes at once
constexpr int64_t kTilePixels = 64;
constexpr int64_t kLinearChunk = 512;
constexpr int64_t kFewPixels = 4;
constexpr int64_t kLeastLanes = 8;           // pixels of the smallest register tile of a head in pixel lanes
constexpr int64_t kMostTaps = 64;
constexpr int64_t kSmallImage = 16;          // pixels: a third of the taps of a 3 x 3 kernel lie in the padding
constexpr int64_t kLongTap = 256;            // channels, of which finding out who reads a tap takes a small part
constexpr int64_t kLargeWeights = 1 << 18;   // numbers

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

bool is_linear(const Geometry& g) {
  return g.rows_in == 1 && g.columns_in == 1 && g.padding_rows == 0 && g.padding_columns == 0;
}

// The widest chunk, in channels. It depends on one image and never on how many there are: the order of a sum does too.
int64_t widest_chunk(const Site& site) {
  const Geometry& g = site.geometry;
  if (is_linear(g)) return site.block > kLinearChunk ? site.block : kLinearChunk / site.block * site.block;
  if (site.few_pixels) return INT64_MAX;
  const int64_t height = g.rows_in + 2 * g.padding_rows, width = g.columns_in + 2 * g.padding_columns;
  const int64_t tile_rows = divide_up(kTilePixels, g.columns_out);
  const int64_t rows = (tile_rows - 1) * g.stride_rows + (g.kernel_rows - 1) * g.dilation_rows + 1;
  const int64_t read = site.by_taps ? g.rows_in * g.columns_in : (rows < height ? rows : height) * width;
  const int64_t channels = kernels(site.dtype).chunk_numbers / read / kStep * kStep;
  return channels < kStep ? kStep : channels;
}

// Adds planes for channels first .. last of images of that many pixels. No plane cuts a term of `block` channels.
void add_planes(std::vector<Plane>& planes, int64_t first, int64_t last, int64_t widest, int64_t block, int64_t pixels,
                bool natural, int64_t channels) {
  const int64_t count = divide_up(last - first, widest), unit = block == 1 ? kStep : block;
  const int64_t steps = divide_up(divide_up(last - first, count), unit) * unit;
  const int64_t step = count == 1 ? last - first : steps < widest ? steps : widest;
  for (int64_t begin = first; begin < last; begin += step) {
    const int64_t end = begin + step < last ? begin + step : last;
    const int64_t pitch = natural ? channels : divide_up(end - begin, kLine) * kLine;
    const int64_t offset = natural ? begin : planes.empty() ? 0 : planes.back().offset + planes.back().pitch * pixels;
    planes.push_back({begin, end, offset, pitch});
  }
}

// --- runs -----------------------------------------------------------------------------------------------------------

// One chunk's runs: one a tap, or one a kernel row where the taps are neighbours in the plane and in the weight. Joined
// are taps of whole vectors only, so that a sum does not depend on it: how an image lies in memory decides, too.
void add_chunk(Built& built, const Image& image, const Plane& plane, const Weight& weight, bool merge) {
  const Geometry& g = built.site.geometry;
  const int64_t length = plane.last - plane.first;
  const bool whole = length == plane.pitch && length == weight.channels && weight.column_stride == length &&
                     length % kLine == 0;
  const bool one = g.kernel_columns == 1 || (merge && whole && g.dilation_columns == 1);
  const int64_t taps = one ? 1 : g.kernel_columns;
  int32_t runs = 0;
  built.of_row.push_back(0);
  for (int64_t ky = 0; ky < g.kernel_rows; ++ky) {
    for (int64_t kx = 0; kx < taps; ++kx, ++runs) {
      const int64_t input = (ky * g.dilation_rows * image.width + kx * g.dilation_columns) * plane.pitch;
      built.runs.push_back({input, ky * weight.row_stride + kx * weight.column_stride + plane.first,
                            one ? length * g.kernel_columns : length});
    }
    built.of_row.push_back(runs);
  }
  built.chunks.push_back({nullptr, nullptr, plane});
}

// The segments of a site: chunk pointers are set last, when the vectors do not move any more.
void add_segments(Built& built) {
  Site& site = built.site;
  const bool squares = needs_squares(site.guard.kind);
  std::vector<int64_t> ends;  // chunks up to the end of each segment
  std::vector<int64_t> runs_before;
  const auto add = [&](const Image& image, const Plane& plane, const Weight& weight) {
    runs_before.push_back(static_cast<int64_t>(built.runs.size()));
    add_chunk(built, image, plane, weight, !squares && !site.by_taps);
  };
  if (site.principal) {
    for (const Plane& plane : built.head_planes) add(site.head_input, plane, built.up);
    ends.push_back(static_cast<int64_t>(built.chunks.size()));
  }
  int64_t stage = 0;
  for (const Plane& plane : built.planes) {
    while (!site.principal && stage < site.stages && plane.first >= site.guard.seen[stage] * site.block) {
      ends.push_back(static_cast<int64_t>(built.chunks.size()));
      ++stage;
    }
    add(site.input, plane, stage == 0 && site.packed_head ? built.up : built.weight);
  }
  while (static_cast<int64_t>(ends.size()) < site.stages + 1) ends.push_back(static_cast<int64_t>(built.chunks.size()));
  for (size_t c = 0; c < built.chunks.size(); ++c) {
    built.chunks[c].runs = built.runs.data() + runs_before[c];
    built.chunks[c].of_row = built.of_row.data() + static_cast<int64_t>(c) * (site.geometry.kernel_rows + 1);
  }
  int64_t begin = 0;
  for (int64_t end : ends) {
    built.segments.push_back({built.chunks.data() + begin, end - begin});
    begin = end;
  }
  site.segments = built.segments.data();
}

// --- images ---------------------------------------------------------------------------------------------------------

int64_t padded(int64_t size, int64_t padding) { return size + 2 * padding; }

float* scratch(Purpose purpose, int64_t numbers) {
  return static_cast<float*>(host().scratch(purpose, numbers * static_cast<int64_t>(sizeof(float))));
}

bool lies_dense(const Source& source, const Geometry& g, int64_t channels) {
  return source.dtype == Dtype::Float32 && (source.channel == 1 || channels == 1) &&
         (g.columns_in == 1 || source.column == channels) &&
         (g.rows_in == 1 || source.row == channels * g.columns_in) &&
         (g.images == 1 || source.image == channels * g.columns_in * g.rows_in);
}

int64_t numbers_of(const std::vector<Plane>& planes, int64_t pixels) {
  int64_t numbers = 0;
  for (const Plane& plane : planes) {
    const int64_t end = plane.offset + plane.pitch * (pixels - 1) + plane.last - plane.first;
    const int64_t full = (end + kLine - 1) / kLine * kLine + kLine;
    numbers = full > numbers ? full : numbers;
  }
  return numbers;
}

// The input, widened and with a border of zeros; the tensor itself where it lies as wanted already.
void make_input(Built& built, const Source& source, int64_t channels) {
  Site& site = built.site;
  const Geometry& g = site.geometry;
  Image& image = site.input;
  image = {nullptr, channels, padded(g.columns_in, g.padding_columns), padded(g.rows_in, g.padding_rows), nullptr, 0};
  const int64_t pixels = g.images * image.height * image.width, widest = widest_chunk(site);
  const bool bare = g.padding_rows == 0 && g.padding_columns == 0 && lies_dense(source, g, channels);
  const bool natural = site.few_pixels || (bare && channels <= widest && site.stages == 0);
  int64_t begin = 0;
  for (int64_t s = 0; s < site.stages && !site.principal; ++s) {
    const int64_t end = site.guard.seen[s] * site.block;
    add_planes(built.planes, begin, end, widest, site.block, pixels, natural, channels);
    begin = end;
  }
  if (begin < channels) {
    add_planes(built.planes, begin, channels, widest, site.block, pixels, natural, channels);
  }
  image.planes = built.planes.data();
  image.plane_count = static_cast<int64_t>(built.planes.size());
  if (natural && bare) {
    image.data = static_cast<const float*>(source.data);
    return;
  }
  float* data = scratch(kInputImage, numbers_of(built.planes, pixels));
  Image whole = image;
  const Plane all_channels{0, channels, 0, channels};
  if (natural) {  // its planes lie within one another: written one by one, each would clear a border in the others
    whole.planes = &all_channels;
    whole.plane_count = 1;
  }
  kernels(site.dtype).widen_image(source, g, data, whole, host());
  image.data = data;
}

void make_head_input(Built& built, const Tensor& down) {
  Site& site = built.site;
  const Geometry& g = site.geometry;
  Image& image = site.head_input;
  image = {nullptr, down.size(0), site.input.width, site.input.height, nullptr, 0};
  const int64_t pixels = g.images * image.height * image.width;
  add_planes(built.head_planes, 0, image.channels, widest_chunk(site), 1, pixels, site.few_pixels, image.channels);
  image.planes = built.head_planes.data();
  image.plane_count = static_cast<int64_t>(built.head_planes.size());
  const int64_t numbers = numbers_of(built.head_planes, pixels);
  float* data = scratch(kHeadImage, numbers);
  if (g.padding_rows || g.padding_columns) std::memset(data, 0, sizeof(float) * static_cast<size_t>(numbers));
  const Rows rows{down.data_ptr(), down.strides()[0]};
  kernels(site.dtype).dense_pixels(site.input, g, rows, data, image, host());
  image.data = data;
}

// The ticks of the input, four channels in the place of a float.
void make_ticks(Built& built) {
  Site& site = built.site;
  const Geometry& g = site.geometry;
  Image& image = site.head_input;
  image = {nullptr, site.input.channels / 4, site.input.width, site.input.height, nullptr, 0};
  built.head_planes.push_back({0, image.channels, 0, image.channels});
  image.planes = built.head_planes.data();
  image.plane_count = 1;
  float* data = scratch(kHeadImage, g.images * image.height * image.width * image.channels);
  float* ticks = scratch(kImageTicks, 2 * g.images);
  int32_t* zeros = reinterpret_cast<int32_t*>(ticks + g.images);
  kernels(site.dtype).tick_image(site.input, g, reinterpret_cast<uint8_t*>(data), image, ticks, zeros, host());
  image.data = data;
  site.coded.ticks = ticks;
  site.coded.zeros = zeros;
}

Weight weight_of(const Tensor& tensor) {
  const bool flat = tensor.dim() == 2;
  const bool neighbours = tensor.size(1) == 1 || tensor.strides()[1] == 1;
  Weight weight;
  if (neighbours) {
    weight.kept = tensor;
  } else {  // right, and slow: whoever lowers a graph lays weights out once
    weight.kept = flat ? made_contiguous(tensor) : channels_last(tensor);
  }
  weight.data = weight.kept.data_ptr();
  weight.outputs = tensor.size(0);
  weight.channels = tensor.size(1);
  const auto strides = weight.kept.strides();
  weight.output_stride = strides[0];
  if (!flat) weight.row_stride = strides[2], weight.column_stride = strides[3];
  return weight;
}

void set_guard(Built& built, const Head& head, int64_t terms) {
  Site& site = built.site;
  Guard& guard = site.guard;
  guard.kind = guard_of(head.guard);
  guard.number = static_cast<float>(head.number);
  built.seen = head.stages;
  guard.seen = built.seen.data();
  guard.terms = terms;
  guard.elements = built.weight.channels * site.geometry.kernel_rows * site.geometry.kernel_columns;
  STD_TORCH_CHECK((guard.kind == GuardKind::None) == head.stages.empty(), "exprune: guard '", head.guard, "' with ",
                  head.stages.size(), " stages");
  const bool two = guard.kind == GuardKind::Bound || guard.kind == GuardKind::Pooled;
  if (two || guard.kind == GuardKind::Calibrated) {
    STD_TORCH_CHECK(head.limits.has_value(), "exprune: guard '", head.guard, "' needs its limits");
    built.limits = widened(head.limits, site.stages * (two ? 2 : 1) * site.outputs, "limits");
    guard.limits = built.limits.data;
  }
}

constexpr int64_t kMostProducts = 60000;  // of a coded head, as in exprune_fx/ops/coded.py: 127 * 255 times as many stay below 2^31

// The codes, four channels in the place of a float, and their numbers.
void set_coded_head(Built& built, const Head& head, const Tensor& weight) {
  Site& site = built.site;
  const Tensor& codes = *head.codes;
  const int64_t channels = weight.size(1), taps = weight.size(2) * weight.size(3);
  STD_TORCH_CHECK(head.code_numbers.has_value(), "exprune: codes without their numbers");
  STD_TORCH_CHECK(site.guard.kind == GuardKind::Calibrated || site.guard.kind == GuardKind::Pooled,
                  "exprune: guard '", head.guard, "' cannot look at a coded head");
  STD_TORCH_CHECK(site.stages == 1 && head.stages[0] == channels && !head.up.has_value(),
                  "exprune: a coded head has one stage, after all channels");
  STD_TORCH_CHECK(channels % 4 == 0 && channels * taps <= kMostProducts, "exprune: no coded head over ", channels,
                  " channels and ", taps, " taps");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Char && codes.dim() == 4 && codes.size(0) == site.outputs &&
                      codes.size(1) == channels && codes.size(2) == weight.size(2) && codes.size(3) == weight.size(3),
                  "exprune: codes must be int8, in the weight's shape");
  built.codes = channels_last(codes);
  built.up.data = built.codes.data_ptr();
  built.up.outputs = site.outputs;
  built.up.channels = built.up.column_stride = channels / 4;
  built.up.row_stride = built.up.column_stride * weight.size(3);
  built.up.output_stride = built.up.row_stride * weight.size(2);
  site.head_weight = {built.up.data, built.up.output_stride};
  built.code_numbers = widened(head.code_numbers, 2 * site.outputs, "code_numbers");
  const float* scales = built.code_numbers.data;
  site.coded = {scales, scales + site.outputs, nullptr, nullptr, nullptr, has_vnni()};
  if (!head.code_rest.has_value()) return;
  STD_TORCH_CHECK(head.code_rest->scalar_type() == ScalarType::Short && head.code_rest->sizes().equals(codes.sizes()) &&
                      site.dtype == Dtype::Float32,
                  "exprune: code_rest must be int16, in the shape of a float32 weight");
  built.code_rest = channels_last(*head.code_rest);
  site.coded.rest = static_cast<const int16_t*>(built.code_rest.data_ptr());
  built.weight = built.up;  // laid out like the codes, of single numbers
  built.weight.channels *= 4, built.weight.column_stride *= 4, built.weight.row_stride *= 4, built.weight.output_stride *= 4;
  site.weight = {nullptr, built.weight.output_stride};
}

void set_window(Site& site, const Sizes& window) {
  STD_TORCH_CHECK((site.guard.kind == GuardKind::Pooled) == !window.empty(), "exprune: a window without rivals, or rivals "
                  "without a window");
  if (window.empty()) return;
  STD_TORCH_CHECK(window.size() == 2 && window[0] >= 1 && window[1] >= 1 && window[0] <= kTilePixels &&
                      window[1] <= kTilePixels && window[0] * window[1] <= kTilePixels,
                  "exprune: a window is a pair, of ", kTilePixels, " pixels at most");
  site.window_rows = window[0];
  site.window_columns = window[1];
}

}  // namespace

void build(Built& built, const Source& source, const Geometry& geometry, const Tensor& weight, const Maybe& bias,
           const Head& head, int64_t block, const std::string& activation) {
  Site& site = built.site;
  site.dtype = dtype_of(weight, "the weight");
  STD_TORCH_CHECK(source.dtype == site.dtype, "exprune: input and weight differ in dtype");
  site.geometry = geometry;
  built.weight = weight_of(weight);
  site.outputs = weight.size(0);
  site.pixels = geometry.images * geometry.rows_out * geometry.columns_out;
  site.weight = site.head_weight = {built.weight.data, built.weight.output_stride};
  site.block = block;
  site.stages = static_cast<int64_t>(head.stages.size());
  const bool coded = head.codes.has_value();
  site.principal = head.down.has_value() || coded;
  site.packed_head = !site.principal && head.up.has_value();
  site.activation = activation_of(activation);
  built.bias = widened(bias, site.outputs, "the bias");
  site.bias = built.bias.data;
  const int64_t channels = weight.size(1);
  STD_TORCH_CHECK(channels % block == 0, "exprune: ", channels, " features are no whole terms of ", block);
  set_guard(built, head, channels / block);
  int64_t before = 0;
  for (int64_t stage : head.stages) {
    STD_TORCH_CHECK(stage > before && (site.principal || stage * block <= channels), "exprune: stages must increase");
    before = stage;
  }
  const int64_t pixels = geometry.rows_out * geometry.columns_out;  // of one image
  const int64_t taps = geometry.kernel_rows * geometry.kernel_columns;
  const bool linear = is_linear(geometry);
  set_window(site, head.window);
  const int64_t members = site.window_rows * site.window_columns;
  STD_TORCH_CHECK(!coded || members <= kLeastLanes, "exprune: a coded head holds windows of ", kLeastLanes, " rivals");
  site.few_pixels = !coded && members == 0 && taps <= kMostTaps && (linear ? geometry.images : pixels) <= kFewPixels;
  site.by_taps = !linear && !site.few_pixels && taps <= kMostTaps && pixels <= kSmallImage && channels >= kLongTap &&
                 (geometry.padding_rows || geometry.padding_columns);
  const bool squares = needs_squares(site.guard.kind);
  site.head_in_pixel_lanes = coded || (site.stages > 0 && !squares && !site.few_pixels &&
                                       pixels >= kernels(site.dtype).head_pixels && members <= kLeastLanes);
  site.large = site.outputs * channels * taps > kLargeWeights;
  site.in_memory = site.large && linear && site.few_pixels;
  if (site.pixels == 0) return;
  make_input(built, source, channels);
  site.head_input = site.input;
  if (coded) {
    set_coded_head(built, head, weight);
    make_ticks(built);
  } else if (site.principal) {
    STD_TORCH_CHECK(head.up.has_value() && site.stages == 1, "exprune: a principal head needs down, up and one rank");
    STD_TORCH_CHECK(dtype_of(*head.down, "down") == site.dtype && dtype_of(*head.up, "up") == site.dtype,
                    "exprune: down and up must have the weight's dtype");
    STD_TORCH_CHECK(head.down->dim() == 2 && head.down->size(1) == channels && head.down->size(0) == head.stages[0],
                    "exprune: down must be [rank, channels]");
    STD_TORCH_CHECK(head.up->dim() == weight.dim() && head.up->size(0) == site.outputs &&
                        head.up->size(1) == head.stages[0] && numel(*head.up) == site.outputs * head.stages[0] * taps,
                    "exprune: up must be [outputs, rank, ...] with the weight's kernel");
    built.up = weight_of(*head.up);
    site.head_weight = {built.up.data, built.up.output_stride};
    make_head_input(built, row_major(*head.down));
  }
  if (site.packed_head) {
    STD_TORCH_CHECK(site.stages > 0 && !squares && head.up->dim() == weight.dim() && head.up->size(0) == site.outputs &&
                        head.up->size(1) == head.stages[0] * block &&
                        numel(*head.up) == site.outputs * head.stages[0] * block * taps &&
                        dtype_of(*head.up, "up") == site.dtype,
                    "exprune: up without down must be the first stage's columns (channels) of the weight");
    built.up = weight_of(*head.up);
    site.head_weight = {built.up.data, built.up.output_stride};
  }
  add_segments(built);
  if (site.guard.kind == GuardKind::Bound) {
    float* norms = scratch(kNorms, (site.stages + 1) * site.pixels);
    kernels(site.dtype).input_norms(site, norms, host());
    site.guard.input_norms = norms;
  }
}

void set_codes(Built& built, const CodeTensors& given) {
  if (!given.codes.has_value()) return;
  STD_TORCH_CHECK(given.numbers.has_value() && given.slack.has_value(), "exprune: codes without their numbers or slack");
  const Site& site = built.site;
  const int64_t columns = built.weight.channels;
  Sizes& ends = built.code_ends;
  if (!site.principal && !needs_squares(site.guard.kind)) {
    for (int64_t stage : built.seen) ends.push_back(stage * site.block);
  }
  if (ends.empty() || ends.back() < columns) ends.push_back(columns);
  int64_t blocks = 0, begin = 0;
  for (int64_t end : ends) {
    blocks += divide_up(end - begin, kCodeBlock);
    begin = end;
  }
  STD_TORCH_CHECK(given.codes->scalar_type() == ScalarType::Char &&
                      numel(*given.codes) == site.outputs * columns + kReadBeyond && given.codes->is_contiguous(),
                  "exprune: codes are int8, one for each weight, and ", kReadBeyond, " more");
  built.codes = *given.codes;
  built.code_numbers = widened(given.numbers, (1 + blocks) * site.outputs, "code_numbers");
  built.code_slack = widened(given.slack, 3, "code_slack");
  if (static_cast<int64_t>(ends.size()) != site.stages + 1 && ends.size() != 1) return;
  built.site.codes = {static_cast<const int8_t*>(built.codes.data_ptr()), built.code_numbers.data, built.code_slack.data,
                      ends.data(), static_cast<int64_t>(ends.size()), nullptr, nullptr};
  if (!given.rest.has_value()) return;
  STD_TORCH_CHECK(given.rest->scalar_type() == ScalarType::Short && numel(*given.rest) == site.outputs * columns &&
                      given.rest->is_contiguous() && site.dtype == Dtype::Float32 && !needs_squares(site.guard.kind),
                  "exprune: code_rest is int16, one for each float32 weight, and under no guard that squares terms");
  STD_TORCH_CHECK(site.pixels == 0 || site.few_pixels, "exprune: code_rest is for calls of few rows, not of ", site.pixels);
  built.code_rest = *given.rest;
  built.site.codes.rest = static_cast<const int16_t*>(built.code_rest.data_ptr());
}

}  // namespace exprune
