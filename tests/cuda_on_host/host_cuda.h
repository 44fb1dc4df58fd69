// CUDA C++ on the CPU: g++ compiles a kernel file of csrc with this header in place of CUDA's, and
// launch(..) runs it, block by block, with a fiber for each thread of the block.
//
// What it is for: numbers, and what a sanitizer sees. Shared memory lies on the heap, in exactly
// the bytes that the launch asked for, filled with NaN before each block. Threads run one at a
// time, from one wait (barrier, shuffle) to the next, in an order that can be changed (set_order):
// a result that depends on the order is a race. Threads that wait at different places end the
// program. What it cannot do: memory ordering, grid-wide waits, more than one dimension, inline
// PTX.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  uint32_t x, y;
};
namespace host_cuda {

// Bytes that 16-byte loads took from a region of memory.
struct Watch {
  const void *begin, *end;
  uint64_t bytes;

  void loaded(const void* from, uint64_t size) {
    if (begin <= from && from < end) bytes += size;
  }
};
inline Watch watch = {};

}  // namespace host_cuda

struct alignas(16) uint4 {
  uint32_t x, y, z, w;

  uint4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) : x(a), y(b), z(c), w(d) {}
  uint4(const uint4& other) : x(other.x), y(other.y), z(other.z), w(other.w) {
    host_cuda::watch.loaded(&other, sizeof other);
  }
  uint4& operator=(const uint4&) = default;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return uint4(x, y, z, w);
}
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct HostIndex {
  unsigned x;
};
inline HostIndex threadIdx, blockIdx, blockDim, gridDim;

namespace host_cuda {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "host_cuda: %s (block %u, thread %u)\n", what.c_str(), blockIdx.x,
               threadIdx.x);
  std::_Exit(3);
}

// A worst case of what CUDA documents for its approximations: 2 units in the last place.
inline float off_by_two(float exact) { return exact * (1.0f + 2.4e-7f); }
inline float fast_divide(float a, float b) { return std::isinf(b) ? 0.0f : off_by_two(a / b); }
inline float fast_exp(float x) { return std::exp(x) * (1.0f + 1.2e-7f * (2 + std::fabs(x))); }

