// CPU kernel of group_norm (formula and shapes: group_norm.h).
//
// Two passes over a unit of work: moments, then y. A unit is a group of a sample (contiguous: it
// mostly stays in the second-level cache between the passes) or a whole sample (channels last: rows
// of all channels are read as they lie, and the second pass goes backwards, so that it starts with
// what the first has just left in the cache). With SiLU the second pass is bound by arithmetic, 27
// operations and a division an element, below the third-level cache by memory.
//
// Sums are of differences to a value nearby, in float32, over at most 256 rows (channels last: each
// channel on its own) or 4096 elements (contiguous: in 16 lanes); from there on in double, by
// Chan's formula. Where a part begins and ends depends on L and C alone; so the bits depend neither
// on the width of vectors, nor on threads, nor on other samples.
#include "group_norm.h"

#include <cstdlib>
#include <cstring>

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kLanes = 16, kUnroll = 8;
constexpr int kBlock = 1024;                  // elements of a channel at a time, contiguous
constexpr int kPart = 4096;                   // elements of a group that share a shift, contiguous
constexpr int kColumns = 512;                 // channels at a time, channels last
constexpr int kMinRows = 32, kMaxRows = 256;  // rows of a part, channels last
constexpr int64_t kSerialBelow = 65536;       // elements: a thread costs more than it brings

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
inline float load(float value) { return value; }

inline float load(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline float load(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const float small = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
  const uint32_t large = magnitude + (magnitude < (31u << 23) ? 112u << 23 : 224u << 23);
  const uint32_t bits = magnitude < (1u << 23) ? bits_of(small) : large;
  return float_of(bits | static_cast<uint32_t>(value.bits & 0x8000) << 16);
}

inline void store(float value, float* to) { *to = value; }

inline void store(float value, Bfloat* to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > (255u << 23) ? nan : rounded);
}

inline void store(float value, Half* to) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // units of 2^-24
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t special = magnitude > (255u << 23) ? 0x7e00u : 0x7c00u;  // NaN, infinity
  uint32_t half = magnitude < (113u << 23) ? small : normal;
  half = magnitude < (143u << 23) ? half : special;
  to->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

// z / (1 + exp(-z)), where exp(-z) = 2^n exp(-r) with z = r - n ln 2, |r| <= ln 2 / 2, and exp(-r)
// is a polynomial of degree 6. exp(-z) is within 1 ulp (0.96 measured against float64) for z
// between -88.7, where it leaves float32, and 87, long after 1 + exp(-z) has become 1.
inline float silu(float z) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer
  const float top = z > 87.0f ? 87.0f : z;
  const float shifted = top * -1.44269504f + kRound, n = shifted - kRound;
  const float r = (top + n * 0.693359375f) + n * -2.12194440e-4f;
  float p = 1.3814540026e-3f;
  p = p * r + -8.3687451126e-3f;
  p = p * r + 4.1668390787e-2f;
  p = p * r + -1.6666520399e-1f;
  p = p * r + 4.9999993432e-1f;
  p = (p * (r * r) - r) + 1.0f;
  float e = float_of(bits_of(p) + (bits_of(shifted) << 23));
  e = z < -88.7f ? __builtin_inff() : e;
  return z / (1.0f + e);
}

float parameter(const void* data, Dtype dtype, int64_t i, float absent) {
  if (data == nullptr) return absent;
  if (dtype == kFloat32) return static_cast<const float*>(data)[i];
  if (dtype == kFloat16) return load(static_cast<const Half*>(data)[i]);
  return load(static_cast<const Bfloat*>(data)[i]);
}

// How many values, their mean and the sum of squares of their differences to it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double other_mean, double other_squares) {
    const double all = count + n, delta = other_mean - mean;
    mean += delta * (n / all);
    squares += other_squares + delta * delta * (count * n / all);
    count = all;
  }
};

// y = (v - centre) * scale + shift, where v is what lies in memory: without the addend.
struct Affine {
  float centre, scale, shift;
};

Affine affine_of(const GroupNorm& g, int64_t sample, int64_t c, double mean, double rstd) {
  const int64_t channels = g.first + g.second;
  if (g.addend != nullptr && g.residual == nullptr) mean -= g.addend[sample * channels + c];
  const double scale = parameter(g.weight, g.weight_dtype, c, 1.0f) * rstd;
  Affine a;
  a.centre = static_cast<float>(mean);
  a.scale = static_cast<float>(scale);
  // What the mean loses in float32, where |mean| is large: it is known, and goes in here.
  a.shift =
      static_cast<float>(parameter(g.bias, g.bias_dtype, c, 0.0f) - (mean - a.centre) * scale);
  return a;
}

double rstd_of(const GroupNorm& g, const Moments& m) {
  return 1.0 / __builtin_sqrt((m.squares > 0 ? m.squares / m.count : m.squares * 0) + g.eps);
}

// ((x + addend) + residual) rounded to T, written to total, and given as float32.
template <class T>
inline float add_residual(T x, float addend, T residual, T* total) {
  T rounded;
  store((load(x) + addend) + load(residual), &rounded);
  *total = rounded;
  return load(rounded);
}

inline float tree(const float* d) {
  return ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
}

// ---- Contiguous: a unit of work is a group of a sample. ----

// Up to kPart elements: differences to a value nearby, element i of a run in lane i mod 16.
struct Part {
  int count = 0;
  float centre;
  float sums[kLanes], squares[kLanes];

  void clear(float nearby) {
    centre = nearby;
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = squares[lane] = 0;
  }

  void move_to(Moments* moments) {
    double sum = 0, square = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane], square += squares[lane];
    if (count > 0) moments->add(count, centre + sum / count, square - sum * (sum / count));
    count = 0;
  }
};

template <class V>
void add_run(const V* v, int n, float addend, Part* part) {
  float sums[kLanes], squares[kLanes];
  std::memcpy(sums, part->sums, sizeof sums);
  std::memcpy(squares, part->squares, sizeof squares);
  const float centre = part->centre;
  for (; n >= kLanes * kUnroll; n -= kLanes * kUnroll, v += kLanes * kUnroll) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      float d[kUnroll];
      for (int j = 0; j < kUnroll; ++j) d[j] = (load(v[j * kLanes + lane]) + addend) - centre;
      sums[lane] += tree(d);
      for (int j = 0; j < kUnroll; ++j) d[j] *= d[j];
      squares[lane] += tree(d);
    }
  }
  for (; n > 0; n -= kLanes, v += kLanes) {
    const int lanes = n < kLanes ? n : kLanes;
#pragma omp simd
    for (int lane = 0; lane < lanes; ++lane) {
      const float d = (load(v[lane]) + addend) - centre;
      sums[lane] += d;
      squares[lane] += d * d;
    }
  }
  std::memcpy(part->sums, sums, sizeof sums);
  std::memcpy(part->squares, squares, sizeof squares);
}

// A part begins with the mean of up to 128 elements as the value nearby: a single outlier among
// them does not spoil it.
template <class V>
void add_to_part(const V* v, int n, float addend, Part* part) {
  if (part->count == 0) {
    const int some = n < kLanes * kUnroll ? n : kLanes * kUnroll;
    part->clear(0);
    add_run(v, some, addend, part);
    part->clear(tree(part->sums) / some + tree(part->sums + kUnroll) / some);
  }
  add_run(v, n, addend, part);
  part->count += n;
}

template <class T, bool kSilu>
void apply_run(const T* v, int64_t n, Affine a, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float z = (load(v[i]) - a.centre) * a.scale + a.shift;
    store(kSilu ? silu(z) : z, &out[i]);
  }
}

template <class T>
struct Contiguous {
  const GroupNorm& g;
  int64_t sample, begin, channels, wide;  // of the group: first channel, how many; C

  Contiguous(const GroupNorm& norm, int64_t unit) : g(norm) {
    wide = g.first + g.second, channels = wide / g.groups;
    sample = unit / g.groups, begin = unit % g.groups * channels;
  }

  const T* source(int64_t c) const {
    const bool second = c >= g.first;
    const int64_t place = second ? sample * g.second + c - g.first : sample * g.first + c;
    return static_cast<const T*>(second ? g.x2 : g.x) + place * g.length;
  }

