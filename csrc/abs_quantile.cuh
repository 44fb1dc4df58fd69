// CUDA kernel of abs_quantile (contract: fastdiff/ops/abs_quantile.py; arguments: cuda.h).
//
// Radix select on the bits of |x|, digits of 11, 10 and 10 bits from the top. A pass counts how
// often each value of the digit occurs among the elements whose higher digits are those found; the
// last pass also takes the least element with higher digits above those. So x is read three times,
// from the second time on out of the second-level cache if it fits, and nothing else is written
// than the counts. They are integers: the order of atomic operations does not show.
//
// A sample of a latent is one block's work, in one launch, with all counts in shared memory. A
// larger one is spread over blocks, with a launch for each pass; the last block of a sample to
// finish adds up what the others have left in the workspace and finds the digit.
#pragma once

#include "cuda.cuh"
#include "cuda.h"

namespace fastdiff::cuda {

constexpr int kBins = 2048, kQuantilePasses = 3;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr int kRowLo = 4;  // column lo of a row; hi and gain follow

// What is known of a sample, in shared memory or in the workspace, there behind the histograms.
// Of `above` the complement is kept, so that zeros are the beginning.
enum QuantileState { kFound, kRank, kAbove, kLargest, kTickets, kCount = 7, kStateSize = 8 };

struct QuantileLaunch {
  AbsQuantile quantile;
  unsigned blocks;  // per sample
  int pass;
  bool vectors;  // whether all of a sample are whole, aligned vectors
};

__host__ __device__ inline int digit_shift(int pass) { return 20 - 10 * pass; }
__host__ __device__ inline int digit_bits(int pass) { return pass == 0 ? 11 : 10; }
__host__ __device__ inline int bins_before(int pass) { return pass == 0 ? 0 : 1024 + 1024 * pass; }

struct Tally {
  uint32_t above, largest;
};

__device__ __forceinline__ void tally_one(Tally& tally, uint32_t* bins, float value, int pass,
                                          uint32_t found) {
  const uint32_t bits = __float_as_uint(value) & 0x7fffffffu;
  const uint32_t higher = bits >> digit_shift(pass) >> digit_bits(pass);
  const uint32_t digit = bits >> digit_shift(pass) & ((1u << digit_bits(pass)) - 1);
  if (bits > tally.largest) tally.largest = bits;
  if (higher == found) atomicAdd(&bins[digit], 1u);
  if (higher > found && ~bits > tally.above) tally.above = ~bits;
}

// Count this block's part of the sample.
__device__ __forceinline__ Tally count_block(const QuantileLaunch& launch, uint32_t* bins,
                                             int64_t sample, int64_t block, int pass,
                                             uint32_t found) {
  constexpr int V = 8;
  const AbsQuantile& a = launch.quantile;
  const int64_t start = sample * a.numel, stride = int64_t{launch.blocks} * blockDim.x;
  const int64_t vectors = launch.vectors ? a.numel / V : 0, first = block * blockDim.x;
  Tally tally = {0, 0};
  for (int64_t i = first + threadIdx.x; i < vectors; i += stride) {
    Raw<V> raw;
    load(raw, a.x, a.dtype, start + i * V);
    float value[V];
    unpack(value, raw, a.dtype);
#pragma unroll
    for (int k = 0; k < V; ++k) tally_one(tally, bins, value[k], pass, found);
  }
  for (int64_t i = vectors * V + first + threadIdx.x; i < a.numel; i += stride) {
    Raw<1> raw;
    load(raw, a.x, a.dtype, start + i);
    float value[1];
    unpack(value, raw, a.dtype);
    tally_one(tally, bins, value[0], pass, found);
  }
  return tally;
}

// The digit of the element at place state[kRank] among those counted: by all threads of a block.
__device__ __forceinline__ void pick(uint32_t* state, const uint32_t* bins, uint32_t* sums,
                                     int pass) {
  const int per_thread = (1 << digit_bits(pass)) / static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  uint32_t own = 0;
  for (int k = 0; k < per_thread; ++k) own += bins[first + k];
  uint32_t sum = own;  // over the threads up to this one
  for (unsigned distance = 1; distance < blockDim.x; distance *= 2) {
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= distance) sum += sums[threadIdx.x - distance];
    __syncthreads();
  }
  const uint32_t rank = state[kRank];
  __syncthreads();
  if (rank >= sum - own && rank < sum) {
    uint32_t left = rank - (sum - own);
    int bin = first;
    while (left >= bins[bin]) left -= bins[bin++];
    state[kFound] = state[kFound] << digit_bits(pass) | static_cast<uint32_t>(bin);
    state[kRank] = left, state[kCount] = bins[bin];
  }
  __syncthreads();
}

