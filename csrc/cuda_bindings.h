// The Python face of the CUDA launchers: nothing, in an extension that is built without CUDA.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdiff {

#ifdef FASTDIFF_WITH_CUDA
void bind_cuda(pybind11::module_& m);
#else
inline void bind_cuda(pybind11::module_&) {}
#endif

}  // namespace fastdiff
