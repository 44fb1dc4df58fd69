// What the CPU kernels of any instruction set share: 16-bit numbers to float32 and back, a block at
// a time. Included inside no namespace by files that are compiled once for each of isa.h.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fastdiff::FASTDIFF_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Half {
  uint16_t bits;
};

struct Bfloat {
  uint16_t bits;
};

// The conversions are those of affine_step.cpp: without branches, and no subnormal floats on the
// way, so that they vectorise and do not depend on the flush-to-zero mode.
inline float load(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const float small = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
  const uint32_t large = magnitude + (magnitude < (31u << 23) ? 112u << 23 : 224u << 23);
  const uint32_t bits = magnitude < (1u << 23) ? bits_of(small) : large;
  return float_of(bits | static_cast<uint32_t>(value.bits & 0x8000) << 16);
}

inline Half to_half(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // units of 2^-24
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t special = magnitude > (255u << 23) ? 0x7e00u : 0x7c00u;  // NaN, infinity
  uint32_t half = magnitude < (113u << 23) ? small : normal;
  half = magnitude < (143u << 23) ? half : special;
  return {static_cast<uint16_t>(half | (bits >> 16 & 0x8000u))};
}

inline float load(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline Bfloat to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

// n values as float32: where they lie, or converted into scratch.
inline const float* read(const float* from, int64_t, float*) { return from; }

[[maybe_unused]] const float* read(const Half* from, int64_t n, float* scratch) {
  int64_t i = 0;
#ifdef __F16C__  // the same numbers, five times as fast
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(scratch + i, _mm256_cvtph_ps(eight));
  }
#endif
#pragma omp simd
  for (int64_t k = i; k < n; ++k) scratch[k] = load(from[k]);
  return scratch;
}

[[maybe_unused]] const float* read(const Bfloat* from, int64_t n, float* scratch) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) scratch[i] = load(from[i]);
  return scratch;
}

// Where n results are computed: where they belong, if that is float32, or in scratch, from where
// write rounds them to nearest even.
inline float* target(float* to, float*) { return to; }
inline float* target(Half*, float* scratch) { return scratch; }
inline float* target(Bfloat*, float* scratch) { return scratch; }

inline void write(const float*, int64_t, float*) {}

[[maybe_unused]] void write(const float* from, int64_t n, Half* to) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), eight);
  }
#endif
#pragma omp simd
  for (int64_t k = i; k < n; ++k) to[k] = to_half(from[k]);
}

[[maybe_unused]] void write(const float* from, int64_t n, Bfloat* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat(from[i]);
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA
