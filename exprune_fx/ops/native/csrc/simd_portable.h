// The vectors of simd.h on whatever the compiler makes of four lanes.
#pragma once

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

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
EXPRUNE_INLINE uint32_t nonzero(Vec a) {  // NaN is not zero
  uint32_t bits = 0;
  for (int j = 0; j < W; ++j) bits |= static_cast<uint32_t>(a[j] != 0.0f) << j;
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
EXPRUNE_INLINE void compress_places(int32_t* to, int32_t first, uint32_t bits) {
  const int32_t places[W] = {first, first + 1, first + 2, first + 3};
  compress(to, places, bits);
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