  int64_t place(int64_t c) const { return (sample * wide + c) * g.length; }

  Moments moments() const {
    Moments all;
    Part part;
    float scratch[kBlock];
    const int64_t block = g.length < kBlock ? g.length : kBlock;
    const int64_t limit = 64 * block < kPart ? 64 * block : kPart;
    for (int64_t c = begin; c < begin + channels; ++c) {
      const float addend = g.addend == nullptr ? 0 : g.addend[sample * wide + c];
      for (int64_t i = 0; i < g.length; i += kBlock) {
        const int n = static_cast<int>(g.length - i < kBlock ? g.length - i : kBlock);
        const T* x = source(c) + i;
        if (g.residual == nullptr) {
          add_to_part(x, n, addend, &part);
        } else {
          const T* residual = static_cast<const T*>(g.residual) + place(c) + i;
          T* total = static_cast<T*>(g.total) + place(c) + i;
#pragma omp simd
          for (int k = 0; k < n; ++k)
            scratch[k] = add_residual(x[k], addend, residual[k], total + k);
          add_to_part(scratch, n, 0, &part);
        }
        if (part.count + block > limit) part.move_to(&all);
      }
    }
    part.move_to(&all);
    return all;
  }

  template <bool kSilu>
  void apply(const Moments& m) const {
    const double rstd = rstd_of(g, m);
    T* out = static_cast<T*>(g.out);
    for (int64_t c = begin + channels; c-- > begin;) {
      const Affine a = affine_of(g, sample, c, m.mean, rstd);
      const T* v = g.residual == nullptr ? source(c) : static_cast<const T*>(g.total) + place(c);
      for (int64_t end = g.length; end > 0;) {
        const int64_t i = (end - 1) / kPart * kPart;
        if (!g.tokens) {
          apply_run<T, kSilu>(v + i, end - i, a, out + place(c) + i);
        } else {
          T run[kPart];
          apply_run<T, kSilu>(v + i, end - i, a, run);
          T* to = out + (sample * g.length + i) * wide + c;
          for (int64_t k = 0; k < end - i; ++k) to[k * wide] = run[k];
        }
        end = i;
      }
    }
  }

  void run() const {
    const Moments m = moments();
    g.silu ? apply<true>(m) : apply<false>(m);
  }
};

// ---- Channels last: a unit of work is a sample. ----

// Sums over up to kMaxRows rows of up to kColumns channels.
struct Columns {
  float centre[kColumns], sums[kColumns], squares[kColumns];

  void clear(int n) {
    std::memset(sums, 0, static_cast<size_t>(n) * sizeof(float));
    std::memset(squares, 0, static_cast<size_t>(n) * sizeof(float));
  }
};

template <class V>
void add_rows(const V* v, int64_t stride, int rows, int n, Columns* to) {
  if (rows == kUnroll) {
#pragma omp simd
    for (int c = 0; c < n; ++c) {
      float d[kUnroll];
      for (int j = 0; j < kUnroll; ++j) d[j] = load(v[j * stride + c]) - to->centre[c];
      to->sums[c] += tree(d);
      for (int j = 0; j < kUnroll; ++j) d[j] *= d[j];
      to->squares[c] += tree(d);
    }
    return;
  }
  for (; rows > 0; --rows, v += stride) {
#pragma omp simd
    for (int c = 0; c < n; ++c) {
      const float d = load(v[c]) - to->centre[c];
      to->sums[c] += d;
      to->squares[c] += d * d;
    }
  }
}

// The first rows of a part give the values nearby, their means.
template <class V>
void add_to_columns(const V* v, int64_t stride, int rows, int n, bool first, Columns* to) {
  if (first) {
    std::memset(to->centre, 0, sizeof to->centre);
    to->clear(n);
    add_rows(v, stride, rows, n, to);
    for (int c = 0; c < n; ++c) to->centre[c] = to->sums[c] / static_cast<float>(rows);
    to->clear(n);
  }
  add_rows(v, stride, rows, n, to);
}

