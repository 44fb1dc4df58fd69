// philox_normal: normal noise that belongs to a sample; contract: fastdiff/ops/philox_normal.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fastdiff {

constexpr uint32_t kStepStream = 1;  // the stream that affine_step draws from

struct PhiloxNormal {
  const int64_t* seeds;  // (samples,)
  int64_t samples;
  int64_t numel;  // elements per sample
  uint32_t step, stream;
  float* out;  // (samples, numel)
};

// Serial below 65,536 elements, else on at most `threads` threads; the bits are the same.
#define FASTDIFF_DECLARE(isa)                                 \
  namespace isa {                                             \
  void philox_normal(const PhiloxNormal& noise, int threads); \
  }
FASTDIFF_FOR_EACH_ISA(FASTDIFF_DECLARE)
#undef FASTDIFF_DECLARE

#ifdef FASTDIFF_ISA
// For kernels of the same instruction set: the elements first .. first + count - 1 of a sample;
// first is a multiple of 4.
namespace FASTDIFF_ISA {
void draw_normals(float* out, int64_t first, int64_t count, int64_t seed, uint32_t step,
                  uint32_t stream);
}
#endif

}  // namespace fastdiff
