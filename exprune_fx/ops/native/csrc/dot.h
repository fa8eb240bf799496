// Dot products of one shared stream with up to W others.
//
// Each product has one accumulator, filled in the order of the terms, and the lanes of all are added up by one scheme:
// a sum does not depend on how many others were computed beside it, nor on which of the two streams was shared.
#pragma once

#include "problem.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// sum[j] += shared[0:length] * other[j][0:length], lane by lane.
template <int N, class A, class B>
EXPRUNE_INLINE void accumulate_n(const A* shared, const B* const* other, int64_t offset, int64_t length, Vec* sum) {
  Vec s[N];
  for (int j = 0; j < N; ++j) s[j] = sum[j];
  int64_t i = 0;
  for (; i + 4 * W <= length; i += 4 * W) {
    const Vec a0 = load(shared + i), a1 = load(shared + i + W);
    const Vec a2 = load(shared + i + 2 * W), a3 = load(shared + i + 3 * W);
    for (int j = 0; j < N; ++j) {
      const B* p = other[j] + offset + i;
      s[j] = fma(a0, load(p), s[j]);
      s[j] = fma(a1, load(p + W), s[j]);
      s[j] = fma(a2, load(p + 2 * W), s[j]);
      s[j] = fma(a3, load(p + 3 * W), s[j]);
    }
  }
  for (; i + W <= length; i += W) {
    const Vec a = load(shared + i);
    for (int j = 0; j < N; ++j) s[j] = fma(a, load(other[j] + offset + i), s[j]);
  }
  if (i < length) {
    const int rest = static_cast<int>(length - i);
    const Vec a = load_first(shared + i, rest);
    for (int j = 0; j < N; ++j) s[j] = fma(a, load_first(other[j] + offset + i, rest), s[j]);
  }
  for (int j = 0; j < N; ++j) sum[j] = s[j];
}

template <class A, class B>
static inline void accumulate(int n, const A* shared, const B* const* other, int64_t offset, int64_t length, Vec* sum) {
#define EXPRUNE_CASE(N) \
  case N:               \
    return accumulate_n<N>(shared, other, offset, length, sum);
  switch (n) {
    EXPRUNE_CASE(1)
    EXPRUNE_CASE(2)
    EXPRUNE_CASE(3)
    EXPRUNE_CASE(4)
#if EXPRUNE_ISA > 0
    EXPRUNE_CASE(5)
    EXPRUNE_CASE(6)
    EXPRUNE_CASE(7)
    EXPRUNE_CASE(8)
#endif
#if EXPRUNE_ISA == 5
    EXPRUNE_CASE(9)
    EXPRUNE_CASE(10)
    EXPRUNE_CASE(11)
    EXPRUNE_CASE(12)
    EXPRUNE_CASE(13)
    EXPRUNE_CASE(14)
    EXPRUNE_CASE(15)
    EXPRUNE_CASE(16)
#endif
    default:
      return;
  }
#undef EXPRUNE_CASE
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
