// Few pixels: for each pixel a list of the neurons that are alive there, W of which share each load of its input.
#pragma once

#include "dot.h"
#include "lanes.h"
#include "terms.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kNeurons = 64;  // that a piece of work covers at most

// The runs of a segment that one pixel really reads: those in the padding are left out.
struct Field {
  const Site& site;
  const Pixel& pixel;

  template <class F>
  EXPRUNE_INLINE_METHOD void each(const Segment& segment, F f) const {
    const Geometry& g = site.geometry;
    for (int32_t ky = pixel.first_row; ky < pixel.last_row; ++ky) {
      const int32_t begin = segment.of_row[ky], runs = segment.of_row[ky + 1] - begin;
      if (runs == g.kernel_columns) {
        for (int32_t kx = pixel.first_column; kx < pixel.last_column; ++kx) f(segment.runs[begin + kx]);
      } else if (runs == 1) {  // all taps of the row in one: cut off what lies in the padding
        Run run = segment.runs[begin];
        const int64_t tap = run.length / g.kernel_columns;
        run.input += pixel.first_column * tap;
        run.weight += pixel.first_column * tap;
        run.length = (pixel.last_column - pixel.first_column) * tap;
        f(run);
      }
    }
  }
};

template <class T>
EXPRUNE_INLINE Vec neuron_sums(const Site& site, const Pixel& pixel, const Segment& segment, bool head,
                               const int32_t* list, int count) {
  const Rows& weight = head ? site.head_weight : site.weight;
  const float* field = head ? site.head_input.data + pixel.head : site.input.data + pixel.input;
  const T* rows[W];
  for (int j = 0; j < count; ++j) rows[j] = static_cast<const T*>(weight.data) + list[j] * weight.stride;
  Vec sum[W];
  for (int j = 0; j < W; ++j) sum[j] = zero();
  Field{site, pixel}.each(segment, [&](const Run& run) {
    accumulate(count, field + run.input, rows, run.weight, run.length, sum);
  });
  return sums(sum);
}

template <class T>
static inline void neuron_squares(const Site& site, const Pixel& pixel, const Segment& segment, const int32_t* list,
                                  int count, Vec& total, Vec& squares) {
  Vec s[W], q[W];
  for (int j = 0; j < W; ++j) s[j] = q[j] = zero();
  for (int j = 0; j < count; ++j) {
    const T* row = static_cast<const T*>(site.weight.data) + list[j] * site.weight.stride;
    terms_of(site, segment, site.input.data + pixel.input, row, s[j], q[j]);
  }
  total = total + sums(s);
  squares = squares + sums(q);
}

// All stages and the tail of neurons first .. last at one pixel.
template <class T>
static inline void neurons_at(const Site& site, const Pixel& pixel, int64_t first, int64_t last) {
  int32_t list[kNeurons + W];
  float partial[kNeurons + W] = {}, squares[kNeurons + W] = {};
  int alive = static_cast<int>(last - first);
  for (int j = 0; j < alive; ++j) list[j] = static_cast<int32_t>(first + j);
  for (int64_t stage = 0; stage < site.stages; ++stage) {
    int next = 0;
    for (int at = 0; at < alive; at += W) {
      const AcrossNeurons lanes{site, pixel, list + at, alive - at < W ? alive - at : W};
      Vec s = load(partial + at), q = load(squares + at);
      if (needs_squares(site.guard)) {
        neuron_squares<T>(site, pixel, site.segments[stage], lanes.list, lanes.count, s, q);
      } else {
        s = s + neuron_sums<T>(site, pixel, site.segments[stage], stage == 0, lanes.list, lanes.count);
      }
      const uint32_t bits = alive_after(lanes, stage, s, q);
      compress(list + next, lanes.list, bits);
      compress(partial + next, s, bits);
      if (needs_squares(site.guard)) compress(squares + next, q, bits);
      next += __builtin_popcount(bits);
    }
    alive = next;
  }
  const Segment& tail = site.segments[site.stages];
  for (int at = 0; at < alive; at += W) {
    const AcrossNeurons lanes{site, pixel, list + at, alive - at < W ? alive - at : W};
    Vec sum = neuron_sums<T>(site, pixel, tail, false, lanes.list, lanes.count);
    if (!site.principal) sum = load(partial + at) + sum;
    finish<T>(lanes, sum);
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
