// A row of weights in 24 bits: 8-bit codes, and what they leave of the weights in 16 bits more. Three quarters of the
// bytes of a float, and half of them where the codes have just been read.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// Its numbers are the weights in units of 2^-16 of their row's scale: whole, below 2^23, so exact as floats.
struct Split {
  const int8_t* codes;
  const int16_t* rest;

  EXPRUNE_INLINE_METHOD Split operator+(int64_t numbers) const { return {codes + numbers, rest + numbers}; }
};

constexpr float kSplitUnit = 1.0f / 65536;  // of a row's scale

// How many numbers of a row fill a line of memory, or of a split one three; and to ask for them.
template <class Row>
constexpr int64_t kLineNumbers = kLineBytes / static_cast<int64_t>(sizeof(*Row{}));
template <>
inline constexpr int64_t kLineNumbers<Split> = kLineBytes;

EXPRUNE_INLINE void ask_for(Split from, int64_t count) {
  ask(from.codes, count);
  ask(from.rest, count * static_cast<int64_t>(sizeof(int16_t)));
}

template <class Row>
EXPRUNE_INLINE void ask_for_line(Row from) {
  ask_for(from, kLineNumbers<Row>);
}

EXPRUNE_INLINE Vec load(Split from) {
#if EXPRUNE_ISA == 5
  const __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from.codes)));
  const __m512i rest = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.rest)));
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(codes, 16), rest));
#elif EXPRUNE_ISA == 2
  const __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from.codes)));
  const __m256i rest = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from.rest)));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(codes, 16), rest));
#else
  float numbers[W];
  for (int j = 0; j < W; ++j) numbers[j] = static_cast<float>(from.codes[j] * 65536 + from.rest[j]);
  return load(numbers);
#endif
}

EXPRUNE_INLINE Vec load_first(Split from, int n) {
  int8_t codes[W] = {};
  int16_t rest[W] = {};
  memcpy(codes, from.codes, static_cast<size_t>(n));
  memcpy(rest, from.rest, sizeof(int16_t) * static_cast<size_t>(n));
  return load(Split{codes, rest});
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
