// group_norm: GroupNorm of all that a U-Net adds up before it, with the SiLU after it.
//
//     v = [x, x2] (channels) + addend[n, c] + residual
//     y = (v - mean) * rstd * weight[c] + bias[c]      mean, rstd of each (sample, group)
//     y = y / (1 + exp(-y))                            with silu
//
// x (N, C1, L), x2 (N, C2, L), residual, total, out (N, C, L) with C = C1 + C2: all contiguous, or,
// `last`, all with the channels innermost: (N, L, C1), (N, L, C2), (N, L, C). tokens: out is
// (N, L, C) in either case. With a residual, total = v rounded to the dtype, and the norm is that
// of total. Contract in Python: fastdiff/ops/group_norm.py.
#pragma once

#include <cstdint>

#include "affine_step.h"  // Dtype
#include "isa.h"

namespace fastdiff {

struct GroupNorm {
  const void *x, *x2, *residual;  // x2, residual: null if absent
  const float* addend;            // (N, C), null if absent
  const void *weight, *bias;      // (C,), null if absent
  void *out, *total;              // total: null without residual
  Dtype dtype;                    // of x, x2, residual, out, total
  Dtype weight_dtype, bias_dtype;
  int64_t samples, length, first, second;  // N, L, C1, C2
  int64_t groups;
  double eps;
  bool silu, tokens, last;
};

// Serial below 65,536 elements, else on at most `threads` threads; the bits are the same, and those
// of a sample do not depend on the others. False: there was no memory for the sums.
#define FASTDIFF_DECLARE(isa)                          \
  namespace isa {                                      \
  bool group_norm(const GroupNorm& norm, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