// The result, from the place in the last histogram: by all threads of a block.
__device__ __forceinline__ void finish(const AbsQuantile& a, int64_t sample, uint32_t* state,
                                       const uint32_t* bins) {
  const uint32_t found = state[kFound];
  const bool last_of_its_value = state[kRank] + 1 == state[kCount];
  for (uint32_t k = threadIdx.x; k < 1024; k += blockDim.x) {
    if (k > (found & 1023u) && bins[k] != 0) atomicMax(&state[kAbove], ~((found & ~1023u) | k));
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const float low = __uint_as_float(found);
  const float high = a.weight == 0 || !last_of_its_value ? low : __uint_as_float(~state[kAbove]);
  const float d = __fsub_rn(high, low);
  float q = a.weight < 0.5f ? __fmaf_rn(a.weight, d, low) : __fmaf_rn(a.weight - 1, d, high);
  if (state[kLargest] > kInfinityBits) q = __uint_as_float(0x7fc00000u);
  a.out[sample] = q;
  if (a.rows == nullptr) return;
  float bound = q < 1.0f ? 1.0f : q;  // a NaN stays a NaN
  bound = bound > a.maximum ? a.maximum : bound;
  float* row = a.rows + sample * a.columns + kRowLo;
  row[0] = -bound, row[1] = bound, row[2] = 1.0f / bound;
}

// kAlone: all passes over a sample by one block. Else one pass by `blocks` of them.
template <bool kAlone>
__global__ void __launch_bounds__(kAlone ? 1024 : 256)
    abs_quantile_kernel(const __grid_constant__ QuantileLaunch launch) {
  const AbsQuantile& a = launch.quantile;
  uint32_t* bins = reinterpret_cast<uint32_t*>(shared_memory());
  uint32_t *sums = bins + kBins, *state = sums + blockDim.x;
  const int64_t sample = blockIdx.x / launch.blocks, block = blockIdx.x % launch.blocks;
  uint32_t* histograms = a.workspace + sample * kQuantileWorkspace;
  uint32_t* global = histograms + kQuantileWorkspace - kStateSize;
  const int first = kAlone ? 0 : launch.pass, end = kAlone ? kQuantilePasses : first + 1;
  if (threadIdx.x < kStateSize) {
    const bool known = !kAlone && first > 0 && threadIdx.x < kAbove;
    state[threadIdx.x] = known ? global[threadIdx.x] : threadIdx.x == kRank ? a.rank : 0;
  }
#pragma unroll 1
  for (int pass = first; pass < end; ++pass) {
    const int size = 1 << digit_bits(pass);
    for (int k = threadIdx.x; k < size; k += blockDim.x) bins[k] = 0;
    __syncthreads();
    const Tally tally = count_block(launch, bins, sample, block, pass, state[kFound]);
    if (pass == 0) atomicMax(&state[kLargest], tally.largest);
    if (pass == kQuantilePasses - 1) atomicMax(&state[kAbove], tally.above);
    __syncthreads();
    if constexpr (!kAlone) {
      uint32_t* counts = histograms + bins_before(pass);
      for (int k = threadIdx.x; k < size; k += blockDim.x) {
        if (bins[k] != 0) atomicAdd(&counts[k], bins[k]);
      }
      if (threadIdx.x == 0) {
        atomicMax(&global[kLargest], state[kLargest]);
        atomicMax(&global[kAbove], state[kAbove]);
      }
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        const uint32_t before = atomicAdd(&global[kTickets], 1u);
        state[kTickets] = before + 1 == launch.blocks * static_cast<unsigned>(pass + 1);
      }
      __syncthreads();
      if (state[kTickets] == 0) return;
      // Read where the others' atomic operations took place, not from this multiprocessor's cache.
      for (int k = threadIdx.x; k < size; k += blockDim.x) bins[k] = atomicAdd(&counts[k], 0u);
      if (threadIdx.x == 0) {
        state[kLargest] = atomicAdd(&global[kLargest], 0u);
        state[kAbove] = atomicAdd(&global[kAbove], 0u);
      }
      __syncthreads();
    }
    pick(state, bins, sums, pass);
    if (!kAlone && threadIdx.x < kAbove) global[threadIdx.x] = state[threadIdx.x];
  }
  if (end == kQuantilePasses) finish(a, sample, state, bins);
}

}  // namespace fastdiff::cuda
