// One vector of float32 lanes on each instruction set, and the few things that the kernels do with it.
//
// EXPRUNE_ISA chooses at compile time (and EXPRUNE_DTYPE what numbers are read and written): 5 is AVX-512 (F, BW, VL, DQ), 2 is AVX2 with FMA and F16C, 0 is whatever the
// compiler's vector extension makes of four lanes. Everything lives in a namespace of its own and nothing from the
// standard library is instantiated here: an inline function that two of these units share would be merged by the
// linker, and could bring one unit's instructions to a machine that lacks them.
#pragma once

#include <stdint.h>
#include <string.h>

#if EXPRUNE_ISA > 0
#include <immintrin.h>
#else
#include <math.h>
#endif

namespace exprune {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
using Float32 = float;

using Number = EXPRUNE_DTYPE;  // of this unit's inputs, weights and results

namespace EXPRUNE_ISA_NAMESPACE {

#define EXPRUNE_INLINE static inline __attribute__((always_inline))
#define EXPRUNE_INLINE_METHOD inline __attribute__((always_inline))
#define EXPRUNE_LAMBDA __attribute__((always_inline))
// In front of a loop of constant length: it is unrolled whole, so that arrays that it indexes live in registers.
#define EXPRUNE_UNROLLED _Pragma("GCC unroll 32")


EXPRUNE_INLINE float widen(float value) { return value; }

EXPRUNE_INLINE float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

EXPRUNE_INLINE float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {  // normal
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // zero or subnormal: a multiple of 2^-24
    const float tiny = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    memcpy(&bits, &tiny, sizeof bits);
    bits |= sign;
  }
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <class T>
T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline Half narrow<Half>(float value) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return Half{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return Half{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 2^16 or beyond
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at the subnormals' last place, 2^-24
    float shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &shifted, sizeof rounded);
    return Half{static_cast<uint16_t>(sign | (rounded - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return Half{static_cast<uint16_t>(sign | (rounded >> 13))};
}

#if EXPRUNE_ISA == 5

constexpr int W = 16;
using Vec = __m512;

EXPRUNE_INLINE Vec zero() { return _mm512_setzero_ps(); }
EXPRUNE_INLINE Vec all(float value) { return _mm512_set1_ps(value); }
EXPRUNE_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
EXPRUNE_INLINE Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
EXPRUNE_INLINE Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
EXPRUNE_INLINE Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps((1u << n) - 1u, p); }
EXPRUNE_INLINE Vec load_first(const BFloat16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16((1u << n) - 1u, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
EXPRUNE_INLINE Vec load_first(const Half* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << n) - 1u, p));
}
EXPRUNE_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
EXPRUNE_INLINE void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1u, v); }
EXPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
EXPRUNE_INLINE Vec root(Vec a) { return _mm512_sqrt_ps(a); }
EXPRUNE_INLINE Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
EXPRUNE_INLINE Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
EXPRUNE_INLINE Vec magnitude(Vec a) { return _mm512_abs_ps(a); }
EXPRUNE_INLINE uint32_t less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

EXPRUNE_INLINE __m128 sums_of_four(const Vec* v) {
  const auto halves = [&](int j) EXPRUNE_LAMBDA {
    return _mm256_add_ps(_mm512_castps512_ps256(v[j]), _mm512_extractf32x8_ps(v[j], 1));
  };
  const __m256 two = _mm256_hadd_ps(halves(0), halves(1)), more = _mm256_hadd_ps(halves(2), halves(3));
  const __m256 four = _mm256_hadd_ps(two, more);
  return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

// Lanes 0, 1, ... of the result are the sums over all lanes of v[0], v[1], ...; each is added up in the same order.
EXPRUNE_INLINE Vec sums(const Vec* v) {
  const __m256 low = _mm256_set_m128(sums_of_four(v + 4), sums_of_four(v));
  const __m256 high = _mm256_set_m128(sums_of_four(v + 12), sums_of_four(v + 8));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// The same of four, in lanes 0 .. 3; the others are zero.
EXPRUNE_INLINE Vec four_sums(const Vec* v) { return _mm512_zextps128_ps512(sums_of_four(v)); }

// Writes lane i of v[0], v[1], ... next to one another at to + i * stride.
EXPRUNE_INLINE void store_transposed(float* to, int64_t stride, const Vec* v) {
  Vec a[16], b[16];
  for (int j = 0; j < 16; j += 2) {  // pairs of rows
    a[j] = _mm512_unpacklo_ps(v[j], v[j + 1]);
    a[j + 1] = _mm512_unpackhi_ps(v[j], v[j + 1]);
  }
  for (int j = 0; j < 16; j += 4) {  // columns of four rows, within each quarter
    for (int h = 0; h < 2; ++h) {
      const __m512d low = _mm512_castps_pd(a[j + h]), high = _mm512_castps_pd(a[j + 2 + h]);
      b[j + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[j + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 4; ++i) {  // b[4 * r + i] holds columns i, 4 + i, 8 + i, 12 + i of rows 4 r .. 4 r + 3
    const Vec p = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x44), q = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x44);
    const Vec r = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xee), s = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xee);
    store(to + i * stride, _mm512_shuffle_f32x4(p, q, 0x88));
    store(to + (4 + i) * stride, _mm512_shuffle_f32x4(p, q, 0xdd));
    store(to + (8 + i) * stride, _mm512_shuffle_f32x4(r, s, 0x88));
    store(to + (12 + i) * stride, _mm512_shuffle_f32x4(r, s, 0xdd));
  }
}

// Writes the lanes whose bit is set next to one another; W lanes are written, the others being of no meaning.
EXPRUNE_INLINE void compress(float* to, Vec v, uint32_t bits) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
}
EXPRUNE_INLINE void compress(int32_t* to, const int32_t* from, uint32_t bits) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(from)));
}

