// The fused operators: schemas, registration, and the way from tensors to kernels.
#include <atomic>
#include <cstdlib>

#include "arguments.h"

namespace exprune {

namespace {

// --- threads and memory ---------------------------------------------------------------------------------------------

int64_t threads() { return torch::stable::get_num_threads(); }

void share_out(int64_t pieces, Piece piece, const void* context) {
  const int64_t available = threads();
  const int64_t threads = available < pieces ? available : pieces;
  if (threads <= 1) {
    for (int64_t i = 0; i < pieces; ++i) piece(context, i);
    return;
  }
  std::atomic<int64_t> next{0};  // pieces differ in work: whoever is free takes the next
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) piece(context, i);
    }
  });
}

// Kept from call to call by each thread that calls operators: fresh pages would cost more than some kernels.
struct Scratch {
  void* data[kPurposes] = {};
  int64_t bytes[kPurposes] = {};
  ~Scratch() {
    for (void* p : data) std::free(p);
  }
};

void* scratch(int purpose, int64_t bytes) {
  thread_local Scratch kept;
  if (kept.bytes[purpose] < bytes) {
    std::free(kept.data[purpose]);
    kept.bytes[purpose] = 0;
    const size_t rounded = static_cast<size_t>((bytes + 63) / 64 * 64);
    kept.data[purpose] = std::aligned_alloc(64, rounded);
    STD_TORCH_CHECK(kept.data[purpose] != nullptr, "exprune: no memory for ", rounded, " bytes");
    kept.bytes[purpose] = static_cast<int64_t>(rounded);
  }
  return kept.data[purpose];
}

// --- instruction sets -----------------------------------------------------------------------------------------------

struct InstructionSet {
  const char* name;
  bool (*is_here)();                // whether this processor has it
  const Kernels& (*kernels[3])();  // by Dtype
  bool (*has_vnni)();
};

template <Isa isa>
constexpr InstructionSet set_of(const char* name, bool (*is_here)(), bool (*vnni)() = [] { return false; }) {
  return {name, is_here, {kernels_of<isa, Dtype::Float32>, kernels_of<isa, Dtype::BFloat16>, kernels_of<isa, Dtype::Half>}, vnni};
}

#if defined(EXPRUNE_AVX512) || defined(EXPRUNE_AVX2)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef EXPRUNE_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_vnni() { return __builtin_cpu_supports("avx512vnni"); }
#endif

// Those that this library was compiled for, the best first.
constexpr InstructionSet kCompiled[] = {
#ifdef EXPRUNE_AVX512
    set_of<Isa::Avx512>("avx512", has_avx512, has_avx512_vnni),
    set_of<Isa::Avx512>("avx512_without_vnni", has_avx512),  // for tests: never the best
#endif
#ifdef EXPRUNE_AVX2
    set_of<Isa::Avx2>("avx2", has_avx2),
#endif
#ifdef EXPRUNE_PORTABLE
    set_of<Isa::Portable>("portable", [] { return true; }),
#endif
};

std::atomic<const InstructionSet*> chosen{nullptr};

// The one of this name, as EXPRUNE_ISA gives it too; the best with "", "auto" or "all".
void choose(std::string name) {
  const bool any = name.empty() || name == "auto" || name == "all";
  std::string names;
  for (const InstructionSet& set : kCompiled) {
    if ((any || name == set.name) && set.is_here()) {
      chosen = &set;
      return;
    }
    names += std::string(names.empty() ? "" : ", ") + set.name;
  }
  STD_TORCH_CHECK(false, "exprune: no kernels for ", any ? "this processor" : name.c_str(),
                  ": the library was compiled for ", names);
}

const InstructionSet& instruction_set() {
  if (!chosen) {
    const char* named = std::getenv("EXPRUNE_ISA");
    choose(named ? named : "");
  }
  return *chosen;
}

}  // namespace

bool has_vnni() { return instruction_set().has_vnni(); }

const Kernels& kernels(Dtype dtype) { return instruction_set().kernels[static_cast<int>(dtype)](); }

const Host& host() {
  static const Host kept{share_out, threads, scratch};
  return kept;
}

