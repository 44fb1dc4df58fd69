// The CUDA launchers as plain C++: raw addresses, sizes and a stream; no CUDA and no torch header.
//
// Both launch on the current device, which must be the one that `stream` (a cudaStream_t) belongs
// to, and return without waiting; both may be captured in a graph. They throw std::runtime_error
// with CUDA's words if a launch is refused. Dtypes are codes: 0 float32, 1 float16, 2 bfloat16.
#pragma once

#include <cstdint>

namespace fastdiff::cuda {

constexpr int kMaxOperands = 32;  // 64 columns of a row leave room for 7 + 25

// Contract: fastdiff/ops/affine_step.py. All tensors lie in one dense layout.
struct AffineStep {
  const float* rows;         // (row_count, samples, K) on the device
  const int32_t* step;       // on the device; null: row 0. Outside the table: all results are NaN
  int64_t row_count;         // N, the rows of the table
  int64_t samples;           // 1: all samples share a row, or see shared_row
  int64_t numel;             // elements per sample
  int keeps, depth;          // P, R
  int ring;                  // 1: r_p also replaces history[slot_p]; 0: slots are ignored
  uint64_t dtypes;           // bits 2i, 2i+1 hold the code of data[i]
  void* data[kMaxOperands];  // x, uncond, cond, noise, x_next, x0, model_input, h_1 .. h_R,
                             // kept_1 .. kept_P; null: absent
  const int64_t* seeds;      // (samples,) on the device: the noise is drawn; null: it is data[3]
  uint32_t noise_step;       // is added to the step, for the noise that is drawn
  bool shared_row;           // with seeds: rows are (row_count, 1, K), whatever samples is
};

void affine_step(const AffineStep& step, void* stream);

// Contract: fastdiff/ops/philox_normal.py.
struct PhiloxNormal {
  const int64_t* seeds;  // (samples,) on the device
  const int32_t* step;   // on the device; null: 0
  void* out;             // (samples, numel)
  int64_t samples, numel;
  uint32_t noise_step, stream;
  int dtype;  // of out
};

void philox_normal(const PhiloxNormal& noise, void* stream);

// Contract: fastdiff/ops/abs_quantile.py.
struct AbsQuantile {
  const void* x;        // (samples, numel)
  float* out;           // (samples,)
  float* rows;          // (samples, columns), whose lo, hi, gain are written; null: none
  uint32_t* workspace;  // (samples, kQuantileWorkspace), zeros
  uint32_t* copies;     // (samples, numel), need not be cleared; null: x is not float32
  int64_t samples, numel, columns;
  uint32_t rank;          // of the lower neighbour among the numel
  float weight, maximum;  // of the upper neighbour; of the bound
  int dtype;              // of x
};

constexpr int kQuantileWorkspace = 2048 + 2 * 1024 + 8;

void abs_quantile(const AbsQuantile& quantile, void* stream);

// Contract: fastdiff/ops/group_norm.py. C = channels + channels2; x, x2, residual and total share
// one layout, channels last (samples, length, C) or contiguous (samples, C, length).
struct GroupNorm {
  const void* x;         // (samples, channels, length)
  const void* x2;        // (samples, channels2, length); null: channels2 is 0
  const void* residual;  // (samples, C, length); null: none
  const float* addend;   // (samples, C), float32; null: none
  const void* weight;    // (C,); null: 1
  const void* bias;      // (C,); null: 0
  void* out;             // (samples, C, length) in x's layout, or (samples, length, C) if tokens
  void* total;           // (samples, C, length), written if there is a residual, else null
  void* workspace;       // group_norm_workspace(..) bytes, 16-byte aligned; need not be cleared
  int64_t samples, channels, channels2, length;
  int groups;
  float eps;
  int dtype;                     // of x, x2, residual, out and total
  int weight_dtype, bias_dtype;  // each that of x, or 0
  bool channels_last, silu, tokens;
};

// Bytes of the workspace; depends on sizes and layout only.
int64_t group_norm_workspace(int64_t samples, int64_t channels, int64_t length, int groups,
                             int dtype, bool channels_last);

void group_norm(const GroupNorm& norm, void* stream);

}  // namespace fastdiff::cuda
