// A convolution's input in ticks, a byte each, image by image: what the codes of a coded head are multiplied with.
// exprune_fx/ops/coded.py says what they mean.
#pragma once

#include "integers.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

struct Ticking {
  const Image* from;
  const Geometry* geometry;
  const Image* layout;
  uint8_t* to;
  float* ticks;
  int32_t* zeros;
  float* rows;  // [padded rows of all images, 3]: least, largest, and what is not 0 if a number is not finite
};

EXPRUNE_INLINE float fold(Vec v, bool of_largest) {
  float lanes[W];
  store(lanes, v);
  float result = lanes[0];
  for (int l = 1; l < W; ++l) result = (of_largest ? lanes[l] > result : lanes[l] < result) ? lanes[l] : result;
  return result;
}

// Visits the numbers of one padded row that lie inside the padding: visit(first number, how many, channel, column).
template <class Visit>
EXPRUNE_INLINE void each_inside(const Ticking& t, int64_t row, const Visit& visit) {
  const Geometry& g = *t.geometry;
  const int64_t y = row % t.from->height - g.padding_rows;
  if (y < 0 || y >= g.rows_in) return;
  for (const Plane* plane = t.from->planes; plane != t.from->planes + t.from->plane_count; ++plane) {
    for (int64_t x = g.padding_columns; x < g.padding_columns + g.columns_in; ++x) {
      const float* from = t.from->data + plane->offset + (row * t.from->width + x) * plane->pitch;
      visit(from, plane->last - plane->first, plane->first, x);
    }
  }
}

static inline void range_piece(const void* context, int64_t row) {
  const Ticking& t = *static_cast<const Ticking*>(context);
  Vec least = zero(), most = zero(), wrong = zero();
  each_inside(t, row, [&](const float* from, int64_t count, int64_t, int64_t) EXPRUNE_LAMBDA {
    for (int64_t i = 0; i < count; i += W) {
      const Vec v = load_some(from + i, count - i);
      least = smaller(v, least);
      most = larger(v, most);
      wrong = fma(v, zero(), wrong);
    }
  });
  float sum = 0, lanes[W], *to = t.rows + row * 3;
  store(lanes, wrong);
  for (int l = 0; l < W; ++l) sum += lanes[l];
  to[0] = fold(least, false), to[1] = fold(most, true), to[2] = sum;
}

// x[i] / tick to the nearest, ties to even, and zero's ticks: 0 .. 255.
EXPRUNE_INLINE void to_bytes(const float* x, float inverse, int32_t zero_at, int64_t count, uint8_t* to) {
  int64_t i = 0;
#if EXPRUNE_ISA == 5
  for (; i + 16 <= count; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
    const __m512i from_zero = _mm512_max_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(zero_at)), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtusepi32_epi8(from_zero));
  }
#elif EXPRUNE_ISA == 2
  for (; i + 8 <= count; i += 8) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
    const __m256i from_zero = _mm256_add_epi32(whole, _mm256_set1_epi32(zero_at));
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(from_zero), _mm256_extracti128_si256(from_zero, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), _mm_packus_epi16(half, half));
  }
#endif
  for (; i < count; ++i) {
    const int32_t at = to_nearest(x[i] * inverse) + zero_at;
    to[i] = static_cast<uint8_t>(at < 0 ? 0 : (at > 255 ? 255 : at));
  }
}

static inline void ticks_piece(const void* context, int64_t row) {
  const Ticking& t = *static_cast<const Ticking*>(context);
  const int64_t image = row / t.layout->height;
  float low = 0, high = 0, wrong = 0;
  for (int64_t r = image * t.layout->height; r < (image + 1) * t.layout->height; ++r) {
    const float* of_row = t.rows + r * 3;
    low = of_row[0] < low ? of_row[0] : low;
    high = of_row[1] > high ? of_row[1] : high;
    wrong += of_row[2];
  }
  const float span = (high - low) / 255.0f, tick = span == 0 ? 1.0f : span, inverse = 1.0f / tick;
  const bool usable = wrong == 0 && tick - tick == 0 && inverse - inverse == 0;
  const int32_t zero_at = usable ? to_nearest(-low * inverse) : 0;
  if (row % t.layout->height == 0) {
    t.ticks[image] = usable ? tick : __builtin_nanf("");
    t.zeros[image] = zero_at;
  }
  const int64_t bytes = t.layout->channels * 4;
  memset(t.to + row * t.layout->width * bytes, zero_at, static_cast<size_t>(t.layout->width * bytes));
  if (!usable) return;
  each_inside(t, row, [&](const float* from, int64_t count, int64_t channel, int64_t x) EXPRUNE_LAMBDA {
    to_bytes(from, inverse, zero_at, count, t.to + (row * t.layout->width + x) * bytes + channel);
  });
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
