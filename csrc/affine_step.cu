// Launcher of the CUDA kernel of affine_step.
#include "affine_step.cuh"

namespace fastdiff::cuda {

void affine_step(const AffineStep& step, void* stream) {
  if (step.samples * step.numel == 0) return;  // CUDA refuses an empty grid
  const int operands = kHistory + step.depth + step.keeps;
  bool aligned = true, wide = false;
  for (int i = 0; i < operands; ++i) {
    if (step.data[i] == nullptr) continue;
    aligned = aligned && is_aligned(step.data[i]);
    wide = wide || (step.dtypes >> 2 * i & 3) != kFloat32;
  }
  // A vector is 16 bytes of the smallest dtype; with more results than any solver has, 4 elements.
  const int per_vector = wide && step.keeps < 4 ? 8 : 4;
  aligned = aligned && (step.samples == 1 || step.numel % per_vector == 0);

  AffineStepLaunch arguments{step, aligned ? step.numel / per_vector : 0, 0};
  const int64_t left_over = step.numel - arguments.vectors * per_vector;
  const int64_t blocks = ceil_div(arguments.vectors + left_over, kStepThreads);
  arguments.blocks = static_cast<unsigned>(blocks);
  const int columns = 7 + (1 + step.keeps) * (5 + step.depth), width = 4 + step.depth;
  const int64_t shared_bytes = 4 * (columns + width);

  auto kernel = wide ? affine_step_kernel<8, 4, false> : affine_step_kernel<4, 4, false>;
  if (step.keeps > 3) kernel = affine_step_kernel<4, 11, false>;
  if (step.seeds != nullptr) {
    kernel = wide ? affine_step_kernel<8, 4, true> : affine_step_kernel<4, 4, true>;
    if (step.keeps > 3) kernel = affine_step_kernel<4, 11, true>;
  }
  launch(kernel, step.samples * blocks, kStepThreads, shared_bytes, stream, arguments);
}

}  // namespace fastdiff::cuda
