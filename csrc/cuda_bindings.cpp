// The Python face of the CUDA launchers (cuda.h). Tensors arrive as addresses, the stream as an
// integer; who may call: launch_cuda in fastdiff/ops/affine_step.py and fastdiff/ops/group_norm.py.
#include "cuda_bindings.h"

#ifdef FASTDIFF_WITH_CUDA
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cuda.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void affine_step(uintptr_t rows, int64_t row_count, uintptr_t step, int64_t samples, int64_t numel,
                 int keeps, int ring, uintptr_t stream, uint64_t dtypes,
                 const std::vector<uintptr_t>& addresses, uintptr_t seeds, int64_t batch,
                 uint32_t noise_step) {
  constexpr int kFixed = 7;  // addresses before those of history and kept
  cuda::AffineStep a = {};
  a.depth = static_cast<int>(addresses.size()) - kFixed - keeps;
  const int columns = 7 + (1 + keeps) * (5 + a.depth);
  if (keeps < 0 || a.depth < 0 || addresses.size() > cuda::kMaxOperands || columns > 64) {
    throw py::value_error("a row has at most 64 columns; got " + std::to_string(keeps) +
                          " kept vectors and " + std::to_string(a.depth) + " history tensors");
  }
  a.rows = at<const float>(rows);
  a.step = at<const int32_t>(step);
  a.row_count = row_count;
  a.seeds = at<const int64_t>(seeds);
  a.noise_step = noise_step;
  a.shared_row = samples == 1;
  a.samples = seeds == 0 ? samples : batch;
  if (a.samples < 1) throw py::value_error("there must be at least one sample");
  a.numel = numel / a.samples;
  a.keeps = keeps;
  a.ring = ring;
  a.dtypes = dtypes;
  for (size_t i = 0; i < addresses.size(); ++i) a.data[i] = at<void>(addresses[i]);
  cuda::affine_step(a, at<void>(stream));
}

void philox_normal(uintptr_t seeds, uintptr_t step, uint32_t noise_step, uint32_t stream_of_noise,
                   uintptr_t out, int dtype, int64_t samples, int64_t numel, uintptr_t stream) {
  cuda::PhiloxNormal a = {};
  a.seeds = at<const int64_t>(seeds), a.step = at<const int32_t>(step), a.out = at<void>(out);
  a.samples = samples, a.numel = samples == 0 ? 0 : numel / samples;
  a.noise_step = noise_step, a.stream = stream_of_noise, a.dtype = dtype;
  cuda::philox_normal(a, at<void>(stream));
}

void abs_quantile(uintptr_t x, int dtype, int64_t samples, int64_t numel, int64_t rank,
                  float weight, float maximum, uintptr_t out, uintptr_t rows, int64_t columns,
                  uintptr_t workspace, uintptr_t copies, uintptr_t stream) {
  cuda::AbsQuantile a = {};
  a.x = at<const void>(x), a.out = at<float>(out), a.rows = at<float>(rows);
  a.workspace = at<uint32_t>(workspace), a.copies = at<uint32_t>(copies);
  a.samples = samples, a.numel = samples == 0 ? 0 : numel / samples, a.columns = columns;
  a.rank = static_cast<uint32_t>(rank), a.weight = weight, a.maximum = maximum, a.dtype = dtype;
  cuda::abs_quantile(a, at<void>(stream));
}

// (x, x2, residual, addend, weight, bias, out, total); (x, weight, bias); (N, L, C1, C2): what
// `_native` in fastdiff/ops/group_norm.py makes.
void group_norm(std::array<uintptr_t, 8> addresses, std::array<int, 3> dtypes,
                std::array<int64_t, 4> sizes, int groups, float eps, bool silu, bool tokens,
                bool last, uintptr_t workspace, uintptr_t stream) {
  cuda::GroupNorm a = {};
  a.x = at<const void>(addresses[0]);
  a.x2 = at<const void>(addresses[1]);
  a.residual = at<const void>(addresses[2]);
  a.addend = at<const float>(addresses[3]);
  a.weight = at<const void>(addresses[4]);
  a.bias = at<const void>(addresses[5]);
  a.out = at<void>(addresses[6]);
  a.total = at<void>(addresses[7]);
  a.workspace = at<void>(workspace);
  a.samples = sizes[0], a.length = sizes[1], a.channels = sizes[2], a.channels2 = sizes[3];
  a.groups = groups;
  a.eps = eps;
  a.dtype = dtypes[0], a.weight_dtype = dtypes[1], a.bias_dtype = dtypes[2];
  a.channels_last = last, a.silu = silu, a.tokens = tokens;
  cuda::group_norm(a, at<void>(stream));
}

int64_t group_norm_workspace(std::array<int64_t, 4> sizes, int groups, int dtype, bool last) {
  return cuda::group_norm_workspace(sizes[0], sizes[2] + sizes[3], sizes[1], groups, dtype, last);
}

}  // namespace

void bind_cuda(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.def("affine_step_cuda", &affine_step, unlocked,
        "(rows, row_count, step, samples, numel, keeps, ring, stream, dtypes, addresses, seeds, "
        "batch, noise_step): as affine_step, with a stream in place of the number of threads.");
  m.def("abs_quantile_cuda", &abs_quantile, unlocked,
        "(x, dtype, samples, numel, rank, weight, maximum, out, rows, columns, workspace, "
        "copies, stream)");
  m.def("philox_normal_cuda", &philox_normal, unlocked,
        "(seeds, step, noise_step, stream of the noise, out, dtype, samples, numel, stream)");
  m.def("group_norm_cuda", &group_norm, unlocked,
        "(addresses, dtypes, sizes, groups, eps, silu, tokens, last, workspace, stream)");
  m.def("group_norm_cuda_workspace", &group_norm_workspace,
        "(sizes, groups, dtype, last): the bytes of the workspace, which need not be cleared.");
}

}  // namespace fastdiff
#endif
