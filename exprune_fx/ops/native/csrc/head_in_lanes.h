// The head as a matrix product in registers: kHeadNeurons neurons x kLaneTile pixels, a vector lane a pixel.
#pragma once

#include "across_pixels.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kHeadNeurons = W == 4 ? 2 : 6;  // of the register tile

// Of N neurons with rivals, with their sums at the pixels of a panel (V vectors each), `pixel` the first, who goes on.
template <int N, int V>
static inline void keep_alive_rivals(Tile& tile, int first, const Vec* sums, int pixel) {
  const int count = panel_count(tile, pixel), windows = static_cast<int>(count / members_of(tile.site));
  const int32_t* everyone = tile.everyone + pixel;
  float known[V * W + W], limits[V * W + W];
  for (int n = 0; n < N; ++n) {
    Alive& alive = tile.alive[first + n];
    const int64_t neuron = tile.first_neuron + first + n;
    const float* row = limits_of(tile.site, 0) + neuron;
    for (int at = 0; at < count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, neuron, everyone, at, count);
      store(known + at, sums[n * V + at / W] + lanes.constant());
    }
    rival_limits(known, count, windows, all(row[0]), all(row[tile.site.outputs]), limits);
    int next = pixel ? alive.count : 0;
    for (int at = 0; at < count; at += W) {
      const AcrossPixels lanes = lanes_of(tile, neuron, everyone, at, count);
      const uint32_t bits = ~less(load(known + at), load(limits + at)) & lanes_below(lanes.count);
      compress(alive.list + next, lanes.list, bits);
      compress(alive.partial + next, sums[n * V + at / W], bits);
      next += __builtin_popcount(bits);
    }
    alive.count = next;
  }
}

// The same of any neurons.
template <int N, int V>
static inline void keep_alive(Tile& tile, int first, const Vec* sums, int pixel = 0) {
  const Site& site = tile.site;
  if (has_rivals(site)) return keep_alive_rivals<N, V>(tile, first, sums, pixel);
  const bool plain = site.guard.kind == GuardKind::Calibrated && !site.residual;
  for (int n = 0; n < N; ++n) {
    const int64_t neuron = tile.first_neuron + first + n;
    Alive& alive = tile.alive[first + n];
    const Vec constant = all(site.bias ? site.bias[neuron] : 0.0f);
    const Vec limit = plain ? all(site.guard.limits[neuron]) : zero();
    const int last = pixel + panel_count(tile, pixel);
    int next = pixel ? alive.count : 0;
    for (int at = pixel; at < last; at += W) {
      const Vec partial = sums[n * V + (at - pixel) / W];
      const AcrossPixels lanes = lanes_of(tile, neuron, tile.everyone, at, last);
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

// panel: [numbers that a neuron's head reads, kLaneTile], in the order of the head's runs, at `pixel` and those behind it.
template <class T, int N>
static inline void head_in_lanes(Tile& tile, int first, const float* panel, int pixel) {
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
  keep_alive<N, kPixelVectors>(tile, first, sum, pixel);
}

// The heads of N neurons at all pixels of the tile, one panel after the other.
template <class T, int N>
static inline void heads_in_lanes(Tile& tile, int first, const float* panels) {
  for (int pixel = 0; pixel < tile.count; pixel += tile.panel_pixels, panels += tile.panel_numbers) {
    head_in_lanes<T, N>(tile, first, panels, pixel);
  }
}

// One panel of a tile, `pixel` and those behind it: what some kernel rows of the heads of all neurons read
// at each of its pixels, a vector lane a pixel.
static inline void fill_panel(Tile& tile, float* panel, int64_t first_row, int64_t last_row, int pixel = 0) {
  const Site& site = tile.site;
  const Segment& head = site.segments[0];
  for (int64_t c = 0; c < head.count; ++c) {
    const Chunk& chunk = head.chunks[c];
    enter(tile, chunk.plane);
    for (const Run* run = chunk.runs + chunk.of_row[first_row]; run != chunk.runs + chunk.of_row[last_row]; ++run) {
      for (int at = 0; at < tile.lanes; at += W) {
        const float* fields[W];
        for (int j = 0; j < W; ++j) {
          const int p = pixel + at + j < tile.count ? pixel + at + j : pixel;
          fields[j] = site.head_input.data + tile.offsets[p] + run->input;
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
