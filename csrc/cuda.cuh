// What the CUDA kernels share: 16-byte accesses to operands of any dtype, sums over a warp,
// launches.
//
// nvcc compiles a kernel file for GPUs; g++ compiles the same file with
// tests/cuda_on_host/host_cuda.h in place of CUDA's headers, and runs it on the CPU. So a file may
// use only what that header has, and takes all of its shared memory from shared_memory().
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>
#else
#include "host_cuda.h"
#endif

#include <cstdint>

namespace fastdiff::cuda {

enum Dtype : int { kFloat32, kFloat16, kBFloat16 };

constexpr __host__ __device__ int size_of(int dtype) { return dtype == kFloat32 ? 4 : 2; }

template <class A>
constexpr __host__ __device__ A lesser(A a, A b) {
  return b < a ? b : a;
}

constexpr __host__ __device__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;  // null is
}

#ifdef __CUDACC__
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ uint4 fastdiff_shared[];
  return reinterpret_cast<unsigned char*>(fastdiff_shared);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            void* stream, const Arguments&... arguments) {
  if (blocks > 0x7fffffff) throw std::runtime_error("fastdiff: too large for one launch");
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fastdiff: CUDA refused a launch: ") +
                           cudaGetErrorString(error));
}
#endif

// V elements as they lie in memory: 4 bytes each in float32, else two to a word.
template <int V>
struct Raw {
  uint32_t word[V];
};

__device__ __forceinline__ const char* address_of(const void* data, int dtype, int64_t at) {
  return static_cast<const char*>(data) + at * size_of(dtype);
}

// V elements from element `at` on, in 16-byte loads where V elements fill them.
template <int V>
__device__ __forceinline__ void load(Raw<V>& raw, const void* data, int dtype, int64_t at) {
  const char* from = address_of(data, dtype, at);
  if constexpr (V == 1) {
    if (dtype == kFloat32) {
      raw.word[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      raw.word[0] = *reinterpret_cast<const uint16_t*>(from);
    }
  } else if (V == 4 && dtype != kFloat32) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    raw.word[0] = two.x, raw.word[1] = two.y;
  } else {
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      if (k > 0 && dtype != kFloat32) break;
      const uint4 four = *reinterpret_cast<const uint4*>(from + 4 * k);
      raw.word[k] = four.x, raw.word[k + 1] = four.y;
      raw.word[k + 2] = four.z, raw.word[k + 3] = four.w;
    }
  }
}

template <int V>
__device__ __forceinline__ void store(void* data, int dtype, int64_t at, const Raw<V>& raw) {
  char* to = const_cast<char*>(address_of(data, dtype, at));
  if constexpr (V == 1) {
    if (dtype == kFloat32) {
      *reinterpret_cast<uint32_t*>(to) = raw.word[0];
    } else {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(raw.word[0]);
    }
  } else if (V == 4 && dtype != kFloat32) {
    *reinterpret_cast<uint2*>(to) = make_uint2(raw.word[0], raw.word[1]);
  } else {
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      if (k > 0 && dtype != kFloat32) break;
      *reinterpret_cast<uint4*>(to + 4 * k) =
          make_uint4(raw.word[k], raw.word[k + 1], raw.word[k + 2], raw.word[k + 3]);
    }
  }
}

__device__ __forceinline__ float float_from(uint32_t bits, int dtype) {
  if (dtype == kFloat32) return __uint_as_float(bits);
  const auto half = static_cast<unsigned short>(bits);
  return dtype == kFloat16 ? __half2float(__ushort_as_half(half))
                           : __bfloat162float(__ushort_as_bfloat16(half));
}

// To the nearest, ties to even.
__device__ __forceinline__ uint32_t bits_from(float value, int dtype) {
  if (dtype == kFloat32) return __float_as_uint(value);
  return dtype == kFloat16 ? __half_as_ushort(__float2half_rn(value))
                           : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

template <int V>
__device__ __forceinline__ void unpack(float (&values)[V], const Raw<V>& raw, int dtype) {
  if (dtype == kFloat32) {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = __uint_as_float(raw.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      values[i] = float_from(raw.word[i / 2] >> 16 * (i % 2) & 0xffff, dtype);
    }
  }
}

template <int V>
__device__ __forceinline__ void pack(Raw<V>& raw, const float (&values)[V], int dtype) {
  if (dtype == kFloat32) {
#pragma unroll
    for (int i = 0; i < V; ++i) raw.word[i] = __float_as_uint(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      raw.word[i / 2] = bits_from(values[i], dtype);
      if (i + 1 < V) raw.word[i / 2] |= bits_from(values[i + 1], dtype) << 16;
    }
  }
}

template <int V>
__device__ __forceinline__ void set_all(float (&values)[V], float value) {
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = value;
}

// The same bits in every lane: each level adds the same two numbers, in one order or the other.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace fastdiff::cuda