namespace {

std::string kernels_isa() { return instruction_set().name; }

// --- linear ---------------------------------------------------------------------------------------------------------

Sizes with_last(const Tensor& x, int64_t last) {
  Sizes sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = last;
  return sizes;
}

struct LinearSite {
  RowsOf rows;
  Built built;
};

void build_linear(LinearSite& made, const Tensor& x, const Tensor& weight, const Maybe& bias, const Head& head, int64_t block,
                  const std::string& activation, const CodeTensors& codes) {
  STD_TORCH_CHECK(weight.dim() == 2 && block >= 1, "exprune: a linear weight is [outputs, features]");
  made.rows = rows_of(x, weight.size(1));
  const RowsOf& rows = made.rows;
  const Source source{dtype_of(x, "the input"), rows.kept.data_ptr(), rows.row_stride, 0, 0, rows.column_stride};
  const Geometry geometry{rows.rows, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1};
  build(made.built, source, geometry, weight, bias, head, block, activation);
  set_codes(made.built, codes);
}

Tensor staged_linear_relu(Tensor x, Tensor weight, Maybe bias, Maybe residual, Maybe down, Maybe up, Sizes stages,
                          int64_t block, std::string guard, double number, Maybe limits, std::string activation,
                          Maybe codes, Maybe code_numbers, Maybe code_slack, Maybe code_rest) {
  LinearSite made;
  build_linear(made, x, weight, bias, {down, up, stages, guard, number, limits}, block, activation,
               {codes, code_numbers, code_slack, code_rest});
  Site& site = made.built.site;
  Tensor result = new_like(x, with_last(x, site.outputs));
  if (residual.has_value()) {
    made.built.residual = widened(residual, site.pixels * site.outputs, "the residual");
    site.residual = made.built.residual.data;
    site.residual_image = site.outputs;
    site.residual_output = 1;
  }
  site.result = result.data_ptr();
  kernels(site.dtype).site(site, host());
  return result;
}

// --- feed-forward blocks --------------------------------------------------------------------------------------------

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::Float32 ? 4 : 2; }

struct Value {
  const Tensor& weight;
  const Maybe& bias;
};

// The second layer, and its weight once more in 24 bits: a row of codes and rest, and a scale, for each hidden unit.
struct Second {
  const Tensor& weight;
  const Maybe& bias;
  const Maybe& codes;
  const Maybe& scales;
  const Maybe& rest;
};

// Gives a second layer its weight in 24 bits, if that is there.
void set_split(SecondLayer& layer, const Second& given, Dtype dtype, Floats& scales) {
  if (!given.codes.has_value()) return;
  STD_TORCH_CHECK(given.scales.has_value() && given.rest.has_value() && dtype == Dtype::Float32,
                  "exprune: out_codes, of a float32 weight, come with out_scales and out_rest");
  const Tensor &codes = *given.codes, &rest = *given.rest;
  const Sizes shape{layer.hidden_size, layer.outputs};
  for (const Tensor* table : {&codes, &rest}) {
    STD_TORCH_CHECK(table->sizes().equals(shape) && table->is_contiguous(),
                    "exprune: out_codes and out_rest are contiguous, [hidden, out]");
  }
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Char && rest.scalar_type() == ScalarType::Short,
                  "exprune: out_codes are int8, out_rest is int16");
  scales = widened(given.scales, layer.hidden_size, "out_scales");
  layer.codes = static_cast<const int8_t*>(codes.data_ptr());
  layer.rest = static_cast<const int16_t*>(rest.data_ptr());
  layer.scales = scales.data;
}