template <class T, bool kSilu>
void apply_row(const T* v, int64_t n, const float* centre, const float* scale, const float* shift,
               T* out) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const float z = (load(v[c]) - centre[c]) * scale[c] + shift[c];
    store(kSilu ? silu(z) : z, &out[c]);
  }
}

template <class T>
struct ChannelsLast {
  const GroupNorm& g;
  int64_t wide, rows, parts;  // C; rows of a part, and how many parts
  double* means;              // (parts + 1, 2, C): means and sums of squares; the last: of all rows
  float* affine;              // (3, C): centre, scale, shift

  explicit ChannelsLast(const GroupNorm& norm) : g(norm) {
    wide = g.first + g.second;
    const int64_t eighth = (g.length / 8 + kUnroll - 1) / kUnroll * kUnroll;
    rows = eighth < kMinRows ? kMinRows : eighth > kMaxRows ? kMaxRows : eighth;
    parts = (g.length + rows - 1) / rows;
    const size_t doubles = static_cast<size_t>((parts + 1) * 2 * wide) * sizeof(double);
    means =
        static_cast<double*>(std::malloc(doubles + static_cast<size_t>(3 * wide) * sizeof(float)));
    affine = reinterpret_cast<float*>(reinterpret_cast<char*>(means) + doubles);
  }

  ~ChannelsLast() { std::free(means); }

  int rows_of(int64_t part) const {
    return static_cast<int>(part < parts - 1 ? rows : g.length - part * rows);
  }

  // Means and sums of squares of channels [begin, begin + n) of x or x2, over the rows of a part.
  void moments(int64_t sample, int64_t part, bool second, int64_t begin, int n) const {
    const int64_t stride = second ? g.second : g.first, column = (second ? g.first : 0) + begin;
    const int64_t top = sample * g.length + part * rows;
    const T* x = static_cast<const T*>(second ? g.x2 : g.x) + top * stride + begin;
    const T* residual = static_cast<const T*>(g.residual) + top * wide + column;
    T* total = static_cast<T*>(g.total) + top * wide + column;
    const float* addend = g.addend == nullptr ? nullptr : g.addend + sample * wide + column;
    Columns columns;
    float scratch[kUnroll][kColumns];
    for (int row = 0; row < rows_of(part); row += kUnroll) {
      const int count = rows_of(part) - row < kUnroll ? rows_of(part) - row : kUnroll;
      if (g.residual == nullptr) {
        add_to_columns(x + row * stride, stride, count, n, row == 0, &columns);
        continue;
      }
      for (int j = 0; j < count; ++j) {
        const T *x_row = x + (row + j) * stride, *residual_row = residual + (row + j) * wide;
        T* total_row = total + (row + j) * wide;
#pragma omp simd
        for (int c = 0; c < n; ++c) {
          const float a = addend == nullptr ? 0 : addend[c];
          scratch[j][c] = add_residual(x_row[c], a, residual_row[c], total_row + c);
        }
      }
      add_to_columns(scratch[0], kColumns, count, n, row == 0, &columns);
    }
    double *mean = means + part * 2 * wide + column, *squares = mean + wide;
    for (int c = 0; c < n; ++c) {
      const double sum = columns.sums[c], each = sum / rows_of(part);
      mean[c] = columns.centre[c] + each;
      squares[c] = columns.squares[c] - sum * each;
    }
  }

  void moments(int64_t sample, int64_t part) const {
    for (int source = 0; source < 2; ++source) {
      const bool second = source == 1;
      const int64_t all = second ? g.second : g.first, tiles = (all + kColumns - 1) / kColumns;
      for (int64_t tile = 0, begin = 0; tile < tiles; ++tile) {
        int64_t end = (all * (tile + 1) / tiles + kLanes - 1) / kLanes * kLanes;
        if (end > all) end = all;
        moments(sample, part, second, begin, static_cast<int>(end - begin));
        begin = end;
      }
    }
  }

