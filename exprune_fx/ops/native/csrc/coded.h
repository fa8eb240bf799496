// Few rows of input: whether a neuron stops, and whether it is zero, is read from 8-bit codes of its weights where they
// prove it. All others are computed from the weights, by the sums that would have been taken without codes: every result
// is the same to the last bit. Or, with a rest, from codes and rest: then it is what a weight in 24 bits gives.
#pragma once

#include "across_neurons.h"
#include "integers.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// Calls visit(first, last) for the blocks of all segments, in order.
template <class Visit>
EXPRUNE_INLINE void each_block(const Codes& codes, const Visit& visit) {
  for (int64_t s = 0, begin = 0; s < codes.segments; begin = codes.ends[s++]) {
    for (int64_t first = begin; first < codes.ends[s]; first += kCodeBlock) {
      visit(s, first, first + kCodeBlock < codes.ends[s] ? first + kCodeBlock : codes.ends[s]);
    }
  }
}

// One row of input as codes are multiplied with it.
struct CodedInput {
  const float* facts;    // tick (NaN: no use), slack, the norm of each block
  const int16_t* ticks;  // input / tick, rounded; each segment's begin on a multiple of kTicks
};

struct CodedLayout {
  int64_t blocks = 0, facts, ticks = 0, bytes;

  explicit CodedLayout(const Codes& codes) {
    each_block(codes, [&](int64_t, int64_t, int64_t) { ++blocks; });
    for (int64_t s = 0, begin = 0; s < codes.segments; begin = codes.ends[s++]) {
      ticks += padded_ticks(codes.ends[s] - begin);
    }
    facts = (2 + blocks + 15) / 16 * 16;
    bytes = facts * static_cast<int64_t>(sizeof(float)) + ticks * static_cast<int64_t>(sizeof(int16_t));
  }

  EXPRUNE_INLINE_METHOD CodedInput at(const Codes& codes, int64_t row) const {
    const char* from = codes.inputs + row * bytes;
    const float* numbers = reinterpret_cast<const float*>(from);
    return {numbers, reinterpret_cast<const int16_t*>(numbers + facts)};
  }
};

// The sum of squares, and the largest magnitude, of some numbers.
EXPRUNE_INLINE void measure(const float* x, int64_t length, float& squares, float& largest) {
  Vec sum[2] = {zero(), zero()}, most[2] = {zero(), zero()};
  for (int64_t i = 0; i < length; i += 2 * W) {
    EXPRUNE_UNROLLED for (int v = 0; v < 2; ++v) {
      const int64_t rest = length - i - v * W;
      if (rest <= 0) break;
      const Vec a = load_some(x + i + v * W, rest);
      sum[v] = fma(a, a, sum[v]);
      most[v] = larger(magnitude(a), most[v]);  // NaN is found in the sum
    }
  }
  float s[W], m[W];
  store(s, sum[0] + sum[1]);
  store(m, larger(most[0], most[1]));
  squares = 0;
  for (int l = 0; l < W; ++l) {
    squares += s[l];
    largest = m[l] > largest ? m[l] : largest;
  }
}

// What W values of squares are the squares of, rounded up.
EXPRUNE_INLINE float root_above(float squares) {
  float root_of[W];
  store(root_of, root(all(squares)));
  return root_of[0] * 1.0001f + 1e-30f;
}

// Fills in what one row of input comes to. Integer sums stay below 2^31 by Cauchy-Schwarz: that is what slack[2] is for.
static inline void encode(const Codes& codes, const CodedLayout& layout, const float* x, char* to) {
  float* facts = reinterpret_cast<float*>(to);
  float largest = 0, whole = 0;
  float* norm = facts + 2;
  each_block(codes, [&](int64_t, int64_t first, int64_t last) EXPRUNE_LAMBDA {
    float squares;
    measure(x + first, last - first, squares, largest);
    whole += squares;
    *norm++ = root_above(squares);
  });
  const float length = root_above(whole), by_range = largest * (1.0f / 32767.0f), by_sum = length * codes.slack[2];
  const float tick = by_range > by_sum ? by_range : by_sum, inverse = 1.0f / tick;
  facts[1] = length * codes.slack[0] + tick * codes.slack[1];
  // Not finite, or so small that squares and ticks lose their meaning.
  const bool usable = facts[1] - facts[1] == 0 && inverse - inverse == 0 && whole > 1e-30f;
  facts[0] = usable ? tick : __builtin_nanf("");
  if (!usable) return;
  int16_t* ticks = reinterpret_cast<int16_t*>(facts + layout.facts);
  for (int64_t s = 0, begin = 0; s < codes.segments; begin = codes.ends[s++]) {
    const int64_t count = codes.ends[s] - begin, padded = padded_ticks(count);
    to_ticks(x + begin, inverse, count, ticks);
    for (int64_t i = count; i < padded; ++i) ticks[i] = 0;
    ticks += padded;
  }
}

