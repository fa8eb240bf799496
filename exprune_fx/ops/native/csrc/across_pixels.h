// Many pixels: for each neuron a list of the pixels where it is alive, W of which share each load of its weights.
//
// A piece of work is a tile of pixels and a few dozen neurons. Chunk by chunk, all of its neurons read the same small
// part of the input, which therefore stays in the innermost cache while the weights pass by.
#pragma once

#include "dot.h"
#include "lanes.h"
#include "rivals.h"
#include "taps.h"
#include "terms.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kPixelVectors = W == 16 ? 4 : 2;  // of the register tile of a head in pixel lanes
constexpr int kLaneTile = kPixelVectors * W;
constexpr int kMostNeurons = 96;  // of a piece of work
constexpr int kAhead = 2;         // neurons
constexpr int kTapsAhead = 512;   // numbers, about one tap: whole rows would drive the input out of the innermost cache

// What goes on of one neuron: positions in the tile, and what was summed up at each.
struct Alive {
  int32_t list[kTile + W];
  float partial[kTile + W], squares[kTile + W];
  int count;
};

// One piece of work.
struct Tile {
  const Site& site;
  Pixel pixels[kTile];
  int64_t offsets[kTile];  // of the receptive fields in the plane that is being read
  int32_t everyone[kTile + W];
  int count;
  int lanes = kLaneTile;      // of a panel of a head in pixel lanes
  int panel_pixels = kTile;   // of one panel: whole windows, whose pixels lie member by member, the first ones of all
                              // windows before the second ones
  int64_t panel_numbers = 0;  // of one panel
  uint64_t reached[kTile];  // by tap, of images summed tap by tap: the pixels for which it does not lie in the padding
  int64_t first_neuron;
  int neurons;
  Alive alive[kMostNeurons];

  explicit Tile(const Site& s) : site(s) {}
};

// Pixels of the panel that begins with this one.
EXPRUNE_INLINE int panel_count(const Tile& tile, int pixel) {
  return tile.count - pixel < tile.panel_pixels ? tile.count - pixel : tile.panel_pixels;
}

// Calls visit(first pixel, pixels, windows) for the panels of a tile; without rivals a window is a pixel.
template <class Visit>
EXPRUNE_INLINE void each_panel(const Tile& tile, const Visit& visit) {
  const int members = static_cast<int>(members_of(tile.site));
  for (int pixel = 0; pixel < tile.count; pixel += tile.panel_pixels) {
    const int count = panel_count(tile, pixel);
    visit(pixel, count, count / members);
  }
}

// The pixels of whole windows, from the one of this index on.
static inline void fill_windows(Tile& tile, int64_t index) {
  const Site& site = tile.site;
  const Geometry& g = site.geometry;
  each_panel(tile, [&](int pixel, int, int windows) {
    for (int w = 0; w < windows; ++w) {
      const Place window = window_of(site, index++);
      int at = pixel + w;
      for (int64_t row = 0; row < site.window_rows; ++row) {
        for (int64_t column = 0; column < site.window_columns; ++column, at += windows) {
          const Place place{window.row + row, window.image, window.column + column};
          tile.pixels[at] = pixel_at(site, (place.row * g.images + place.image) * g.columns_out + place.column, place);
        }
      }
    }
  });
}

static inline void find_reached(Tile& tile) {
  const Geometry& g = tile.site.geometry;
  memset(tile.reached, 0, sizeof tile.reached);
  for (int j = 0; j < tile.count; ++j) {
    const Pixel& p = tile.pixels[j];
    for (int32_t ky = p.first_row; ky < p.last_row; ++ky) {
      for (int32_t kx = p.first_column; kx < p.last_column; ++kx) tile.reached[ky * g.kernel_columns + kx] |= 1ull << j;
    }
  }
}

static inline void fill(Tile& tile, int64_t first, int count) {
  tile.count = count;
  const Geometry& geometry = tile.site.geometry;
  if (has_rivals(tile.site)) {
    fill_windows(tile, first / members_of(tile.site));
  } else {
    Place place = place_of(geometry, first);
    for (int j = 0; j < count; ++j, place.next(geometry)) tile.pixels[j] = pixel_at(tile.site, first + j, place);
  }
  for (int j = 0; j < kTile + W; ++j) tile.everyone[j] = j < count ? j : 0;
}

static inline void enter(Tile& tile, const Plane& plane) {
  for (int j = 0; j < tile.count; ++j) tile.offsets[j] = plane.offset + tile.pixels[j].cell * plane.pitch;
}

