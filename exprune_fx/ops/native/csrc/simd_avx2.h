// The vectors of simd.h on AVX2, with FMA and F16C.
#pragma once

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

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

EXPRUNE_INLINE uint32_t nonzero(Vec a) {  // NaN is not zero
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, zero(), _CMP_NEQ_UQ)));
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

// Writes first + lane for every lane whose bit is set, lowest first; W numbers are written, the others of no meaning.
EXPRUNE_INLINE void compress_places(int32_t* to, int32_t first, uint32_t bits) {
  const __m256i places = _mm256_add_epi32(lanes_set(bits), _mm256_set1_epi32(first));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), places);
}

// from[list[j] - first] in lane j, and zero from lane n on.
EXPRUNE_INLINE Vec gather(const float* from, const int32_t* list, int n, int32_t first) {
  const __m256i lanes = first_lanes(n);
  const __m256i at = _mm256_sub_epi32(_mm256_maskload_epi32(list, lanes), _mm256_set1_epi32(first));
  return _mm256_mask_i32gather_ps(zero(), from, at, _mm256_castsi256_ps(lanes), 4);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