// What codes say of some neurons, at one row of input.
struct CodedNeurons {
  const Site& site;
  CodedInput input;
  int64_t first, last;                 // neurons
  int32_t sum[kNeurons] = {};          // over the segments so far, in ticks and codes
  float error[kNeurons], unit[kNeurons];  // how far the sum may be off; what one of it is worth

  CodedNeurons(const Site& of, const CodedInput& at, int64_t from, int64_t to)
      : site(of), input(at), first(from), last(to) {
    each([&](int64_t j, const float* numbers, int n) EXPRUNE_LAMBDA {
      store_some(error + j, all(input.facts[1]), n);
      store_some(unit + j, load_some(numbers, n) * all(input.facts[0]), n);
    });
  }

  // Calls visit(place, numbers of the neurons there, how many) for all neurons, W at a time.
  template <class Visit>
  EXPRUNE_INLINE_METHOD void each(const Visit& visit) const {
    for (int64_t j = first; j < last; j += W) {
      visit(j - first, site.codes.numbers + j, static_cast<int>(last - j < W ? last - j : W));
    }
  }

  // Adds what rounding costs in a segment, for all neurons.
  EXPRUNE_INLINE_METHOD void widen_error(int64_t segment) {
    const int64_t begin = blocks_before(segment), end = blocks_before(segment + 1);
    each([&](int64_t j, const float* numbers, int n) EXPRUNE_LAMBDA {
      Vec sum_of = load_some(error + j, n);
      for (int64_t b = begin; b < end; ++b) {
        sum_of = fma(load_some(numbers + (1 + b) * site.outputs, n), all(input.facts[2 + b]), sum_of);
      }
      store_some(error + j, sum_of, n);
    });
  }

  EXPRUNE_INLINE_METHOD const int8_t* row(int64_t segment, int64_t neuron, int64_t length) const {
    const int64_t begin = segment ? site.codes.ends[segment - 1] : 0;
    return site.codes.data + begin * site.outputs + neuron * length;
  }

  EXPRUNE_INLINE_METHOD int64_t length(int64_t segment) const {
    return site.codes.ends[segment] - (segment ? site.codes.ends[segment - 1] : 0);
  }

  EXPRUNE_INLINE_METHOD void ask_for(int64_t segment, const int32_t* list, int count) const {
    const int64_t bytes = length(segment);
    for (int j = 0; j < count; ++j) ask(row(segment, list[j], bytes), bytes);
  }

  // Adds a segment for the listed neurons; `more` follow them in the list, and will be added next.
  EXPRUNE_INLINE_METHOD void add(int64_t segment, const int32_t* list, int count, int more) {
    const int64_t bytes = length(segment);
    const int8_t* first_row = row(segment, 0, bytes);
    const int16_t* ticks = input.ticks;
    for (int64_t s = 0; s < segment; ++s) ticks += padded_ticks(length(s));
    for (int at = 0; at < count; at += 4) {
      const int n = count - at < 4 ? count - at : 4, last = count + more - 1;
      const int8_t *rows[4], *next[4];
      if (n == 4 && at + 7 <= last) {
        for (int j = 0; j < 4; ++j) rows[j] = first_row + list[at + j] * bytes;
        for (int j = 0; j < 4; ++j) next[j] = first_row + list[at + 4 + j] * bytes;
      } else {
        for (int j = 0; j < 4; ++j) {
          const int there = at + 4 + j;
          rows[j] = first_row + list[at + (j < n ? j : n - 1)] * bytes;
          next[j] = first_row + list[there < last ? there : last] * bytes;
        }
      }
      int32_t sums_of[4];
      four_dots(rows, next, ticks, bytes, sums_of);
      if (segment == 0 && n == 4 && list[at + 3] - list[at] == 3) {  // lists are in order: four neighbours
        memcpy(sum + (list[at] - first), sums_of, sizeof sums_of);
        continue;
      }
      for (int j = 0; j < n; ++j) {
        int32_t& to = sum[list[at + j] - first];
        to = static_cast<int32_t>(static_cast<uint32_t>(to) + static_cast<uint32_t>(sums_of[j]));
      }
    }
  }

  EXPRUNE_INLINE_METHOD int64_t blocks_before(int64_t segment) const {
    int64_t count = 0;
    for (int64_t s = 0; s < segment; ++s) count += (length(s) + kCodeBlock - 1) / kCodeBlock;
    return count;
  }

  // What the sums so far of the listed neurons are at most.
  EXPRUNE_INLINE_METHOD Vec at_most(const AcrossNeurons& lanes) const {
    const Vec errors = lanes.gather(error, first), units = lanes.gather(unit, first);
    if (lanes.neighbours()) return fma(errors, all(1.0001f), floats(sum + (lanes.list[0] - first)) * units);
    int32_t ticks[W] = {};
    for (int j = 0; j < lanes.count; ++j) ticks[j] = sum[lanes.list[j] - first];
    return fma(errors, all(1.0001f), floats(ticks) * units);
  }
};

