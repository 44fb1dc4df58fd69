// CPU kernel of abs_quantile (contract: fastdiff/ops/abs_quantile.py).
//
// Radix select: the bits of |x| order as |x| does, so the place `rank` is found from the top digit
// down: 11, 10 and 10 bits of float32, 11 and 4 of 16 bits. The first pass over x counts how often
// each value of the top digit occurs. The second one looks for the elements that share the digit
// found, counts their next digit and copies them, where there is a third, which is then looked for
// in the copy: x is read twice. Most vectors have none of these elements, so the second pass is
// some operations a vector. It also takes the least element above them, which is the next one if
// the place is the last of them, and the largest, which may be a NaN.
//
// Counts and minima do not depend on the order in which they are made, nor on that of the copy: the
// bits are the same for every number of threads.
#include "abs_quantile.h"

#include <cstdlib>

#include "isa.inl"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kTop = 11, kTopBins = 1 << kTop, kBins = 1024;
constexpr int kBlock = 64;               // elements that are looked at together
constexpr int kKept = 1024;              // elements on their way into the copy
constexpr int64_t kSerialBelow = 65536;  // elements: a thread costs more than it brings
constexpr int kColumnLo = 4;             // lo, hi, gain of a row

// Bits of |x| in a word of x, of which the sign is the highest.
template <class T>
constexpr int kBits = 8 * sizeof(T) - 1;
template <class T>
constexpr T kMagnitude = static_cast<T>((T{1} << kBits<T>)-1);

template <class T>
struct Counts {
  uint32_t bins[kTopBins];
  T beyond;   // the least element above those looked for, minus their end; else has the top bit
  T largest;  // of all, of the second pass
};

// A half-open range of values of |x|, 2^bits of them from `found` on; the next digit is `width` of
// those bits.
template <class T>
struct Range {
  T found;
  int bits, width;

  T end() const { return static_cast<T>(found + (T{1} << bits)); }
};

// The top digit of n elements. Two arrays of counters, for equal neighbours would wait for each
// other.
template <class T>
void count(const T* x, int64_t n, Counts<T>* counts) {
  uint32_t bins[2][kTopBins];
  std::memset(bins, 0, sizeof bins);
  for (int64_t i = 0; i < n; ++i) ++bins[i & 1][(x[i] & kMagnitude<T>) >> (kBits<T> - kTop)];
#pragma omp critical(fastdiff_abs_quantile)
  for (int k = 0; k < kTopBins; ++k) counts->bins[k] += bins[0][k] + bins[1][k];
}

// Of n elements those in the range: their next digit, and they themselves behind copy[*copied - 1].
template <class T>
class Search {
 public:
  Search(const Range<T>& range, T* copy, int64_t* copied)
      : range_(range), copy_(copy), copied_(copied) {
    std::memset(bins_, 0, sizeof bins_);
  }

  void run(const T* x, int64_t n, Counts<T>* counts) {
    const T end = range_.end(), inside = static_cast<T>(-(T{1} << range_.bits));
    T beyond = static_cast<T>(-1), largest = 0;
    int count = 0;
    for (int64_t i = 0; i < n; i += kBlock) {
      const int size = static_cast<int>(least(kBlock, n - i));
      // Minus `end`, modulo the word, elements above come first and those in the range last.
      T furthest = 0;
      for (int k = 0; k < size; ++k) {
        const T bits = x[i + k] & kMagnitude<T>, place = static_cast<T>(bits - end);
        beyond = place < beyond ? place : beyond;
        furthest = place > furthest ? place : furthest;
        largest = bits > largest ? bits : largest;
      }
      if (furthest < inside) continue;
      // The block is still in the first-level cache: to put it aside costs more than to read it.
      for (int k = 0; k < size; ++k) {
        const T bits = x[i + k] & kMagnitude<T>;
        kept_[count] = bits;
        count += static_cast<T>(bits - end) >= inside;
      }
      if (count <= kKept - kBlock) continue;
      flush(count);
      count = 0;
    }
    flush(count);
#pragma omp critical(fastdiff_abs_quantile)
    {
      for (int k = 0; k < 1 << range_.width; ++k) counts->bins[k] += bins_[0][k] + bins_[1][k];
      if (beyond < counts->beyond) counts->beyond = beyond;
      if (largest > counts->largest) counts->largest = largest;
    }
  }

 private:
  void flush(int count) {
    if (count == 0) return;
    const int shift = range_.bits - range_.width;
    const uint32_t mask = (1u << range_.width) - 1;
    T differ = 0;
    for (int k = 1; k < count; ++k) differ |= kept_[k] ^ kept_[0];
    if (differ == 0) {  // clamped samples have many of one value
      bins_[0][kept_[0] >> shift & mask] += static_cast<uint32_t>(count);
    } else {
      for (int k = 0; k < count; ++k) ++bins_[k & 1][kept_[k] >> shift & mask];
    }
    if (copy_ == nullptr) return;
    int64_t at;
#pragma omp atomic capture
    {
      at = *copied_;
      *copied_ += count;
    }
    std::memcpy(copy_ + at, kept_, sizeof(T) * static_cast<size_t>(count));
  }

