// CUDA kernel of abs_quantile (contract: fastdiff/ops/abs_quantile.py; arguments: cuda.h).
//
// Radix select on the bits of |x|, digits of 11, 10 and 10 bits from the top. The first pass over x
// counts how often each value of the top digit occurs; the second one counts the next digit of the
// elements that share the one found, and takes the least element above those. In 16 bits that is
// all: the last 13 bits are zero. In float32 the second pass also copies these elements, and the
// last digit is looked for in the copy. So x is read twice, the second time out of the second-level
// cache if it fits, and beside the counts only the copy is written: 1 element in 300 of normal
// numbers at the quantile of 0.995, all of a sample whose elements are all alike. Counts are
// integers, and the order of the copy does not count: that of atomic operations does not show.
//
// A sample of a latent is one block's work, in one launch, with all counts in shared memory. A
// larger one is spread over blocks, with a launch for each digit; the last block of a sample to
// finish adds up what the others have left in the workspace and finds the digit. There a block
// collects what it copies in shared memory, so that it asks seldom for a place in the copy.
#pragma once

#include "cuda.cuh"
#include "cuda.h"

namespace fastdiff::cuda {

constexpr int kBins = 2048;
constexpr int kVector = 8;  // elements of a thread at a time
constexpr unsigned kAloneThreads = 1024, kSpreadThreads = 256;
// Of what a block of many collects before it copies a round of elements always fits.
constexpr unsigned kRound = kSpreadThreads * kVector, kCollected = kRound + 1024;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kOutside = 0xffffffffu;  // in place of an element past the end
constexpr int kRowLo = 4;                   // column lo of a row; hi and gain follow

// What is known of a sample, in shared memory or in the workspace, there behind the histograms.
// Of `above` the complement is kept, so that zeros are the beginning. kCopied: elements in the copy
// or, in a block of many, collected for it; kPlace is where those go.
enum QuantileState { kFound, kRank, kAbove, kLargest, kTickets, kCopied, kPlace, kCount };
constexpr int kStateSize = 8;

struct QuantileLaunch {
  AbsQuantile quantile;
  unsigned blocks;  // per sample
  int pass;
  bool vectors;  // whether all of a sample are whole, aligned vectors
  bool copy_vectors;
};

__host__ __device__ inline int digit_shift(int pass) { return 20 - 10 * pass; }
__host__ __device__ inline int digit_bits(int pass) { return pass == 0 ? 11 : 10; }
__host__ __device__ inline int bins_before(int pass) { return pass == 0 ? 0 : 1024 + 1024 * pass; }
__host__ __device__ inline int passes_of(int dtype) { return dtype == kFloat32 ? 3 : 2; }

// What a pass looks at: elements [start, start + numel) of data.
struct QuantileSource {
  const void* data;
  int64_t start, numel;
  int dtype;
  bool vectors;
};

struct Tally {
  uint32_t above, largest;
};

// |x| of this thread in round `round` of the source.
__device__ __forceinline__ void read_round(uint32_t (&bits)[kVector], const QuantileSource& source,
                                           int64_t round) {
  const int64_t first = round * blockDim.x * kVector;
#pragma unroll
  for (int k = 0; k < kVector; ++k) bits[k] = kOutside;
  if (source.vectors) {
    const int64_t at = first + static_cast<int64_t>(threadIdx.x) * kVector;
    if (at >= source.numel) return;
    const int left = static_cast<int>(lesser(source.numel - at, int64_t{kVector}));
    Raw<kVector> raw;
    load(raw, source.data, source.dtype, source.start + at);
    float value[kVector];
    unpack(value, raw, source.dtype);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < left) bits[k] = __float_as_uint(value[k]) & 0x7fffffffu;
    }
  } else {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const int64_t at = first + k * static_cast<int64_t>(blockDim.x) + threadIdx.x;
      if (at >= source.numel) continue;
      Raw<1> raw;
      load(raw, source.data, source.dtype, source.start + at);
      float value[1];
      unpack(value, raw, source.dtype);
      bits[k] = __float_as_uint(value[0]) & 0x7fffffffu;
    }
  }
}

// By all threads of a block of many: puts what was collected at its place in the copy.
__device__ __forceinline__ void copy_collected(uint32_t* copy, const uint32_t* collected,
                                               uint32_t* state, uint32_t* copied) {
  const uint32_t count = state[kCopied];
  if (threadIdx.x == 0) state[kPlace] = atomicAdd(copied, count);
  __syncthreads();
  const uint32_t place = state[kPlace];
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) copy[place + k] = collected[k];
  if (threadIdx.x == 0) state[kCopied] = 0;
  __syncthreads();
}

