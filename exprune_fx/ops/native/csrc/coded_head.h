// A convolution's head in 8 bits: the whole pre-activation of every neuron, from codes of its weights and ticks of its
// input (ticks.h). The sums are whole numbers, alike on every instruction set; exprune_fx/ops/coded.py says what they mean.
#pragma once

#include "head_in_lanes.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// --- whole numbers, W at a time -------------------------------------------------------------------------------------

// dots(s, u, c): s + the dot product, in each lane, of four bytes without a sign and four with one: exact.
#if EXPRUNE_ISA == 5
using Ints = __m512i;
EXPRUNE_INLINE Ints no_ints() { return _mm512_setzero_si512(); }
EXPRUNE_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
EXPRUNE_INLINE Ints all_ints(int32_t value) { return _mm512_set1_epi32(value); }
EXPRUNE_INLINE Ints minus_product(Ints s, Ints a, Ints b) { return _mm512_sub_epi32(s, _mm512_mullo_epi32(a, b)); }
EXPRUNE_INLINE Vec floats_of(Ints s) { return _mm512_cvtepi32_ps(s); }
EXPRUNE_INLINE Ints byte_dots(Ints s, Ints u, Ints c) {
  const Ints low = _mm512_set1_epi16(0xff);
  const Ints even = _mm512_madd_epi16(_mm512_and_si512(u, low), _mm512_srai_epi16(_mm512_slli_epi16(c, 8), 8));
  const Ints odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(c, 8));
  return _mm512_add_epi32(s, _mm512_add_epi32(even, odd));
}
#elif EXPRUNE_ISA == 2
using Ints = __m256i;
EXPRUNE_INLINE Ints no_ints() { return _mm256_setzero_si256(); }
EXPRUNE_INLINE Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
EXPRUNE_INLINE Ints all_ints(int32_t value) { return _mm256_set1_epi32(value); }
EXPRUNE_INLINE Ints minus_product(Ints s, Ints a, Ints b) { return _mm256_sub_epi32(s, _mm256_mullo_epi32(a, b)); }
EXPRUNE_INLINE Vec floats_of(Ints s) { return _mm256_cvtepi32_ps(s); }
EXPRUNE_INLINE Ints byte_dots(Ints s, Ints u, Ints c) {
  const Ints low = _mm256_set1_epi16(0xff);
  const Ints even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(c, 8), 8));
  const Ints odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(c, 8));
  return _mm256_add_epi32(s, _mm256_add_epi32(even, odd));
}
#else
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
EXPRUNE_INLINE Ints no_ints() { return Ints{0, 0, 0, 0}; }
EXPRUNE_INLINE Ints load_ints(const void* p) {
  Ints s;
  memcpy(&s, p, sizeof s);
  return s;
}
EXPRUNE_INLINE Ints all_ints(int32_t value) { return Ints{value, value, value, value}; }
EXPRUNE_INLINE Ints minus_product(Ints s, Ints a, Ints b) { return s - a * b; }
EXPRUNE_INLINE Vec floats_of(Ints s) {
  return Vec{static_cast<float>(s[0]), static_cast<float>(s[1]), static_cast<float>(s[2]), static_cast<float>(s[3])};
}
EXPRUNE_INLINE Ints byte_dots(Ints s, Ints u, Ints c) {
  for (int byte = 0; byte < 4; ++byte) s += ((u >> (8 * byte)) & 255) * ((Ints)((Bits)c << (24 - 8 * byte)) >> 24);
  return s;
}
#endif

#ifdef __AVX512F__
constexpr bool kAssembled = true;
#else
constexpr bool kAssembled = false;  // tests emulate the other instructions of AVX-512
#endif

// The same with four codes for all lanes (`quarters`: sixteen codes, four for every fourth lane), in one instruction where
// the processor has it. (As text for the assembler: what the compiler may use is said of whole units, and processors with
// and without it share this one.)
template <bool vnni, bool quarters>
EXPRUNE_INLINE Ints byte_dots(Ints s, Ints u, const int32_t* codes) {
#if EXPRUNE_ISA == 5
  if constexpr (quarters) {
    const Ints c = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    if constexpr (vnni && kAssembled) {
      __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(u), "v"(c));
      return s;
    } else {
      return byte_dots(s, u, c);
    }
  }
  if constexpr (vnni && kAssembled) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s) : "v"(u), "m"(*codes));
    return s;
  }
