// Many pixels: for each neuron a list of the pixels where it is alive, W of which share each load of its weights.
//
// A piece of work is a tile of pixels and a few dozen neurons. Chunk by chunk, all of its neurons read the same small
// part of the input, which therefore stays in the innermost cache while the weights pass by.
#pragma once

#include "dot.h"
#include "lanes.h"
#include "rivals.h"
#include "terms.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kPixelVectors = W == 16 ? 4 : 2;  // register tile of a head in pixel lanes: this many vectors of pixels
constexpr int kHeadNeurons = W == 4 ? 2 : 6;  // times this many neurons
constexpr int kLaneTile = kPixelVectors * W;
constexpr int kMostNeurons = 96;  // of a piece of work
constexpr int kAhead = 2;         // neurons
constexpr int64_t kSmallImage = 4;  // rows: here a kernel's outer rows lie in the padding often

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
  int lanes = kLaneTile;  // of the panel of a head in pixel lanes
  int windows;  // of rivals: their pixels lie member by member, the first ones of all windows before the second ones
  int64_t first_neuron;
  int neurons;
  Alive alive[kMostNeurons];

  explicit Tile(const Site& s) : site(s) {}
};

// The pixels of whole windows: row by row, so that in each the pixels that a kernel row reaches are neighbours.
static inline void fill_windows(Tile& tile, int64_t first) {
  const Site& site = tile.site;
  const Geometry& g = site.geometry;
  for (int w = 0; w < tile.windows; ++w) {
    const Place window = window_of(site, first + w);
    int at = w;
    for (int64_t row = 0; row < site.window_rows; ++row) {
      for (int64_t column = 0; column < site.window_columns; ++column, at += tile.windows) {
        const Place place{window.row + row, window.image, window.column + column};
        tile.pixels[at] = pixel_at(site, (place.row * g.images + place.image) * g.columns_out + place.column, place);
      }
    }
  }
}