  // Of the parts, the moments of each channel; of the channels, with the addend, those of a group.
  void finish(int64_t sample) const {
    double *mean = means + parts * 2 * wide, *squares = mean + wide;
    std::memset(mean, 0, static_cast<size_t>(2 * wide) * sizeof(double));
    for (int64_t part = 0; part < parts; ++part) {
      const double weight = static_cast<double>(rows_of(part)) / static_cast<double>(g.length);
      const double* from = means + part * 2 * wide;
      for (int64_t c = 0; c < wide; ++c) mean[c] += weight * from[c];
    }
    for (int64_t part = 0; part < parts; ++part) {
      const double count = rows_of(part), *from = means + part * 2 * wide;
      for (int64_t c = 0; c < wide; ++c) {
        const double delta = from[c] - mean[c];
        squares[c] += from[wide + c] + count * delta * delta;
      }
    }
    const int64_t channels = wide / g.groups;
    const bool adds = g.addend != nullptr && g.residual == nullptr;
    for (int64_t group = 0; group < g.groups; ++group) {
      Moments m;
      for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
        const double addend = adds ? g.addend[sample * wide + c] : 0;
        m.add(static_cast<double>(g.length), mean[c] + addend, squares[c]);
      }
      const double rstd = rstd_of(g, m);
      for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
        const Affine a = affine_of(g, sample, c, m.mean, rstd);
        affine[c] = a.centre, affine[wide + c] = a.scale, affine[2 * wide + c] = a.shift;
      }
    }
  }

  template <bool kSilu>
  void apply(int64_t sample, int64_t part) const {
    const float *centre = affine, *scale = centre + wide, *shift = scale + wide;
    for (int64_t row = part * rows + rows_of(part); row-- > part * rows;) {
      const int64_t at = sample * g.length + row;
      T* out = static_cast<T*>(g.out) + at * wide;
      if (g.residual != nullptr) {
        const T* total = static_cast<const T*>(g.total) + at * wide;
        apply_row<T, kSilu>(total, wide, centre, scale, shift, out);
        continue;
      }
      const int64_t n = g.first;
      apply_row<T, kSilu>(static_cast<const T*>(g.x) + at * n, n, centre, scale, shift, out);
      if (g.second == 0) continue;
      const T* x2 = static_cast<const T*>(g.x2) + at * g.second;
      apply_row<T, kSilu>(x2, g.second, centre + n, scale + n, shift + n, out + n);
    }
  }

  void run(int64_t sample, int64_t threads) const {
    if (threads > parts) threads = parts;
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
      for (int64_t p = parts * t / threads; p < parts * (t + 1) / threads; ++p) moments(sample, p);
    }
    finish(sample);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
      for (int64_t p = parts * (t + 1) / threads; p-- > parts * t / threads;) {
        g.silu ? apply<true>(sample, p) : apply<false>(sample, p);
      }
    }
  }
};

template <class T>
bool run(const GroupNorm& g, int64_t threads) {
  if (!g.last) {
    const int64_t units = g.samples * g.groups;
    if (threads > units) threads = units;
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) Contiguous<T>(g, unit).run();
    return true;
  }
  // Samples side by side, if that keeps all threads busy; else one by one, each by all threads.
  const bool across = g.samples % threads == 0 || g.samples >= 4 * threads;
  const int64_t outer = across ? threads : 1, inner = across ? 1 : threads;
  bool sound = true;
#pragma omp parallel for num_threads(static_cast<int>(outer)) if (outer > 1) schedule(static) \
    reduction(&& : sound)
  for (int64_t t = 0; t < outer; ++t) {
    const ChannelsLast<T> norm(g);
    sound = norm.means != nullptr;
    if (!sound) continue;
    for (int64_t n = g.samples * t / outer; n < g.samples * (t + 1) / outer; ++n)
      norm.run(n, inner);
  }
  return sound;
}

}  // namespace

bool group_norm(const GroupNorm& g, int threads) {
  const int64_t elements = g.samples * (g.first + g.second) * g.length;
  if (elements < kSerialBelow || threads < 1) threads = 1;
  if (g.dtype == kFloat32) return run<float>(g, threads);
  if (g.dtype == kFloat16) return run<Half>(g, threads);
  return run<Bfloat>(g, threads);
}

}  // namespace fastdiff::FASTDIFF_ISA
