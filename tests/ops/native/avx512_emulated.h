// The AVX-512 intrinsics that the kernels use, lane by lane, for processors without them: slow, and only for tests.
//
// Included before all else (-include), with AVX-512 turned off: the names below then stand for what is here.
#pragma once

#define __builtin_cpu_supports(feature) 1

#if defined(EXPRUNE_ISA) && EXPRUNE_ISA == 5
#pragma GCC target("no-avx512f")  // and all that builds on it
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#undef __AVX512F__  // the headers above put it back

namespace emulated {

#define EMULATED static inline __attribute__((always_inline))

using Floats = float __attribute__((vector_size(64)));
using Doubles = double __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Shorts = int16_t __attribute__((vector_size(64)));
using UnsignedShorts = uint16_t __attribute__((vector_size(64)));
using Bytes = int8_t __attribute__((vector_size(64)));
using UnsignedBytes = uint8_t __attribute__((vector_size(64)));

template <class To, class From>
EMULATED To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class To, class From>
EMULATED To read(const From* from) {
  To to;
  memcpy(&to, from, sizeof to);
  return to;
}

template <int N, class Lanes, class Lane>
EMULATED Lanes each(const Lane& lane) {
  Lanes to;
  for (int i = 0; i < N; ++i) to[i] = lane(i);
  return to;
}

// --- floats -----------------------------------------------------------------------------------------------------------

EMULATED __m512 setzero_ps() { return __m512{}; }
EMULATED __m512 set1_ps(float x) { return each<16, __m512>([&](int) { return x; }); }
EMULATED __m512 loadu_ps(const void* p) { return read<__m512>(static_cast<const char*>(p)); }
EMULATED void storeu_ps(void* p, __m512 v) { memcpy(p, &v, sizeof v); }
EMULATED __m512 maskz_loadu_ps(uint32_t mask, const float* p) {
  return each<16, __m512>([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
EMULATED void mask_storeu_ps(float* p, uint32_t mask, __m512 v) {
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) p[i] = v[i];
  }
}
EMULATED __m256 half(__m512 v, int which) { return read<__m256>(reinterpret_cast<const char*>(&v) + 32 * which); }
EMULATED __m512 joined(__m256 low, __m256 high) {
  __m512 to;
  memcpy(&to, &low, sizeof low);
  memcpy(reinterpret_cast<char*>(&to) + 32, &high, sizeof high);
  return to;
}
#define EMULATED_HALVES(NAME, OF)                                                            \
  EMULATED __m512 NAME(__m512 a, __m512 b) {                                                 \
    return joined(OF(half(a, 0), half(b, 0)), OF(half(a, 1), half(b, 1)));                   \
  }
EMULATED_HALVES(mul_ps, _mm256_mul_ps)
EMULATED_HALVES(min_ps, _mm256_min_ps)
EMULATED_HALVES(max_ps, _mm256_max_ps)
EMULATED_HALVES(unpacklo_ps, _mm256_unpacklo_ps)
EMULATED_HALVES(unpackhi_ps, _mm256_unpackhi_ps)
EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return joined(_mm256_fmadd_ps(half(a, 0), half(b, 0), half(c, 0)), _mm256_fmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}
EMULATED __m512 sqrt_ps(__m512 a) { return joined(_mm256_sqrt_ps(half(a, 0)), _mm256_sqrt_ps(half(a, 1))); }
EMULATED __m512 abs_ps(__m512 a) { return as<__m512>(as<Ints>(a) & 0x7fffffff); }
EMULATED uint16_t cmp_ps_mask(__m512 a, __m512 b, int how) {
  if (how != _CMP_LT_OQ && how != _CMP_NEQ_UQ) __builtin_trap();
  uint16_t bits = 0;
  for (int i = 0; i < 16; ++i) {
    const bool set = how == _CMP_LT_OQ ? a[i] < b[i] : a[i] != b[i];
    bits = static_cast<uint16_t>(bits | set << i);
  }
  return bits;
}
EMULATED __m256 extractf32x8_ps(__m512 a, int which) { return half(a, which); }
EMULATED __m256 castps512_ps256(__m512 a) { return half(a, 0); }
EMULATED __m512 castps256_ps512(__m256 a) { return joined(a, __m256{}); }
EMULATED __m512 insertf32x8(__m512 a, __m256 b, int at) { return at ? joined(half(a, 0), b) : joined(b, half(a, 1)); }
EMULATED __m512 zextps128_ps512(__m128 a) { return joined(_mm256_set_m128(_mm_setzero_ps(), a), __m256{}); }
EMULATED __m512d castps_pd(__m512 a) { return as<__m512d>(a); }
EMULATED __m512 castpd_ps(__m512d a) { return as<__m512>(a); }
EMULATED __m512d unpacklo_pd(__m512d a, __m512d b) {
  return each<8, __m512d>([&](int i) { return i & 1 ? b[i - 1] : a[i]; });
}
EMULATED __m512d unpackhi_pd(__m512d a, __m512d b) {
  return each<8, __m512d>([&](int i) { return i & 1 ? b[i] : a[i + 1]; });
}
EMULATED __m512 shuffle_f32x4(__m512 a, __m512 b, int how) {
  return each<16, __m512>([&](int i) { return (i < 8 ? a : b)[(how >> (2 * (i / 4)) & 3) * 4 + i % 4]; });
}
EMULATED __m512 maskz_compress_ps(uint32_t mask, __m512 v) {
  __m512 to{};
  for (int i = 0, next = 0; i < 16; ++i) {
    if (mask >> i & 1) to[next++] = v[i];
  }
  return to;
}
EMULATED __m512 cvtph_ps(__m256i v) {
  return joined(_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
}

// --- whole numbers ----------------------------------------------------------------------------------------------------

EMULATED __m512i setzero_si512() { return __m512i{}; }
EMULATED __m512i loadu_si512(const void* p) { return read<__m512i>(static_cast<const char*>(p)); }
EMULATED void storeu_si512(void* p, __m512i v) { memcpy(p, &v, sizeof v); }
EMULATED __m512i set1_epi32(int32_t x) { return as<__m512i>(each<16, Ints>([&](int) { return x; })); }
EMULATED __m512i set1_epi16(int16_t x) { return as<__m512i>(each<32, Shorts>([&](int) { return x; })); }
template <class... Lane>
EMULATED __m512i set_epi32(Lane... lanes) {
  const int32_t high_first[16] = {lanes...};
  return as<__m512i>(each<16, Ints>([&](int i) { return high_first[15 - i]; }));
}
#define EMULATED_INTS(NAME, HOW)                                                             \
  EMULATED __m512i NAME(__m512i x, __m512i y) {                                              \
    const auto a = as<Ints>(x), b = as<Ints>(y);                                             \
    return as<__m512i>(each<16, Ints>([&](int i) { return HOW; }));                          \
  }
EMULATED_INTS(add_epi32, static_cast<int32_t>(static_cast<uint32_t>(a[i]) + static_cast<uint32_t>(b[i])))
EMULATED_INTS(sub_epi32, static_cast<int32_t>(static_cast<uint32_t>(a[i]) - static_cast<uint32_t>(b[i])))
EMULATED_INTS(mullo_epi32, static_cast<int32_t>(static_cast<uint32_t>(a[i]) * static_cast<uint32_t>(b[i])))
EMULATED_INTS(max_epi32, a[i] > b[i] ? a[i] : b[i])
EMULATED_INTS(and_si512, a[i] & b[i])
EMULATED_INTS(permutexvar_epi32, b[a[i] & 15])
EMULATED __m512i slli_epi32(__m512i v, int by) {
  const auto a = as<Ints>(v);
  return as<__m512i>(each<16, Ints>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a[i]) << by); }));
}
EMULATED __m512i slli_epi16(__m512i v, int by) {
  const auto a = as<UnsignedShorts>(v);
  return as<__m512i>(each<32, UnsignedShorts>([&](int i) { return static_cast<uint16_t>(a[i] << by); }));
}
EMULATED __m512i srli_epi16(__m512i v, int by) {
  const auto a = as<UnsignedShorts>(v);
  return as<__m512i>(each<32, UnsignedShorts>([&](int i) { return static_cast<uint16_t>(a[i] >> by); }));
}
EMULATED __m512i srai_epi16(__m512i v, int by) {
  const auto a = as<Shorts>(v);
  return as<__m512i>(each<32, Shorts>([&](int i) { return static_cast<int16_t>(a[i] >> by); }));
}
EMULATED __m512i madd_epi16(__m512i x, __m512i y) {
  const auto a = as<Shorts>(x), b = as<Shorts>(y);
  return as<__m512i>(each<16, Ints>([&](int i) {
    return static_cast<int32_t>(static_cast<uint32_t>(a[2 * i] * b[2 * i]) +
                                static_cast<uint32_t>(a[2 * i + 1] * b[2 * i + 1]));
  }));
}
EMULATED __m512i dpbusd_epi32(__m512i sum, __m512i x, __m512i y) {
  const auto s = as<Ints>(sum);
  const auto a = as<UnsignedBytes>(x);
  const auto b = as<Bytes>(y);
  return as<__m512i>(each<16, Ints>([&](int i) {
    uint32_t total = static_cast<uint32_t>(s[i]);
    for (int k = 4 * i; k < 4 * i + 4; ++k) total += static_cast<uint32_t>(a[k] * b[k]);
    return static_cast<int32_t>(total);
  }));
}
EMULATED __m512i shuffle_epi32(__m512i v, int how) {
  const auto a = as<Ints>(v);
  return as<__m512i>(each<16, Ints>([&](int i) { return a[i / 4 * 4 + (how >> (2 * (i % 4)) & 3)]; }));
}
EMULATED __m512i maskz_compress_epi32(uint32_t mask, __m512i v) {
  return as<__m512i>(maskz_compress_ps(mask, as<__m512>(v)));
}
EMULATED __m512i broadcast_i32x4(__m128i v) {
  const __m256i two = _mm256_broadcastsi128_si256(v);
  return as<__m512i>(joined(_mm256_castsi256_ps(two), _mm256_castsi256_ps(two)));
}
EMULATED __m256i castsi512_si256(__m512i v) { return _mm256_castps_si256(half(as<__m512>(v), 0)); }
EMULATED __m256i extracti64x4_epi64(__m512i v, int which) { return _mm256_castps_si256(half(as<__m512>(v), which)); }
EMULATED __m512 castsi512_ps(__m512i v) { return as<__m512>(v); }
EMULATED __m256i maskz_loadu_epi16(uint32_t mask, const void* p) {
  uint16_t lanes[16] = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) memcpy(lanes + i, static_cast<const uint16_t*>(p) + i, sizeof(uint16_t));
  }
  return read<__m256i>(lanes);
}