// Counts this block's part of the source. `copy`: null, or where the elements with the digits found
// go, by way of `collected` in a block of many, which adds to *copied how many there are.
template <bool kAlone>
__device__ __forceinline__ Tally count_block(const QuantileSource& source, unsigned blocks,
                                             int64_t block, int pass, uint32_t* bins,
                                             uint32_t* state, uint32_t* copy, uint32_t* collected,
                                             uint32_t* copied) {
  const uint32_t found = state[kFound];
  const int64_t rounds = ceil_div(source.numel, int64_t{blockDim.x} * kVector);
  uint32_t* to = kAlone ? copy : collected;
  Tally tally = {0, 0};
  for (int64_t round = block; round < rounds; round += blocks) {
    uint32_t bits[kVector];
    read_round(bits, source, round);
    uint32_t inside = 0;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (bits[k] == kOutside) continue;
      const uint32_t higher = bits[k] >> digit_shift(pass) >> digit_bits(pass);
      const uint32_t digit = bits[k] >> digit_shift(pass) & ((1u << digit_bits(pass)) - 1);
      if (bits[k] > tally.largest) tally.largest = bits[k];
      if (higher == found) atomicAdd(&bins[digit], 1u), ++inside;
      if (higher > found && ~bits[k] > tally.above) tally.above = ~bits[k];
    }
    if (copy == nullptr) continue;
    if (inside != 0) {
      uint32_t place = atomicAdd(&state[kCopied], inside);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (bits[k] >> 20 == found) to[place++] = bits[k];
      }
    }
    if constexpr (!kAlone) {
      __syncthreads();
      const bool full = state[kCopied] > kCollected - kRound;
      __syncthreads();
      if (full) copy_collected(copy, collected, state, copied);
    }
  }
  if constexpr (!kAlone) {
    __syncthreads();
    if (copy != nullptr) copy_collected(copy, collected, state, copied);
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
                                       const uint32_t* bins, int pass) {
  const uint32_t found = state[kFound];
  const int shift = digit_shift(pass);
  const bool last_of_its_value = state[kRank] + 1 == state[kCount];
  for (uint32_t k = threadIdx.x; k < 1024; k += blockDim.x) {
    const uint32_t value = ((found & ~1023u) | k) << shift;
    if (k > (found & 1023u) && bins[k] != 0) atomicMax(&state[kAbove], ~value);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const float low = __uint_as_float(found << shift);
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
__global__ void __launch_bounds__(kAlone ? kAloneThreads : kSpreadThreads)
    abs_quantile_kernel(const __grid_constant__ QuantileLaunch launch) {
  const AbsQuantile& a = launch.quantile;
  uint32_t* bins = reinterpret_cast<uint32_t*>(shared_memory());
  uint32_t *sums = bins + kBins, *state = sums + blockDim.x;
  uint32_t* collected = state + kStateSize;
  const int64_t sample = blockIdx.x / launch.blocks, block = blockIdx.x % launch.blocks;
  uint32_t* histograms = a.workspace + sample * kQuantileWorkspace;
  uint32_t* global = histograms + kQuantileWorkspace - kStateSize;
  const int passes = passes_of(a.dtype);
  const int first = kAlone ? 0 : launch.pass, end = kAlone ? passes : first + 1;
  if (threadIdx.x < kStateSize) {
    const bool known = !kAlone && first > 0 && threadIdx.x < kAbove;
    state[threadIdx.x] = known ? global[threadIdx.x] : threadIdx.x == kRank ? a.rank : 0;
  }
#pragma unroll 1
  for (int pass = first; pass < end; ++pass) {
    const int size = 1 << digit_bits(pass);
    for (int k = threadIdx.x; k < size; k += blockDim.x) bins[k] = 0;
    __syncthreads();
    uint32_t* copy = passes == 3 ? a.copies + sample * a.numel : nullptr;
    QuantileSource source = {a.x, sample * a.numel, a.numel, a.dtype, launch.vectors};
    unsigned blocks = launch.blocks;
    if (pass == 2) {
      const int64_t copied = (kAlone ? state : global)[kCopied];
      source = {copy, 0, copied, kFloat32, launch.copy_vectors};
      // As many as the copy is worth; the others are not waited for.
      const int64_t wanted = ceil_div(copied, int64_t{blockDim.x} * kVector);
      blocks = static_cast<unsigned>(lesser(int64_t{blocks}, wanted));
      if (block >= blocks) return;
    }
    const Tally tally =
        count_block<kAlone>(source, blocks, block, pass, bins, state, pass == 1 ? copy : nullptr,
                            collected, &global[kCopied]);
    if (pass == 0) atomicMax(&state[kLargest], tally.largest);
    if (pass > 0) atomicMax(&state[kAbove], tally.above);
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
        state[kTickets] = before + 1 == launch.blocks * static_cast<unsigned>(pass) + blocks;
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
  if (end == passes) finish(a, sample, state, bins, end - 1);
}

}  // namespace fastdiff::cuda
