// Terms one by one, for the guards that need the sum of their squares.
#pragma once

#include "dot.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// Adds one segment's terms and their squares at one pixel, a lane a term: a term is a channel's sum over the taps (runs
// are one a tap, alike in length), or `block` neighbouring numbers of a linear layer.
template <class T>
static inline void terms_of(const Site& site, const Segment& segment, int64_t cell, const T* row, Vec& sum,
                            Vec& squares) {
  for (const Chunk* chunk = segment.chunks; chunk != segment.chunks + segment.count; ++chunk) {
    const float* field = site.input.data + chunk->plane.offset + cell * chunk->plane.pitch;
    const int32_t begin = chunk->of_row[0], end = chunk->of_row[site.geometry.kernel_rows];
    const int64_t length = chunk->runs[begin].length;
    if (site.block > 1) {
      const Run& run = chunk->runs[begin];
      for (int64_t i = 0; i < length; i += site.block) {
        float term = 0;
        for (int64_t e = 0; e < site.block; ++e) term += field[run.input + i + e] * widen(row[run.weight + i + e]);
        const float lane[W] = {term};
        sum = sum + load(lane);
        squares = fma(load(lane), load(lane), squares);
      }
      continue;
    }
    for (int64_t i = 0; i < length; i += W) {
      const int count = static_cast<int>(length - i < W ? length - i : W);
      Vec term = zero();
      for (int32_t r = begin; r < end; ++r) {
        const float* x = field + chunk->runs[r].input + i;
        const T* w = row + chunk->runs[r].weight + i;
        term = fma(load_some(x, count), load_some(w, count), term);
      }
      sum = sum + term;
      squares = fma(term, term, squares);
    }
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