Tensor feed_forward(const Tensor& x, LinearSite& made, const Value* value, const Second& out) {
  const Tensor& weight = out.weight;
  Site& site = made.built.site;
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == site.outputs,
                  "exprune: the second weight must read the hidden units");
  STD_TORCH_CHECK(dtype_of(weight, "the second weight") == site.dtype, "exprune: the weights differ in dtype");
  void* hidden = scratch(kHidden, site.pixels * site.outputs * bytes_of(site.dtype));
  site.result = hidden;
  ValueBranch branch{};
  Tensor value_rows;
  Floats value_bias;
  if (value) {
    STD_TORCH_CHECK(value->weight.dim() == 2 && value->weight.size(0) == site.outputs &&
                        value->weight.size(1) == made.built.weight.channels,
                    "exprune: the value branch must have the gate's shape");
    STD_TORCH_CHECK(dtype_of(value->weight, "the value branch") == site.dtype, "exprune: the weights differ in dtype");
    value_rows = row_major(value->weight);
    value_bias = widened(value->bias, site.outputs, "the value branch's bias");
    branch = {site.pixels, site.outputs, site.input,
              {value_rows.data_ptr(), value_rows.strides()[0]}, value_bias.data, hidden};
  }
  Tensor columns = weight;
  if (weight.size(0) > 1 && weight.strides()[0] != 1) {  // right, and slow: whoever lowers a graph stores columns
    columns = torch::stable::transpose(made_contiguous(torch::stable::transpose(weight, 0, 1)), 0, 1);
  }
  const Floats wide_bias = widened(out.bias, weight.size(0), "the second bias");
  Tensor result = new_like(x, with_last(x, weight.size(0)));
  SecondLayer second{site.pixels, site.outputs, weight.size(0), hidden, {columns.data_ptr(), columns.strides()[1]},
                     wide_bias.data, result.data_ptr(), nullptr, nullptr, nullptr};
  Floats scales;
  set_split(second, out, site.dtype, scales);
  kernels(site.dtype).feed_forward({&site, value ? &branch : nullptr, second}, host());
  return result;
}

Tensor staged_ffn(Tensor x, Tensor weight, Maybe bias, Maybe down, Maybe up, Sizes stages, int64_t block,
                  std::string guard, double number, Maybe limits, std::string activation, Tensor weight_out,
                  Maybe bias_out, Maybe codes, Maybe code_numbers, Maybe code_slack, Maybe code_rest, Maybe out_codes,
                  Maybe out_scales, Maybe out_rest) {
  LinearSite made;
  build_linear(made, x, weight, bias, {down, up, stages, guard, number, limits}, block, activation,
               {codes, code_numbers, code_slack, code_rest});
  return feed_forward(x, made, nullptr, {weight_out, bias_out, out_codes, out_scales, out_rest});
}

Tensor staged_gated_ffn(Tensor x, Tensor weight, Maybe bias, Maybe down, Maybe up, Sizes stages, int64_t block,
                        std::string guard, double number, Maybe limits, std::string activation, Tensor weight_value,
                        Maybe bias_value, Tensor weight_out, Maybe bias_out, Maybe codes, Maybe code_numbers,
                        Maybe code_slack, Maybe code_rest, Maybe out_codes, Maybe out_scales, Maybe out_rest) {
  LinearSite made;
  build_linear(made, x, weight, bias, {down, up, stages, guard, number, limits}, block, activation,
               {codes, code_numbers, code_slack, code_rest});
  const Value value{weight_value, bias_value};
  return feed_forward(x, made, &value, {weight_out, bias_out, out_codes, out_scales, out_rest});
}

// --- convolution ----------------------------------------------------------------------------------------------------

