// CPU kernel of geglu (formula and shapes: geglu.h).
//
// Each element is read once and written once, in blocks of 1024 that stay in the first-level cache
// while 16-bit numbers are converted. What costs is gelu, so it is one polynomial and one power:
//
//     gelu(g) = max(g, 0) - z * Q(z),   z = |g|,   Q(z) = erfc(z / sqrt(2)) / 2 = 2^P(z)
//
// Nothing cancels for g < 0, where g * (1 + erf(g / sqrt(2))) / 2 has lost half of its digits at
// g = -3 and all of them at -6. Elements do not depend on each other and nothing is fused: the bits
// are the same for every vector width and number of threads.
#include "geglu.h"

#include "isa.inl"

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // arithmetic alone counts here
#endif

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kBlock = 1024;
constexpr int64_t kSerialBelow = 32768;  // elements: a thread costs more than it brings

// 2^p for -126 <= p <= 0. With n the integer nearest to p, 2^n goes into the exponent of
// 2^(p - n), a polynomial on [-1/2, 1/2] that is 1 at 0. Its degree and its relative error: 5 and
// 9.4e-8 for float32 (kWide), 4 and 2.8e-6 for 16 bits.
template <bool kWide>
inline float power_of_two(float p) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer
  const float rounded = p + kRound, f = p - (rounded - kRound);
  float power;
  if constexpr (kWide) {
    power = 1.3270897325e-03f * f + 9.6713611856e-03f;
    power = power * f + 5.5507078767e-02f;
    power = power * f + 2.4022245407e-01f;
    power = power * f + 6.9314700365e-01f;
  } else {
    power = 9.5829693601e-03f * f + 5.5906511843e-02f;
    power = power * f + 2.4024096131e-01f;
    power = power * f + 6.9312417507e-01f;
  }
  power = power * f + 1.0f;
  return float_of(bits_of(power) + (bits_of(rounded) << 23));
}

// For float32, P is that of kernels/geglu.py: log2 Q, fitted in the relative error of
// max(Q, 1 / 100) over 0 <= z <= 5.5. With the roundings here, none of them fused: at most
// 2 eps |gelu(g)| for g > 0, and 3e-6 |gelu(g)| for -5.5 < g < 0 (tests/test_geglu.py). For 16 bits
// it has degree 5 and Q errs by 5.6e-5 max(Q, 1e-4), a ninth of what rounding to float16 may do.
// Beyond 5.5, where gelu vanishes, both fall without end. P(0) = -1 is exact.
template <bool kWide>
inline float gelu(float g) {
  float z = __builtin_fabsf(g), p;
  z = z > 10.0f ? 10.0f : z;  // a NaN stays one; there z * Q is 2e-24
  if constexpr (kWide) {
    p = -2.7194282382e-08f * z + 8.1145157083e-07f;
    p = p * z - 1.0411145922e-05f;
    p = p * z + 7.2998220276e-05f;
    p = p * z - 2.6724618510e-04f;
    p = p * z - 2.6238923965e-05f;
    p = p * z + 6.9787912071e-03f;
    p = p * z - 5.2462160587e-02f;
    p = p * z - 4.5921441913e-01f;
    p = p * z - 1.1511048079e+00f;
  } else {
    p = -3.6612417898e-04f * z + 6.2675420195e-03f;
    p = p * z - 4.9725856632e-02f;
    p = p * z - 4.6204262972e-01f;
    p = p * z - 1.1502447128e+00f;
  }
  p = p * z - 1.0f;
  return (g > 0.0f ? g : 0.0f) - z * power_of_two<kWide>(p);
}

template <class T>
void run_row(const T* x, int64_t width, int64_t begin, int64_t end, T* out) {
  float values[kBlock], gates[kBlock], results[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = least(end - at, kBlock);
    const float *v = read(x + at, n, values), *g = read(x + width + at, n, gates);
    float* y = target(out + at, results);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = v[i] * gelu<sizeof(T) == 4>(g[i]);
    write(y, n, out + at);
  }
}

template <class T>
void run(const Geglu& a, int64_t threads) {
  const int64_t count = a.rows * a.width;
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
  for (int64_t t = 0; t < threads; ++t) {
    const int64_t end = count * (t + 1) / threads;
    for (int64_t at = count * t / threads; at < end;) {
      const int64_t row = at / a.width, column = at - row * a.width;
      const int64_t last = least(a.width, column + end - at);
      run_row(static_cast<const T*>(a.x) + 2 * row * a.width, a.width, column, last,
              static_cast<T*>(a.out) + row * a.width);
      at += last - column;
    }
  }
}

}  // namespace

void geglu(const Geglu& a, int threads) {
  if (a.rows * a.width < kSerialBelow || threads < 1) threads = 1;
  if (a.dtype == kFloat32) run<float>(a, threads);
  if (a.dtype == kFloat16) run<Half>(a, threads);
  if (a.dtype == kBFloat16) run<Bfloat>(a, threads);
}

}  // namespace fastdiff::FASTDIFF_ISA
