// geglu: the gate of a transformer's feed-forward block.
//
//     out[r, d] = x[r, d] * gelu(x[r, width + d])      gelu(g) = g * Phi(g)
//
// x (rows, 2 * width) and out (rows, width), contiguous. Contract in Python: fastdiff/ops/geglu.py.
#pragma once

#include <cstdint>

#include "affine_step.h"  // Dtype
#include "isa.h"

namespace fastdiff {

struct Geglu {
  const void* x;
  void* out;
  Dtype dtype;
  int64_t rows, width;
};

// Serial below 32,768 elements, else on at most `threads` threads; the bits are the same.
#define FASTDIFF_DECLARE(isa)                  \
  namespace isa {                              \
  void geglu(const Geglu& geglu, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