template <class T>
EXPRUNE_INLINE const T* row_of(const Rows& rows, int64_t neuron) {
  return static_cast<const T*>(rows.data) + neuron * rows.stride;
}

EXPRUNE_INLINE AcrossPixels lanes_of(const Tile& tile, int64_t neuron, const int32_t* list, int at, int count) {
  return {tile.site, tile.pixels, list + at, neuron, count - at < W ? count - at : W};
}

// The sums of one chunk of a neuron's terms at up to W listed pixels. `row`, `ahead`: see Streams.
template <class Row>
EXPRUNE_INLINE Vec chunk_sums(const Tile& tile, const Chunk& chunk, const float* data, Row row, const int32_t* list,
                              int count, int64_t ahead) {
  const float* fields[W];
  for (int j = 0; j < count; ++j) fields[j] = data + tile.offsets[list[j]];
  const Streams<Row, const float*, false> streams{row, fields, ahead};
  return sum_runs(count, streams, chunk.runs, chunk.runs + chunk.of_row[tile.site.geometry.kernel_rows]);
}

// How many of `count` pixels share a load of weights: blocks of equal size, since short ones wait for their few sums.
EXPRUNE_INLINE int block_of(int count) {
  if (count <= W) return count;  // spares a division
  const int blocks = (count + W - 1) / W;
  return (count + blocks - 1) / blocks;
}

// Adds one chunk of a neuron's terms wherever it is alive, in units of `worth`.
template <class Row>
static inline void add_chunk(const Tile& tile, const Chunk& chunk, const float* data, Row row, float worth, int64_t ahead,
                             Alive& alive) {
  const int step = block_of(alive.count);  // lanes beyond a block's end are zero
  for (int at = 0; at < alive.count; at += step) {
    const int count = alive.count - at < step ? alive.count - at : step;
    const Vec sum = chunk_sums(tile, chunk, data, row, alive.list + at, count, at ? 0 : ahead);
    store(alive.partial + at, load(alive.partial + at) + sum * all(worth));
  }
}

// The same tap by tap.
template <class Row>
static inline void add_chunk_by_taps(const Tile& tile, const Chunk& chunk, const float* data, Row row, float worth,
                                     int64_t ahead, Alive& alive) {
  PairOfSums pairs[kTile];
  uint64_t pixels = 0;
  for (int j = 0; j < alive.count; ++j) {
    pixels |= 1ull << alive.list[j];
    store(pairs[alive.list[j]].numbers, zero());
    store(pairs[alive.list[j]].numbers + W, zero());
  }
  const int64_t taps = chunk.of_row[tile.site.geometry.kernel_rows];
  for (int64_t t = 0; t < taps; ++t) {
    const Run& run = chunk.runs[t];
    const uint64_t reached = pixels & tile.reached[t];
    int32_t list[kTile + W];
    int n = 0;
    for (int at = 0; at < tile.count; at += W) {
      const uint32_t bits = static_cast<uint32_t>(reached >> at) & lanes_below(W);
      compress(list + n, tile.everyone + at, bits);
      n += __builtin_popcount(bits);
    }
    if (n == 0) continue;
    Tap tap{data + run.input, tile.offsets, list, run.length, ahead};
    const int step = block_of(n);
    for (int at = 0; at < n; at += step, tap.list += step, tap.ahead = 0) {
      add_tap(n - at < step ? n - at : step, row + run.weight, tap, pairs);
    }
  }
  for (int at = 0; at < alive.count; at += W) {
    Vec lanes[W];
    for (int j = 0; j < W; ++j) {
      const float* pair = pairs[alive.list[at + j < alive.count ? at + j : at]].numbers;
      lanes[j] = load(pair) + load(pair + W);
    }
    store(alive.partial + at, load(alive.partial + at) + sums(lanes) * all(worth));
  }
}

// The tail's weights of a coded site are held in 24 bits.
EXPRUNE_INLINE bool is_split(const Site& site, bool head) { return !head && site.coded.rest; }

EXPRUNE_INLINE Split split_row_of(const Site& site, int64_t neuron) {
  const int64_t numbers = neuron * site.weight.stride;
  return Split{static_cast<const int8_t*>(site.head_weight.data), site.coded.rest} + numbers;
}

