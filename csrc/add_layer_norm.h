// add_layer_norm: a residual connection and the LayerNorm that follows it.
//
//     total = x + residual                           rounded to the dtype of x
//     out = (total - mean) * rstd * weight + bias    of each row; without residual total is x
//
// x, residual, out and total (rows, width), contiguous. Contract in Python:
// fastdiff/ops/add_layer_norm.py.
#pragma once

#include <cstdint>

#include "affine_step.h"  // Dtype
#include "isa.h"

namespace fastdiff {

constexpr int kMaxNormWidth = 8192;

struct AddLayerNorm {
  const void *x, *residual;   // residual may be null
  const void *weight, *bias;  // (width,) of their own dtypes, float32 or that of x; or null
  void *out, *total;          // total is null without residual
  Dtype dtype, weight_dtype, bias_dtype;
  int64_t rows, width;  // width: at most kMaxNormWidth
  double eps;
};

// Serial below 32,768 elements, else on at most `threads` threads; the bits are the same.
#define FASTDIFF_DECLARE(isa)                              \
  namespace isa {                                          \
  void add_layer_norm(const AddLayerNorm& a, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
