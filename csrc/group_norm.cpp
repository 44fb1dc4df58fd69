// CPU kernel of group_norm (formula and shapes: group_norm.h).
//
// Two passes over a unit of work: its moments, then y. A unit is a group of a sample (contiguous:
// it mostly stays in the second-level cache between the passes) or a whole sample (channels last:
// rows of all channels are read as they lie). The second pass goes backwards, so that it begins
// with what the first has left in the cache. 16-bit tensors are brought to float32 a block at a
// time.
//
// Sums are of differences to a value nearby, in float32, over at most 64 rows (channels last: each
// channel on its own) or 4096 elements (contiguous: in 16 lanes); from there on in double, by
// Chan's formula. Where a part begins and ends depends on L and C alone: so the bits depend neither
// on the width of vectors, nor on threads, nor on other samples.
#include "group_norm.h"

#include <cstdlib>

#include "group_norm.inl"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kSerialBelow = 65536;  // elements: a thread costs more than it brings

// ---- Contiguous: a unit of work is a group of a sample. ----

template <class T>
struct Contiguous {
  const GroupNorm& g;
  int64_t sample, begin, end, wide;  // of the group: its channels; C

  Contiguous(const GroupNorm& norm, int64_t unit) : g(norm) {
    wide = g.first + g.second;
    sample = unit / g.groups, begin = unit % g.groups * (wide / g.groups);
    end = begin + wide / g.groups;
  }

  const T* source(int64_t c) const {
    const bool second = c >= g.first;
    const int64_t row = second ? sample * g.second + c - g.first : sample * g.first + c;
    return static_cast<const T*>(second ? g.x2 : g.x) + row * g.length;
  }

  int64_t place(int64_t c) const { return (sample * wide + c) * g.length; }

  // n values of v from element i of channel c on.
  const float* values(int64_t c, int64_t i, int64_t n, float* scratch) const {
    const float* addend = g.addend == nullptr ? nullptr : g.addend + sample * wide + c;
    if (g.residual == nullptr) return add(source(c) + i, addend, 0, n, scratch);
    const T* residual = static_cast<const T*>(g.residual) + place(c) + i;
    return add(source(c) + i, addend, 0, residual, n, static_cast<T*>(g.total) + place(c) + i,
               scratch);
  }

  // Channels shorter than half a block come together, so that all lanes get some of them.
  Moments moments() const {
    Moments moments;
    Part part;
    alignas(64) float scratch[kBlock];
    const int64_t together = g.length < kBlock ? kBlock / g.length : 1;
    const size_t bytes = static_cast<size_t>(g.length) * sizeof(float);
    for (int64_t c = begin; c < end; c += together) {
      const int64_t channels = least(together, end - c);
      for (int64_t i = 0; i < g.length; i += kBlock) {
        int64_t n = least(g.length - i, kBlock);
        const float* v = values(c, i, n, scratch);
        for (int64_t k = 1; k < channels; ++k, n += g.length) {
          if (k == 1 && v != scratch) std::memcpy(scratch, v, bytes);
          v = values(c + k, 0, g.length, scratch + n);
          if (v != scratch + n) std::memcpy(scratch + n, v, bytes);
          v = scratch;
        }
        part.add(v, n);
        if (part.count + kBlock > kPart) moments.take(&part);
      }
    }
    moments.take(&part);
    return moments;
  }

  void apply(const Moments& moments) const {
    const double rstd = rstd_of(g, moments.squares, moments.count);
    alignas(64) T rounded[kBlock];
    for (int64_t c = end; c-- > begin;) {
      const Affine a = affine_of(g, sample, c, moments.mean, rstd);
      const T* v = g.residual == nullptr ? source(c) : static_cast<const T*>(g.total) + place(c);
      for (int64_t i = (g.length - 1) / kBlock * kBlock; i >= 0; i -= kBlock) {
        const int64_t n = least(g.length - i, kBlock);
        T* out = g.tokens ? rounded : static_cast<T*>(g.out) + place(c) + i;
        FASTDIFF_ISA::apply<0>(v + i, n, &a.centre, &a.scale, &a.shift, g.silu, out);
        if (!g.tokens) continue;
        T* column = static_cast<T*>(g.out) + (sample * g.length + i) * wide + c;
        for (int64_t k = 0; k < n; ++k) column[k * wide] = rounded[k];
      }
    }
  }
};

// ---- Channels last: a unit of work is a sample. ----

template <class T>
struct ChannelsLast {
  const GroupNorm& g;
  int64_t wide, rows, parts;  // C; rows of a part, and how many parts
  double* means;              // (parts + 1, 2, C): means and sums of squares; the last: of all rows
  float* affine;              // (3, C): centre, scale, shift

