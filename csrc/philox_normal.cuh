// CUDA kernel of philox_normal (contract: fastdiff/ops/philox_normal.py; arguments: cuda.h).
//
// Reads one seed a block and writes each element once. A thread makes 4 elements from one counter;
// an element after the last 4 is thrown away, not written.
#pragma once

#include "cuda.cuh"
#include "cuda.h"
#include "philox_normal.inl"

namespace fastdiff::cuda {

constexpr int kNoiseThreads = 128;

struct PhiloxNormalLaunch {
  PhiloxNormal noise;
  unsigned blocks;  // per sample
  bool vectors;     // whether all of a sample are whole, aligned vectors
};

__global__ void __launch_bounds__(kNoiseThreads)
    philox_normal_kernel(const __grid_constant__ PhiloxNormalLaunch launch) {
  const PhiloxNormal& a = launch.noise;
  const int64_t sample = blockIdx.x / launch.blocks;
  const int64_t block = blockIdx.x % launch.blocks;
  const int64_t counter = block * kNoiseThreads + threadIdx.x;
  if (4 * counter >= a.numel) return;
  const uint32_t step = a.noise_step + (a.step == nullptr ? 0u : static_cast<uint32_t>(*a.step));
  float z[4];
  philox::four_normals(static_cast<uint64_t>(a.seeds[sample]), static_cast<uint32_t>(counter), step,
                       a.stream, z);
  const int64_t at = sample * a.numel + 4 * counter;
  if (launch.vectors) {
    Raw<4> raw;
    pack(raw, z, a.dtype);
    store(a.out, a.dtype, at, raw);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (4 * counter + k >= a.numel) continue;
    const float one[1] = {z[k]};
    Raw<1> raw;
    pack(raw, one, a.dtype);
    store(a.out, a.dtype, at + k, raw);
  }
}

}  // namespace fastdiff::cuda
