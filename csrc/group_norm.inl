// The numbers of group_norm.cpp, which includes this file: 16-bit conversions, SiLU, sums, and what
// they say about a channel. Everything here is float32 or double, whatever the tensors hold.
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kLanes = 16, kUnroll = 8;
constexpr int kBlock = 1024;                  // elements brought to float32 at a time
constexpr int kPart = 4096;                   // elements that share a centre, contiguous
constexpr int kColumns = 512;                 // channels at a time, channels last
constexpr int kMinRows = 32, kMaxRows = 256;  // rows of a part, channels last
constexpr int kHeld = 64;                     // rows that share a centre, channels last

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

template <class T>
constexpr int kDegree = 3;  // of the polynomial in SiLU, by what results are rounded to
template <>
constexpr int kDegree<float> = 5;
template <>
constexpr int kDegree<Half> = 4;

// float16 comes to float32 by the block, with instructions that GCC does not use of its own accord;
// the others are read as they are needed.
template <class T>
constexpr bool kByBlock = false;
template <>
constexpr bool kByBlock<Half> = true;

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

inline float load(float value) { return value; }

inline float load(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline Bfloat to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

// n values as float32: where they lie, or converted into scratch.
inline const float* read(const float* from, int64_t, float*) { return from; }

const float* read(const Half* from, int64_t n, float* scratch) {
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

const float* read(const Bfloat* from, int64_t n, float* scratch) {
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

void write(const float* from, int64_t n, Half* to) {
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

void write(const float* from, int64_t n, Bfloat* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat(from[i]);
}

// y rounded. A NaN is one of bfloat16 or that of `quiet`: its lower half is 0, and rounding does
// not carry into the sign.
inline void put(float y, float* to) { *to = y; }

inline void put(float y, Bfloat* to) {
  const uint32_t bits = bits_of(y);
  to->bits = static_cast<uint16_t>((bits + (0x7fffu + (bits >> 16 & 1u))) >> 16);
}

inline float quiet(double value) {
  return value == value ? static_cast<float>(value) : float_of(0x7fc00000u);
}

constexpr double kLog2E = 1.4426950408889634;

// SiLU of z = w / log2(e), z / (1 + exp(-z)) = w / (log2(e) + log2(e) 2^-w): whoever makes w puts
// the factor into weight and bias, where it costs nothing. With n = -w to the nearest integer and
// f = w + n, which is exact, 2^-w = 2^n 2^-f, and log2(e) 2^-f is a polynomial whose linear term is
// -f. Its degree depends on what the result is rounded to: 5, 4, 3 for float32, float16, bfloat16.
// log2(e) 2^-w is then within 3 ulp (measured against float64: 2.47), 5.4e-6 or 8.6e-5 of itself:
// less than a twentieth of what the rounding may do. Beyond w =
// -126 and 126 log2(e) 2^-w keeps its size there, where it or log2(e) is nothing beside the other.
template <int kTo>
inline float silu(float w) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer
  constexpr uint32_t kMost = 0x42fc0000, kLeast = 0xc2fc0000;  // the bits of 126 and -126
  // Of numbers above 0 the bits are in order, and of those below, as unsigned, in reverse order.
  // (As integers these are two instructions; of two comparisons of floats GCC 12 makes eight.)
  const int32_t most = static_cast<int32_t>(kMost), signed_bits = static_cast<int32_t>(bits_of(w));
  const uint32_t below = static_cast<uint32_t>(signed_bits < most ? signed_bits : most);
  const float bounded = float_of(below < kLeast ? below : kLeast);
  const float rounded = kRound - bounded, f = bounded + (rounded - kRound), square = f * f;
  float p;
  if constexpr (kTo == 5) {
    const float middle = -0.080077246f * f + 0.34656653f, high = -0.0019207298f * f + 0.013956209f;
    p = (high * square + middle) * square + (1.4426951f - f);
  } else if constexpr (kTo == 4) {
    const float middle = -0.08049326f * f + 0.34666055f;
    p = (0.013611673f * square + middle) * square + (1.4426906f - f);
  } else {
    p = (-0.08021049f * f + 0.35002553f) * square + (1.442572f - f);
  }
  // The lowest bits of rounded are those of n, and land in the exponent.
  return w / (1.4426950f + float_of(bits_of(p) + (bits_of(rounded) << 23)));
}

inline float tree(float a, float b, float c, float d, float e, float f, float g, float h) {
  return ((a + b) + (c + d)) + ((e + f) + (g + h));
}

inline void add_eight(float a, float b, float c, float d, float e, float f, float g, float h,
                      float* sum, float* square) {
  *sum += tree(a, b, c, d, e, f, g, h);
  *square += tree(a * a, b * b, c * c, d * d, e * e, f * f, g * g, h * h);
}

// n sums x + addend[i * step] as float32: where x lies, if there is nothing to add or to convert,
// or in scratch.
template <class T>
const float* add(const T* x, const float* addend, int step, int64_t n, float* scratch) {
  const float* v = read(x, n, scratch);
  if (addend == nullptr) return v;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) scratch[i] = v[i] + addend[i * step];
  return scratch;
}

// The same with a residual: (x + addend) + residual rounded to T, written to total, and given as
// float32.
template <class T>
const float* add(const T* x, const float* addend, int step, const T* residual, int64_t n, T* total,
                 float* scratch) {
  alignas(64) float converted[kBlock];
  const float *v = add(x, addend, step, n, scratch), *r = read(residual, n, converted);
  float* sum = target(total, scratch);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] = v[i] + r[i];
  write(sum, n, total);
  return read(total, n, scratch);
}

// y, or with SiLU y * log2(e), is (v - centre) * scale + shift, where v is what is read: without
// the addend, unless that is in the sum that was written. What the mean loses in float32 is known,
// and goes into shift. For 16 bits the whole mean goes there: what v * scale + shift loses at a
// mean of 1000 standard deviations, 1e-4, is less than the last of 16 bits.
struct Affine {
  float centre, scale, shift;
};

inline Affine affine_of(const GroupNorm& g, int64_t sample, int64_t c, double mean, double rstd) {
  const float *weight = static_cast<const float*>(g.weight),
              *bias = static_cast<const float*>(g.bias);
  if (g.addend != nullptr && g.residual == nullptr) {
    mean -= g.addend[sample * (g.first + g.second) + c];
  }
  const double factor = g.silu ? kLog2E : 1;
  const double scale = factor * (weight == nullptr ? rstd : weight[c] * rstd);
  Affine a;
  a.centre = g.dtype == kFloat32 ? quiet(mean) : 0;
  a.scale = quiet(scale);
  a.shift = quiet((bias == nullptr ? 0 : bias[c] * factor) - (mean - a.centre) * scale);
  return a;
}

// 1 / sqrt(variance + eps); rounding must not make the variance negative, NaN stays NaN.
inline double rstd_of(const GroupNorm& g, double squares, double count) {
  return 1 / __builtin_sqrt((squares < 0 ? 0 : squares / count) + g.eps);
}

// ---- Sums and results, contiguous. ----

// Up to kPart elements: differences to a value nearby, element i of a run in lane i mod 16.
struct Part {
  alignas(64) float sums[kLanes], squares[kLanes];
  int64_t count = 0;
  float centre = 0;

  void clear(float nearby) {
    centre = nearby;
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = squares[lane] = 0;
  }

  void add_row(const float* v, int lanes) {
#pragma omp simd
    for (int lane = 0; lane < lanes; ++lane) {
      const float d = v[lane] - centre;
      sums[lane] += d;
      squares[lane] += d * d;
    }
  }

  void add_run(const float* v, int64_t n) {
    for (; n >= kLanes * kUnroll; n -= kLanes * kUnroll, v += kLanes * kUnroll) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto d = [&](int j) { return v[j * kLanes + lane] - centre; };
        add_eight(d(0), d(1), d(2), d(3), d(4), d(5), d(6), d(7), &sums[lane], &squares[lane]);
      }
    }
    for (; n >= kLanes; n -= kLanes, v += kLanes) add_row(v, kLanes);
    if (n > 0) add_row(v, static_cast<int>(n));
  }

  // The mean of up to 128 elements is the value nearby: one outlier among them does not spoil it.
  void add(const float* v, int64_t n) {
    if (count == 0) {
      const int64_t some = least(n, kLanes * kUnroll);
      float sum = 0;
      clear(0);
      add_run(v, some);
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
      clear(sum / static_cast<float>(some));
    }
    add_run(v, n);
    count += n;
  }
};