  explicit ChannelsLast(const GroupNorm& norm) : g(norm) {
    wide = g.first + g.second;
    const int64_t eighth = (g.length / 8 + kUnroll - 1) / kUnroll * kUnroll;
    rows = eighth < kMinRows ? kMinRows : least(eighth, kMaxRows);
    parts = (g.length + rows - 1) / rows;
    const size_t doubles = static_cast<size_t>((parts + 1) * 2 * wide);
    const size_t floats = static_cast<size_t>(3 * wide);
    means = static_cast<double*>(std::malloc(doubles * sizeof(double) + floats * sizeof(float)));
    affine = reinterpret_cast<float*>(means + doubles);
  }

  ~ChannelsLast() { std::free(means); }

  int64_t rows_of(int64_t part) const { return least(rows, g.length - part * rows); }

  // Means and sums of squares, over the rows of a part, of channels [begin, begin + n) of x or x2.
  void moments(int64_t sample, int64_t part, bool second, int64_t begin, int n) const {
    const int64_t stride = second ? g.second : g.first, column = (second ? g.first : 0) + begin;
    const int64_t top = sample * g.length + part * rows, height = rows_of(part);
    const T* x = static_cast<const T*>(second ? g.x2 : g.x) + top * stride + begin;
    const float* addend = g.addend == nullptr ? nullptr : g.addend + sample * wide + column;
    Columns columns;
    alignas(64) float scratch[kUnroll * kColumns];
    for (int64_t row = 0; row < height; row += kUnroll) {
      const int count = static_cast<int>(least(height - row, kUnroll));
      if constexpr (!kByBlock<T>) {
        if (g.residual == nullptr) {
          columns.add(x + row * stride, stride, count, n);
          continue;
        }
      }
      const float *v = nullptr, *next = nullptr;
      for (int j = 0; j < count; ++j) {
        const T* from = x + (row + j) * stride;
        float* into = scratch + j * kColumns;
        if (g.residual == nullptr) {
          next = read(from, n, into);
        } else {
          const int64_t at = (top + row + j) * wide + column;
          const T* residual = static_cast<const T*>(g.residual) + at;
          next = add(from, addend, 1, residual, n, static_cast<T*>(g.total) + at, into);
        }
        if (j == 0) v = next;
      }
      // Rows lie where they were read, or in scratch.
      const int64_t apart = v == scratch ? kColumns : g.residual == nullptr ? stride : wide;
      columns.add(v, apart, count, n);
    }
    columns.flush(n);
    double *mean = means + part * 2 * wide + column, *squares = mean + wide;
    std::memcpy(mean, columns.mean, static_cast<size_t>(n) * sizeof(double));
    std::memcpy(squares, columns.spread, static_cast<size_t>(n) * sizeof(double));
  }

  void moments(int64_t sample, int64_t part) const {
    for (int source = 0; source < 2; ++source) {
      const int64_t all = source == 0 ? g.first : g.second;
      const int64_t tiles = (all + kColumns - 1) / kColumns;
      for (int64_t tile = 0, begin = 0; tile < tiles; ++tile) {
        const int64_t even = (all * (tile + 1) / tiles + kLanes - 1) / kLanes * kLanes;
        const int64_t end = least(all, even);
        moments(sample, part, source == 1, begin, static_cast<int>(end - begin));
        begin = end;
      }
    }
  }

  // From the parts to the moments of each channel, and from these, with the addend, to the groups'.
  void finish(int64_t sample) const {
    double *mean = means + parts * 2 * wide, *squares = mean + wide;
    std::memset(mean, 0, static_cast<size_t>(2 * wide) * sizeof(double));
    for (int64_t part = 0; part < parts; ++part) {
      const double weight = static_cast<double>(rows_of(part)) / static_cast<double>(g.length);
      const double* from = means + part * 2 * wide;
      for (int64_t c = 0; c < wide; ++c) mean[c] += weight * from[c];
    }
    for (int64_t part = 0; part < parts; ++part) {
      const double count = static_cast<double>(rows_of(part)), *from = means + part * 2 * wide;
      for (int64_t c = 0; c < wide; ++c) {
        const double delta = from[c] - mean[c];
        squares[c] += from[wide + c] + count * delta * delta;
      }
    }
    const int64_t channels = wide / g.groups;
    if (g.addend != nullptr && g.residual == nullptr) {
      for (int64_t c = 0; c < wide; ++c) mean[c] += g.addend[sample * wide + c];
    }
    for (int64_t begin = 0; begin < wide; begin += channels) {
      double sum = 0, square = 0;
      for (int64_t c = begin; c < begin + channels; ++c) sum += mean[c];
      const double all = sum / static_cast<double>(channels);
      for (int64_t c = begin; c < begin + channels; ++c) {
        square += squares[c] + static_cast<double>(g.length) * (mean[c] - all) * (mean[c] - all);
      }
      const double rstd = rstd_of(g, square, static_cast<double>(g.length * channels));
      for (int64_t c = begin; c < begin + channels; ++c) {
        const Affine a = affine_of(g, sample, c, all, rstd);
        affine[c] = a.centre, affine[wide + c] = a.scale, affine[2 * wide + c] = a.shift;
      }
    }
  }

