// The Python face of the CPU kernel of geglu. Tensors arrive as addresses; who may call: launch_cpu
// in fastdiff/ops/geglu.py.
#include "pointwise_bindings.h"

#include "geglu.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

#define FASTDIFF_ADDRESS(isa) &isa::geglu,
constexpr decltype(&baseline::geglu) kGeglu[] = {FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};
#undef FASTDIFF_ADDRESS

const int* current_isa;

void geglu(uintptr_t x, uintptr_t out, int dtype, int64_t rows, int64_t width, int threads) {
  if (x == 0 || out == 0 || rows < 1 || width < 1) {
    throw py::value_error("x and out must be there and not empty");
  }
  if (dtype < kFloat32 || dtype > kBFloat16) throw py::value_error("a dtype is 0, 1 or 2");
  const Geglu a = {reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out),
                   static_cast<Dtype>(dtype), rows, width};
  py::gil_scoped_release released;
  kGeglu[*current_isa](a, threads);
}

}  // namespace

void bind_pointwise(py::module_& m, const int* isa) {
  current_isa = isa;
  m.def("geglu", &geglu, "(x, out, dtype, rows, width, threads)");
}

}  // namespace fastdiff