enum State { kReady, kAtBarrier, kInWarp, kDone };

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  void set_order(unsigned seed) { order_seed_ = seed; }
  unsigned char* shared() { return shared_.get(); }

  void run(unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> body) {
    body_ = std::move(body);
    gridDim.x = blocks, blockDim.x = threads;
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(16, (shared_bytes + 15) & ~15)));
    shared_bytes_ = shared_bytes;
    ASAN_POISON_MEMORY_REGION(shared_.get() + shared_bytes, (16 - shared_bytes % 16) % 16);
    if (blocks == 0) throw std::runtime_error("CUDA refuses an empty grid");
    if (threads == 0 || threads % 32 != 0 || threads > 1024) fail("threads of a block");
    if (shared_bytes > 48 * 1024) fail("more shared memory than a kernel gets unasked");
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    for (unsigned i = 0; i < blocks; ++i) {
      blockIdx.x = order_seed_ % 2 == 1 ? blocks - 1 - i : i;
      run_block(threads);
    }
  }

  void wait(State why) {
    fibers_[threadIdx.x]->state = why;
    leave();
  }

  // The value that lane `from` of this warp brings; all 32 lanes must come.
  uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
    if (mask != 0xffffffffu) fail("only whole warps can exchange values here");
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t (&slots)[32] = exchanged_[warp][fibers_[threadIdx.x]->exchanges++ % 2];
    slots[lane] = value;  // the other half is read until all lanes have come here
    wait(kInWarp);
    return slots[from];
  }

 private:
  static constexpr size_t kStack = 64 * 1024;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    void* fake_stack = nullptr;  // AddressSanitizer's
    State state = kDone;
    unsigned exchanges = 0;
  };

  struct Free {
    void operator()(unsigned char* memory) const {
      ASAN_UNPOISON_MEMORY_REGION(memory, Machine::get().shared_bytes_ + 15);
      std::free(memory);
    }
  };

  static void start() {
    Machine& m = get();
    __sanitizer_finish_switch_fiber(nullptr, &m.main_bottom_, &m.main_size_);
    for (;;) {
      m.body_();
      m.wait(kDone);
    }
  }

  void leave() {
    Fiber& fiber = *fibers_[threadIdx.x];
    __sanitizer_start_switch_fiber(&fiber.fake_stack, main_bottom_, main_size_);
    swapcontext(&fiber.context, &main_);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &main_bottom_, &main_size_);
  }

  void enter(unsigned thread) {
    threadIdx.x = thread;
    Fiber& fiber = *fibers_[thread];
    if (!fiber.stack) {
      fiber.stack.reset(new unsigned char[kStack]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Machine::start, 0);
    }
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStack);
    swapcontext(&main_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }

  void shuffle(std::vector<unsigned>& order) {
    for (size_t i = order.size(); i > 1; --i) {
      random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(order[i - 1], order[(random_ >> 33) % i]);
    }
  }

  void run_block(unsigned threads) {
    std::memset(shared_.get(), 0xff, shared_bytes_);
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
      order[i] = order_seed_ == 1 ? threads - 1 - i : i;
      fibers_[i]->state = kReady;
    }
    for (;;) {
      if (order_seed_ > 1) shuffle(order);
      for (unsigned thread : order) {
        if (fibers_[thread]->state == kReady) enter(thread);
      }
      const auto all = [&](unsigned first, unsigned last, State state) {
        for (unsigned i = first; i < last; ++i) {
          if (fibers_[i]->state != state) return false;
        }
        return true;
      };
      if (all(0, threads, kDone)) return;
      bool released = false;
      const auto release = [&](unsigned first, unsigned last, State state) {
        if (!all(first, last, state)) return;
        for (unsigned i = first; i < last; ++i) fibers_[i]->state = kReady;
        released = true;
      };
      for (unsigned i = 0; i < threads; i += 32) release(i, i + 32, kInWarp);
      if (!released) release(0, threads, kAtBarrier);
      if (!released) fail("threads of a block wait at different places, or have returned");
    }
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::function<void()> body_;
  std::unique_ptr<unsigned char, Free> shared_;
  size_t shared_bytes_ = 0;
  ucontext_t main_;
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
  uint64_t exchanged_[32][2][32];
  uint64_t random_ = 1;
  unsigned order_seed_ = 0;  // 0 forward, 1 backward, more: shuffled
};

template <class Value>
Value exchange(unsigned mask, Value value, unsigned from) {
  static_assert(sizeof(Value) == 4);
  const auto bits = Machine::get().exchange(mask, bits_as<uint32_t>(value), from);
  return bits_as<Value>(static_cast<uint32_t>(bits));
}

}  // namespace host_cuda

inline void __syncthreads() { host_cuda::Machine::get().wait(host_cuda::kAtBarrier); }
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes) {
  return host_cuda::exchange(mask, value, threadIdx.x % 32 ^ lanes);
}

// One thread runs at a time.
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at = before + value;
  return before;
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at = std::max(before, value);
  return before;
}
inline uint32_t atomicMin(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at = std::min(before, value);
  return before;
}
inline void __threadfence() {}

// Fused or not is what the source says: compiled with -ffp-contract=off, as nvcc with -fmad=false.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __uint_as_float(uint32_t bits) { return host_cuda::bits_as<float>(bits); }
inline uint32_t __float_as_uint(float value) { return host_cuda::bits_as<uint32_t>(value); }
#define __fdividef host_cuda::fast_divide  // macros: glibc has functions of some of these names
#define __expf host_cuda::fast_exp

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) { return host_cuda::bits_as<_Float16>(value.bits); }
inline __half __float2half_rn(float value) {
  return {host_cuda::bits_as<uint16_t>(static_cast<_Float16>(value))};
}
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (std::isnan(value)) return {0x7fff};
  const uint32_t bits = __float_as_uint(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace fastdiff::cuda {

inline unsigned char* shared_memory() { return host_cuda::Machine::get().shared(); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, void*,
            const Arguments&... arguments) {
  host_cuda::Machine::get().run(static_cast<unsigned>(blocks), threads, shared_bytes,
                                [&] { kernel(arguments...); });
}

}  // namespace fastdiff::cuda