// --- from one to the other --------------------------------------------------------------------------------------------

template <class Lane, int N, class From>
EMULATED __m512i widened(From from) {
  Lane lanes[N];
  memcpy(lanes, &from, sizeof lanes);
  if constexpr (N == 16) return as<__m512i>(each<16, Ints>([&](int i) { return static_cast<int32_t>(lanes[i]); }));
  else return as<__m512i>(each<32, Shorts>([&](int i) { return static_cast<int16_t>(lanes[i]); }));
}
EMULATED __m512i cvtepi8_epi32(__m128i v) { return widened<int8_t, 16>(v); }
EMULATED __m512i cvtepi8_epi16(__m256i v) { return widened<int8_t, 32>(v); }
EMULATED __m512i cvtepi16_epi32(__m256i v) { return widened<int16_t, 16>(v); }
EMULATED __m512i cvtepu16_epi32(__m256i v) { return widened<uint16_t, 16>(v); }
EMULATED __m512 cvtepi32_ps(__m512i v) {
  const auto a = as<Ints>(v);
  return each<16, __m512>([&](int i) { return static_cast<float>(a[i]); });
}
EMULATED __m512i cvtps_epi32(__m512 v) {
  const __m256i low = _mm256_cvtps_epi32(half(v, 0)), high = _mm256_cvtps_epi32(half(v, 1));
  return as<__m512i>(joined(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)));
}
EMULATED __m256i cvtepi32_epi16(__m512i v) {
  const auto a = as<Ints>(v);
  int16_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int16_t>(a[i]);
  return read<__m256i>(to);
}
EMULATED __m128i cvtusepi32_epi8(__m512i v) {
  const auto a = as<Ints>(v);
  uint8_t to[16];
  for (int i = 0; i < 16; ++i) {
    const uint32_t lane = static_cast<uint32_t>(a[i]);
    to[i] = static_cast<uint8_t>(lane > 255 ? 255 : lane);
  }
  return read<__m128i>(to);
}

}  // namespace emulated

