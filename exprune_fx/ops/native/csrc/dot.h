// Dot products of one shared stream with up to W others.
//
// Each product has one accumulator, filled in the order of the terms, and the lanes of all are added up by one scheme:
// a sum does not depend on how many others were computed beside it, nor on which of the two streams was shared.
#pragma once

#include "problem.h"
#include "simd.h"
#include "split.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// The pointers of W products fit into registers: vector by vector then, so that no product waits for its own last step.
constexpr bool kPointersFit = W == 8;

// V vectors of the shared stream (a pointer, or what is read like one), each used by all others.
template <int N, int V, class Shared, class Other>
EXPRUNE_INLINE void add_vectors(Shared shared, const Other* other, int64_t offset, Vec (&s)[N]) {
  if constexpr (kPointersFit) {
    EXPRUNE_UNROLLED for (int v = 0; v < V; ++v) {
      const Vec a = load(shared + v * W);
      EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) s[j] = fma(a, load(other[j] + (offset + v * W)), s[j]);
    }
    return;
  }
  Vec a[V];
  EXPRUNE_UNROLLED for (int v = 0; v < V; ++v) a[v] = load(shared + v * W);
  forget();
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) {
    const auto p = other[j] + offset;
    EXPRUNE_UNROLLED for (int v = 0; v < V; ++v) s[j] = fma(a[v], load(p + v * W), s[j]);
  }
}

// What no whole vector holds.
template <int N, class Shared, class Other>
EXPRUNE_INLINE void add_rest(Shared shared, const Other* other, int64_t offset, int rest, Vec (&s)[N]) {
  const Vec a = load_first(shared, rest);
  forget();
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) s[j] = fma(a, load_first(other[j] + offset, rest), s[j]);
}

// One run: s[j] += shared[0:length] * other[j][0:length], lane by lane. What lies `ahead` of the shared numbers is asked
// for meanwhile, unless that is 0.
template <int N, class Shared, class Other>
EXPRUNE_INLINE void add_run(Shared shared, const Other* other, int64_t offset, int64_t length, Vec (&s)[N],
                            int64_t ahead = 0) {
  Other local[N];
  if constexpr (kPointersFit) {
    EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) local[j] = other[j];
    other = local;
  }
  int64_t i = 0;
  for (; i + 4 * W <= length; i += 4 * W) {
    if (ahead) ask_for(shared + (ahead + i), 4 * W);
    add_vectors<N, 4>(shared + i, other, offset + i, s);
  }
  if (ahead && i < length) ask_for(shared + (ahead + i), length - i);
  if (i + 2 * W <= length) {
    add_vectors<N, 2>(shared + i, other, offset + i, s);
    i += 2 * W;
  }
  if (i + W <= length) {
    add_vectors<N, 1>(shared + i, other, offset + i, s);
    i += W;
  }
  if (i < length) add_rest(shared + i, other, offset + i, static_cast<int>(length - i), s);
}

// The same of rows that lie in memory, no cache: while they are read, line by line, others are asked for.
template <int N, class Shared, class Other>
EXPRUNE_INLINE void add_run_asking(Shared shared, const Other* other, const Other* next, int64_t offset, int64_t length,
                                   Vec (&s)[N]) {
  constexpr int64_t line = kLineNumbers<Other>;
  int64_t i = 0;
  for (; i + line <= length; i += line) {
    EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) ask_for_line(next[j] + (offset + i));
    EXPRUNE_UNROLLED for (int64_t v = 0; v < line; v += W) {
      const Vec a = load(shared + i + v);
      EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) s[j] = fma(a, load(other[j] + (offset + i + v)), s[j]);
    }
  }
  if (i < length) EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) ask_for(next[j] + (offset + i), length - i);
  add_run(shared + i, other, offset + i, length - i, s);
}

// The two streams of a product. A run says where in each it lies.
template <class Shared, class Other, bool kInputIsShared>
struct Streams {
  Shared shared;
  const Other* other;
  int64_t ahead;  // numbers from the shared stream to one that is asked for meanwhile, or 0

  EXPRUNE_INLINE_METHOD Shared at(const Run& run) const { return shared + (kInputIsShared ? run.input : run.weight); }
  EXPRUNE_INLINE_METHOD int64_t offset(const Run& run) const { return kInputIsShared ? run.weight : run.input; }
};

// The sums over some runs, in lanes 0 .. N - 1. They stay in registers from the first run to the last.
template <int N, class StreamsT>
static __attribute__((noinline)) Vec sum_runs_n(const StreamsT& streams, const Run* run, const Run* end) {
  Vec s[N];
  EXPRUNE_UNROLLED for (int j = 0; j < N; ++j) s[j] = zero();
  for (; run != end; ++run) {
    add_run<N>(streams.at(*run), streams.other, streams.offset(*run), run->length, s, streams.ahead);
  }
  Vec lanes[W];
  EXPRUNE_UNROLLED for (int j = 0; j < W; ++j) lanes[j] = j < N ? s[j] : zero();
  return sums(lanes);
}

// CASE(N) for every N below W.
#if EXPRUNE_ISA == 5
#define EXPRUNE_BELOW_W(CASE) \
  CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15)
#elif EXPRUNE_ISA == 2
#define EXPRUNE_BELOW_W(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
#else
#define EXPRUNE_BELOW_W(CASE) CASE(1) CASE(2) CASE(3)
#endif

template <class StreamsT>
static inline Vec sum_runs(int n, const StreamsT& streams, const Run* run, const Run* end) {
#define EXPRUNE_CASE(N) \
  case N:               \
    return sum_runs_n<N>(streams, run, end);
  switch (n) {
    EXPRUNE_BELOW_W(EXPRUNE_CASE)
    default:
      return sum_runs_n<W>(streams, run, end);
  }
#undef EXPRUNE_CASE
}

template <class T>
inline constexpr bool kIsFloat = false;
template <>
inline constexpr bool kIsFloat<float> = true;

// Dot products of one row with several others, all `length` long. (The third argument is the one that the kernels of
// sites give with these types: it makes no difference here, and nothing is compiled twice.)
template <class A, class B>
static inline Vec dots(int n, const A* shared, const B* const* other, int64_t length) {
  const Run run{0, 0, length};
  return sum_runs(n, Streams<const A*, const B*, kIsFloat<A>>{shared, other, 0}, &run, &run + 1);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