#endif
  return byte_dots(s, u, all_ints(*codes));
}

// Lane j of the result: the sum of lanes 4 j .. 4 j + 3.
EXPRUNE_INLINE Ints sums_of_quarters(Ints s) {
#if EXPRUNE_ISA == 5
  s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, _MM_PERM_CDAB));
  s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, _MM_PERM_BADC));
  return _mm512_permutexvar_epi32(_mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0), s);
#else
  return s;
#endif
}

// --- the sums -------------------------------------------------------------------------------------------------------

constexpr int kCodedNeurons = W == 4 ? 2 : (W == 16 ? 6 : 4);  // of a register tile of kPixelVectors
constexpr int kFewLaneNeurons = W == 16 ? 16 : 4;              // and of one vector of pixels
constexpr int kQuarterLanes = W == 16 ? 4 : 0;     // pixels of a panel whose vectors hold four numbers of each

// Pixels of the panels of a coded head.
EXPRUNE_INLINE int coded_lanes(const Site& site, int64_t pixels) {
  const bool quarters = pixels <= kQuarterLanes && site.head_input.channels % 4 == 0;
  return quarters ? kQuarterLanes : (pixels <= W ? W : kLaneTile);
}

// The panel of one tile and one kernel row: fill_panel's, or sixteen bytes of each pixel in turn.
static inline void fill_coded_panel(Tile& tile, float* panel, int64_t row) {
  const Chunk& chunk = tile.site.segments[0].chunks[0];
  if (tile.lanes != kQuarterLanes) return fill_panel(tile, panel, row, row + 1);
  enter(tile, chunk.plane);
  for (const Run* run = chunk.runs + chunk.of_row[row]; run != chunk.runs + chunk.of_row[row + 1]; ++run) {
    for (int64_t i = 0; i < run->length; i += 4) {
      for (int j = 0; j < tile.lanes; ++j, panel += 4) {
        const int64_t field = tile.offsets[j < tile.count ? j : 0];
        memcpy(panel, tile.site.head_input.data + field + run->input + i, 4 * sizeof(float));
      }
    }
  }
}

// Ticks of the pixels of a tile, lane by lane.
struct TileTicks {
  float tick[kLaneTile + W];
  int32_t zero[kLaneTile + W];

  explicit TileTicks(const Tile& tile) {
    const CodedHead& coded = tile.site.coded;
    const int64_t cells = tile.site.input.height * tile.site.input.width;
    const bool one = tile.site.geometry.images == 1;
    for (int j = 0; j < kLaneTile + W; ++j) {
      const int64_t image = one ? 0 : tile.pixels[j < tile.count ? j : 0].cell / cells;
      tick[j] = coded.ticks[image], zero[j] = coded.zeros[image];
    }
  }
};

// Rows that are asked for while codes are multiplied.
template <int N>
struct Asked {
  int64_t codes;         // numbers from a row of codes to the one that is asked for, or 0
  const char* also[N];   // of which two lines are asked for with each line of codes
  bool any;
};

// s[n * V + v] = the sums of neuron n at the pixels of vector v, in ticks and codes.
template <int N, int V, bool vnni, bool quarters>
static __attribute__((noinline)) void coded_sums(const int32_t* const* rows, const float* panel, int64_t quads,
                                                 const Asked<N>& asked, Ints* to) {
  constexpr int64_t line = kLineBytes / 4, step = quarters ? 4 : 1;
  Ints s[N * V];
  EXPRUNE_UNROLLED for (int k = 0; k < N * V; ++k) s[k] = no_ints();
  for (int64_t begin = 0; begin < quads; begin += line) {
    const int64_t end = begin + line < quads ? begin + line : quads;
    if (asked.codes) EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) ask(rows[n] + begin + asked.codes);
    if (asked.any) EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) ask(asked.also[n] + begin * 8, 2 * kLineBytes);
    for (int64_t i = begin; i < end; i += step, panel += V * W) {
      Ints u[V];
      EXPRUNE_UNROLLED for (int v = 0; v < V; ++v) u[v] = load_ints(panel + v * W);
      EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) {
        EXPRUNE_UNROLLED for (int v = 0; v < V; ++v) {
          s[n * V + v] = byte_dots<vnni, quarters>(s[n * V + v], u[v], rows[n] + i);
        }
      }
    }
  }
  EXPRUNE_UNROLLED for (int k = 0; k < N * V; ++k) {
    if (quarters) s[k] = sums_of_quarters(s[k]);
    memcpy(to + k, s + k, sizeof(Ints));
  }
}

