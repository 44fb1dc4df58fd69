// CUDA kernel of affine_step (contract: fastdiff/ops/affine_step.py; arguments: cuda.h).
//
//     e = u + g*(c - u);   m = gain * clamp(kx*x + ke*e + kz*z, lo, hi)
//     [x'; r_1 .. r_P] = C . [x, m, e, z, h_1 .. h_R];   model_input = c_in * x'
//
// Memory bound, and for one latent launch bound: so there is one launch, each operand is read once
// in 16-byte loads and each result written once. All numbers of the step are in the row, which is
// picked by a counter in device memory: one captured graph serves every step of every solver with
// the same P and R. P, R and the dtypes are run-time values; what a thread needs of the first
// operands and of four history tensors is asked for before the first of it is used. Products and
// sums are rounded one by one (__fmul_rn, __fadd_rn): the bits are those of the other kernels.
//
// With seeds the noise is not read but drawn, four elements at a time (philox_normal.inl).
//
// A block belongs to one sample. Its threads take the `vectors` of V elements first, then the
// elements that are left over (all of them, if an operand is not 16-byte aligned), one each.
#pragma once

#include "cuda.cuh"
#include "cuda.h"
#include "philox_normal.inl"

namespace fastdiff::cuda {

constexpr int kStepThreads = 64;  // a latent of 16,384 elements still fills 64 multiprocessors
constexpr int kStepBlocks = 8;  // of them on a multiprocessor: 128 registers a thread, none spilled
constexpr int kStepAhead = 4;   // history tensors whose loads are in flight together
constexpr uint32_t kStepStream = 1;

enum StepOperand { kX, kUncond, kCond, kNoise, kNext, kX0, kInput, kHistory };

struct AffineStepLaunch {
  AffineStep step;
  int64_t vectors;  // per sample
  unsigned blocks;  // per sample
};

// The row of this block's sample, in shared memory: 0 * NaN is never formed, for a weight of 0
// leaves its operand out; a step outside the table makes every weight NaN, and so every result.
struct StepRow {
  const float* at;
  const int* used;  // by how many results is a column of C used
  int width;        // columns of C

  __device__ float weight(int j, int column) const { return at[7 + j * width + column]; }
};

__device__ __forceinline__ float times_plus(float weight, float value, float sum) {
  return __fadd_rn(sum, __fmul_rn(weight, value));
}

// sum[j] += weight(j, column) * value, for the results that weigh this column.
template <int V, int kResults>
__device__ __forceinline__ void add_column(float (&sum)[kResults][V], const StepRow& row,
                                           int results, int column, const float (&value)[V]) {
  if (row.used[column] == 0) return;
#pragma unroll
  for (int j = 0; j < kResults; ++j) {
    const float weight = j < results ? row.weight(j, column) : 0.0f;
    if (weight == 0) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) sum[j][i] = times_plus(weight, value[i], sum[j][i]);
  }
}

