// A piece of work over many pixels, from its head to its results.
#pragma once

#include "coded_head.h"
#include "head_in_lanes.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

template <class T>
static inline void head(Tile& tile, const float* panel) {
  const Site& site = tile.site;
  if (site.head_in_pixel_lanes) {
    int n = 0;
    for (; n + kHeadNeurons <= tile.neurons; n += kHeadNeurons) heads_in_lanes<T, kHeadNeurons>(tile, n, panel);
    for (; n + 2 <= tile.neurons; n += 2) heads_in_lanes<T, 2>(tile, n, panel);
    for (; n < tile.neurons; ++n) heads_in_lanes<T, 1>(tile, n, panel);
    return;
  }
  everyone_alive(tile);
  if (site.stages == 0) return;
  if (needs_squares(site.guard.kind)) {
    add_squares<T>(tile, site.segments[0]);
  } else {
    add_segment<T>(tile, site.segments[0], true, 0, tile.neurons);
  }
  select(tile, 0);
}

// The tail of neurons first .. last, and their activations.
template <class T>
static inline void finish_neurons(Tile& tile, int first, int last) {
  const Site& site = tile.site;
  if (site.principal) {
    for (int n = first; n < last; ++n) memset(tile.alive[n].partial, 0, sizeof tile.alive[n].partial);
  }
  add_segment<T>(tile, site.segments[site.stages], false, first, last);
  for (int n = first; n < last; ++n) {
    const Alive& alive = tile.alive[n];
    for (int at = 0; at < alive.count; at += W) {
      finish<T>(lanes_of(tile, tile.first_neuron + n, alive.list, at, alive.count), load(alive.partial + at));
    }
  }
}

template <class T>
static inline void work(Tile& tile, const float* panel) {
  const Site& site = tile.site;
  if (site.coded.scales) {
    return coded_heads(tile, panel, [&](int first, int last) { finish_neurons<T>(tile, first, last); });
  }
  head<T>(tile, panel);
  for (int64_t stage = 1; stage < site.stages; ++stage) {
    if (needs_squares(site.guard.kind)) {
      add_squares<T>(tile, site.segments[stage]);
    } else {
      add_segment<T>(tile, site.segments[stage], false, 0, tile.neurons);
    }
    select(tile, stage);
  }
  finish_neurons<T>(tile, 0, tile.neurons);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
