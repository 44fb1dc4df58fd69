// The Python face of the CPU kernels of geglu, add_layer_norm and bias_residual.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdiff {

// isa: where the index of the instruction set lies, in the order of isa.h.
void bind_pointwise(pybind11::module_& m, const int* isa);

}  // namespace fastdiff
