// Rivals: the neurons of one channel in a window of the max pool that alone reads them. Only the largest is passed on.
#pragma once

#include "lanes.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

EXPRUNE_INLINE bool has_rivals(const Site& site) { return site.window_rows > 0; }

// Pixels of a window; 1 without.
EXPRUNE_INLINE int64_t members_of(const Site& site) {
  return has_rivals(site) ? site.window_rows * site.window_columns : 1;
}

// Pixels that are computed: with rivals, those that stand in a window.
EXPRUNE_INLINE int64_t pixels_read(const Site& site) {
  if (!has_rivals(site)) return site.pixels;
  const Geometry& g = site.geometry;
  return g.images * (g.rows_out / site.window_rows) * (g.columns_out / site.window_columns) * members_of(site);
}

// The first pixel of a window: row by row of windows, through all images.
EXPRUNE_INLINE Place window_of(const Site& site, int64_t index) {
  const Geometry& g = site.geometry;
  const int64_t columns = g.columns_out / site.window_columns, in_row = g.images * columns;
  return {index / in_row * site.window_rows, index % in_row / columns, index % columns * site.window_columns};
}

// What a neuron must have at each pixel to go on: its threshold, and no less than a margin below the largest of the
// window. `known` and `limits` are [members, windows]; W numbers behind their end may be read, and written.
EXPRUNE_INLINE void rival_limits(const float* known, int count, int windows, Vec threshold, Vec margin, float* limits) {
  for (int at = 0; at < windows; at += W) {
    Vec largest = load(known + at);
    for (int member = at + windows; member < count; member += windows) largest = larger(largest, load(known + member));
    store(limits + at, larger(threshold, largest - margin));
  }
  for (int member = windows; member < count; member += windows) {  // in order: each row mends what the last one spilt
    for (int at = 0; at < windows; at += W) store(limits + member + at, load(limits + at));
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
