// The Python face of the CPU kernels of geglu, add_layer_norm and bias_residual. Tensors arrive as
// addresses, 0 = None; who may call: launch_cpu in fastdiff/ops/<op>.py.
#include "pointwise_bindings.h"

#include <pybind11/stl.h>

#include <array>

#include "add_layer_norm.h"
#include "bias_residual.h"
#include "geglu.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

#define FASTDIFF_ADDRESS(isa) &isa::geglu,
constexpr decltype(&baseline::geglu) kGeglu[] = {FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};
#undef FASTDIFF_ADDRESS
#define FASTDIFF_ADDRESS(isa) &isa::add_layer_norm,
constexpr decltype(&baseline::add_layer_norm) kAddLayerNorm[] = {
    FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};
#undef FASTDIFF_ADDRESS
#define FASTDIFF_ADDRESS(isa) &isa::bias_residual,
constexpr decltype(&baseline::bias_residual) kBiasResidual[] = {
    FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};
#undef FASTDIFF_ADDRESS

const int* current_isa;

Dtype dtype_of(int code) {
  if (code < kFloat32 || code > kBFloat16) throw py::value_error("a dtype is 0, 1 or 2");
  return static_cast<Dtype>(code);
}

const void* from(uintptr_t address) { return reinterpret_cast<const void*>(address); }

void geglu(uintptr_t x, uintptr_t out, int dtype, int64_t rows, int64_t width, int threads) {
  if (x == 0 || out == 0 || rows < 1 || width < 1) {
    throw py::value_error("x and out must be there and not empty");
  }
  const Geglu a = {from(x), reinterpret_cast<void*>(out), dtype_of(dtype), rows, width};
  py::gil_scoped_release released;
  kGeglu[*current_isa](a, threads);
}

// addresses: (x, residual, weight, bias, out, total); dtypes: those of (x, weight, bias).
void add_layer_norm(std::array<uintptr_t, 6> addresses, std::array<int, 3> dtypes, int64_t rows,
                    int64_t width, double eps, int threads) {
  AddLayerNorm a;
  a.x = from(addresses[0]), a.residual = from(addresses[1]);
  a.weight = from(addresses[2]), a.bias = from(addresses[3]);
  a.out = reinterpret_cast<void*>(addresses[4]), a.total = reinterpret_cast<void*>(addresses[5]);
  a.dtype = dtype_of(dtypes[0]);
  a.weight_dtype = dtype_of(dtypes[1]), a.bias_dtype = dtype_of(dtypes[2]);
  a.rows = rows, a.width = width, a.eps = eps;
  if (a.x == nullptr || a.out == nullptr || rows < 1 || width < 1) {
    throw py::value_error("x and out must be there and not empty");
  }
  if (width > kMaxNormWidth) {
    throw py::value_error("a row has at most " + std::to_string(kMaxNormWidth) + " elements, got " +
                          std::to_string(width));
  }
  if ((a.residual == nullptr) != (a.total == nullptr)) {
    throw py::value_error("total must be there with residual, and only then");
  }
  for (Dtype dtype : {a.weight_dtype, a.bias_dtype}) {
    if (dtype == kFloat32 || dtype == a.dtype) continue;
    throw py::value_error("weight and bias are float32 or of the dtype of x");
  }
  py::gil_scoped_release released;
  kAddLayerNorm[*current_isa](a, threads);
}

// addresses: (x, bias, residual, out), bias float32; sizes: (N, C, L).
void bias_residual(std::array<uintptr_t, 4> addresses, int dtype, std::array<int64_t, 3> sizes,
                   bool each_sample, bool last, double scale, int threads) {
  BiasResidual a;
  a.x = from(addresses[0]), a.residual = from(addresses[2]);
  a.bias = static_cast<const float*>(from(addresses[1]));
  a.out = reinterpret_cast<void*>(addresses[3]);
  a.dtype = dtype_of(dtype);
  a.samples = sizes[0], a.channels = sizes[1], a.length = sizes[2];
  a.each_sample = each_sample, a.last = last, a.scale = static_cast<float>(scale);
  if (a.x == nullptr || a.out == nullptr || a.samples < 1 || a.channels < 1 || a.length < 1) {
    throw py::value_error("x and out must be there and not empty");
  }
  py::gil_scoped_release released;
  kBiasResidual[*current_isa](a, threads);
}

}  // namespace

void bind_pointwise(py::module_& m, const int* isa) {
  current_isa = isa;
  m.def("geglu", &geglu, "(x, out, dtype, rows, width, threads)");
  m.def("add_layer_norm", &add_layer_norm,
        "((x, residual, weight, bias, out, total), dtypes of (x, weight, bias), rows, width, eps, "
        "threads)");
  m.def("bias_residual", &bias_residual,
        "((x, bias, residual, out), dtype, (N, C, L), each_sample, last, scale, threads)");
}

}  // namespace fastdiff
