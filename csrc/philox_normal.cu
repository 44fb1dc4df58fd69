// Launcher of the CUDA kernel of philox_normal.
#include "philox_normal.cuh"

namespace fastdiff::cuda {

void philox_normal(const PhiloxNormal& noise, void* stream) {
  if (noise.samples * noise.numel == 0) return;  // CUDA refuses an empty grid
  const int64_t blocks = ceil_div(ceil_div(noise.numel, int64_t{4}), int64_t{kNoiseThreads});
  const bool vectors = noise.numel % 4 == 0 && is_aligned(noise.out);
  const PhiloxNormalLaunch arguments{noise, static_cast<unsigned>(blocks), vectors};
  launch(philox_normal_kernel, noise.samples * blocks, kNoiseThreads, 0, stream, arguments);
}

}  // namespace fastdiff::cuda
