// Many pixels: for each neuron a list of the pixels where it is alive, W of which share each load of its weights.
#pragma once

#include "dot.h"
#include "lanes.h"
#include "terms.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kPixelVectors = W == 16 ? 4 : 2;  // register tile of a head in pixel lanes: this many vectors of pixels
constexpr int kHeadNeurons = W == 4 ? 2 : (W == 16 ? 6 : 4);  // times this many neurons
constexpr int kLaneTile = kPixelVectors * W;

// A tile of pixels, and the neurons that a piece of work covers.
struct Tile {
  const Site& site;
  Pixel pixels[kTile];
  int64_t inputs[kTile], heads[kTile];
  int32_t everyone[kTile + W];
  int count;

  explicit Tile(const Site& s) : site(s) {}
};

static inline void fill(Tile& tile, int64_t first, int count) {
  tile.count = count;
  for (int j = 0; j < count; ++j) {
    tile.pixels[j] = pixel_at(tile.site, first + j);
    tile.inputs[j] = tile.pixels[j].input;
    tile.heads[j] = tile.pixels[j].head;
    tile.everyone[j] = j;
  }
  for (int j = count; j < count + W && j < kTile + W; ++j) tile.everyone[j] = 0;
}

// The sums of one segment of a neuron's terms at up to W listed pixels. Kernel rows in the padding are left out.
template <class T>
EXPRUNE_INLINE Vec segment_sums(const Tile& tile, const Segment& segment, const T* row, bool head, const int32_t* list,
                                int count) {
  const Site& site = tile.site;
  const float* base = head ? site.head_input.data : site.input.data;
  const int64_t* offsets = head ? tile.heads : tile.inputs;
  const float* fields[W];
  for (int j = 0; j < count; ++j) fields[j] = base + offsets[list[j]];
  Vec sum[W];
  for (int j = 0; j < W; ++j) sum[j] = zero();
  for (int64_t ky = 0; ky < site.geometry.kernel_rows; ++ky) {
    int from = 0, to = count;
    while (from < to && tile.pixels[list[from]].first_row > ky) ++from;
    while (to > from && tile.pixels[list[to - 1]].last_row <= ky) --to;
    for (int32_t r = segment.of_row[ky]; r < segment.of_row[ky + 1]; ++r) {
      const Run& run = segment.runs[r];
      accumulate(to - from, row + run.weight, fields + from, run.input, run.length, sum + from);
    }
  }
  return sums(sum);
}

// Sum and sum of squares of one segment's terms at up to W listed pixels. Runs are one a tap.
template <class T>
static inline void segment_squares(const Tile& tile, const Segment& segment, const T* row, const int32_t* list,
                                   int count, Vec& total, Vec& squares) {
  const Site& site = tile.site;
  Vec s[W], q[W];
  for (int j = 0; j < W; ++j) s[j] = q[j] = zero();
  for (int j = 0; j < count; ++j) {
    terms_of(site, segment, site.input.data + tile.inputs[list[j]], row, s[j], q[j]);
  }
  total = total + sums(s);
  squares = squares + sums(q);
}

// What goes on of one neuron: tile positions and what was summed up of each.
struct Alive {
  int32_t list[kTile + W];
  float partial[kTile + W], squares[kTile + W];
  int count;
};

// Stages from `stage` on, for whoever is alive before it, then the tail.
template <class T>
static inline void go_on(const Tile& tile, int64_t output, int64_t stage, Alive& alive) {
  const Site& site = tile.site;
  const T* row = static_cast<const T*>(site.weight.data) + output * site.weight.stride;
  for (; stage < site.stages; ++stage) {
    int next = 0;
    for (int at = 0; at < alive.count; at += W) {
      const AcrossPixels lanes{site, tile.pixels, alive.list + at, output, alive.count - at < W ? alive.count - at : W};
      Vec partial = load(alive.partial + at), squares = zero();
      if (needs_squares(site.guard)) {
        squares = load(alive.squares + at);
        segment_squares(tile, site.segments[stage], row, lanes.list, lanes.count, partial, squares);
      } else {
        partial = partial + segment_sums(tile, site.segments[stage], row, false, lanes.list, lanes.count);
      }
      const uint32_t bits = alive_after(lanes, stage, partial, squares);
      compress(alive.list + next, lanes.list, bits);
      compress(alive.partial + next, partial, bits);
      if (needs_squares(site.guard)) compress(alive.squares + next, squares, bits);
      next += __builtin_popcount(bits);
    }
    alive.count = next;
  }
  const Segment& tail = site.segments[site.stages];
  for (int at = 0; at < alive.count; at += W) {
    const AcrossPixels lanes{site, tile.pixels, alive.list + at, output, alive.count - at < W ? alive.count - at : W};
    Vec sum = segment_sums(tile, tail, row, false, lanes.list, lanes.count);
    if (!site.principal) sum = load(alive.partial + at) + sum;
    finish<T>(lanes, sum);
  }
}

