// Launcher of the CUDA kernel of abs_quantile.
#include "abs_quantile.cuh"

namespace fastdiff::cuda {

constexpr int64_t kAloneUpTo = 65536;  // elements; beyond, launches cost less than they bring
constexpr int64_t kElementsOfBlock = 4 * kRound;  // four vectors a thread
constexpr int64_t kQuantileBlocks = 1056;         // 8 for each of 132 multiprocessors

void abs_quantile(const AbsQuantile& quantile, void* stream) {
  if (quantile.samples * quantile.numel == 0) return;  // CUDA refuses an empty grid
  QuantileLaunch arguments{quantile, 1, 0, false, false};
  const bool whole = quantile.numel % kVector == 0;
  arguments.vectors = is_aligned(quantile.x) && whole;
  arguments.copy_vectors = is_aligned(quantile.copies) && whole;
  if (quantile.numel <= kAloneUpTo) {
    const int64_t shared_bytes = 4 * (kBins + kAloneThreads + kStateSize);
    launch(abs_quantile_kernel<true>, quantile.samples, kAloneThreads, shared_bytes, stream,
           arguments);
    return;
  }
  const int64_t wanted = ceil_div(quantile.numel, kElementsOfBlock);
  const int64_t fair = ceil_div(kQuantileBlocks, quantile.samples);
  arguments.blocks = static_cast<unsigned>(lesser(wanted, fair));
  const int passes = passes_of(quantile.dtype);
  for (int pass = 0; pass < passes; ++pass) {
    arguments.pass = pass;
    const int64_t collected = pass == 1 && passes == 3 ? kCollected : 0;
    const int64_t shared_bytes = 4 * (kBins + kSpreadThreads + kStateSize + collected);
    launch(abs_quantile_kernel<false>, quantile.samples * arguments.blocks, kSpreadThreads,
           shared_bytes, stream, arguments);
  }
}

}  // namespace fastdiff::cuda
