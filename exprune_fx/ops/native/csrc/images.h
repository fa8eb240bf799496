// The operator's input as the kernels want it: float32, channels last, with a border of zeros; and what is made of it.
#pragma once

#include "dot.h"
#include "lanes.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {
namespace {

constexpr int64_t kPixelsAPiece = 64;  // at most
constexpr int64_t kPiecesOfFewPixels = 16;  // wanted, so that threads share small images

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Widening {
  const Source* source;
  const Geometry* geometry;
  const Image* layout;
  float* to;
};

// One row of one plane of a padded image.
template <class T>
void widen_row(const Widening& w, const Plane& plane, int64_t image, int64_t padded_row) {
  const Geometry& g = *w.geometry;
  const int64_t channels = plane.last - plane.first, y = padded_row - g.padding_rows, pitch = plane.pitch;
  float* to = w.to + plane.offset + (image * w.layout->height + padded_row) * w.layout->width * pitch;
  if (y < 0 || y >= g.rows_in) {
    memset(to, 0, sizeof(float) * static_cast<size_t>(w.layout->width * pitch));
    return;
  }
  const size_t border = sizeof(float) * static_cast<size_t>(g.padding_columns * pitch);
  memset(to, 0, border);
  memset(to + (g.padding_columns + g.columns_in) * pitch, 0, border);
  to += g.padding_columns * pitch;
  const Source& s = *w.source;
  const T* from = static_cast<const T*>(s.data) + image * s.image + y * s.row + plane.first * s.channel;
  if (s.channel == 1) {
    for (int64_t x = 0; x < g.columns_in; ++x) {
      int64_t c = 0;
      for (; c + W <= channels; c += W) store(to + x * pitch + c, load(from + x * s.column + c));
      for (; c < channels; ++c) to[x * pitch + c] = widen(from[x * s.column + c]);
    }
    return;
  }
  for (int64_t c0 = 0; c0 < channels; c0 += W) {  // by blocks of channels: each written line is filled at once
    const int64_t c1 = c0 + W < channels ? c0 + W : channels;
    for (int64_t x = 0; x < g.columns_in; ++x) {
      for (int64_t c = c0; c < c1; ++c) to[x * pitch + c] = widen(from[x * s.column + c * s.channel]);
    }
  }
}

void widen_piece(const void* context, int64_t index) {
  const Widening& w = *static_cast<const Widening*>(context);
  const Plane* planes = w.layout->planes;
  for (const Plane* plane = planes; plane != planes + w.layout->plane_count; ++plane) {
    widen_row<Number>(w, *plane, index / w.layout->height, index % w.layout->height);
  }
}

void widen_image(const Source& source, const Geometry& geometry, float* to, const Image& layout, const Host& host) {
  const Widening widening{&source, &geometry, &layout, to};
  host.parallel(geometry.images * layout.height, widen_piece, &widening);
}

struct DensePixels {
  const Image* from;
  const Image* layout;
  const Geometry* geometry;
  const Rows* rows;
  float* to;
  int64_t pixels;
  bool few;  // pieces are neurons, not pixels
  int64_t pixels_a_piece;
};

// A pixel's place in the padded images, which are alike.
int64_t cell_of(const DensePixels& d, int64_t pixel) {
  const Geometry& g = *d.geometry;
  const int64_t x = pixel % g.columns_in, y = pixel / g.columns_in % g.rows_in, n = pixel / g.columns_in / g.rows_in;
  return (n * d.from->height + y + g.padding_rows) * d.from->width + x + g.padding_columns;
}

template <class F>
EXPRUNE_INLINE void each_plane(const Image& image, F f) {
  for (const Plane* plane = image.planes; plane != image.planes + image.plane_count; ++plane) f(*plane);
}

// Rows of one plane of the result, at up to W pixels.
template <class T>
void dense_block(const DensePixels& d, int64_t first_pixel, int count) {
  int64_t cells[W];
  for (int j = 0; j < count; ++j) cells[j] = cell_of(d, first_pixel + j);
  each_plane(*d.layout, [&](const Plane& made) {
    for (int64_t r = made.first; r < made.last; ++r) {
      const T* row = static_cast<const T*>(d.rows->data) + r * d.rows->stride;
      Vec total = zero();
      each_plane(*d.from, [&](const Plane& read) {
        const float* fields[W];
        for (int j = 0; j < count; ++j) fields[j] = d.from->data + read.offset + cells[j] * read.pitch;
        total = total + dots(count, row + read.first, fields, read.last - read.first);
      });
      float numbers[W];
      store(numbers, total);
      for (int j = 0; j < count; ++j) d.to[made.offset + cells[j] * made.pitch + r - made.first] = numbers[j];
    }
  });
}

// Rows first_row .. last_row of the result at one pixel, W at a time.
template <class T>
void dense_at(const DensePixels& d, int64_t pixel, int64_t first_row, int64_t last_row) {
  const int64_t cell = cell_of(d, pixel);
  each_plane(*d.layout, [&](const Plane& made) {
    const int64_t begin = first_row > made.first ? first_row : made.first;
    const int64_t end = last_row < made.last ? last_row : made.last;
    for (int64_t at = begin; at < end; at += W) {
      const int count = static_cast<int>(end - at < W ? end - at : W);
      Vec total = zero();
      each_plane(*d.from, [&](const Plane& read) {
        const T* rows[W];
        for (int j = 0; j < count; ++j) {
          rows[j] = static_cast<const T*>(d.rows->data) + (at + j) * d.rows->stride + read.first;
        }
        const float* field = d.from->data + read.offset + cell * read.pitch;
        total = total + dots(count, field, rows, read.last - read.first);
      });
      store_first(d.to + made.offset + cell * made.pitch + at - made.first, total, count);
    }
  });
}

void dense_piece(const void* context, int64_t index) {
  const DensePixels& d = *static_cast<const DensePixels*>(context);
  const int64_t rows = d.layout->channels;
  if (d.few) {
    const int64_t first = index * W, last = first + W < rows ? first + W : rows;
    for (int64_t p = 0; p < d.pixels; ++p) dense_at<Number>(d, p, first, last);
    return;
  }
  const int64_t end = (index + 1) * d.pixels_a_piece, last = end < d.pixels ? end : d.pixels;
  for (int64_t p = index * d.pixels_a_piece; p < last; p += W) {
    dense_block<Number>(d, p, static_cast<int>(last - p < W ? last - p : W));
  }
}

void dense_pixels(const Image& from, const Geometry& geometry, const Rows& rows, float* to,
                  const Image& layout, const Host& host) {
  const int64_t pixels = geometry.images * geometry.rows_in * geometry.columns_in;
  const bool few = pixels <= W;
  const int64_t share = pixels / (kPiecesOfFewPixels * W) * W + W;
  const int64_t a_piece = share < kPixelsAPiece ? share : kPixelsAPiece;
  const DensePixels d{&from, &layout, &geometry, &rows, to, pixels, few, a_piece};
  host.parallel(few ? divide_up(layout.channels, W) : divide_up(pixels, a_piece), dense_piece, &d);
}

struct Norms {
  const Site* site;
  float* squares;  // [stages + 1, padded pixels]
  float* norms;    // [stages + 1, pixels]
};

// The squares of one padded pixel's channels, added up from each stage's end on, and of all. A plane never straddles
// the end of a stage.
void squares_piece(const void* context, int64_t row) {
  const Norms& n = *static_cast<const Norms*>(context);
  const Site& site = *n.site;
  const Image& image = site.input;
  const int64_t all_pixels = site.geometry.images * image.height * image.width;
  for (int64_t x = row * image.width; x < (row + 1) * image.width; ++x) {
    for (int64_t s = 0; s <= site.stages; ++s) {
      const int64_t from = s == site.stages || site.principal ? 0 : site.guard.seen[s] * site.block;
      Vec sum[W];
      for (int j = 0; j < W; ++j) sum[j] = zero();
      each_plane(image, [&](const Plane& plane) {
        if (plane.first < from) return;
        const float* field = image.data + plane.offset + x * plane.pitch;
        const int64_t channels = plane.last - plane.first;
        for (int64_t c = 0; c < channels; c += W) {
          const Vec v = load_some(field + c, channels - c);
          sum[0] = fma(v, v, sum[0]);
        }
      });
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
    const int64_t corner = pixel_at(site, p).cell;
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