  // y of channels [begin, begin + n) of a row, which lie at v.
  void apply(const T* v, int64_t row, int64_t begin, int64_t n) const {
    for (int64_t end = begin + n; begin < end; begin += kBlock, v += kBlock) {
      const int64_t some = least(end - begin, kBlock);
      const float *centre = affine + begin, *scale = centre + wide, *shift = scale + wide;
      T* out = static_cast<T*>(g.out) + row * wide + begin;
      FASTDIFF_ISA::apply<1>(v, some, centre, scale, shift, g.silu, out);
    }
  }

  void apply(int64_t sample, int64_t part) const {
    const int64_t top = sample * g.length + part * rows;
    for (int64_t row = top; row < top + rows_of(part); ++row) {
      if (g.residual != nullptr) {
        apply(static_cast<const T*>(g.total) + row * wide, row, 0, wide);
        continue;
      }
      apply(static_cast<const T*>(g.x) + row * g.first, row, 0, g.first);
      if (g.second > 0) {
        apply(static_cast<const T*>(g.x2) + row * g.second, row, g.first, g.second);
      }
    }
  }

  void run(int64_t sample, int64_t threads) const {
    threads = least(threads, parts);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
      for (int64_t p = parts * t / threads; p < parts * (t + 1) / threads; ++p) moments(sample, p);
    }
    finish(sample);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
      for (int64_t p = parts * (t + 1) / threads; p-- > parts * t / threads;) apply(sample, p);
    }
  }
};

// Samples begin .. end - 1, channels last; false if there was no memory.
template <class T>
bool samples(const GroupNorm& g, int64_t begin, int64_t end, int64_t threads) {
  const ChannelsLast<T> norm(g);
  if (norm.means == nullptr) return false;
  for (int64_t n = begin; n < end; ++n) norm.run(n, threads);
  return true;
}

template <class T>
bool run(const GroupNorm& g, int64_t threads) {
  if (!g.last) {
    const int64_t units = g.samples * g.groups;
    threads = least(threads, units);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const Contiguous<T> group(g, unit);
      group.apply(group.moments());
    }
    return true;
  }
  // Samples side by side, if that keeps all threads busy; else one by one, each by all threads.
  // Then no region may be around: OpenMP would start threads for the one inside, beside those of
  // its pool that spin (0.4x PyTorch after any of its operators on two cores, where it is 1.7x
  // without).
  const bool across = g.samples % threads == 0 || g.samples >= 4 * threads;
  if (!across || threads == 1) return samples<T>(g, 0, g.samples, threads);
  bool sound = true;
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static) \
    reduction(&& : sound)
  for (int64_t t = 0; t < threads; ++t) {
    sound = samples<T>(g, g.samples * t / threads, g.samples * (t + 1) / threads, 1) && sound;
  }
  return sound;
}

// Bring a vector of n parameters to float32 at `to`.
void widen(const void** data, Dtype* dtype, int64_t n, float* to) {
  if (*data == nullptr || *dtype == kFloat32) return;
  *data = *dtype == kFloat16 ? read(static_cast<const Half*>(*data), n, to)
                             : read(static_cast<const Bfloat*>(*data), n, to);
  *dtype = kFloat32;
}

}  // namespace

bool group_norm(const GroupNorm& norm, int threads) {
  GroupNorm g = norm;
  const int64_t channels = g.first + g.second;
  float* wide = static_cast<float*>(std::malloc(static_cast<size_t>(2 * channels) * sizeof(float)));
  if (wide == nullptr) return false;
  widen(&g.weight, &g.weight_dtype, channels, wide);
  widen(&g.bias, &g.bias_dtype, channels, wide + channels);
  if (g.samples * channels * g.length < kSerialBelow || threads < 1) threads = 1;
  const bool sound = g.dtype == kFloat32   ? run<float>(g, threads)
                     : g.dtype == kFloat16 ? run<Half>(g, threads)
                                           : run<Bfloat>(g, threads);
  std::free(wide);
  return sound;
}

}  // namespace fastdiff::FASTDIFF_ISA
