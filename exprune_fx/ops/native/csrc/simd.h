// One vector of float32 lanes on each instruction set, and the few things that the kernels do with it.
//
// EXPRUNE_ISA chooses at compile time (and EXPRUNE_DTYPE what numbers are read and written): 5 is AVX-512 (F, BW, VL, DQ),
// 2 is AVX2 with FMA and F16C, 0 is whatever the compiler's vector extension makes of four lanes; simd_avx512.h,
// simd_avx2.h and simd_portable.h each say what W, Vec and the operations on them are there. Everything lives in a
// namespace of its own and nothing from the standard library is instantiated here: an inline function that two of these
// units share would be merged by the linker, and could bring one unit's instructions to a machine that lacks them.
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

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune

#if EXPRUNE_ISA == 5
#include "simd_avx512.h"
#elif EXPRUNE_ISA == 2
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

#if EXPRUNE_ISA != 2  // simd_avx2.h has its own
// from[list[j] - first] in lane j, and zero from lane n on.
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

// W numbers, or as many as are left: to leave out lanes takes many times longer, where that is not needed.
template <class T>
EXPRUNE_INLINE Vec load_some(const T* p, int64_t left) {
  return left >= W ? load(p) : load_first(p, static_cast<int>(left));
}
EXPRUNE_INLINE void store_some(float* p, Vec v, int64_t left) {
  left >= W ? store(p, v) : store_first(p, v, static_cast<int>(left));
}

EXPRUNE_INLINE uint32_t lanes_below(int64_t n) { return (1u << (n < W ? n : W)) - 1u; }

// Keeps the compiler from carrying what it read from memory over this point: pointers are cheaper to read again than
// to hold in registers that the sums need.
EXPRUNE_INLINE void forget() { __asm__ volatile("" ::: "memory"); }

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
