// Runs the CUDA kernel of affine_step on the CPU: affine_step FOLDER..., each a case (case.h).
#include "affine_step.cu"

#include "case.h"

int main(int count, char** folders) {
  using namespace fastdiff::cuda;
  for (int i = 1; i < count; ++i) {
    const Case c(folders[i]);
    AffineStep a = {};
    a.rows = static_cast<const float*>(c.buffer("rows"));
    a.step = static_cast<const int32_t*>(c.buffer("step"));
    a.row_count = c.whole("row_count");
    a.samples = c.whole("samples");
    a.numel = c.whole("numel");
    a.seeds = static_cast<const int64_t*>(c.buffer("seeds"));
    a.noise_step = static_cast<uint32_t>(c.whole("noise_step"));
    a.shared_row = c.whole("shared_row") != 0;
    a.keeps = static_cast<int>(c.whole("keeps"));
    a.depth = static_cast<int>(c.whole("depth"));
    a.ring = static_cast<int>(c.whole("ring"));
    a.dtypes = static_cast<uint64_t>(c.whole("dtypes_low"));
    a.dtypes |= static_cast<uint64_t>(c.whole("dtypes_high")) << 32;
    std::vector<std::string> names = {"x",      "uncond", "cond",       "noise",
                                      "x_next", "x0",     "model_input"};
    for (int r = 0; r < a.depth; ++r) names.push_back("history" + std::to_string(r));
    for (int p = 0; p < a.keeps; ++p) names.push_back("kept" + std::to_string(p));
    for (size_t k = 0; k < names.size(); ++k) a.data[k] = c.buffer(names[k]);
    host_cuda::Machine::get().set_order(static_cast<unsigned>(c.whole("order")));
    affine_step(a, nullptr);
    c.write_back();
  }
}