int64_t size_out(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

Tensor staged_conv2d_relu(Tensor x, Tensor weight, Maybe bias, Maybe residual, Maybe down, Maybe up, Sizes stages,
                          std::string guard, double number, Maybe limits, Sizes stride, Sizes padding, Sizes dilation,
                          int64_t groups, std::string activation, std::optional<Sizes> window, Maybe codes,
                          Maybe code_numbers, Maybe code_rest, bool pools) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "exprune: input and weight must have four dimensions");
  STD_TORCH_CHECK(groups == 1, "exprune: the kernels hold no grouped convolution");
  STD_TORCH_CHECK(x.size(1) == weight.size(1), "exprune: input and weight differ in channels");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "exprune: stride, padding and dilation are pairs");
  Geometry g{};
  g.images = x.size(0);
  g.rows_in = x.size(2), g.columns_in = x.size(3);
  g.kernel_rows = weight.size(2), g.kernel_columns = weight.size(3);
  g.stride_rows = stride[0], g.stride_columns = stride[1];
  g.padding_rows = padding[0], g.padding_columns = padding[1];
  g.dilation_rows = dilation[0], g.dilation_columns = dilation[1];
  g.rows_out = size_out(g.rows_in, g.kernel_rows, stride[0], padding[0], dilation[0]);
  g.columns_out = size_out(g.columns_in, g.kernel_columns, stride[1], padding[1], dilation[1]);
  STD_TORCH_CHECK(g.rows_out > 0 && g.columns_out > 0, "exprune: the kernel is larger than the padded input");
  const auto strides = x.strides();
  const Source source{dtype_of(x, "the input"), x.data_ptr(), strides[0], strides[2], strides[3], strides[1]};
  Built built;
  Site& site = built.site;
  build(built, source, g, weight, bias, {down, up, stages, guard, number, limits, window.value_or(Sizes{}), codes, code_numbers, code_rest},
        1, activation);
  STD_TORCH_CHECK(!pools || site.window_rows > 0, "exprune: a pool without a window");
  site.pools = pools;
  const int64_t rows = pools ? g.rows_out / site.window_rows : g.rows_out;
  const int64_t columns = pools ? g.columns_out / site.window_columns : g.columns_out;
  STD_TORCH_CHECK(rows > 0 && columns > 0, "exprune: the window is larger than what it pools");
  const Tensor result = new_like(x, {g.images, site.outputs, rows, columns},
                                 {rows * columns * site.outputs, 1, columns * site.outputs, site.outputs});
  if (residual.has_value()) {
    Tensor wide = *residual;
    if (wide.scalar_type() != ScalarType::Float) wide = torch::stable::to(wide, ScalarType::Float);
    STD_TORCH_CHECK(wide.dim() == 4 && wide.size(0) == g.images && wide.size(1) == site.outputs &&
                        wide.size(2) == g.rows_out && wide.size(3) == g.columns_out,
                    "exprune: the residual must have the result's shape");
    const auto of = wide.strides();
    built.residual = {static_cast<const float*>(wide.data_ptr()), wide};
    site.residual = built.residual.data;
    site.residual_image = of[0], site.residual_output = of[1], site.residual_row = of[2], site.residual_column = of[3];
  }
  site.result = result.data_ptr();
  kernels(site.dtype).site(site, host());
  return result;
}

}  // namespace
}  // namespace exprune

#define EXPRUNE_HEAD "Tensor? down, Tensor? up, int[] stages, "
#define EXPRUNE_GUARD "str guard, float number, Tensor? limits, "
#define EXPRUNE_CODES ", Tensor? codes=None, Tensor? code_numbers=None, Tensor? code_slack=None, Tensor? code_rest=None"
#define EXPRUNE_OUT_CODES ", Tensor? out_codes=None, Tensor? out_scales=None, Tensor? out_rest=None"

STABLE_TORCH_LIBRARY_FRAGMENT(exprune, library) {
  library.def("kernels_isa() -> str");
  library.def("_force_isa(str isa) -> ()");
  library.def("staged_linear_relu(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, " EXPRUNE_HEAD
              "int block, " EXPRUNE_GUARD "str activation" EXPRUNE_CODES ") -> Tensor");
  library.def("staged_conv2d_relu(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, " EXPRUNE_HEAD EXPRUNE_GUARD
              "int[] stride, int[] padding, int[] dilation, int groups, str activation, int[]? window=None, Tensor? codes=None, "
              "Tensor? code_numbers=None, Tensor? code_rest=None, "
              "bool pools=False) -> Tensor");
  library.def("staged_ffn(Tensor x, Tensor weight, Tensor? bias, " EXPRUNE_HEAD "int block, " EXPRUNE_GUARD
              "str activation, Tensor weight_out, Tensor? bias_out" EXPRUNE_CODES EXPRUNE_OUT_CODES ") -> Tensor");
  library.def("staged_gated_ffn(Tensor x, Tensor weight, Tensor? bias, " EXPRUNE_HEAD "int block, " EXPRUNE_GUARD
              "str activation, Tensor weight_value, Tensor? bias_value, Tensor weight_out, "
              "Tensor? bias_out" EXPRUNE_CODES EXPRUNE_OUT_CODES ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(exprune, CompositeExplicitAutograd, library) {
  library.impl("kernels_isa", TORCH_BOX(&exprune::kernels_isa));
  library.impl("_force_isa", TORCH_BOX(&exprune::choose));
}

STABLE_TORCH_LIBRARY_IMPL(exprune, CPU, library) {
  library.impl("staged_linear_relu", TORCH_BOX(&exprune::staged_linear_relu));
  library.impl("staged_conv2d_relu", TORCH_BOX(&exprune::staged_conv2d_relu));
  library.impl("staged_ffn", TORCH_BOX(&exprune::staged_ffn));
  library.impl("staged_gated_ffn", TORCH_BOX(&exprune::staged_gated_ffn));
}
