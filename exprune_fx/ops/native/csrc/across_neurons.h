// Few pixels: for each pixel a list of the neurons that are alive there, W of which share each load of its input.
#pragma once

#include "dot.h"
#include "lanes.h"
#include "terms.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kNeurons = 512;  // that a piece of work covers at most

constexpr int kMostRuns = 64;  // of a chunk over few pixels, after what lies in the padding is left out

// The runs of a chunk that one pixel really reads. Returns how many.
static inline int runs_inside(const Site& site, const Pixel& pixel, const Chunk& chunk, Run* runs) {
  const Geometry& g = site.geometry;
  int count = 0;
  if (pixel.first_column >= pixel.last_column) return 0;
  for (int32_t ky = pixel.first_row; ky < pixel.last_row; ++ky) {
    const int32_t begin = chunk.of_row[ky], taps = chunk.of_row[ky + 1] - begin;
    if (taps == 1) {  // all taps of the row in one run (or there is but one): cut off what lies in the padding
      Run run = chunk.runs[begin];
      const int64_t tap = run.length / g.kernel_columns;
      run.input += pixel.first_column * tap;
      run.weight += pixel.first_column * tap;
      run.length = (pixel.last_column - pixel.first_column) * tap;
      runs[count++] = run;
      continue;
    }
    for (int32_t kx = pixel.first_column; kx < pixel.last_column; ++kx) runs[count++] = chunk.runs[begin + kx];
  }
  return count;
}

// Asks for what a segment reads of some rows of weights: they lie apart by more than the hardware looks ahead.
template <class T>
EXPRUNE_INLINE void prefetch(const Site& site, const Segment& segment, const Rows& weight, const int32_t* list,
                             int count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int j = 0; j < count; ++j) {
    const T* row = static_cast<const T*>(weight.data) + list[j] * weight.stride;
    for (int64_t c = 0; c < segment.count; ++c) {
      const Chunk& chunk = segment.chunks[c];
      for (const Run* run = chunk.runs; run != chunk.runs + chunk.of_row[site.geometry.kernel_rows]; ++run) {
        for (int64_t i = 0; i < run->length; i += line) __builtin_prefetch(row + run->weight + i, 0, 2);
      }
    }
  }
}

// The sums over some runs of up to W rows, one row after the other: rows that lie one behind another are one stream.
template <class T>
static inline Vec sum_in_turn(int n, const float* field, const T* const* rows, const Run* runs, const Run* end) {
  Vec lanes[W];
  for (int j = 0; j < W; ++j) lanes[j] = zero();
  for (int j = 0; j < n; ++j) {
    Vec s[1] = {zero()};
    for (const Run* run = runs; run != end; ++run) add_run<1>(field + run->input, rows + j, run->weight, run->length, s);
    lanes[j] = s[0];
  }
  return sums(lanes);
}

constexpr int kInMemory = 4;  // rows read at once that lie in memory: more of them confuse what looks ahead for each

// Rows of a weight as it is.
template <class T>
struct WholeRows {
  const Site& site;

  EXPRUNE_INLINE_METHOD const T* row(int64_t neuron) const {
    return static_cast<const T*>(site.weight.data) + neuron * site.weight.stride;
  }
  EXPRUNE_INLINE_METHOD Vec worth(Vec sum, const int32_t*) const { return sum; }
};

// Rows of a weight in 24 bits, of one segment: its columns are counted as those of the whole weight.
struct SplitRows {
  const Site& site;
  int64_t begin, columns;

  SplitRows(const Site& of, const Segment& segment) : site(of) {
    const int64_t index = site.principal ? 0 : &segment - site.segments;
    begin = index ? site.codes.ends[index - 1] : 0;
    columns = site.codes.ends[index] - begin;
  }
  EXPRUNE_INLINE_METHOD Split row(int64_t neuron) const {
    return Split{site.codes.data, site.codes.rest} + (begin * site.outputs + neuron * columns - begin);
  }
  // Sums of four rows, in lanes 0 .. 3, in units of the rows'.
  EXPRUNE_INLINE_METHOD Vec worth(Vec sum, const int32_t* neurons) const {
    float units[W] = {};
    for (int j = 0; j < 4; ++j) units[j] = site.codes.numbers[neurons[j]] * kSplitUnit;
    return sum * load(units);
  }
};

// partial[j] += the sums of one segment for the listed neurons of a linear layer too large for the caches.
template <class RowsT>
static inline void add_segment_in_memory(const RowsT& rows_of, const Site& site, const Pixel& pixel,
                                         const Segment& segment, const int32_t* list, int alive, float* partial) {
  for (int at = 0; at < alive; at += kInMemory) {
    int32_t neurons[2 * kInMemory];  // those that are added up, and those asked for
    for (int j = 0; j < 2 * kInMemory; ++j) neurons[j] = list[at + j < alive ? at + j : alive - 1];
    decltype(rows_of.row(0)) rows[kInMemory], next[kInMemory];
    for (int j = 0; j < kInMemory; ++j) rows[j] = rows_of.row(neurons[j]), next[j] = rows_of.row(neurons[kInMemory + j]);
    Vec total = load(partial + at);
    for (const Chunk* chunk = segment.chunks; chunk != segment.chunks + segment.count; ++chunk) {
      const float* field = site.input.data + chunk->plane.offset + pixel.cell * chunk->plane.pitch;
      const Run& run = *chunk->runs;  // of one tap
      Vec s[kInMemory];
      for (int j = 0; j < kInMemory; ++j) s[j] = zero();
      add_run_asking(field + run.input, rows, next, run.weight, run.length, s);
      total = total + rows_of.worth(four_sums(s), neurons);
    }
    store(partial + at, total);  // the other lanes have what they had
  }
}