// Drops those of a list that surely stop at a stage. Returns how many are left.
static inline int going_on_by_codes(const CodedNeurons& coded, const Pixel& pixel, int64_t stage, int32_t* list,
                                    int count) {
  int next = 0;
  for (int at = 0; at < count; at += W) {
    const AcrossNeurons lanes{coded.site, pixel, list + at, count - at < W ? count - at : W};
    const uint32_t bits = alive_after(lanes, stage, coded.at_most(lanes), zero());
    compress(list + next, lanes.list, bits);
    next += __builtin_popcount(bits);
  }
  return next;
}

// Asks for the weights of some of a list, before all of it is known. Returns `last`.
template <class T>
static inline int ask_for_rows(const Site& site, const int32_t* list, int first, int last) {
  for (int j = first; j < last; ++j) {
    if (site.codes.rest) {
      const SplitRows tail(site, site.segments[site.stages]);
      ask_for(tail.row(list[j]).rest + tail.begin, tail.columns);
    } else {
      ask_for(WholeRows<T>{site}.row(list[j]), site.guard.elements);
    }
  }
  return last;
}

// Drops those of a list whose activation is surely zero. partial goes with the list. Returns how many are left.
template <class T>
static inline int positive_by_codes(CodedNeurons& coded, const Pixel& pixel, int64_t from, int32_t* list, float* partial,
                                    int count) {
  const Codes& codes = coded.site.codes;
  int next = 0, asked = 0;
  for (int64_t s = from; s < codes.segments; ++s) {
    coded.ask_for(s, list, count < 4 ? count : 4);
    coded.widen_error(s);
  }
  for (int at = 0; at < count; at += W) {
    const AcrossNeurons lanes{coded.site, pixel, list + at, count - at < W ? count - at : W};
    for (int64_t s = from; s < codes.segments; ++s) coded.add(s, lanes.list, lanes.count, count - at - lanes.count);
    const Vec most = coded.at_most(lanes) + lanes.constant();
    const uint32_t bits = ~less(most, zero()) & lanes_below(lanes.count);
    compress(list + next, lanes.list, bits);
    compress(partial + next, load(partial + at), bits);
    next += __builtin_popcount(bits);
    if (asked < kInMemory) asked = ask_for_rows<T>(coded.site, list, asked, next < kInMemory ? next : kInMemory);
    const int dropped = at + lanes.count - next;
    if (at == 0 && dropped * static_cast<int>(sizeof(T)) < lanes.count) {  // reading codes costs more than it spares
      for (int j = at + lanes.count; j < count; ++j, ++next) list[next] = list[j], partial[next] = partial[j];
      break;
    }
  }
  return next;
}

// Asks for what is known of each neuron: many short arrays, of which every one would be waited for.
EXPRUNE_INLINE void ask_for_numbers(const Site& site, const CodedLayout& layout, int64_t first, int64_t last) {
  const int64_t count = last - first;
  for (int64_t row = 0; row <= layout.blocks; ++row) ask_for(site.codes.numbers + row * site.outputs + first, count);
  if (site.bias) ask_for(site.bias + first, count);
  if (site.guard.limits) ask_for(site.guard.limits + first, count);
}

// neurons_at, with codes: it is left with those that these prove neither stopped nor zero.
template <class T>
static inline void coded_neurons_at(const Site& site, const Pixel& pixel, int64_t first, int64_t last) {
  const CodedLayout layout(site.codes);
  const CodedInput input = layout.at(site.codes, pixel.index);
  if (input.facts[0] != input.facts[0]) return neurons_at<T>(site, pixel, first, last);
  ask_for_numbers(site, layout, first, last);
  CodedNeurons coded(site, input, first, last);
  int32_t list[kNeurons + W];
  float partial[kNeurons + W] = {};
  int alive = static_cast<int>(last - first);
  for (int j = 0; j < alive; ++j) list[j] = static_cast<int32_t>(first + j);
  const bool stages_too = site.codes.segments == site.stages + 1;
  if (!stages_too) alive = exact_stages<T>(site, pixel, list, partial, alive);
  for (int64_t stage = 0; stages_too && stage < site.stages; ++stage) {
    coded.add(stage, list, alive, 0);
    coded.widen_error(stage);
    alive = going_on_by_codes(coded, pixel, stage, list, alive);
  }
  alive = positive_by_codes<T>(coded, pixel, stages_too ? site.stages : 0, list, partial, alive);
  if (stages_too) alive = exact_stages<T>(site, pixel, list, partial, alive);
  finish_tail<T>(site, pixel, list, partial, alive);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