#define _mm256_maskz_loadu_epi16 emulated::maskz_loadu_epi16
#define _mm512_abs_ps emulated::abs_ps
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_and_si512 emulated::and_si512
#define _mm512_broadcast_i32x4 emulated::broadcast_i32x4
#define _mm512_castpd_ps emulated::castpd_ps
#define _mm512_castps256_ps512 emulated::castps256_ps512
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define _mm512_castps_pd emulated::castps_pd
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_castsi512_si256 emulated::castsi512_si256
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#define _mm512_cvtepi16_epi32 emulated::cvtepi16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi8_epi16 emulated::cvtepi8_epi16
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtusepi32_epi8 emulated::cvtusepi32_epi8
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_extracti64x4_epi64 emulated::extracti64x4_epi64
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_insertf32x8 emulated::insertf32x8
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_compress_epi32 emulated::maskz_compress_epi32
#define _mm512_maskz_compress_ps emulated::maskz_compress_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_max_epi32 emulated::max_epi32
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_mullo_epi32 emulated::mullo_epi32
#define _mm512_permutexvar_epi32 emulated::permutexvar_epi32
#define _mm512_set1_epi16 emulated::set1_epi16
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_set_epi32 emulated::set_epi32
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_shuffle_epi32 emulated::shuffle_epi32
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm512_slli_epi16 emulated::slli_epi16
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_sqrt_ps emulated::sqrt_ps
#define _mm512_srai_epi16 emulated::srai_epi16
#define _mm512_srli_epi16 emulated::srli_epi16
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_unpackhi_pd emulated::unpackhi_pd
#define _mm512_unpackhi_ps emulated::unpackhi_ps
#define _mm512_unpacklo_pd emulated::unpacklo_pd
#define _mm512_unpacklo_ps emulated::unpacklo_ps
#define _mm512_zextps128_ps512 emulated::zextps128_ps512
#endif
