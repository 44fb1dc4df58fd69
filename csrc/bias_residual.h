// bias_residual: what follows a convolution.
//
//     out = ((x + bias) + residual) * scale      each operation rounded to float32
//
// x, residual and out (samples, channels, length), contiguous, or channels last: (samples, length,
// channels). Contract in Python: fastdiff/ops/bias_residual.py.
#pragma once

#include <cstdint>

#include "affine_step.h"  // Dtype
#include "isa.h"

namespace fastdiff {

struct BiasResidual {
  const void *x, *residual;  // residual may be null
  const float* bias;         // (channels,) or, each_sample, (samples, channels); or null
  void* out;
  Dtype dtype;
  int64_t samples, channels, length;
  bool each_sample, last;
  float scale;
};

// Serial below 32,768 elements, else on at most `threads` threads; the bits are the same.
#define FASTDIFF_DECLARE(isa)                             \
  namespace isa {                                         \
  void bias_residual(const BiasResidual& a, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