// Adds one segment to whoever is alive of neurons first .. last, chunk by chunk.
template <class T>
static inline void add_segment(Tile& tile, const Segment& segment, bool head, int first, int last) {
  const Site& site = tile.site;
  const Rows& weight = head ? site.head_weight : site.weight;
  const float* data = head ? site.head_input.data : site.input.data;
  for (int64_t c = 0; c < segment.count; ++c) {
    const Chunk& chunk = segment.chunks[c];
    enter(tile, chunk.plane);
    for (int n = first; n < last; ++n) {
      Alive& alive = tile.alive[n];
      if (alive.count == 0) continue;
      // Large weights come from memory, and the rows lie apart by more than the hardware looks ahead.
      const bool asks = site.large && n + kAhead < last && tile.alive[n + kAhead].count;
      const int64_t neuron = tile.first_neuron + n;
      const int64_t ahead = site.by_taps ? kTapsAhead : asks ? kAhead * weight.stride : 0;
      const auto add = [&](auto row, float worth) EXPRUNE_LAMBDA {
        if (site.by_taps) return add_chunk_by_taps(tile, chunk, data, row, worth, ahead, alive);
        add_chunk(tile, chunk, data, row, worth, ahead, alive);
      };
      if (is_split(site, head)) {
        add(split_row_of(site, neuron), site.coded.scales[neuron] * kSplitUnit);
      } else {
        add(row_of<T>(weight, neuron), 1.0f);
      }
    }
  }
}

// The same with the squares of the terms, for the guards that need them.
template <class T>
static inline void add_squares(Tile& tile, const Segment& segment) {
  for (int n = 0; n < tile.neurons; ++n) {
    Alive& alive = tile.alive[n];
    const T* row = row_of<T>(tile.site.weight, tile.first_neuron + n);
    for (int at = 0; at < alive.count; at += W) {
      Vec s[W], q[W];
      for (int j = 0; j < W; ++j) s[j] = q[j] = zero();
      for (int j = 0; j < W && at + j < alive.count; ++j) {
        terms_of(tile.site, segment, tile.pixels[alive.list[at + j]].cell, row, s[j], q[j]);
      }
      store(alive.partial + at, load(alive.partial + at) + sums(s));
      store(alive.squares + at, load(alive.squares + at) + sums(q));
    }
  }
}

// Asks the guard, and keeps who goes on.
static inline void select_rivals(Tile& tile, int64_t stage) {
  float known[kTile + W], limits[kTile + W];
  for (int n = 0; n < tile.neurons; ++n) {
    Alive& alive = tile.alive[n];
    const int64_t neuron = tile.first_neuron + n;
    const float* row = limits_of(tile.site, stage) + neuron;
    for (int j = 0; j < tile.count; j += W) store(known + j, all(-__builtin_inff()));  // who has stopped is nobody's rival
    for (int at = 0; at < alive.count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, neuron, alive.list, at, alive.count);
      float numbers[W];
      store(numbers, load(alive.partial + at) + lanes.constant());
      for (int j = 0; j < lanes.count; ++j) known[lanes.list[j]] = numbers[j];
    }
    each_panel(tile, [&](int pixel, int count, int windows) {
      rival_limits(known + pixel, count, windows, all(row[0]), all(row[tile.site.outputs]), limits + pixel);
    });
    int next = 0;
    for (int j = 0; j < alive.count; ++j) {
      const int32_t pixel = alive.list[j];
      const float partial = alive.partial[j];
      alive.list[next] = pixel;
      alive.partial[next] = partial;
      next += !(known[pixel] < limits[pixel]);  // what is not a number goes on
    }
    alive.count = next;
  }
}

static inline void select(Tile& tile, int64_t stage) {
  if (has_rivals(tile.site)) return select_rivals(tile, stage);
  const bool squares = needs_squares(tile.site.guard.kind);
  for (int n = 0; n < tile.neurons; ++n) {
    Alive& alive = tile.alive[n];
    int next = 0;
    for (int at = 0; at < alive.count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, tile.first_neuron + n, alive.list, at, alive.count);
      const Vec s = load(alive.partial + at), q = squares ? load(alive.squares + at) : zero();
      const uint32_t bits = alive_after(lanes, stage, s, q);
      compress(alive.list + next, lanes.list, bits);
      compress(alive.partial + next, s, bits);
      if (squares) compress(alive.squares + next, q, bits);
      next += __builtin_popcount(bits);
    }
    alive.count = next;
  }
}

static inline void everyone_alive(Tile& tile) {
  const size_t count = static_cast<size_t>(tile.count + W - 1) / W * W;
  for (int n = 0; n < tile.neurons; ++n) {
    Alive& alive = tile.alive[n];
    alive.count = tile.count;
    memcpy(alive.list, tile.everyone, sizeof(int32_t) * count);
    memset(alive.partial, 0, sizeof(float) * count);
    if (needs_squares(tile.site.guard.kind)) memset(alive.squares, 0, sizeof(float) * count);
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
