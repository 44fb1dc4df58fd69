// How often the CPU kernel of abs_quantile takes its sample from memory:
// abs_quantile_passes DTYPE KIND
//
// csrc/abs_quantile.cpp is compiled with -fsanitize=thread, which calls a function at each access
// to memory; this file has these functions, in place of the sanitizer's, and a cache of 1 KB. It
// prints the loads of x that are not in the cache as a multiple of x, and the quantile.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "abs_quantile.h"

namespace {

constexpr uintptr_t kLine = 64;
constexpr int64_t kElements = 70'000 / 64 * 64;
constexpr int kLines = 16;
alignas(kLine) unsigned char x[4 * kElements];
uintptr_t cached[kLines];
int64_t misses = 0;

void loaded(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address), begin = reinterpret_cast<uintptr_t>(x);
  if (at < begin || at >= begin + sizeof x) return;
  for (const uintptr_t line : cached) {
    if (line == at / kLine) return;
  }
  cached[misses++ % kLines] = at / kLine;
}

}  // namespace

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
#define FASTDIFF_ACCESS(size)                                \
  void __tsan_read##size(void* at) { loaded(at); }           \
  void __tsan_unaligned_read##size(void* at) { loaded(at); } \
  void __tsan_write##size(void*) {}                          \
  void __tsan_unaligned_write##size(void*) {}
FASTDIFF_ACCESS(1)
FASTDIFF_ACCESS(2)
FASTDIFF_ACCESS(4)
FASTDIFF_ACCESS(8)
FASTDIFF_ACCESS(16)
void __tsan_read_range(void* at, size_t) { loaded(at); }
void __tsan_write_range(void*, size_t) {}
}

int main(int, char** arguments) {
  const int dtype = std::atoi(arguments[1]), size = dtype == 0 ? 4 : 2;
  const bool equal = std::atoi(arguments[2]) == 1;
  uint32_t random = 1;
  for (int64_t i = 0; i < kElements; ++i) {
    random = random * 1664525u + 1013904223u;
    const float value = equal ? -1.5f : 1.0f + static_cast<float>(random >> 8) / (1 << 24);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t word = static_cast<uint16_t>(bits >> 16);  // read as either 16-bit dtype
    std::memcpy(x + size * i, size == 4 ? static_cast<const void*>(&bits) : &word, size);
  }
  float q = 0;
  fastdiff::AbsQuantile a = {};
  a.x = x, a.dtype = dtype, a.samples = 1, a.numel = kElements, a.rank = kElements / 2;
  a.weight = 0.25f, a.maximum = 1, a.out = &q;
  if (!fastdiff::baseline::abs_quantile(a, 1)) return 1;
  std::printf("%.6f %.6f\n", static_cast<double>(misses * kLine) / (size * kElements), q);
}