#elif EXPRUNE_ISA == 2

constexpr int W = 8;
using Vec = __m256;

EXPRUNE_INLINE Vec zero() { return _mm256_setzero_ps(); }
EXPRUNE_INLINE Vec all(float value) { return _mm256_set1_ps(value); }
EXPRUNE_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
EXPRUNE_INLINE Vec load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
EXPRUNE_INLINE Vec load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
EXPRUNE_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
EXPRUNE_INLINE Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
template <class T>
EXPRUNE_INLINE Vec load_first(const T* p, int n) {
  T copy[W] = {};
  memcpy(copy, p, sizeof(T) * static_cast<size_t>(n));
  return load(copy);
}
EXPRUNE_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
EXPRUNE_INLINE void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
EXPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
EXPRUNE_INLINE Vec root(Vec a) { return _mm256_sqrt_ps(a); }
EXPRUNE_INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
EXPRUNE_INLINE Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
EXPRUNE_INLINE Vec magnitude(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
EXPRUNE_INLINE uint32_t less(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
}

EXPRUNE_INLINE Vec sums(const Vec* v) {
  const Vec ab = _mm256_hadd_ps(v[0], v[1]), cd = _mm256_hadd_ps(v[2], v[3]);
  const Vec ef = _mm256_hadd_ps(v[4], v[5]), gh = _mm256_hadd_ps(v[6], v[7]);
  const Vec abcd = _mm256_hadd_ps(ab, cd), efgh = _mm256_hadd_ps(ef, gh);
  const Vec low = _mm256_permute2f128_ps(abcd, efgh, 0x20), high = _mm256_permute2f128_ps(abcd, efgh, 0x31);
  return _mm256_add_ps(low, high);
}

EXPRUNE_INLINE Vec four_sums(const Vec* v) {
  const Vec abcd = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  return _mm256_zextps128_ps256(_mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

EXPRUNE_INLINE void store_transposed(float* to, int64_t stride, const Vec* v) {
  Vec a[8], b[8];
  EXPRUNE_UNROLLED for (int j = 0; j < 8; j += 2) {  // pairs of rows
    a[j] = _mm256_unpacklo_ps(v[j], v[j + 1]);
    a[j + 1] = _mm256_unpackhi_ps(v[j], v[j + 1]);
  }
  EXPRUNE_UNROLLED for (int j = 0; j < 8; j += 4) {  // b[j + i] holds columns i and 4 + i of rows j .. j + 3
    b[j] = _mm256_shuffle_ps(a[j], a[j + 2], 0x44);
    b[j + 1] = _mm256_shuffle_ps(a[j], a[j + 2], 0xee);
    b[j + 2] = _mm256_shuffle_ps(a[j + 1], a[j + 3], 0x44);
    b[j + 3] = _mm256_shuffle_ps(a[j + 1], a[j + 3], 0xee);
  }
  EXPRUNE_UNROLLED for (int i = 0; i < 4; ++i) {
    store(to + i * stride, _mm256_permute2f128_ps(b[i], b[4 + i], 0x20));
    store(to + (4 + i) * stride, _mm256_permute2f128_ps(b[i], b[4 + i], 0x31));
  }
}

// Lanes whose bit is set, lowest first, a byte each: one entry for each value of the bits.
struct LanesSet {
  uint64_t of[256];

  constexpr LanesSet() : of{} {
    for (int bits = 0; bits < 256; ++bits) {
      int next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (bits >> lane & 1) of[bits] |= static_cast<uint64_t>(lane) << (8 * next++);
      }
    }
  }
};
static constexpr LanesSet kLanesSet;

EXPRUNE_INLINE __m256i lanes_set(uint32_t bits) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLanesSet.of[bits])));
}