// partial[j] += the sums of one segment for the listed neurons: W rows of weights at a time, each to its end.
template <class T>
static inline void add_segment(const Site& site, const Pixel& pixel, const Segment& segment, bool head,
                               const int32_t* list, int alive, float* partial) {
  const Rows& weight = head ? site.head_weight : site.weight;
  const Image& image = head ? site.head_input : site.input;
  const bool apart = head && (site.principal || site.packed_head);  // the head's rows are no part of the weight's
  if (site.codes.rest && !apart) {
    return add_segment_in_memory(SplitRows(site, segment), site, pixel, segment, list, alive, partial);
  }
  if (site.in_memory && !apart) {
    return add_segment_in_memory(WholeRows<T>{site}, site, pixel, segment, list, alive, partial);
  }
  for (int at = 0; at < alive; at += W) {
    const int lanes = alive - at < W ? alive - at : W;
    const bool in_turn = head && site.packed_head;
    if (site.large && !in_turn && at + W < alive) {
      prefetch<T>(site, segment, weight, list + at + W, alive - at - W < W ? alive - at - W : W);
    }
    const T* rows[W];
    for (int j = 0; j < lanes; ++j) rows[j] = static_cast<const T*>(weight.data) + list[at + j] * weight.stride;
    Vec total = load(partial + at);
    for (int64_t c = 0; c < segment.count; ++c) {
      const Chunk& chunk = segment.chunks[c];
      const float* field = image.data + chunk.plane.offset + pixel.cell * chunk.plane.pitch;
      Run runs[kMostRuns];
      const int count = runs_inside(site, pixel, chunk, runs);
      total = total + (in_turn ? sum_in_turn(lanes, field, rows, runs, runs + count)
                               : sum_runs(lanes, Streams<const float*, const T*, true>{field, rows, 0}, runs, runs + count));
    }
    store(partial + at, total);
  }
}

template <class T>
static inline void add_squares(const Site& site, const Pixel& pixel, const Segment& segment, const int32_t* list,
                               int alive, float* partial, float* squares) {
  for (int at = 0; at < alive; at += W) {
    Vec s[W], q[W];
    for (int j = 0; j < W; ++j) s[j] = q[j] = zero();
    for (int j = 0; j < W && at + j < alive; ++j) {
      const T* row = static_cast<const T*>(site.weight.data) + list[at + j] * site.weight.stride;
      terms_of(site, segment, pixel.cell, row, s[j], q[j]);
    }
    store(partial + at, load(partial + at) + sums(s));
    store(squares + at, load(squares + at) + sums(q));
  }
}

// Takes the stages for the neurons of a list. partial: their sums so far, set to zero if the head's sums are no part of
// the neuron's. Returns how many are alive: they are the list's first, in order.
template <class T>
static inline int exact_stages(const Site& site, const Pixel& pixel, int32_t* list, float* partial, int alive) {
  float squares[kNeurons + W] = {};
  for (int64_t stage = 0; stage < site.stages; ++stage) {
    const Segment& segment = site.segments[stage];
    if (needs_squares(site.guard.kind)) {
      add_squares<T>(site, pixel, segment, list, alive, partial, squares);
    } else {
      add_segment<T>(site, pixel, segment, stage == 0, list, alive, partial);
    }
    int next = 0;
    for (int at = 0; at < alive; at += W) {
      const AcrossNeurons lanes{site, pixel, list + at, alive - at < W ? alive - at : W};
      const Vec s = load(partial + at), q = load(squares + at);
      const uint32_t bits = alive_after(lanes, stage, s, q);
      compress(list + next, lanes.list, bits);
      compress(partial + next, s, bits);
      compress(squares + next, q, bits);
      next += __builtin_popcount(bits);
    }
    alive = next;
  }
  if (site.principal) memset(partial, 0, sizeof(float) * kNeurons);
  return alive;
}

// The tail of the neurons of a list, and their activations.
template <class T>
static inline void finish_tail(const Site& site, const Pixel& pixel, const int32_t* list, float* partial, int alive) {
  add_segment<T>(site, pixel, site.segments[site.stages], false, list, alive, partial);
  for (int at = 0; at < alive; at += W) {
    const AcrossNeurons lanes{site, pixel, list + at, alive - at < W ? alive - at : W};
    finish<T>(lanes, load(partial + at));
  }
}

// All stages and the tail of neurons first .. last, at most kNeurons of them, at one pixel.
template <class T>
static inline void neurons_at(const Site& site, const Pixel& pixel, int64_t first, int64_t last) {
  int32_t list[kNeurons + W];
  float partial[kNeurons + W] = {};
  int alive = static_cast<int>(last - first);
  for (int j = 0; j < alive; ++j) list[j] = static_cast<int32_t>(first + j);
  alive = exact_stages<T>(site, pixel, list, partial, alive);
  finish_tail<T>(site, pixel, list, partial, alive);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
