// Dot products of 8-bit codes with 16-bit numbers, exact in 32 bits: alike on every instruction set.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

EXPRUNE_INLINE int16_t to_nearest(float value) {  // ties to even, for values below 2^22
  const float shifted = value + 12582912.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return static_cast<int16_t>(bits - 0x4b400000);
}

constexpr int64_t kTicks = 32;  // numbers that a step reads at most: what is read beyond a row meets zeros

EXPRUNE_INLINE int64_t padded_ticks(int64_t length) { return (length + kTicks - 1) / kTicks * kTicks; }

// out[j] = code[j][0:length] . x[0:length], modulo 2^32. Rows may be read, and x must be zero, up to the next multiple of
// kTicks. `next`: four rows, or null, that are asked for meanwhile: rows apart are more than the hardware looks ahead.
#if EXPRUNE_ISA == 5
EXPRUNE_INLINE void four_dots(const int8_t* const* code, const int8_t* const* next, const int16_t* x, int64_t length,
                              int32_t* out) {
  __m512i s[4];
  EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) s[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < length; i += 32) {
    if (next && i % kLineBytes == 0) EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) ask(next[j] + i);
    const __m512i v = _mm512_loadu_si512(x + i);
    EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) {
      const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(code[j] + i)));
      s[j] = _mm512_add_epi32(s[j], _mm512_madd_epi16(wide, v));
    }
  }
  __m256i h[4];
  EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) {
    h[j] = _mm256_add_epi32(_mm512_castsi512_si256(s[j]), _mm512_extracti64x4_epi64(s[j], 1));
  }
#elif EXPRUNE_ISA == 2
// Sixteen codes of each of four rows.
EXPRUNE_INLINE void add_codes(const int8_t* const* code, const int16_t* x, int64_t i, __m256i* h) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
  EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code[j] + i)));
    h[j] = _mm256_add_epi32(h[j], _mm256_madd_epi16(wide, v));
  }
}

EXPRUNE_INLINE void four_dots(const int8_t* const* code, const int8_t* const* next, const int16_t* x, int64_t length,
                              int32_t* out) {
  __m256i h[4];
  EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) h[j] = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kLineBytes <= length; i += kLineBytes) {  // line by line: what is asked for is decided once for each
    if (next) EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) ask(next[j] + i);
    EXPRUNE_UNROLLED for (int64_t c = 0; c < kLineBytes; c += 16) add_codes(code, x, i + c, h);
  }
  if (next && i < length) EXPRUNE_UNROLLED for (int j = 0; j < 4; ++j) ask(next[j] + i);
  for (; i < length; i += 16) add_codes(code, x, i, h);
#endif
#if EXPRUNE_ISA > 0
  const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(h[0], h[1]), _mm256_hadd_epi32(h[2], h[3]));
  const __m128i total = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), total);
}
#else
EXPRUNE_INLINE void four_dots(const int8_t* const* code, const int8_t* const* next, const int16_t* x, int64_t length,
                              int32_t* out) {
  if (next) {
    for (int j = 0; j < 4; ++j) ask(next[j], length);
  }
  for (int j = 0; j < 4; ++j) {
    uint32_t sum = 0;  // unsigned: it may wrap on the way
    for (int64_t i = 0; i < length; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(code[j][i]) * x[i]);
    out[j] = static_cast<int32_t>(sum);
  }
}
#endif

// ticks[i] = x[i] * inverse, to the nearest, ties to even; of magnitudes below 2^15.
EXPRUNE_INLINE void to_ticks(const float* x, float inverse, int64_t length, int16_t* ticks) {
  int64_t i = 0;
#if EXPRUNE_ISA == 5
  for (; i + 16 <= length; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(ticks + i), _mm512_cvtepi32_epi16(whole));
  }
#elif EXPRUNE_ISA == 2
  for (; i + 8 <= length; i += 8) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(ticks + i), half);
  }
#endif
  for (; i < length; ++i) ticks[i] = to_nearest(x[i] * inverse);
}

// W integers as floats.
#if EXPRUNE_ISA == 5
EXPRUNE_INLINE Vec floats(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
#elif EXPRUNE_ISA == 2
EXPRUNE_INLINE Vec floats(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#else
EXPRUNE_INLINE Vec floats(const int32_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
#endif

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
