// The Python face of the CPU kernels. Tensors arrive as addresses: no torch header, one binary for
// every torch. What the arguments mean, and who may call: fastdiff/ops/affine_step.py,
// group_norm.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <new>
#include <string>
#include <vector>

#include "abs_quantile.h"
#include "affine_step.h"
#include "cuda_bindings.h"
#include "group_norm.h"
#include "isa.h"
#include "philox_normal.h"
#include "pointwise_bindings.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

#define FASTDIFF_NAME(isa) #isa,
constexpr const char* kIsas[] = {FASTDIFF_FOR_EACH_ISA(FASTDIFF_NAME)};
#define FASTDIFF_ADDRESS(isa) &isa::affine_step,
constexpr decltype(&baseline::affine_step) kAffineStep[] = {
    FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};
#undef FASTDIFF_ADDRESS
#define FASTDIFF_ADDRESS(isa) &isa::group_norm,
constexpr decltype(&baseline::group_norm) kGroupNorm[] = {FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};

#undef FASTDIFF_ADDRESS
#define FASTDIFF_ADDRESS(isa) &isa::philox_normal,
constexpr decltype(&baseline::philox_normal) kPhiloxNormal[] = {
    FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};

#undef FASTDIFF_ADDRESS
#define FASTDIFF_ADDRESS(isa) &isa::abs_quantile,
constexpr decltype(&baseline::abs_quantile) kAbsQuantile[] = {
    FASTDIFF_FOR_EACH_ISA(FASTDIFF_ADDRESS)};

int current_isa = 0;  // index into kIsas

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* isa : kIsas) {
    if (cpu_has(isa)) names.emplace_back(isa);
  }
  return names;
}

void set_isa(const std::string& wanted) {
  std::string known;
  for (int i = 0; i < static_cast<int>(std::size(kIsas)); ++i) {
    if (!cpu_has(kIsas[i])) continue;
    if (wanted == kIsas[i]) {
      current_isa = i;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(kIsas[i]);
  }
  throw py::value_error("isa must be one of those this build and this CPU have (" + known +
                        "), got '" + wanted + "'");
}

// Refuse what would read or write where there is nothing; returns whether the row is sound.
bool check_row(const AffineStep& a, const float* row) {
  const int width = 4 + a.depth;
  bool reads_noise = row[3] != 0;
  for (int j = 0; j <= a.keeps; ++j) reads_noise |= row[7 + j * width + 3] != 0;
  if (reads_noise && a.noise.data == nullptr && a.seeds == nullptr) {
    PyErr_SetString(PyExc_ValueError,
                    "noise is None, but the row weighs it: pass noise of the shape of x, or seeds");
    return false;
  }
  const float* slots = row + 7 + (1 + a.keeps) * width + 1;
  for (int p = 0; a.ring && p < a.keeps; ++p) {
    const bool whole = slots[p] >= -1 && slots[p] < static_cast<float>(a.depth) &&
                       slots[p] == static_cast<float>(static_cast<int>(slots[p]));
    if (whole) continue;
    PyErr_Format(PyExc_ValueError,
                 "slot_%d of the row must be -1 or the index of a history tensor (there are %d)",
                 p + 1, a.depth);
    return false;
  }
  return true;
}

enum Argument {
  kRows,
  kRowCount,
  kStep,
  kSamples,
  kNumel,
  kKeeps,
  kRing,
  kThreads,
  kDtypes,
  kAddresses,  // the last one that must be there
  kSeeds,
  kBatch,
  kNoiseStep,
  kArguments
};

const char kDoc[] =
    "affine_step(rows, row_count, step, samples, numel, keeps, ring, threads, dtypes, "
    "addresses[, seeds, batch, noise_step])\n\n"
    "Positional only; see fastdiff/ops/affine_step.py. CPython's own calling convention, because\n"
    "pybind11's costs 0.2 us more and this call is made once a step.";

PyObject* affine_step(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  constexpr int kFixed = 7;  // addresses before those of history and kept
  const bool whole = count == kAddresses + 1 || count == kArguments;
  if (!whole || !PyTuple_CheckExact(arguments[kAddresses])) {
    PyErr_SetString(PyExc_TypeError, kDoc);
    return nullptr;
  }
  int64_t number[kArguments] = {};
  for (int i = 0; i < count; ++i) {
    if (i != kAddresses) number[i] = PyLong_AsLongLong(arguments[i]);
  }
  const int addresses = static_cast<int>(PyTuple_GET_SIZE(arguments[kAddresses]));
  AffineStep a;
  a.keeps = static_cast<int>(number[kKeeps]);
  a.ring = number[kRing] != 0;
  a.depth = addresses - kFixed - a.keeps;
  const int64_t samples = number[kSamples], numel = number[kNumel];
  const int row_size = columns(a.keeps, a.depth);
  if (a.keeps < 0 || a.depth < 0 || addresses > 32 || row_size > kMaxColumns || samples < 1) {
    PyErr_Format(PyExc_ValueError,
                 "%d kept vectors, %d history tensors and %lld samples: a row has at most %d "
                 "columns, and there is at least one sample",
                 a.keeps, a.depth, static_cast<long long>(samples), kMaxColumns);
    return nullptr;
  }
  Operand* fixed[kFixed] = {&a.x, &a.uncond, &a.cond, &a.noise, &a.x_next, &a.x0, &a.model_input};
  const uint64_t dtypes = static_cast<uint64_t>(number[kDtypes]);
  for (int i = 0; i < addresses; ++i) {
    Operand* operand = i < kFixed             ? fixed[i]
                       : i < kFixed + a.depth ? &a.history[i - kFixed]
                                              : &a.kept[i - kFixed - a.depth];
    operand->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(arguments[kAddresses], i));
    operand->dtype = static_cast<Dtype>(dtypes >> (2 * i) & 3);
  }
  if (PyErr_Occurred()) return nullptr;
  const int32_t* step = reinterpret_cast<const int32_t*>(number[kStep]);
  const int64_t index = step == nullptr ? 0 : *step;
  if (index < 0 || index >= number[kRowCount]) {
    PyErr_Format(PyExc_IndexError, "step is %lld, but rows has %lld rows",
                 static_cast<long long>(index), static_cast<long long>(number[kRowCount]));
    return nullptr;
  }
  a.rows = reinterpret_cast<const float*>(number[kRows]) + index * samples * row_size;
  a.row_stride = samples > 1 ? row_size : 0;
  a.seeds = reinterpret_cast<const int64_t*>(number[kSeeds]);
  a.noise_step = static_cast<uint32_t>(index + number[kNoiseStep]);
  a.samples = a.seeds == nullptr ? samples : number[kBatch];
  if (numel == 0) Py_RETURN_NONE;
  if (a.samples < 1 || (samples > 1 && samples != a.samples)) {
    PyErr_Format(PyExc_ValueError, "%lld seeds, but rows for %lld samples",
                 static_cast<long long>(number[kBatch]), static_cast<long long>(samples));
    return nullptr;
  }
  a.numel = numel / a.samples;
  for (int64_t b = 0; b < samples; ++b) {
    if (!check_row(a, a.rows + b * a.row_stride)) return nullptr;
  }
  PyThreadState* thread = PyEval_SaveThread();
  kAffineStep[current_isa](a, static_cast<int>(number[kThreads]));
  PyEval_RestoreThread(thread);
  Py_RETURN_NONE;
}