EXPRUNE_INLINE void compress(float* to, Vec v, uint32_t bits) {
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(v, lanes_set(bits)));
}
EXPRUNE_INLINE void compress(int32_t* to, const int32_t* from, uint32_t bits) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(v, lanes_set(bits)));
}

// from[list[j] - first] in lane j, and zero from lane n on.
EXPRUNE_INLINE Vec gather(const float* from, const int32_t* list, int n, int32_t first) {
  const __m256i lanes = first_lanes(n);
  const __m256i at = _mm256_sub_epi32(_mm256_maskload_epi32(list, lanes), _mm256_set1_epi32(first));
  return _mm256_mask_i32gather_ps(zero(), from, at, _mm256_castsi256_ps(lanes), 4);
}

#else

constexpr int W = 4;
typedef float Vec __attribute__((vector_size(16)));

EXPRUNE_INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
EXPRUNE_INLINE Vec all(float value) { return Vec{value, value, value, value}; }
template <class T>
EXPRUNE_INLINE Vec load(const T* p) {
  return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}
EXPRUNE_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
EXPRUNE_INLINE Vec load_first(const T* p, int n) {
  T copy[W] = {};
  memcpy(copy, p, sizeof(T) * static_cast<size_t>(n));
  return load(copy);
}
EXPRUNE_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
EXPRUNE_INLINE void store_first(float* p, Vec v, int n) { memcpy(p, &v, sizeof(float) * static_cast<size_t>(n)); }
EXPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
EXPRUNE_INLINE Vec root(Vec a) { return Vec{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
EXPRUNE_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
EXPRUNE_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
EXPRUNE_INLINE Vec magnitude(Vec a) { return a < zero() ? -a : a; }
EXPRUNE_INLINE uint32_t less(Vec a, Vec b) {
  uint32_t bits = 0;
  for (int j = 0; j < W; ++j) bits |= static_cast<uint32_t>(a[j] < b[j]) << j;
  return bits;
}
EXPRUNE_INLINE Vec sums(const Vec* v) {
  Vec total;
  for (int j = 0; j < W; ++j) total[j] = (v[j][0] + v[j][2]) + (v[j][1] + v[j][3]);
  return total;
}

EXPRUNE_INLINE Vec four_sums(const Vec* v) { return sums(v); }
EXPRUNE_INLINE void store_transposed(float* to, int64_t stride, const Vec* v) {
  float lanes[W];
  for (int j = 0; j < W; ++j) {
    store(lanes, v[j]);
    for (int i = 0; i < W; ++i) to[i * stride + j] = lanes[i];
  }
}
EXPRUNE_INLINE void compress(float* to, Vec v, uint32_t bits) {
  float lanes[W];
  store(lanes, v);
  for (int j = 0; j < W; ++j) {
    *to = lanes[j];
    to += (bits >> j) & 1u;
  }
}
EXPRUNE_INLINE void compress(int32_t* to, const int32_t* from, uint32_t bits) {
  int32_t lanes[W];
  memcpy(lanes, from, sizeof lanes);
  for (int j = 0; j < W; ++j) {
    *to = lanes[j];
    to += (bits >> j) & 1u;
  }
}

#endif

#if EXPRUNE_ISA != 2
EXPRUNE_INLINE Vec gather(const float* from, const int32_t* list, int n, int32_t first) {
  float numbers[W] = {};
  for (int j = 0; j < n; ++j) numbers[j] = from[list[j] - first];
  return load(numbers);
}
#endif

// Asks for a line of memory: into the second cache, where far more requests may wait than at the first.
EXPRUNE_INLINE void ask(const void* line) { __builtin_prefetch(line, 0, 2); }

constexpr int64_t kLineBytes = 64;

EXPRUNE_INLINE void ask(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLineBytes) ask(static_cast<const char*>(from) + i);
}

template <class T>
EXPRUNE_INLINE void ask_for(const T* numbers, int64_t count) {
  ask(numbers, count * static_cast<int64_t>(sizeof(T)));
}

EXPRUNE_INLINE uint32_t lanes_below(int64_t n) { return (1u << (n < W ? n : W)) - 1u; }

// Keeps the compiler from carrying what it read from memory over this point: pointers are cheaper to read again than
// to hold in registers that the sums need.
EXPRUNE_INLINE void forget() { __asm__ volatile("" ::: "memory"); }

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