// The tail's rows of N neurons, as far as they are needed.
template <int N>
EXPRUNE_INLINE void also_ask(const Tile& tile, int first, const int32_t* const* rows, Asked<N>& asked) {
  for (int n = 0; n < N; ++n) {
    asked.also[n] = reinterpret_cast<const char*>(rows[n]);  // of no need, and in a cache
    if (first < 0 || !tile.alive[first + n].count) continue;
    asked.also[n] = reinterpret_cast<const char*>(split_row_of(tile.site, tile.first_neuron + first + n).rest);
    asked.any = true;
  }
}

// The heads of N neurons. `before`: the first of those whose tail is next, or -1.
template <int N, int V, bool quarters>
static inline void coded_neurons(Tile& tile, const TileTicks& ticks, int first, const float* panel, int before) {
  const Site& site = tile.site;
  const Geometry& g = site.geometry;
  const int64_t neurons = tile.first_neuron + first, stride = site.head_weight.stride;
  const int64_t quads = g.kernel_rows * g.kernel_columns * site.head_input.channels;
  const int32_t* rows[N];
  for (int n = 0; n < N; ++n) rows[n] = static_cast<const int32_t*>(site.head_weight.data) + (neurons + n) * stride;
  const bool asks = site.large && neurons + 2 * N <= site.outputs;
  Asked<N> asked{asks ? N * stride : 0, {}, false};
  also_ask(tile, before, rows, asked);
  Ints whole[N * V];
  if (site.coded.vnni) {
    coded_sums<N, V, true, quarters>(rows, panel, quads, asked, whole);
  } else {
    coded_sums<N, V, false, quarters>(rows, panel, quads, asked, whole);
  }
  Vec sums[N * V];
  for (int n = 0; n < N; ++n) {
    const Ints of_codes = all_ints(static_cast<int32_t>(site.coded.sums[neurons + n]));
    const Vec scale = all(site.coded.scales[neurons + n]);
    for (int v = 0; v < V; ++v) {
      const Ints from_zero = minus_product(whole[n * V + v], load_ints(ticks.zero + v * W), of_codes);
      sums[n * V + v] = floats_of(from_zero) * (scale * load(ticks.tick + v * W));
    }
  }
  keep_alive<N, V>(tile, first, sums);
}

// The heads of all neurons of a tile, and behind them `finish(first, last)` for all. Where weights come from memory, the
// heads of some neurons compute while the rows of those before them come in; few pixels take turns, while those are there.
template <int N, int V, bool quarters, class Finish>
static inline void coded_heads_of(Tile& tile, const float* panel, const Finish& finish) {
  const TileTicks ticks(tile);
  const bool from_memory = tile.site.large && tile.site.coded.rest, in_turns = from_memory && V == 1;
  int n = 0, finished = 0;
  for (; n + N <= tile.neurons; n += N) {
    coded_neurons<N, V, quarters>(tile, ticks, n, panel, from_memory ? n - N : -1);
    if (in_turns && n) finish(n - N, n), finished = n;
  }
  for (; n < tile.neurons; ++n) coded_neurons<1, V, quarters>(tile, ticks, n, panel, -1);
  finish(finished, tile.neurons);
}

template <class Finish>
static inline void coded_heads(Tile& tile, const float* panel, const Finish& finish) {
#if EXPRUNE_ISA == 5
  if (tile.lanes == kQuarterLanes) return coded_heads_of<kFewLaneNeurons, 1, true>(tile, panel, finish);
#endif
  if (tile.lanes == W) return coded_heads_of<kFewLaneNeurons, 1, false>(tile, panel, finish);
  coded_heads_of<kCodedNeurons, kPixelVectors, false>(tile, panel, finish);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