static inline void fill(Tile& tile, int64_t first, int count) {
  tile.count = count;
  const Geometry& geometry = tile.site.geometry;
  if (has_rivals(tile.site)) {
    tile.windows = static_cast<int>(count / members_of(tile.site));
    fill_windows(tile, first / members_of(tile.site));
  } else {
    tile.windows = 0;
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

// The sums of one chunk of a neuron's terms at up to W listed pixels. Where images are small enough for it to matter,
// kernel rows that all of the pixels miss are left out. `row`, `ahead`: see Streams.
template <class Row>
EXPRUNE_INLINE Vec chunk_sums(const Tile& tile, const Chunk& chunk, const float* data, Row row, const int32_t* list,
                              int count, int64_t ahead) {
  const float* fields[W];
  for (int j = 0; j < count; ++j) fields[j] = data + tile.offsets[list[j]];
  int32_t first = 0, last = static_cast<int32_t>(tile.site.geometry.kernel_rows);
  if (tile.site.geometry.rows_out <= kSmallImage) {
    first = tile.pixels[list[count - 1]].first_row;  // listed pixels are in the order of their rows
    last = tile.pixels[list[0]].last_row;
    for (int j = 0; tile.windows && j < count; ++j) {  // but for several rows of windows
      const Pixel& pixel = tile.pixels[list[j]];
      if (pixel.first_row < first) first = pixel.first_row;
      if (pixel.last_row > last) last = pixel.last_row;
    }
    if (first >= last) return zero();  // all of them see padding alone
  }
  const Streams<Row, const float*, false> streams{row, fields, ahead};
  return sum_runs(count, streams, chunk.runs + chunk.of_row[first], chunk.runs + chunk.of_row[last]);
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
      // Blocks of equal size: short ones wait for their few sums. Lanes beyond a block's end are zero.
      const int blocks = (alive.count + W - 1) / W, step = (alive.count + blocks - 1) / blocks;
      for (int at = 0; at < alive.count; at += step) {
        const int count = alive.count - at < step ? alive.count - at : step;
        const int64_t ahead = asks && at == 0 ? kAhead * weight.stride : 0;
        const int32_t* list = alive.list + at;
        Vec sum;
        if (is_split(site, head)) {
          sum = chunk_sums(tile, chunk, data, split_row_of(site, tile.first_neuron + n), list, count, ahead);
          sum = sum * all(site.coded.scales[tile.first_neuron + n] * kSplitUnit);
        } else {
          sum = chunk_sums(tile, chunk, data, row_of<T>(weight, tile.first_neuron + n), list, count, ahead);
        }
        store(alive.partial + at, load(alive.partial + at) + sum);
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
    rival_limits(known, tile.count, tile.windows, all(row[0]), all(row[tile.site.outputs]), limits);
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
  if (tile.windows) return select_rivals(tile, stage);
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

// --- the head as a matrix product in registers: kHeadNeurons neurons x kLaneTile pixels ----------------------------

// Of N neurons, with their sums at all pixels of the tile (V vectors each), who goes on.
template <int N, int V>
static inline void keep_alive_rivals(Tile& tile, int first, const Vec* sums) {
  float known[V * W + W], limits[V * W + W];
  for (int n = 0; n < N; ++n) {
    Alive& alive = tile.alive[first + n];
    const int64_t neuron = tile.first_neuron + first + n;
    const float* row = limits_of(tile.site, 0) + neuron;
    for (int at = 0; at < tile.count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, neuron, tile.everyone, at, tile.count);
      store(known + at, sums[n * V + at / W] + lanes.constant());
    }
    rival_limits(known, tile.count, tile.windows, all(row[0]), all(row[tile.site.outputs]), limits);
    int next = 0;
    for (int at = 0; at < tile.count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, neuron, tile.everyone, at, tile.count);
      const uint32_t bits = ~less(load(known + at), load(limits + at)) & lanes_below(lanes.count);
      compress(alive.list + next, lanes.list, bits);
      compress(alive.partial + next, sums[n * V + at / W], bits);
      next += __builtin_popcount(bits);
    }
    alive.count = next;
  }
}

template <int N, int V>
static inline void keep_alive(Tile& tile, int first, const Vec* sums) {
  const Site& site = tile.site;
  if (tile.windows) return keep_alive_rivals<N, V>(tile, first, sums);
  const bool plain = site.guard.kind == GuardKind::Calibrated && !site.residual;
  for (int n = 0; n < N; ++n) {
    const int64_t neuron = tile.first_neuron + first + n;
    Alive& alive = tile.alive[first + n];
    const Vec constant = all(site.bias ? site.bias[neuron] : 0.0f);
    const Vec limit = plain ? all(site.guard.limits[neuron]) : zero();
    int next = 0;
    for (int at = 0; at < tile.count; at += W) {
      const Vec partial = sums[n * V + at / W];
      const AcrossPixels lanes = lanes_of(tile, neuron, tile.everyone, at, tile.count);
      // The common case, without what the others need to be told.
      const uint32_t bits = plain ? ~less(partial + constant, limit) & lanes_below(lanes.count)
                                  : alive_after(lanes, 0, partial, zero());
      compress(alive.list + next, lanes.list, bits);
      compress(alive.partial + next, partial, bits);
      next += __builtin_popcount(bits);
    }
    alive.count = next;
  }
}

// panel: [numbers that a neuron's head reads, kLaneTile], in the order of the head's runs.
template <class T, int N>
static inline void head_in_lanes(Tile& tile, int first, const float* panel) {
  const Site& site = tile.site;
  const Segment& head = site.segments[0];
  const T* rows[N];
  for (int n = 0; n < N; ++n) rows[n] = row_of<T>(site.head_weight, tile.first_neuron + first + n);
  Vec s[N * kPixelVectors];
  EXPRUNE_UNROLLED for (int k = 0; k < N * kPixelVectors; ++k) s[k] = zero();
  for (int64_t c = 0; c < head.count; ++c) {
    const Chunk& chunk = head.chunks[c];
    for (const Run* run = chunk.runs; run != chunk.runs + chunk.of_row[site.geometry.kernel_rows]; ++run) {
      for (int64_t i = run->weight; i < run->weight + run->length; ++i, panel += kLaneTile) {
        Vec x[kPixelVectors];
        EXPRUNE_UNROLLED for (int v = 0; v < kPixelVectors; ++v) x[v] = load(panel + v * W);
        EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) {
          const Vec w = all(widen(rows[n][i]));
          EXPRUNE_UNROLLED for (int v = 0; v < kPixelVectors; ++v) {
            s[n * kPixelVectors + v] = fma(w, x[v], s[n * kPixelVectors + v]);
          }
        }
      }
    }
  }
  Vec sum[N * kPixelVectors];  // a copy: what is indexed by a variable lies in memory
  EXPRUNE_UNROLLED for (int k = 0; k < N * kPixelVectors; ++k) sum[k] = s[k];
  keep_alive<N, kPixelVectors>(tile, first, sum);
}

// The panel of one tile: what some kernel rows of the heads of all neurons read at each of its pixels, a vector lane a
// pixel.
static inline void fill_panel(Tile& tile, float* panel, int64_t first_row, int64_t last_row) {
  const Site& site = tile.site;
  const Segment& head = site.segments[0];
  for (int64_t c = 0; c < head.count; ++c) {
    const Chunk& chunk = head.chunks[c];
    enter(tile, chunk.plane);
    for (const Run* run = chunk.runs + chunk.of_row[first_row]; run != chunk.runs + chunk.of_row[last_row]; ++run) {
      for (int at = 0; at < tile.lanes; at += W) {
        const float* fields[W];
        for (int j = 0; j < W; ++j) {
          fields[j] = site.head_input.data + tile.offsets[at + j < tile.count ? at + j : 0] + run->input;
        }
        int64_t i = 0;
        for (; i + W <= run->length; i += W) {
          Vec rows[W];
          for (int j = 0; j < W; ++j) rows[j] = load(fields[j] + i);
          store_transposed(panel + i * tile.lanes + at, tile.lanes, rows);
        }
        if (i == run->length) continue;
        const int rest = static_cast<int>(run->length - i);
        Vec rows[W];
        for (int j = 0; j < W; ++j) rows[j] = load_first(fields[j] + i, rest);
        float square[W * W];
        store_transposed(square, W, rows);
        for (int n = 0; n < rest; ++n) store(panel + (i + n) * tile.lanes + at, load(square + n * W));
      }
      panel += run->length * tile.lanes;
    }
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
