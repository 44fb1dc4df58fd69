// CPU kernel of add_layer_norm (formula and shapes: add_layer_norm.h).
//
// A row comes from memory once: its sum with the residual is written out and stays in the
// first-level cache, as float32, for the three passes over it that follow. The first finds a mean,
// from differences to the first element; the second, of the deviations from that mean, both their
// squares and what their own mean still is; the third makes out. So nothing cancels, however far
// the mean is from zero.
//
// Sums are made in 16 lanes, or twice or four times as many, which come together in one order: the
// bits of a row are the same for every vector width and number of threads.
#include "add_layer_norm.h"

#include "isa.inl"

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // what is read again lies in the cache
#endif

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kLanes = 16, kBlock = 512;
constexpr int64_t kSerialBelow = 32768;  // elements: a thread costs more than it brings

// 16 floats, wherever they lie. On a narrower CPU they are two or four vectors.
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef float Stored __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline const Stored& lanes(const float* from) { return *reinterpret_cast<const Stored*>(from); }

// The last n < kLanes elements, and `rest` in the other lanes.
struct Tail {
  float values[kLanes];

  Tail(const float* from, int64_t n, float rest) {
    for (int i = 0; i < kLanes; ++i) values[i] = i < n ? from[i] : rest;
  }
};

inline float sum(const Lanes& v) {
  return (((v[0] + v[8]) + (v[4] + v[12])) + ((v[2] + v[10]) + (v[6] + v[14]))) +
         (((v[1] + v[9]) + (v[5] + v[13])) + ((v[3] + v[11]) + (v[7] + v[15])));
}

inline float mean_of(const float* v, int64_t n) {
  const float first = v[0];
  Lanes a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a += lanes(v + i) - first, b += lanes(v + i + kLanes) - first;
    c += lanes(v + i + 2 * kLanes) - first, d += lanes(v + i + 3 * kLanes) - first;
  }
  for (; i + kLanes <= n; i += kLanes) a += lanes(v + i) - first;
  if (i < n) b += lanes(Tail(v + i, n - i, first).values) - first;
  return first + sum((a + b) + (c + d)) / static_cast<float>(n);
}

struct Moments {
  float mean, more, rstd;  // the mean is mean + more
};

inline Moments moments(const float* v, int64_t n, double eps) {
  const float mean = mean_of(v, n);
  Lanes a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Lanes s = lanes(v + i) - mean, t = lanes(v + i + kLanes) - mean;
    a += s, b += t, c += s * s, d += t * t;
  }
  if (i + kLanes <= n) {
    const Lanes s = lanes(v + i) - mean;
    a += s, c += s * s, i += kLanes;
  }
  if (i < n) {
    const Lanes t = lanes(Tail(v + i, n - i, mean).values) - mean;
    b += t, d += t * t;
  }
  const double count = static_cast<double>(n), more = sum(a + b) / count;
  double variance = sum(c + d) / count - more * more;
  variance = variance < 0 ? 0 : variance;  // a NaN stays one
  return {mean, static_cast<float>(more), static_cast<float>(1 / __builtin_sqrt(variance + eps))};
}

// total = x + residual, and where it lies as float32.
inline const float* add(const float* x, const float* residual, int64_t n, float* total, float*) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) total[i] = x[i] + residual[i];
  return total;
}

[[maybe_unused]] const float* add(const Bfloat* x, const Bfloat* residual, int64_t n, Bfloat* total,
                                  float* scratch) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = to_bfloat(load(x[i]) + load(residual[i])).bits;
    total[i].bits = bits;  // not as a Bfloat: GCC 12 would not vectorise that
    scratch[i] = float_of(static_cast<uint32_t>(bits) << 16);
  }
  return scratch;
}

[[maybe_unused]] const float* add(const Half* x, const Half* residual, int64_t n, Half* total,
                                  float* scratch) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    const __m256 one = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    const __m256 two =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(residual + i)));
    const __m128i both = _mm256_cvtps_ph(_mm256_add_ps(one, two), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(total + i), both);
    _mm256_storeu_ps(scratch + i, _mm256_cvtph_ps(both));
  }
#endif
#pragma omp simd
  for (int64_t k = i; k < n; ++k) {
    const uint16_t bits = to_half(load(x[k]) + load(residual[k])).bits;
    total[k].bits = bits;
    scratch[k] = load(Half{bits});
  }
  return scratch;
}

template <class T>
void run_row(const AddLayerNorm& a, const float* weight, const float* bias, int64_t row) {
  alignas(64) float scratch[kMaxNormWidth], results[kBlock];
  scratch[0] = 0;  // GCC 12 does not see that a row has an element
  const int64_t begin = row * a.width;
  const T *x = static_cast<const T*>(a.x) + begin, *residual = static_cast<const T*>(a.residual);
  const float* v = residual == nullptr ? read(x, a.width, scratch)
                                       : add(x, residual + begin, a.width,
                                             static_cast<T*>(a.total) + begin, scratch);
  const Moments m = moments(v, a.width, a.eps);
  T* out = static_cast<T*>(a.out) + begin;
  for (int64_t at = 0; at < a.width; at += kBlock) {
    const int64_t n = least(a.width - at, kBlock);
    const float *u = v + at, *w = weight + at, *b = bias + at;
    float* y = target(out + at, results);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = ((u[i] - m.mean) - m.more) * m.rstd * w[i] + b[i];
    write(y, n, out + at);
  }
}

// A parameter as float32: where it lies, or in scratch.
template <class T>
const float* parameter(const void* from, Dtype dtype, float absent, int64_t n, float* scratch) {
  if (from != nullptr && dtype == kFloat32) return static_cast<const float*>(from);
  if (from != nullptr) return read(static_cast<const T*>(from), n, scratch);
  for (int64_t i = 0; i < n; ++i) scratch[i] = absent;
  return scratch;
}

template <class T>
void run(const AddLayerNorm& a, int64_t threads) {
  alignas(64) float weights[kMaxNormWidth], biases[kMaxNormWidth];
  const float* weight = parameter<T>(a.weight, a.weight_dtype, 1.0f, a.width, weights);
  const float* bias = parameter<T>(a.bias, a.bias_dtype, 0.0f, a.width, biases);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
  for (int64_t t = 0; t < threads; ++t) {
    const int64_t end = a.rows * (t + 1) / threads;
    for (int64_t row = a.rows * t / threads; row < end; ++row) run_row<T>(a, weight, bias, row);
  }
}

}  // namespace

void add_layer_norm(const AddLayerNorm& a, int threads) {
  if (a.rows * a.width < kSerialBelow || threads < 1) threads = 1;
  if (a.dtype == kFloat32) run<float>(a, threads);
  if (a.dtype == kFloat16) run<Half>(a, threads);
  if (a.dtype == kBFloat16) run<Bfloat>(a, threads);
}

}  // namespace fastdiff::FASTDIFF_ISA
