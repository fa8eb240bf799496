// The operator's input as the kernels want it: float32, channels last, with a border of zeros; and what is made of it.
#pragma once

#include "dot.h"
#include "lanes.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {
namespace {

constexpr int64_t kPixelsAPiece = 64;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with a null pointer to the C++ type of a dtype.
template <class F>
EXPRUNE_INLINE void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::Float32:
      return f(static_cast<float*>(nullptr));
    case Dtype::BFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case Dtype::Half:
      return f(static_cast<Half*>(nullptr));
  }
}

struct Widening {
  const Source* source;
  const Geometry* geometry;
  const Image* layout;
  float* to;
};

// One row of one padded image.
template <class T>
void widen_row(const Widening& w, int64_t image, int64_t padded_row) {
  const Geometry& g = *w.geometry;
  const int64_t channels = w.layout->channels, y = padded_row - g.padding_rows;
  float* to = w.to + (image * w.layout->height + padded_row) * w.layout->width * channels;
  if (y < 0 || y >= g.rows_in) {
    memset(to, 0, sizeof(float) * static_cast<size_t>(w.layout->width * channels));
    return;
  }
  const size_t border = sizeof(float) * static_cast<size_t>(g.padding_columns * channels);
  memset(to, 0, border);
  memset(to + (g.padding_columns + g.columns_in) * channels, 0, border);
  to += g.padding_columns * channels;
  const Source& s = *w.source;
  const T* from = static_cast<const T*>(s.data) + image * s.image + y * s.row;
  if (s.channel == 1) {
    for (int64_t x = 0; x < g.columns_in; ++x) {
      int64_t c = 0;
      for (; c + W <= channels; c += W) store(to + x * channels + c, load(from + x * s.column + c));
      for (; c < channels; ++c) to[x * channels + c] = widen(from[x * s.column + c]);
    }
    return;
  }
  for (int64_t c0 = 0; c0 < channels; c0 += W) {  // by blocks of channels: each written line is filled at once
    const int64_t c1 = c0 + W < channels ? c0 + W : channels;
    for (int64_t x = 0; x < g.columns_in; ++x) {
      for (int64_t c = c0; c < c1; ++c) to[x * channels + c] = widen(from[x * s.column + c * s.channel]);
    }
  }
}

void widen_piece(const void* context, int64_t index) {
  const Widening& w = *static_cast<const Widening*>(context);
  with_type(w.source->dtype, [&]<class T>(T*) { widen_row<T>(w, index / w.layout->height, index % w.layout->height); });
}

void widen_image(const Source& source, const Geometry& geometry, float* to, const Image& layout, const Host& host) {
  const Widening widening{&source, &geometry, &layout, to};
  host.parallel(geometry.images * layout.height, widen_piece, &widening);
}

struct DensePixels {
  const Image* from;
  const Image* layout;
  const Geometry* geometry;
  Dtype dtype;
  const Rows* rows;
  float* to;
  int64_t pixels;
  bool few;  // pieces are neurons, not pixels
};

int64_t inside(const DensePixels& d, const Image& image, int64_t pixel) {
  const Geometry& g = *d.geometry;
  const int64_t x = pixel % g.columns_in, y = pixel / g.columns_in % g.rows_in, n = pixel / g.columns_in / g.rows_in;
  return ((n * image.height + y + g.padding_rows) * image.width + x + g.padding_columns) * image.channels;
}

template <class T>
void dense_block(const DensePixels& d, int64_t first_pixel, int count, int64_t first_row, int64_t last_row) {
  const float* fields[W];
  float* to[W];
  for (int j = 0; j < count; ++j) {
    fields[j] = d.from->data + inside(d, *d.from, first_pixel + j);
    to[j] = d.to + inside(d, *d.layout, first_pixel + j);
  }
  for (int64_t r = first_row; r < last_row; ++r) {
    Vec sum[W];
    for (int j = 0; j < W; ++j) sum[j] = zero();
    accumulate(count, static_cast<const T*>(d.rows->data) + r * d.rows->stride, fields, 0, d.from->channels, sum);
    float numbers[W];
    store(numbers, sums(sum));
    for (int j = 0; j < count; ++j) to[j][r] = numbers[j];
  }
}

