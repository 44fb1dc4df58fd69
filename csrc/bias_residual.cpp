// CPU kernel of bias_residual (formula and shapes: bias_residual.h).
//
// Memory alone counts: each element is read and written once. The tensors are cut into pieces that
// begin at the first channel (channels last: a few places, with their biases side by side) or lie
// within one channel (contiguous: one bias). Elements do not depend on each other and nothing is
// fused: the bits are the same for every vector width and number of threads.
#include "bias_residual.h"

#include "isa.inl"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kBlock = 512;              // elements of float16 brought to float32 at a time
constexpr int64_t kPiece = 4096;         // elements of a channel, contiguous
constexpr int64_t kSerialBelow = 32768;  // elements: a thread costs more than it brings

// 0: no bias, 1: one for all n elements, 2: one for each.
template <int kBias>
inline float sum(float x, const float* bias, int64_t i) {
  if constexpr (kBias == 0) return x;
  return x + bias[kBias == 1 ? 0 : i];
}

template <int kBias, bool kResidual>
void apply(const float* x, const float* bias, const float* residual, float scale, int64_t n,
           float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float v = sum<kBias>(x[i], bias, i);
    out[i] = (kResidual ? v + residual[i] : v) * scale;
  }
}

template <int kBias, bool kResidual>
void apply(const Bfloat* x, const float* bias, const Bfloat* residual, float scale, int64_t n,
           Bfloat* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float v = sum<kBias>(load(x[i]), bias, i);
    out[i] = to_bfloat((kResidual ? v + load(residual[i]) : v) * scale);
  }
}

template <int kBias, bool kResidual>
void apply(const Half* x, const float* bias, const Half* residual, float scale, int64_t n,
           Half* out) {
  float values[kBlock], others[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = least(n - at, kBlock);
    const float* other = kResidual ? read(residual + at, m, others) : nullptr;
    read(x + at, m, values);
    apply<kBias, kResidual>(values, kBias == 2 ? bias + at : bias, other, scale, m, values);
    write(values, m, out + at);
  }
}

template <class T, int kBias>
void piece(const BiasResidual& a, const float* bias, int64_t begin, int64_t n) {
  const T *x = static_cast<const T*>(a.x) + begin, *residual = static_cast<const T*>(a.residual);
  T* out = static_cast<T*>(a.out) + begin;
  if (residual == nullptr) {
    apply<kBias, false>(x, bias, residual, a.scale, n, out);
  } else {
    apply<kBias, true>(x, bias, residual + begin, a.scale, n, out);
  }
}

// Pieces [from, to) of the contiguous tensors.
template <class T>
void contiguous(const BiasResidual& a, int64_t from, int64_t to) {
  const int64_t pieces = (a.length + kPiece - 1) / kPiece;
  for (int64_t i = from; i < to; ++i) {
    const int64_t row = i / pieces, begin = i % pieces * kPiece;
    const int64_t n = least(a.length - begin, kPiece);
    if (a.bias == nullptr) {
      piece<T, 0>(a, nullptr, row * a.length + begin, n);
    } else {
      const float* bias = a.bias + (a.each_sample ? row : row % a.channels);
      piece<T, 1>(a, bias, row * a.length + begin, n);
    }
  }
}

// How many places of all channels make a piece, channels last.
inline int64_t places(const BiasResidual& a) {
  return a.channels < kBlock ? kBlock / a.channels : 1;
}

// Pieces [from, to) of the tensors channels last.
template <class T>
void channels_last(const BiasResidual& a, int64_t from, int64_t to) {
  float repeated[kBlock];
  const int64_t together = places(a), size = a.length * a.channels;
  const int64_t pieces = (a.length + together - 1) / together;
  for (int64_t i = from; i < to; ++i) {
    const int64_t sample = i / pieces, begin = i % pieces * together * a.channels;
    const int64_t n = least(size - begin, together * a.channels);
    const float* bias = a.bias;
    if (bias == nullptr) {
      piece<T, 0>(a, nullptr, sample * size + begin, n);
      continue;
    }
    if (a.each_sample) bias += sample * a.channels;
    if (together > 1) {
      if (i == from || begin == 0) {
        for (int64_t k = 0; k < together; ++k) {
          for (int64_t c = 0; c < a.channels; ++c) repeated[k * a.channels + c] = bias[c];
        }
      }
      bias = repeated;
    }
    piece<T, 2>(a, bias, sample * size + begin, n);
  }
}

template <class T>
void run(const BiasResidual& a, int64_t threads) {
  const int64_t together = places(a);
  const int64_t pieces = a.last ? a.samples * ((a.length + together - 1) / together)
                                : a.samples * a.channels * ((a.length + kPiece - 1) / kPiece);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1) schedule(static)
  for (int64_t t = 0; t < threads; ++t) {
    const int64_t from = pieces * t / threads, to = pieces * (t + 1) / threads;
    a.last ? channels_last<T>(a, from, to) : contiguous<T>(a, from, to);
  }
}

}  // namespace

void bias_residual(const BiasResidual& a, int threads) {
  if (a.samples * a.channels * a.length < kSerialBelow || threads < 1) threads = 1;
  if (a.dtype == kFloat32) run<float>(a, threads);
  if (a.dtype == kFloat16) run<Half>(a, threads);
  if (a.dtype == kBFloat16) run<Bfloat>(a, threads);
}

}  // namespace fastdiff::FASTDIFF_ISA
