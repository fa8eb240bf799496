// Small images, where many taps of a kernel lie in the padding: tap by tap, each for those pixels alone that it reaches.
#pragma once

#include "dot.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kPairs = W == 16 ? 12 : 6;  // products whose two sums each fit into the registers

// Two sums of each product, of its vectors in turn: at few pixels one multiply-add would wait for the last.
struct PairOfSums {
  float numbers[2 * W];
};

// One tap of one neuron: where the input lies that it reads for each pixel of a tile, and for which of them it does.
struct Tap {
  const float* input;
  const int64_t* offsets;  // by pixel
  const int32_t* list;     // of pixels
  int64_t length, ahead;
};

// The even vectors of a tap at N pixels, the odd ones, or both. What no whole vector holds is odd.
template <int N, bool kEven, bool kOdd, class Row>
EXPRUNE_INLINE void add_vectors_of_tap(Row row, const Tap& tap, PairOfSums* pairs, int64_t ahead) {
  const int64_t length = tap.length;
  const float* fields[N];
  float* to[N];
  Vec even[N], odd[N];
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) {
    fields[j] = tap.input + tap.offsets[tap.list[j]];
    to[j] = pairs[tap.list[j]].numbers;
    if (kEven) even[j] = load(to[j]);
    if (kOdd) odd[j] = load(to[j] + W);
  }
  int64_t i = 0;
  for (; i + 2 * W <= length; i += 2 * W) {
    if (ahead) ask_for(row + (ahead + i), 2 * W);
    if (kEven) add_vectors<N, 1>(row + i, fields, i, even);
    if (kOdd) add_vectors<N, 1>(row + (i + W), fields, i + W, odd);
  }
  if (ahead && i < length) ask_for(row + (ahead + i), length - i);
  if (i + W <= length) {
    if (kEven) add_vectors<N, 1>(row + i, fields, i, even);
    i += W;
  }
  if (kOdd && i < length) add_rest(row + i, fields, i, static_cast<int>(length - i), odd);
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) {
    if (kEven) store(to[j], even[j]);
    if (kOdd) store(to[j] + W, odd[j]);
  }
}

template <int N, class Row>
static __attribute__((noinline)) void add_tap_n(Row row, const Tap& tap, PairOfSums* pairs) {
  if constexpr (N <= kPairs) {
    add_vectors_of_tap<N, true, true>(row, tap, pairs, tap.ahead);
  } else {
    add_vectors_of_tap<N, true, false>(row, tap, pairs, tap.ahead);
    add_vectors_of_tap<N, false, true>(row, tap, pairs, 0);
  }
}

template <class Row>
static inline void add_tap(int n, Row row, const Tap& tap, PairOfSums* pairs) {
#define EXPRUNE_CASE(N) \
  case N:               \
    return add_tap_n<N>(row, tap, pairs);
  switch (n) {
    EXPRUNE_BELOW_W(EXPRUNE_CASE)
    default:
      return add_tap_n<W>(row, tap, pairs);
  }
#undef EXPRUNE_CASE
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