template <class T>
void dense_at(const DensePixels& d, int64_t pixel, int64_t first_row, int64_t last_row) {
  const float* field = d.from->data + inside(d, *d.from, pixel);
  float* to = d.to + inside(d, *d.layout, pixel);
  for (int64_t at = first_row; at < last_row; at += W) {
    const int count = static_cast<int>(last_row - at < W ? last_row - at : W);
    const T* rows[W];
    Vec sum[W];
    for (int j = 0; j < W; ++j) sum[j] = zero();
    for (int j = 0; j < count; ++j) rows[j] = static_cast<const T*>(d.rows->data) + (at + j) * d.rows->stride;
    accumulate(count, field, rows, 0, d.from->channels, sum);
    store_first(to + at, sums(sum), count);
  }
}

void dense_piece(const void* context, int64_t index) {
  const DensePixels& d = *static_cast<const DensePixels*>(context);
  const int64_t rows = d.layout->channels;
  with_type(d.dtype, [&]<class T>(T*) {
    if (d.few) {
      const int64_t first = index * W, last = first + W < rows ? first + W : rows;
      for (int64_t p = 0; p < d.pixels; ++p) dense_at<T>(d, p, first, last);
      return;
    }
    const int64_t end = (index + 1) * kPixelsAPiece, last = end < d.pixels ? end : d.pixels;
    for (int64_t p = index * kPixelsAPiece; p < last; p += W) {
      dense_block<T>(d, p, static_cast<int>(last - p < W ? last - p : W), 0, rows);
    }
  });
}

void dense_pixels(const Image& from, const Geometry& geometry, Dtype dtype, const Rows& rows, float* to,
                  const Image& layout, const Host& host) {
  const int64_t pixels = geometry.images * geometry.rows_in * geometry.columns_in;
  const bool few = pixels <= W;
  const DensePixels d{&from, &layout, &geometry, dtype, &rows, to, pixels, few};
  host.parallel(few ? divide_up(layout.channels, W) : divide_up(pixels, kPixelsAPiece), dense_piece, &d);
}

struct Norms {
  const Site* site;
  float* squares;  // [stages + 1, padded pixels]
  float* norms;    // [stages + 1, pixels]
};

// The squares of one padded pixel's channels, added up from each stage's end on, and of all.
void squares_piece(const void* context, int64_t row) {
  const Norms& n = *static_cast<const Norms*>(context);
  const Site& site = *n.site;
  const Image& image = site.input;
  const int64_t all_pixels = site.geometry.images * image.height * image.width;
  for (int64_t x = row * image.width; x < (row + 1) * image.width; ++x) {
    const float* field = image.data + x * image.channels;
    for (int64_t s = 0; s <= site.stages; ++s) {
      const bool whole = s == site.stages || site.principal;
      int64_t c = whole ? 0 : site.guard.seen[s] * site.block;
      Vec sum[W];
      for (int j = 0; j < W; ++j) sum[j] = zero();
      for (; c < image.channels; c += W) {
        const int64_t rest = image.channels - c;
        const Vec v = rest < W ? load_first(field + c, static_cast<int>(rest)) : load(field + c);
        sum[0] = fma(v, v, sum[0]);
      }
      store_first(n.squares + s * all_pixels + x, sums(sum), 1);
    }
  }
}

void norms_piece(const void* context, int64_t index) {
  const Norms& n = *static_cast<const Norms*>(context);
  const Site& site = *n.site;
  const Geometry& g = site.geometry;
  const int64_t all_pixels = g.images * site.input.height * site.input.width;
  const int64_t end = (index + 1) * kPixelsAPiece, last = end < site.pixels ? end : site.pixels;
  for (int64_t p = index * kPixelsAPiece; p < last; ++p) {
    const int64_t corner = pixel_at(site, p).input / site.input.channels;
    for (int64_t s = 0; s <= site.stages; ++s) {
      float sum = 0;
      for (int64_t ky = 0; ky < g.kernel_rows; ++ky) {
        for (int64_t kx = 0; kx < g.kernel_columns; ++kx) {
          sum += n.squares[s * all_pixels + corner + ky * g.dilation_rows * site.input.width + kx * g.dilation_columns];
        }
      }
      float lane[W] = {sum};
      store_first(n.norms + s * site.pixels + p, root(load(lane)), 1);
    }
  }
}

void input_norms(const Site& site, float* norms, const Host& host) {
  if (site.pixels == 0) return;
  const int64_t rows = site.geometry.images * site.input.height;
  const int64_t numbers = (site.stages + 1) * rows * site.input.width;
  float* squares = static_cast<float*>(host.scratch(kSquares, numbers * static_cast<int64_t>(sizeof(float))));
  const Norms n{&site, squares, norms};
  host.parallel(rows, squares_piece, &n);
  host.parallel(divide_up(site.pixels, kPixelsAPiece), norms_piece, &n);
}

}  // namespace
}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
