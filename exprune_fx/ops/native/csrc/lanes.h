// W neurons computed beside one another: either one neuron at W pixels, or W neurons at one pixel.
#pragma once

#include "guard.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kTile = 64;  // pixels that a piece of work covers at most

struct Pixel {
  int64_t index;            // in the order of the kernels: row by row through all images
  int64_t cell;             // its receptive field's first pixel in the padded image
  int64_t result, residual; // offset of its first neuron
  int32_t first_row, last_row, first_column, last_column;  // kernel rows and columns that do not lie in the padding
};

EXPRUNE_INLINE int32_t first_inside(int64_t origin, int64_t dilation) {
  if (dilation == 1) return static_cast<int32_t>(origin >= 0 ? 0 : -origin);  // spares a division
  return static_cast<int32_t>(origin >= 0 ? 0 : (-origin + dilation - 1) / dilation);
}

EXPRUNE_INLINE int32_t last_inside(int64_t origin, int64_t dilation, int64_t size, int64_t kernel) {
  if (origin >= size) return 0;
  const int64_t taps = dilation == 1 ? size - origin : (size - origin + dilation - 1) / dilation;
  return static_cast<int32_t>(taps < kernel ? taps : kernel);
}

// Where a pixel lies: row by row through all images. In this order the pixels that a kernel row reaches are neighbours.
struct Place {
  int64_t row, image, column;

  EXPRUNE_INLINE_METHOD void next(const Geometry& g) {
    if (++column < g.columns_out) return;
    column = 0;
    if (++image < g.images) return;
    image = 0;
    ++row;
  }
};

EXPRUNE_INLINE Place place_of(const Geometry& g, int64_t index) {
  const int64_t in_row = g.images * g.columns_out;
  return {index / in_row, index % in_row / g.columns_out, index % g.columns_out};
}

// The pixel of the result that a place is written to.
EXPRUNE_INLINE int64_t result_at(const Site& site, const Place& place) {
  const Geometry& g = site.geometry;
  if (!site.pools) return (place.image * g.rows_out + place.row) * g.columns_out + place.column;
  const int64_t rows = g.rows_out / site.window_rows, columns = g.columns_out / site.window_columns;
  return (place.image * rows + place.row / site.window_rows) * columns + place.column / site.window_columns;
}

EXPRUNE_INLINE Pixel pixel_at(const Site& site, int64_t index, const Place& place) {
  const Geometry& g = site.geometry;
  const int64_t y = place.row * g.stride_rows, x = place.column * g.stride_columns;
  const int64_t top = y - g.padding_rows, left = x - g.padding_columns;
  Pixel p;
  p.index = index;
  p.cell = (place.image * site.input.height + y) * site.input.width + x;
  p.result = result_at(site, place) * site.outputs;
  p.residual =
      place.image * site.residual_image + place.row * site.residual_row + place.column * site.residual_column;
  p.first_row = first_inside(top, g.dilation_rows);
  p.last_row = last_inside(top, g.dilation_rows, g.rows_in, g.kernel_rows);
  p.first_column = first_inside(left, g.dilation_columns);
  p.last_column = last_inside(left, g.dilation_columns, g.columns_in, g.kernel_columns);
  return p;
}

EXPRUNE_INLINE Pixel pixel_at(const Site& site, int64_t index) {
  return pixel_at(site, index, place_of(site.geometry, index));
}

// Bound's norm of what a stage has not seen (with stage == stages: of the whole input) at a pixel.
EXPRUNE_INLINE float norm_at(const Site& site, int64_t stage, int64_t pixel) {
  return site.guard.input_norms[stage * site.pixels + pixel];
}

EXPRUNE_INLINE const float* limits_of(const Site& site, int64_t stage) {
  return site.guard.limits + stage * (site.guard.kind == GuardKind::Calibrated ? 1 : 2) * site.outputs;
}

// One neuron at the pixels of a list.
struct AcrossPixels {
  const Site& site;
  const Pixel* pixels;   // of the tile
  const int32_t* list;   // positions in the tile
  int64_t output;
  int count;

