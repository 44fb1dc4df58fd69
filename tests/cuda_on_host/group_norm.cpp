// Runs the CUDA kernels of group_norm on the CPU: group_norm FOLDER..., each a case (case.h).
#include "group_norm.cu"

#include "case.h"

int main(int count, char** folders) {
  using namespace fastdiff::cuda;
  for (int i = 1; i < count; ++i) {
    const Case c(folders[i]);
    GroupNorm a = {};
    a.x = c.buffer("x");
    a.x2 = c.buffer("x2");
    a.residual = c.buffer("residual");
    a.addend = static_cast<const float*>(c.buffer("addend"));
    a.weight = c.buffer("weight");
    a.bias = c.buffer("bias");
    a.out = c.buffer("out");
    a.total = c.buffer("total");
    a.samples = c.whole("samples");
    a.channels = c.whole("channels");
    a.channels2 = c.whole("channels2");
    a.length = c.whole("length");
    a.groups = static_cast<int>(c.whole("groups"));
    a.eps = static_cast<float>(c.number("eps"));
    a.dtype = static_cast<int>(c.whole("dtype"));
    a.weight_dtype = static_cast<int>(c.whole("weight_dtype"));
    a.bias_dtype = static_cast<int>(c.whole("bias_dtype"));
    a.channels_last = c.whole("channels_last") != 0;
    a.silu = c.whole("silu") != 0;
    a.tokens = c.whole("tokens") != 0;
    const int64_t bytes = group_norm_workspace(a.samples, a.channels + a.channels2, a.length,
                                               a.groups, a.dtype, a.channels_last);
    if (posix_memalign(&a.workspace, 64, bytes) != 0) throw std::bad_alloc();
    std::memset(a.workspace, 0xff, bytes);  // NaN: a slot that nobody wrote shows
    host_cuda::Machine::get().set_order(static_cast<unsigned>(c.whole("order")));
    group_norm(a, nullptr);
    c.write_back();
    std::free(a.workspace);
  }
}
