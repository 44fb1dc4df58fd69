// affine_step: one step of any solver for one batch, in one pass over memory.
//
//     e = u + g*(c - u)                                  without u: e = c
//     m = gain * clamp(kx*x + ke*e + kz*z, lo, hi)
//     [x'; r_1 .. r_P] = C . [x, m, e, z, h_1 .. h_R]
//     model_input = c_in * x'
//
// row, float32: [g, kx, ke, kz, lo, hi, gain, C row-major (1+P)x(4+R), c_in, slot_1 .. slot_P].
// Every product and every sum is rounded to float32 on its own, in this order, starting from +0;
// an operand whose weights are all 0 is not read. Contract in Python: fastdiff/ops/affine_step.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fastdiff {

enum Dtype : int { kFloat32, kFloat16, kBFloat16 };

struct Operand {
  void* data;  // null: absent
  Dtype dtype;
};

constexpr int kMaxColumns = 64;  // of a row; this bounds P and R:
constexpr int kMaxKept = 11, kMaxHistory = 52;

struct AffineStep {
  const float* rows;   // row of the first sample
  int64_t row_stride;  // floats from one sample's row to the next; 0: all samples share one row
  int64_t samples;     // 1 when the row is shared and no noise is drawn
  int64_t numel;       // elements per sample
  int keeps;           // P
  int depth;           // R
  bool ring;           // r_p also replaces history[slot_p]; else slots are ignored
  Operand x, uncond, cond, noise;
  Operand x_next, x0, model_input;
  Operand history[kMaxHistory], kept[kMaxKept];
  const int64_t* seeds;  // (samples,): the noise is drawn (philox_normal.h); null: it is read
  uint32_t noise_step;   // number of the step, for the noise that is drawn
};

constexpr int columns(int keeps, int depth) { return 7 + (1 + keeps) * (4 + depth) + 1 + keeps; }

// Serial below 65,536 elements, else on at most `threads` threads; the bits are the same.
#define FASTDIFF_DECLARE(isa)                            \
  namespace isa {                                        \
  void affine_step(const AffineStep& step, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

}  // namespace fastdiff