  const Range<T> range_;
  T* const copy_;
  int64_t* const copied_;
  T kept_[kKept + 1];  // the last is written, and not kept
  uint32_t bins_[2][kBins];
};

// task(part of x, its length) on all threads, or on this one if they cost more than they bring.
template <class T, class Task>
void share(const T* x, int64_t n, int threads, const Task& task) {
  const int64_t parts = n < kSerialBelow || threads < 2 ? 1 : threads;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = n * part / parts, last = n * (part + 1) / parts;
    task(x + first, last - first);
  }
}

// The neighbours of the place: their bits, in low and high. False if there is no memory.
template <class T>
bool neighbours(const T* x, int64_t n, int64_t rank, int threads, T* low, T* high, T* largest) {
  Counts<T> counts;
  std::memset(&counts, 0, sizeof counts);
  share(x, n, threads, [&](const T* part, int64_t size) { count(part, size, &counts); });
  uint32_t bin = 0;
  while (rank >= counts.bins[bin]) rank -= counts.bins[bin++];
  const int rest = kBits<T> - kTop;
  Range<T> range = {static_cast<T>(static_cast<T>(bin) << rest), rest, rest < 10 ? rest : 10};
  T* copy = nullptr;
  const int64_t inside = counts.bins[bin];
  if (range.bits > range.width) {
    copy = static_cast<T*>(std::malloc(sizeof(T) * static_cast<size_t>(inside)));
    if (copy == nullptr) return false;
  }
  const T none = static_cast<T>(T{1} << kBits<T>);
  T next = none;  // the least element above the range
  for (int pass = 1;; ++pass) {
    std::memset(&counts, 0, sizeof counts);
    counts.beyond = none;
    const bool first = pass == 1;
    int64_t copied = 0;
    share(first ? x : copy, first ? n : inside, threads, [&](const T* part, int64_t size) {
      Search<T>(range, first ? copy : nullptr, &copied).run(part, size, &counts);
    });
    if (first) *largest = counts.largest;
    if (counts.beyond < none) next = static_cast<T>(range.end() + counts.beyond);
    const int left = range.bits - range.width;
    bin = 0;
    while (rank >= counts.bins[bin]) rank -= counts.bins[bin++];
    const bool last = rank + 1 == counts.bins[bin];
    const T base = range.found;
    range.found = static_cast<T>(base + (static_cast<T>(bin) << left));
    if (left > 0) {
      range.bits = left, range.width = left;
      continue;
    }
    *low = *high = range.found;
    if (last) {  // of its value
      const uint32_t end = 1u << range.width;
      while (++bin < end && counts.bins[bin] == 0) {
      }
      *high = bin < end ? static_cast<T>(base + bin) : next;
    }
    break;
  }
  std::free(copy);
  return true;
}

float value_of(uint32_t bits, int) { return float_of(bits); }
float value_of(uint16_t bits, int dtype) {
  return dtype == 1 ? load(Half{bits}) : load(Bfloat{bits});
}

template <class T>
bool quantile(const AbsQuantile& a, int64_t sample, int threads, float* q) {
  const T infinity = static_cast<T>(sizeof(T) == 4 ? 0x7f800000u
                                    : a.dtype == 1 ? 0x7c00u
                                                   : 0x7f80u);
  T bits[2], largest;
  const T* x = static_cast<const T*>(a.x) + sample * a.numel;
  if (!neighbours(x, a.numel, a.rank, threads, &bits[0], &bits[1], &largest)) return false;
  const float low = value_of(bits[0], a.dtype);
  const float high = a.weight == 0 ? low : value_of(bits[1], a.dtype);
  *q = a.weight < 0.5f ? __builtin_fmaf(a.weight, high - low, low)
                       : __builtin_fmaf(a.weight - 1, high - low, high);
  if (largest > infinity) *q = float_of(0x7fc00000u);  // a NaN among them
  return true;
}

}  // namespace

bool abs_quantile(const AbsQuantile& a, int threads) {
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    float q;
    const bool sound = a.dtype == 0 ? quantile<uint32_t>(a, sample, threads, &q)
                                    : quantile<uint16_t>(a, sample, threads, &q);
    if (!sound) return false;
    a.out[sample] = q;
    if (a.rows == nullptr) continue;
    float bound = q < 1.0f ? 1.0f : q;  // a NaN stays a NaN
    bound = bound > a.maximum ? a.maximum : bound;
    float* row = a.rows + sample * a.columns + kColumnLo;
    row[0] = -bound, row[1] = bound, row[2] = 1.0f / bound;
  }
  return true;
}

}  // namespace fastdiff::FASTDIFF_ISA
