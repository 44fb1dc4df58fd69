// abs_quantile: the quantile of |x| of each sample, exactly; contract:
// fastdiff/ops/abs_quantile.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fastdiff {

struct AbsQuantile {
  const void* x;           // (samples, numel)
  int dtype;               // 0 float32, 1 float16, 2 bfloat16
  int64_t samples, numel;  // numel >= 1
  int64_t rank;            // place of the lower neighbour among the sorted |x|, from 0
  float weight;            // of the upper neighbour, the next place; 0: it is not looked at
  float maximum;           // of the bound
  float* out;              // (samples,)
  float* rows;             // (samples, columns); null: none. lo, hi, gain are written
  int64_t columns;
};

// Serial below 65,536 elements, else on at most `threads` threads; the bits are the same. False if
// there is no memory for the copy, of numel elements at most.
#define FASTDIFF_DECLARE(isa)                                   \
  namespace isa {                                               \
  bool abs_quantile(const AbsQuantile& arguments, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
