// Runs the CUDA kernel of philox_normal on the CPU: philox_normal FOLDER..., each a case (case.h).
#include "philox_normal.cu"

#include "case.h"

int main(int count, char** folders) {
  using namespace fastdiff::cuda;
  for (int i = 1; i < count; ++i) {
    const Case c(folders[i]);
    PhiloxNormal a = {};
    a.seeds = static_cast<const int64_t*>(c.buffer("seeds"));
    a.step = static_cast<const int32_t*>(c.buffer("step"));
    a.out = c.buffer("out");
    a.samples = c.whole("samples"), a.numel = c.whole("numel");
    a.noise_step = static_cast<uint32_t>(c.whole("noise_step"));
    a.stream = static_cast<uint32_t>(c.whole("stream"));
    a.dtype = static_cast<int>(c.whole("dtype"));
    host_cuda::Machine::get().set_order(static_cast<unsigned>(c.whole("order")));
    philox_normal(a, nullptr);
    c.write_back();
  }
}