// How many values, their mean and the sum of squares of their differences to it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void take(Part* part) {
    if (part->count == 0) return;
    double sum = 0, square = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      sum += part->sums[lane], square += part->squares[lane];
    }
    const double n = static_cast<double>(part->count), each = sum / n;
    const double all = count + n, delta = part->centre + each - mean;
    mean += delta * (n / all);
    squares += square - sum * each + delta * delta * (count * n / all);
    count = all, part->count = 0;
  }
};

// y of n values: with a centre, scale and shift of each (kStep 1), or of all (kStep 0).
template <int kStep, bool kSilu, int kTo, class T>
void apply(const T* v, int64_t n, const float* centre, const float* scale, const float* shift,
           T* out) {
  const float the_centre = *centre, the_scale = *scale, the_shift = *shift;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float near = kStep ? centre[i] : the_centre;
    const float z = (kTo == 5 ? load(v[i]) - near : load(v[i])) * (kStep ? scale[i] : the_scale) +
                    (kStep ? shift[i] : the_shift);
    put(kSilu ? silu<kTo>(z) : z, out + i);
  }
}

template <int kStep, class T>
void apply(const T* v, int64_t n, const float* centre, const float* scale, const float* shift,
           bool silu, T* out) {
  silu ? apply<kStep, true, kDegree<T>>(v, n, centre, scale, shift, out)
       : apply<kStep, false, kDegree<T>>(v, n, centre, scale, shift, out);
}