  EXPRUNE_INLINE_METHOD Vec constant() const {
    const float bias = site.bias ? site.bias[output] : 0.0f;
    if (!site.residual) return all(bias);
    float numbers[W] = {};
    for (int j = 0; j < count; ++j) {
      numbers[j] = site.residual[pixels[list[j]].residual + output * site.residual_output];
    }
    return load(numbers) + all(bias);
  }

  EXPRUNE_INLINE_METHOD void recall(int64_t stage, Known& known) const {
    if (!site.guard.limits) return;
    const float* limits = limits_of(site, stage);
    known.limit = all(limits[output]);
    if (site.guard.kind != GuardKind::Bound) return;
    known.whole_limit = all(limits[site.outputs + output]);
    float rest[W] = {}, input[W] = {};
    for (int j = 0; j < count; ++j) {
      rest[j] = norm_at(site, stage, pixels[list[j]].index);
      input[j] = norm_at(site, site.stages, pixels[list[j]].index);
    }
    known.rest_norm = load(rest);
    known.input_norm = load(input);
  }

  template <class T>
  EXPRUNE_INLINE_METHOD void write(Vec y) const {
    float numbers[W];
    store(numbers, y);
    T* result = static_cast<T*>(site.result) + output;
    for (int j = 0; j < count; ++j) {
      T& to = result[pixels[list[j]].result];
      const bool wins = numbers[j] > widen(to) || numbers[j] != numbers[j];  // what is not a number wins, and stays
      if (site.pools && !wins) continue;
      to = narrow<T>(numbers[j]);
    }
  }
};

// The neurons of a list at one pixel.
struct AcrossNeurons {
  const Site& site;
  const Pixel& pixel;
  const int32_t* list;   // of outputs
  int count;

  EXPRUNE_INLINE_METHOD bool neighbours() const { return count == W && list[W - 1] - list[0] == W - 1; }  // in order

  // What stands in an array of which output `first` is the first.
  EXPRUNE_INLINE_METHOD Vec gather(const float* from, int64_t first = 0) const {
    if (neighbours()) return load(from + (list[0] - first));
    return EXPRUNE_ISA_NAMESPACE::gather(from, list, count, static_cast<int32_t>(first));
  }

  EXPRUNE_INLINE_METHOD Vec constant() const {
    const Vec bias = site.bias ? gather(site.bias) : zero();
    if (!site.residual) return bias;
    float numbers[W] = {};
    for (int j = 0; j < count; ++j) numbers[j] = site.residual[pixel.residual + list[j] * site.residual_output];
    return load(numbers) + bias;
  }

  EXPRUNE_INLINE_METHOD void recall(int64_t stage, Known& known) const {
    if (!site.guard.limits) return;
    const float* limits = limits_of(site, stage);
    known.limit = gather(limits);
    if (site.guard.kind != GuardKind::Bound) return;
    known.whole_limit = gather(limits + site.outputs);
    known.rest_norm = all(norm_at(site, stage, pixel.index));
    known.input_norm = all(norm_at(site, site.stages, pixel.index));
  }

  template <class T>
  EXPRUNE_INLINE_METHOD void write(Vec y) const {
    float numbers[W];
    store(numbers, y);
    T* result = static_cast<T*>(site.result) + pixel.result;
    for (int j = 0; j < count; ++j) result[list[j]] = narrow<T>(numbers[j]);
  }
};

// A bit for each lane that goes on after a stage.
template <class LanesT>
EXPRUNE_INLINE uint32_t alive_after(const LanesT& lanes, int64_t stage, Vec partial, Vec squares) {
  Known known{partial, squares, lanes.constant(), zero(), zero(), zero(), zero()};
  lanes.recall(stage, known);
  return ~stops(lanes.site.guard, stage, known) & lanes_below(lanes.count);
}

template <class T, class LanesT>
EXPRUNE_INLINE void finish(const LanesT& lanes, Vec sum) {
  lanes.template write<T>(activate(lanes.site.activation, sum + lanes.constant()));
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
