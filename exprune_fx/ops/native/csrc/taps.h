// Small images, where many taps of a kernel lie in the padding: tap by tap, each for those pixels alone that it reaches.
#pragma once

#include "dot.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kPairs = W == 16 ? 12 : 6;      // products whose two sums each fit into the registers
constexpr int kTapPixels = W == 16 ? 12 : 8;  // that share each load of a tap's weights

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

template <int N>
EXPRUNE_INLINE void add_vector(Vec weights, const float* const (&fields)[N], int64_t at, Vec (&s)[N]) {
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) s[j] = fma(weights, load(fields[j] + at), s[j]);
}

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
    if (kEven) add_vector(load(row + i), fields, i, even);
    if (kOdd) add_vector(load(row + (i + W)), fields, i + W, odd);
  }
  if (ahead && i < length) ask_for(row + (ahead + i), length - i);
  if (i + W <= length) {
    if (kEven) add_vector(load(row + i), fields, i, even);
    i += W;
  }
  if (kOdd && i < length) {
    const int rest = static_cast<int>(length - i);
    const Vec weights = load_first(row + i, rest);
    EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) odd[j] = fma(weights, load_first(fields[j] + i, rest), odd[j]);
  }
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
    EXPRUNE_CASE(1)
    EXPRUNE_CASE(2)
    EXPRUNE_CASE(3)
    EXPRUNE_CASE(4)
    EXPRUNE_CASE(5)
    EXPRUNE_CASE(6)
    EXPRUNE_CASE(7)
#if EXPRUNE_ISA == 5
    EXPRUNE_CASE(8)
    EXPRUNE_CASE(9)
    EXPRUNE_CASE(10)
    EXPRUNE_CASE(11)
#endif
    default:
      return add_tap_n<kTapPixels>(row, tap, pairs);
  }
#undef EXPRUNE_CASE
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