PyMethodDef kMethod = {"affine_step",
                       reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&affine_step)),
                       METH_FASTCALL, kDoc};

// The arguments of group_norm in fastdiff/ops/group_norm.py, `_native`: addresses of (x, x2,
// residual, addend, weight, bias, out, total), dtypes of (x, weight, bias), sizes (N, L, C1, C2).
void group_norm(std::array<uintptr_t, 8> addresses, std::array<int, 3> dtypes,
                std::array<int64_t, 4> sizes, int64_t groups, double eps, bool silu, bool tokens,
                bool last, int threads) {
  GroupNorm g;
  g.samples = sizes[0], g.length = sizes[1], g.first = sizes[2], g.second = sizes[3];
  const int64_t channels = g.first + g.second;
  if (g.samples < 1 || g.length < 1 || g.first < 1 || g.second < 0 || groups < 1 ||
      channels % groups != 0) {
    throw py::value_error("sizes (N, L, C1, C2) must be positive, but C2 may be 0, and groups " +
                          std::to_string(groups) +
                          " must divide C1 + C2 = " + std::to_string(channels));
  }
  const bool lacks_x2 = (g.second > 0) != (addresses[1] != 0);
  if (addresses[0] == 0 || addresses[6] == 0 || lacks_x2 ||
      (addresses[2] != 0) != (addresses[7] != 0)) {
    throw py::value_error(
        "x and out must be there, x2 with C2 > 0, and total with residual, and only then");
  }
  for (const int dtype : dtypes) {
    if (dtype < kFloat32 || dtype > kBFloat16) throw py::value_error("a dtype is 0, 1 or 2");
  }
  const void** operands[] = {&g.x, &g.x2, &g.residual, nullptr, &g.weight, &g.bias};
  for (int i = 0; i < 6; ++i) {
    if (operands[i] != nullptr) *operands[i] = reinterpret_cast<const void*>(addresses[i]);
  }
  g.addend = reinterpret_cast<const float*>(addresses[3]);
  g.out = reinterpret_cast<void*>(addresses[6]), g.total = reinterpret_cast<void*>(addresses[7]);
  g.dtype = static_cast<Dtype>(dtypes[0]);
  g.weight_dtype = static_cast<Dtype>(dtypes[1]), g.bias_dtype = static_cast<Dtype>(dtypes[2]);
  g.groups = groups, g.eps = eps, g.silu = silu, g.tokens = tokens, g.last = last;
  bool sound;
  {
    py::gil_scoped_release released;
    sound = kGroupNorm[current_isa](g, threads);
  }
  if (!sound) throw std::bad_alloc();
}

