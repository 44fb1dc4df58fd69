// Launcher of the CUDA kernel of abs_quantile.
#include "abs_quantile.cuh"

namespace fastdiff::cuda {

constexpr int64_t kAloneUpTo = 65536;  // elements; beyond, launches cost less than they bring
constexpr int64_t kElementsOfBlock = 256 * 32;  // four vectors a thread
constexpr int64_t kQuantileBlocks = 1056;       // 8 for each of 132 multiprocessors

void abs_quantile(const AbsQuantile& quantile, void* stream) {
  if (quantile.samples * quantile.numel == 0) return;  // CUDA refuses an empty grid
  QuantileLaunch arguments{quantile, 1, 0, false};
  arguments.vectors = is_aligned(quantile.x) && quantile.numel % 8 == 0;
  if (quantile.numel <= kAloneUpTo) {
    const int64_t shared_bytes = 4 * (kBins + 1024 + kStateSize);
    launch(abs_quantile_kernel<true>, quantile.samples, 1024, shared_bytes, stream, arguments);
    return;
  }
  const int64_t wanted = ceil_div(quantile.numel, kElementsOfBlock);
  const int64_t fair = ceil_div(kQuantileBlocks, quantile.samples);
  arguments.blocks = static_cast<unsigned>(lesser(wanted, fair));
  const int64_t shared_bytes = 4 * (kBins + 256 + kStateSize);
  for (int pass = 0; pass < kQuantilePasses; ++pass) {
    arguments.pass = pass;
    launch(abs_quantile_kernel<false>, quantile.samples * arguments.blocks, 256, shared_bytes,
           stream, arguments);
  }
}

}  // namespace fastdiff::cuda