template <int V>
__device__ __forceinline__ void add_weighted(float (&sum)[V], float weight,
                                             const float (&value)[V]) {
  if (weight == 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = times_plus(weight, value[i], sum[i]);
}

template <int V>
__device__ __forceinline__ void load_operand(Raw<V>& raw, const AffineStep& a, int operand,
                                             int64_t at, bool wanted) {
  raw = {};
  if (wanted) load(raw, a.data[operand], a.dtypes >> 2 * operand & 3, at);
}

template <int V>
__device__ __forceinline__ void load_history(Raw<V> (&raw)[kStepAhead], const AffineStep& a,
                                             const StepRow& row, int first, int64_t at) {
#pragma unroll
  for (int k = 0; k < kStepAhead; ++k) {
    const int r = first + k;
    load_operand(raw[k], a, kHistory + r, at, r < a.depth && row.used[4 + r] != 0);
  }
}

template <int V>
__device__ __forceinline__ void unpack_operand(float (&value)[V], const Raw<V>& raw,
                                               const AffineStep& a, int operand) {
  unpack(value, raw, a.dtypes >> 2 * operand & 3);
}

template <int V>
__device__ __forceinline__ void store_operand(const AffineStep& a, int operand, int64_t at,
                                              const float (&value)[V]) {
  if (a.data[operand] == nullptr) return;
  const int dtype = a.dtypes >> 2 * operand & 3;
  Raw<V> raw;
  pack(raw, value, dtype);
  store(a.data[operand], dtype, at, raw);
}

struct StepNoise {
  uint64_t seed;
  uint32_t number;  // of the step
};

// z of V elements of a sample from element `at` on, a multiple of 4 unless V is 1.
template <int V>
__device__ __forceinline__ void draw_noise(float (&z)[V], const StepNoise& noise, int64_t at) {
#pragma unroll
  for (int k = 0; k < V; k += 4) {
    float four[4];
    philox::four_normals(noise.seed, static_cast<uint32_t>(at / 4 + k / 4), noise.number,
                         kStepStream, four);
    if constexpr (V == 1) {
      const int lane = static_cast<int>(at % 4);
      z[0] = lane < 2 ? (lane == 0 ? four[0] : four[1]) : (lane == 2 ? four[2] : four[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) z[k + i] = four[i];
    }
  }
}

// The elements [at, at + V) of the batch. All of them are read before any of them is written, so
// that a result may lie in place of an operand.
template <int V, int kResults, bool kSeeded>
__device__ __forceinline__ void step_elements(const AffineStep& a, const StepRow& row,
                                              const StepNoise& drawn, int64_t start, int64_t in) {
  const int64_t at = start + in;  // the sample begins at start
  const int results = 1 + a.keeps;
  const float kx = row.at[1], ke = row.at[2], kz = row.at[3];
  const bool by_m = row.used[1] != 0 || a.data[kX0] != nullptr;
  const bool noisy = kSeeded || a.data[kNoise] != nullptr, guided = a.data[kUncond] != nullptr;
  const bool by_z = noisy && (row.used[3] != 0 || (by_m && kz != 0));
  const bool by_e = row.used[2] != 0 || (by_m && ke != 0);
  Raw<V> raw_x, raw_u, raw_c, raw_z, ahead[kStepAhead];
  load_operand(raw_x, a, kX, at, row.used[0] != 0 || (by_m && kx != 0));
  load_operand(raw_c, a, kCond, at, by_e);
  load_operand(raw_u, a, kUncond, at, by_e && guided);
  load_operand(raw_z, a, kNoise, at, by_z && !kSeeded);
  load_history(ahead, a, row, 0, at);

  float x[V], e[V], z[V] = {}, m[V] = {}, sum[kResults][V] = {};
  unpack_operand(x, raw_x, a, kX);
  unpack_operand(e, raw_c, a, kCond);
  if constexpr (kSeeded) {
    if (by_z) draw_noise(z, drawn, in);
  } else {
    unpack_operand(z, raw_z, a, kNoise);
  }
  if (guided && by_e) {
    float u[V];
    unpack_operand(u, raw_u, a, kUncond);
#pragma unroll
    for (int i = 0; i < V; ++i) e[i] = times_plus(row.at[0], __fsub_rn(e[i], u[i]), u[i]);
  }
  if (by_m) {
    add_weighted(m, kx, x);
    add_weighted(m, ke, e);
    if (noisy) add_weighted(m, kz, z);
    const float lo = row.at[4], hi = row.at[5], gain = row.at[6];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      m[i] = m[i] < lo ? lo : m[i];  // a NaN stays a NaN
      m[i] = __fmul_rn(gain, m[i] > hi ? hi : m[i]);
    }
  }
  add_column(sum, row, results, 0, x);
  add_column(sum, row, results, 1, m);
  add_column(sum, row, results, 2, e);
  if (noisy) add_column(sum, row, results, 3, z);
  for (int first = 0; first < a.depth; first += kStepAhead) {
    if (first > 0) load_history(ahead, a, row, first, at);
#pragma unroll
    for (int k = 0; k < kStepAhead; ++k) {
      if (first + k >= a.depth) continue;
      float h[V];
      unpack_operand(h, ahead[k], a, kHistory + first + k);
      add_column(sum, row, results, 4 + first + k, h);
    }
  }

  const float* tail = row.at + 7 + results * row.width;  // c_in, slot_1 .. slot_P
  store_operand(a, kNext, at, sum[0]);
  store_operand(a, kX0, at, m);
  if (a.data[kInput] != nullptr) {
    float input[V];
#pragma unroll
    for (int i = 0; i < V; ++i) input[i] = __fmul_rn(tail[0], sum[0][i]);
    store_operand(a, kInput, at, input);
  }
#pragma unroll
  for (int p = 0; p < kResults - 1; ++p) {
    if (p >= a.keeps) continue;
    const float slot = a.ring ? tail[1 + p] : -1.0f;
    const bool kept = slot >= 0 && slot < static_cast<float>(a.depth);
#pragma unroll 1
    for (int place = 0; place <= kept; ++place) {  // kept[p], then history[slot]
      const int operand = place == 0 ? a.depth + p : static_cast<int>(slot);
      store_operand(a, kHistory + operand, at, sum[1 + p]);
    }
  }
}

template <int V, int kResults, bool kSeeded>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks)
    affine_step_kernel(const __grid_constant__ AffineStepLaunch launch) {
  const AffineStep& a = launch.step;
  const int results = 1 + a.keeps, width = 4 + a.depth, columns = 7 + results * (width + 1);
  float* row = reinterpret_cast<float*>(shared_memory());
  int* used = reinterpret_cast<int*>(row + columns);
  const int64_t sample = blockIdx.x / launch.blocks, block = blockIdx.x % launch.blocks;

  const int64_t index = a.step == nullptr ? 0 : *a.step;
  const bool inside = index >= 0 && index < a.row_count;
  const float* source =
      a.rows + (inside ? a.shared_row ? index : index * a.samples + sample : 0) * columns;
  for (int k = threadIdx.x; k < columns; k += kStepThreads) {
    row[k] = inside ? source[k] : __uint_as_float(0x7fc00000u);
  }
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += kStepThreads) {
    int count = 0;
    for (int j = 0; j < results; ++j) count += row[7 + j * width + column] != 0;
    used[column] = count;
  }
  __syncthreads();

  const StepRow shared = {row, used, width};
  StepNoise drawn = {};
  if constexpr (kSeeded) {
    drawn = {static_cast<uint64_t>(a.seeds[sample]), static_cast<uint32_t>(index) + a.noise_step};
  }
  const int64_t item = block * kStepThreads + threadIdx.x, start = sample * a.numel;
  if (item < launch.vectors) {
    step_elements<V, kResults, kSeeded>(a, shared, drawn, start, item * V);
  } else if (item - launch.vectors < a.numel - launch.vectors * V) {
    const int64_t in = launch.vectors * V + (item - launch.vectors);
    step_elements<1, kResults, kSeeded>(a, shared, drawn, start, in);
  }
}

}  // namespace fastdiff::cuda
