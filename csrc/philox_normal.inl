// The arithmetic of philox_normal for C++ and CUDA C++ (contract: fastdiff/ops/philox_normal.py):
// Philox4x32-10, and the Box-Muller transform of its words.
//
// Only +, -, * and the square root of float32, each rounded to nearest and none fused, so that
// every processor gives the same bits: compile with -ffp-contract=off, nvcc with -fmad=false.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FASTDIFF_PHILOX __device__ __forceinline__
#else
// Internal to the file that includes it: compiled once for each instruction set (isa.h).
#define FASTDIFF_PHILOX static inline __attribute__((always_inline))
#endif

namespace fastdiff::philox {

// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": multipliers, and the steps by
// which the key of a round follows from that of the round before.
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;

FASTDIFF_PHILOX uint32_t high_half(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// The counter (c0, c1, c2, c3) becomes four random words.
FASTDIFF_PHILOX void words(uint32_t key0, uint32_t key1, uint32_t& c0, uint32_t& c1, uint32_t& c2,
                           uint32_t& c3) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t first = high_half(kMultiplier1, c2) ^ c1 ^ key0;
    const uint32_t third = high_half(kMultiplier0, c0) ^ c3 ^ key1;
    c1 = kMultiplier1 * c2, c3 = kMultiplier0 * c0;
    c0 = first, c2 = third;
    key0 += kKeyStep0, key1 += kKeyStep1;
  }
}

FASTDIFF_PHILOX float float_of(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

FASTDIFF_PHILOX uint32_t bits_of(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

FASTDIFF_PHILOX float root(float value) {
#ifdef __CUDACC__
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

// sqrt(-2 ln u), u = (word + 1/2) / 2^32 = 2^(k - 32) (1 + t) with sqrt(1/2) <= 1 + t < sqrt(2).
FASTDIFF_PHILOX float radius(uint32_t word) {
  constexpr uint32_t kRootHalf = 0x3f3504f3u;  // the bits of sqrt(1/2)
  const float scaled = static_cast<float>(word) + 0.5f;
  const uint32_t above = bits_of(scaled) - kRootHalf;
  const int k = static_cast<int32_t>(above) >> 23;
  const float m = float_of((above & 0x7fffffu) + kRootHalf);
  // Next to u = 1, where ln u vanishes, t = u - 1 comes from the word, with all of its digits.
  const float near_one = (static_cast<float>(~word) + 0.5f) * -0x1p-32f;
  const float t = k == 32 ? near_one : m - 1.0f;
  float q = 0.087347515f * t - 0.14307484f;
  q = q * t + 0.14917989f;
  q = q * t - 0.16570514f;
  q = q * t + 0.19962071f;
  q = q * t - 0.25001755f;
  q = q * t + 0.3333395f;
  q = q * t - 0.4999999f;
  const float log1p = t * t * q + t;
  const float minus_log = static_cast<float>(32 - k) * 0.6931472f - log1p;
  return root(minus_log + minus_log);
}

// Two normals from two words: radius(word0) * (cos, sin)(2 pi word1 / 2^32).
FASTDIFF_PHILOX void normals(uint32_t word0, uint32_t word1, float& z0, float& z1) {
  const float r = radius(word0);
  const uint32_t quadrant = (word1 + 0x20000000u) >> 30;  // the nearest quarter turn, 0 to 3
  const float y = static_cast<float>(static_cast<int32_t>(word1 - (quadrant << 30))) * 0x1p-29f;
  const float s = y * y;  // the angle from there is y * pi/4, -1 <= y < 1
  float sine = -3.595451e-05f * s + 0.002490007f;
  sine = sine * s - 0.080745436f;
  sine = (sine * s + 0.7853982f) * y;
  float cosine = 3.5313344e-06f * s - 0.000325942f;
  cosine = cosine * s + 0.015854327f;
  cosine = cosine * s - 0.30842513f;
  cosine = cosine * s + 1.0f;
  const bool odd = (quadrant & 1u) != 0;
  const float r0 = quadrant == 1 || quadrant == 2 ? r * -1.0f : r;
  const float r1 = quadrant >= 2 ? r * -1.0f : r;
  z0 = r0 * (odd ? sine : cosine);
  z1 = r1 * (odd ? cosine : sine);
}

// The normals of the elements 4 * block .. 4 * block + 3 of a sample.
FASTDIFF_PHILOX void four_normals(uint64_t seed, uint32_t block, uint32_t step, uint32_t stream,
                                  float (&z)[4]) {
  uint32_t c0 = block, c1 = step, c2 = stream, c3 = 0;
  words(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), c0, c1, c2, c3);
  normals(c0, c1, z[0], z[1]);
  normals(c2, c3, z[2], z[3]);
}

}  // namespace fastdiff::philox