// Of fastdiff/ops/philox_normal.py, launch_cpu: seeds (samples,), out (samples, numel / samples).
void philox_normal(uintptr_t seeds, uintptr_t out, int64_t samples, int64_t numel, uint32_t step,
                   uint32_t stream, int threads) {
  if (samples == 0 || numel == 0) return;
  if (seeds == 0 || out == 0 || samples < 0 || numel % samples != 0) {
    throw py::value_error("seeds and out must be there, and samples divide numel");
  }
  PhiloxNormal noise = {};
  noise.seeds = reinterpret_cast<const int64_t*>(seeds);
  noise.samples = samples, noise.numel = numel / samples;
  noise.step = step, noise.stream = stream;
  noise.out = reinterpret_cast<float*>(out);
  kPhiloxNormal[current_isa](noise, threads);
}

// Of fastdiff/ops/abs_quantile.py, launch_cpu: x (samples, numel / samples), rows (samples,
// columns).
void abs_quantile(uintptr_t x, int dtype, int64_t samples, int64_t numel, int64_t rank,
                  float weight, float maximum, uintptr_t out, uintptr_t rows, int64_t columns,
                  int threads) {
  if (dtype < 0 || dtype > 2) throw py::value_error("dtype is a code from 0 to 2");
  AbsQuantile a = {};
  a.samples = samples, a.numel = samples < 1 ? 0 : numel / samples;
  if (x == 0 || out == 0 || a.numel < 1 || rank < 0 || rank + (weight > 0) >= a.numel) {
    throw py::value_error("x and out must be there, and rank be that of an element of a sample");
  }
  if (rows != 0 && columns < 7) throw py::value_error("a row has at least 7 columns");
  a.x = reinterpret_cast<const void*>(x), a.dtype = dtype, a.out = reinterpret_cast<float*>(out);
  a.rank = rank, a.weight = weight, a.maximum = maximum;
  a.rows = reinterpret_cast<float*>(rows), a.columns = columns;
  bool sound;
  {
    py::gil_scoped_release released;
    sound = kAbsQuantile[current_isa](a, threads);
  }
  if (!sound) throw std::bad_alloc();
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_C, m) {
  for (int i = 0; i < static_cast<int>(std::size(fastdiff::kIsas)); ++i) {
    if (fastdiff::cpu_has(fastdiff::kIsas[i])) fastdiff::current_isa = i;
  }
  m.doc() = "CPU kernels of fastdiff; tensors are passed as addresses.";
  m.add_object("affine_step", PyCFunction_New(&fastdiff::kMethod, nullptr));
  m.def("group_norm", &fastdiff::group_norm, "See fastdiff/ops/group_norm.py, _native.",
        py::arg("addresses"), py::arg("dtypes"), py::arg("sizes"), py::arg("groups"),
        py::arg("eps"), py::arg("silu"), py::arg("tokens"), py::arg("last"), py::arg("threads"));
  m.def("abs_quantile", &fastdiff::abs_quantile,
        "(x, dtype, samples, numel, rank, weight, maximum, out, rows, columns, threads): see "
        "fastdiff/ops/abs_quantile.py.");
  m.def("philox_normal", &fastdiff::philox_normal, py::call_guard<py::gil_scoped_release>(),
        "(seeds, out, samples, numel, step, stream, threads): see fastdiff/ops/philox_normal.py.");
  m.def("isa", [] { return std::string(fastdiff::kIsas[fastdiff::current_isa]); });
  m.def("isas", &fastdiff::isas);
  m.def("set_isa", &fastdiff::set_isa);
  fastdiff::bind_cuda(m);
  fastdiff::bind_pointwise(m, &fastdiff::current_isa);
}