// The head by dot products, for one neuron at all pixels of the tile.
template <class T>
static inline void head_by_dots(const Tile& tile, int64_t output, Alive& alive) {
  const Site& site = tile.site;
  alive.count = 0;
  const T* row = static_cast<const T*>(site.head_weight.data) + output * site.head_weight.stride;
  for (int at = 0; at < tile.count; at += W) {
    const AcrossPixels lanes{site, tile.pixels, tile.everyone + at, output, tile.count - at < W ? tile.count - at : W};
    Vec partial = zero(), squares = zero();
    if (needs_squares(site.guard)) {
      segment_squares(tile, site.segments[0], row, lanes.list, lanes.count, partial, squares);
    } else {
      partial = segment_sums(tile, site.segments[0], row, true, lanes.list, lanes.count);
    }
    const uint32_t bits = alive_after(lanes, 0, partial, squares);
    compress(alive.list + alive.count, lanes.list, bits);
    compress(alive.partial + alive.count, partial, bits);
    if (needs_squares(site.guard)) compress(alive.squares + alive.count, squares, bits);
    alive.count += __builtin_popcount(bits);
  }
}

// Every neuron whole: a site without a head.
static inline void everyone_alive(const Tile& tile, Alive& alive) {
  alive.count = tile.count;
  memcpy(alive.list, tile.everyone, sizeof(int32_t) * static_cast<size_t>(tile.count));
  memset(alive.partial, 0, sizeof alive.partial);
}

// The head as a matrix product in registers, kHeadNeurons neurons x kLaneTile pixels.
// panel: [numbers that a neuron's head reads, kLaneTile], in the order of the head's runs.
template <class T, int N>
EXPRUNE_INLINE void head_product(const Segment& head, int64_t kernel_rows, const T* const* rows, const float* panel,
                                 Vec (*sum)[kPixelVectors]) {
  Vec s[N][kPixelVectors];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < kPixelVectors; ++v) s[n][v] = zero();
  }
  for (int32_t r = 0; r < head.of_row[kernel_rows]; ++r) {
    const Run& run = head.runs[r];
    for (int64_t i = 0; i < run.length; ++i, panel += kLaneTile) {
      Vec x[kPixelVectors];
      for (int v = 0; v < kPixelVectors; ++v) x[v] = load(panel + v * W);
      for (int n = 0; n < N; ++n) {
        const Vec w = all(widen(rows[n][run.weight + i]));
        for (int v = 0; v < kPixelVectors; ++v) s[n][v] = fma(w, x[v], s[n][v]);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < kPixelVectors; ++v) sum[n][v] = s[n][v];
  }
}

template <class T, int N>
static inline void neurons_in_pixel_lanes(const Tile& tile, int64_t output, const float* panel, Alive& alive) {
  const Site& site = tile.site;
  const T* rows[N];
  for (int n = 0; n < N; ++n) {
    rows[n] = static_cast<const T*>(site.head_weight.data) + (output + n) * site.head_weight.stride;
  }
  Vec sum[N][kPixelVectors];
  head_product<T, N>(site.segments[0], site.geometry.kernel_rows, rows, panel, sum);
  for (int n = 0; n < N; ++n) {
    alive.count = 0;
    for (int v = 0; v < kPixelVectors && v * W < tile.count; ++v) {
      const int count = tile.count - v * W < W ? tile.count - v * W : W;
      const AcrossPixels lanes{site, tile.pixels, tile.everyone + v * W, output + n, count};
      const uint32_t bits = alive_after(lanes, 0, sum[n][v], zero());
      compress(alive.list + alive.count, lanes.list, bits);
      compress(alive.partial + alive.count, sum[n][v], bits);
      alive.count += __builtin_popcount(bits);
    }
    go_on<T>(tile, output + n, 1, alive);
  }
}

// The panel of one tile: what the heads of all neurons read at each of its pixels, one vector lane a pixel.
static inline void fill_panel(const Tile& tile, float* panel) {
  const Site& site = tile.site;
  const Segment& head = site.segments[0];
  for (int32_t r = 0; r < head.of_row[site.geometry.kernel_rows]; ++r) {
    const Run& run = head.runs[r];
    for (int j = 0; j < kLaneTile; ++j) {
      const float* field = site.head_input.data + tile.heads[j < tile.count ? j : 0] + run.input;
      for (int64_t i = 0; i < run.length; ++i) panel[i * kLaneTile + j] = field[i];
    }
    panel += run.length * kLaneTile;
  }
}

template <class T>
static inline void neurons(const Tile& tile, int64_t first, int64_t last, const float* panel, Alive& alive) {
  const Site& site = tile.site;
  int64_t output = first;
  if (site.head_in_pixel_lanes) {
    for (; output + kHeadNeurons <= last; output += kHeadNeurons) {
      neurons_in_pixel_lanes<T, kHeadNeurons>(tile, output, panel, alive);
    }
    for (; output < last; ++output) neurons_in_pixel_lanes<T, 1>(tile, output, panel, alive);
    return;
  }
  for (; output < last; ++output) {
    if (site.stages) {
      head_by_dots<T>(tile, output, alive);
    } else {
      everyone_alive(tile, alive);
    }
    go_on<T>(tile, output, site.stages ? 1 : 0, alive);
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
