// CPU kernel of abs_quantile (contract: fastdiff/ops/abs_quantile.py).
//
// Radix select: the bits of |x| order as |x| does, so the place `rank` is found from the top digit
// down, 11, 10 and 10 bits. Each pass reads x once and counts how often each value of the digit
// occurs among the elements whose higher digits are those found; the last one also looks for the
// least element above, which may have higher digits of its own. Counts and minima do not depend on
// the order in which they are made: the bits are the same for every number of threads.
#include "abs_quantile.h"

#include <cstring>

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kBins = 2048, kPasses = 3;
constexpr int kShift[kPasses] = {20, 10, 0}, kBits[kPasses] = {11, 10, 10};
constexpr uint32_t kInfinity = 0x7f800000u, kNone = 0xffffffffu;
constexpr int64_t kSerialBelow = 65536;  // elements: a thread costs more than it brings
constexpr int kColumnLo = 4;             // lo, hi, gain of a row

struct Counts {
  uint32_t bins[kBins];
  uint32_t above;    // least |x| whose higher digits are larger than those found
  uint32_t largest;  // of all |x|
};

// Elements [first, last) of a sample; two arrays of counters, for equal neighbours would wait for
// each other.
void count(const float* x, int64_t first, int64_t last, int pass, uint32_t found, Counts* counts) {
  uint32_t bins[2][kBins];
  std::memset(bins, 0, sizeof bins);
  const int shift = kShift[pass], width = kBits[pass];
  const uint32_t mask = (1u << width) - 1;
  uint32_t above = kNone, largest = 0;
  for (int64_t i = first; i < last; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    const uint32_t higher = bits >> shift >> width;
    if (pass == 0) largest = bits > largest ? bits : largest;
    if (higher == found) ++bins[i & 1][bits >> shift & mask];
    if (higher > found && bits < above) above = bits;
  }
#pragma omp critical(fastdiff_abs_quantile)
  {
    for (int k = 0; k < kBins; ++k) counts->bins[k] += bins[0][k] + bins[1][k];
    if (above < counts->above) counts->above = above;
    if (largest > counts->largest) counts->largest = largest;
  }
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float quantile(const AbsQuantile& a, const float* x, int threads) {
  Counts counts;
  uint32_t found = 0, above = 0;
  int64_t rank = a.rank;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::memset(&counts, 0, sizeof counts);
    counts.above = kNone;
    const int64_t parts = a.numel < kSerialBelow || threads < 2 ? 1 : threads;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
      count(x, a.numel * part / parts, a.numel * (part + 1) / parts, pass, found, &counts);
    }
    if (counts.largest > kInfinity) return float_of(0x7fc00000u);  // a NaN among them
    uint32_t bin = 0;
    while (rank >= counts.bins[bin]) rank -= counts.bins[bin++];
    found = found << kBits[pass] | bin;
    above = found;
    if (pass == kPasses - 1 && rank + 1 == counts.bins[bin]) {  // the last one of its value
      const uint32_t end = 1u << kBits[pass];
      uint32_t next = bin + 1;
      while (next < end && counts.bins[next] == 0) ++next;
      above = next < end ? found + (next - bin) : counts.above;
    }
  }
  const float low = float_of(found), high = a.weight == 0 ? low : float_of(above);
  if (a.weight < 0.5f) return __builtin_fmaf(a.weight, high - low, low);
  return __builtin_fmaf(a.weight - 1, high - low, high);
}

}  // namespace

void abs_quantile(const AbsQuantile& a, int threads) {
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const float q = quantile(a, a.x + sample * a.numel, threads);
    a.out[sample] = q;
    if (a.rows == nullptr) continue;
    float bound = q < 1.0f ? 1.0f : q;  // a NaN stays a NaN
    bound = bound > a.maximum ? a.maximum : bound;
    float* row = a.rows + sample * a.columns + kColumnLo;
    row[0] = -bound, row[1] = bound, row[2] = 1.0f / bound;
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