template <int kStep>
void apply(const Half* v, int64_t n, const float* centre, const float* scale, const float* shift,
           bool silu, Half* out) {
  alignas(64) float wide[kBlock];
  const float* from = read(v, n, wide);
  silu ? apply<kStep, true, kDegree<Half>>(from, n, centre, scale, shift, wide)
       : apply<kStep, false, kDegree<Half>>(from, n, centre, scale, shift, wide);
  write(from, n, out);
}

// ---- Sums and results, channels last. ----

// Moments of up to kColumns channels, each on its own, over the rows added so far: `held` rows as
// differences to centre in float32, the others as mean and spread, the sum of squares, in double.
struct Columns {
  alignas(64) float centre[kColumns], sums[kColumns], squares[kColumns];
  int count = 0, held = 0;
  double mean[kColumns] = {}, spread[kColumns] = {};

  void clear(int n) {
    std::memset(sums, 0, static_cast<size_t>(n) * sizeof(float));
    std::memset(squares, 0, static_cast<size_t>(n) * sizeof(float));
  }

  // Row by row, as they lie in memory: a core fetches ahead along one stream, not along eight.
  template <class T>
  void add_rows(const T* v, int64_t stride, int rows, int n) {
    for (; rows > 0; --rows, v += stride) {
#pragma omp simd
      for (int c = 0; c < n; ++c) {
        const float d = load(v[c]) - centre[c];
        sums[c] += d;
        squares[c] += d * d;
      }
    }
  }

  // The means of the first rows are the values nearby: one outlier among them does not spoil much.
  template <class T>
  void add(const T* v, int64_t stride, int rows, int n) {
    if (held == 0) {
      std::memset(centre, 0, sizeof centre);
      clear(n);
      add_rows(v, stride, rows, n);
      for (int c = 0; c < n; ++c) centre[c] = sums[c] / static_cast<float>(rows);
      clear(n);
    }
    add_rows(v, stride, rows, n);
    held += rows;
    if (held >= kHeld) flush(n);
  }

  void flush(int n) {
    if (held == 0) return;
    const double rows = held, all = count + held, share = rows / all, weight = count * share;
    for (int c = 0; c < n; ++c) {
      const double sum = sums[c], each = sum / rows, delta = centre[c] + each - mean[c];
      mean[c] += delta * share;
      spread[c] += squares[c] - sum * each + delta * delta * weight;
    }
    count += held, held = 0;
  }
};

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA
