// Runs the CUDA kernel of abs_quantile on the CPU: abs_quantile FOLDER..., each a case (case.h).
#include "abs_quantile.cu"

#include "case.h"

int main(int count, char** folders) {
  using namespace fastdiff::cuda;
  for (int i = 1; i < count; ++i) {
    const Case c(folders[i]);
    AbsQuantile a = {};
    a.x = c.buffer("x");
    a.out = static_cast<float*>(c.buffer("out"));
    a.rows = static_cast<float*>(c.buffer("rows"));
    a.workspace = static_cast<uint32_t*>(c.buffer("workspace"));
    a.copies = static_cast<uint32_t*>(c.buffer("copies"));
    a.samples = c.whole("samples"), a.numel = c.whole("numel"), a.columns = c.whole("columns");
    a.rank = static_cast<uint32_t>(c.whole("rank"));
    a.weight = static_cast<float>(c.number("weight"));
    a.maximum = static_cast<float>(c.number("maximum"));
    a.dtype = static_cast<int>(c.whole("dtype"));
    host_cuda::Machine::get().set_order(static_cast<unsigned>(c.whole("order")));
    const char* x = static_cast<const char*>(a.x);
    host_cuda::watch = {x, x + a.samples * a.numel * size_of(a.dtype), 0};
    abs_quantile(a, nullptr);
    // 16-byte loads of x: of samples that are whole vectors there are no others.
    auto* loaded = static_cast<uint64_t*>(c.buffer("loaded"));
    if (loaded != nullptr) *loaded = host_cuda::watch.bytes;
    c.write_back();
  }
}
