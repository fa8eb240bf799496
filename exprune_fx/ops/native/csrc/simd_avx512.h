// The vectors of simd.h on AVX-512 (F, BW, VL, DQ).
#pragma once

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

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

EXPRUNE_INLINE uint32_t nonzero(Vec a) { return _mm512_cmp_ps_mask(a, zero(), _CMP_NEQ_UQ); }  // NaN is not zero

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

// Writes first + lane for every lane whose bit is set, lowest first; W numbers are written, the others of no meaning.
EXPRUNE_INLINE void compress_places(int32_t* to, int32_t first, uint32_t bits) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), places));
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
