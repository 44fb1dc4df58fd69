// CUDA kernels of group_norm (contract: fastdiff/ops/group_norm.py; arguments: cuda.h).
//
//     v = [x, x2] (channels) + addend[n, c] + residual;   y = act((v - mean) * rstd * weight +
//     bias)
//
// Memory bound: two reads and one write of the tensor, in 16-byte accesses. With a residual the
// first pass writes v, rounded, and the second reads only that.
//
//   stats    a block sums one tile: some rows, and all channels of some groups (channels last), or
//            some channels and positions of one group (contiguous). It writes one slot per group.
//   combine  many slots of a group become one; only where there are more than kDirectSlots.
//   apply    the same tiles: each block combines the slots of its groups, then normalises its tile.
//
// A slot is (K, d, M2, n): n values of mean K + d and sum of squared deviations M2. The sums are
// those of v - K, where K is a value of the tile, so that they are sound for any mean / std; M2 of
// slots is combined as sum(M2_s + n_s * (mean_s - mean)^2). Each slot has one writer and sums have
// one order; how a sample is cut depends on C, L, groups, dtype and layout alone. So the bits of a
// sample depend on nothing else: not on the batch, the alignment or the run. There are no atomics,
// no tickets and nothing to be cleared, so calls may overlap on streams and be replayed from
// graphs.
#pragma once

#include <numeric>

#include "cuda.cuh"
#include "cuda.h"

namespace fastdiff::cuda {

constexpr int kNormThreads = 256, kWarps = kNormThreads / 32;
constexpr int kStatsBlocks = 2, kApplyBlocks = 3;  // of a multiprocessor, at least
constexpr int kDirectSlots = 64;  // what apply reads for each of its groups, at most
constexpr int kAhead = 4;         // rows whose loads are in flight together
constexpr int kTokenChannels = 32, kTokenSquares = 4;

// How one sample is cut into tiles; the same for stats and apply.
struct Tiles {
  int per_group;              // D = C / groups
  int across, down;           // threads along the contiguous direction, and along the other
  int slots;                  // per group
  int64_t blocks;             // per sample
  int width, parts, columns;  // channels last: channels of a tile, tiles of a group, tiles of C
  int64_t rows;               // of a tile: positions (channels last) or channels
  int slices;                 // tiles along the rows of a sample (channels last) or of a group
  int64_t span;               // contiguous: positions of a tile,
  int spans;                  // and tiles along the positions
};

struct NormLaunch {
  GroupNorm norm;
  Tiles tiles;
  float4* slots;          // (samples, groups, tiles.slots)
  const float4* reduced;  // what apply combines: the slots, or one for each group
  int reduced_slots;
  bool vector;         // 16-byte accesses to all but tokens of a contiguous input
  bool vector_tokens;  // and to those
};

constexpr __host__ __device__ int vector_of(int dtype) { return 16 / size_of(dtype); }

// Tiles of 16 KB, at most 256 to a sample, fill a GPU; those of a large sample are 128 KB and more.
inline Tiles plan_tiles(int64_t channels, int64_t length, int groups, int dtype, bool last) {
  constexpr int64_t kSmall = 16 << 10, kLarge = 128 << 10, kRowBytes = 128;
  const int64_t size = size_of(dtype), v = vector_of(dtype), bytes = channels * length * size;
  int64_t wanted = lesser<int64_t>(ceil_div(bytes, kSmall), 256);
  if (bytes > 256 * kLarge) wanted = lesser<int64_t>(bytes / kLarge, 2048);
  const int64_t per_group = channels / groups;
  Tiles t = {};
  t.per_group = static_cast<int>(per_group);
  if (last) {
    const int64_t widest = kNormThreads * v, unit = v / std::gcd(per_group, v);
    int64_t width = lesser(per_group, widest);
    t.parts = 1;
    if (per_group > widest) {  // a tile holds a part of a group
      width = ceil_div(ceil_div(per_group, ceil_div(per_group, widest)), v) * v;
      t.parts = static_cast<int>(ceil_div(per_group, width));
    } else {  // whole groups: a full row of memory transactions, whole vectors if possible
      int64_t together = unit * ceil_div(kRowBytes, unit * per_group * size);
      if (together * per_group > widest) together = widest / per_group;
      width = lesser<int64_t>(together, groups) * per_group;
    }
    t.width = static_cast<int>(width);
    t.columns = static_cast<int>(t.parts > 1 ? groups * t.parts : ceil_div(channels, width));
    t.across = static_cast<int>(ceil_div(width, v));
    t.down = kNormThreads / t.across;
    const int64_t slices = lesser(ceil_div(wanted, t.columns), length);
    t.rows = ceil_div(ceil_div(length, slices), t.down) * t.down;
    t.slices = static_cast<int>(ceil_div(length, t.rows));
    t.slots = t.slices * t.parts;
    t.blocks = static_cast<int64_t>(t.slices) * t.columns;
    return t;
  }
  const int64_t vectors = ceil_div(length, v), tiles = ceil_div(wanted, groups);
  for (t.across = 1; t.across < vectors && t.across < kNormThreads;) t.across *= 2;
  t.down = kNormThreads / t.across;
  const int64_t slices = lesser(tiles, per_group);
  const int64_t spans = slices < per_group ? 1 : lesser(ceil_div(tiles, per_group), vectors);
  t.rows = ceil_div(per_group, slices);
  t.span = ceil_div(vectors, spans) * v;
  t.slices = static_cast<int>(ceil_div(per_group, t.rows));
  t.spans = static_cast<int>(ceil_div(length, t.span));
  t.slots = t.slices * t.spans;
  t.blocks = static_cast<int64_t>(t.slots) * groups;
  return t;
}

// One tile of channels-last memory: channels [c0, c1) of rows [r0, r1) of sample n.
struct LastTile {
  int64_t n, r0, r1;
  int c0, c1, group, groups, slot;
};

__device__ __forceinline__ LastTile last_tile(const NormLaunch& a) {
  const Tiles& t = a.tiles;
  const int column = blockIdx.x % t.columns;
  const unsigned rest = blockIdx.x / t.columns;
  const int slice = rest % t.slices, channels = a.norm.groups * t.per_group;
  LastTile tile;
  tile.n = rest / t.slices;
  tile.r0 = slice * t.rows;
  tile.r1 = lesser(tile.r0 + t.rows, a.norm.length);
  tile.group = t.parts > 1 ? column / t.parts : column * (t.width / t.per_group);
  const int part = t.parts > 1 ? column % t.parts : 0;
  tile.c0 = tile.group * t.per_group + part * t.width;
  const int end = t.parts > 1 ? (tile.group + 1) * t.per_group : channels;
  tile.c1 = lesser(tile.c0 + t.width, end);
  tile.groups = t.parts > 1 ? 1 : (tile.c1 - tile.c0) / t.per_group;
  tile.slot = slice * t.parts + part;
  return tile;
}

// One tile of contiguous memory: positions [p0, p1) of channels [c0, c1) of a group.
struct FirstTile {
  int64_t n, p0, p1;
  int c0, c1, group, slot;
};

__device__ __forceinline__ FirstTile first_tile(const NormLaunch& a) {
  const Tiles& t = a.tiles;
  const int tile_of_group = blockIdx.x % t.slots;
  const unsigned rest = blockIdx.x / t.slots;
  FirstTile tile;
  tile.slot = tile_of_group;
  tile.group = rest % a.norm.groups;
  tile.n = rest / a.norm.groups;
  const int first = tile.group * t.per_group, slice = tile_of_group / t.spans;
  tile.c0 = first + slice * static_cast<int>(t.rows);
  tile.c1 = lesser(tile.c0 + static_cast<int>(t.rows), first + t.per_group);
  tile.p0 = tile_of_group % t.spans * t.span;
  tile.p1 = lesser(tile.p0 + t.span, a.norm.length);
  return tile;
}

template <int kDtype, int V>
__device__ __forceinline__ void set_element(Raw<V>& raw, int i, const void* data, int64_t at) {
  Raw<1> one;
  load(one, data, kDtype, at);
  if constexpr (kDtype == kFloat32) {
    raw.word[i] = one.word[0];
  } else {
    raw.word[i / 2] |= one.word[0] << 16 * (i % 2);  // it was 0
  }
}

// Elements i < count of V, element i being data[at + i]; kVector: all or none.
template <int kDtype, bool kVector, int V>
__device__ __forceinline__ void load_some(Raw<V>& raw, const void* data, int64_t at, int count) {
  if constexpr (kVector) {
    if (count > 0) load(raw, data, kDtype, at);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i < count) set_element<kDtype>(raw, i, data, at + i);
    }
  }
}

template <int kDtype, bool kVector, int V>
__device__ __forceinline__ void store_some(void* data, int64_t at, int count, const Raw<V>& raw) {
  if constexpr (kVector) {
    if (count > 0) store(data, kDtype, at, raw);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i >= count) continue;
      Raw<1> one;
      one.word[0] = kDtype == kFloat32 ? raw.word[i] : raw.word[i / 2] >> 16 * (i % 2);
      store(data, kDtype, at + i, one);
    }
  }
}

// `count` elements from (n, c, position) on: along c (kLast) or along the positions.
struct Place {
  int64_t n, position;
  int c, count;
};

template <bool kLast>
__device__ __forceinline__ int64_t index_of(const GroupNorm& a, const Place& at) {
  const int64_t channels = a.channels + a.channels2;
  return kLast ? (at.n * a.length + at.position) * channels + at.c
               : (at.n * channels + at.c) * a.length + at.position;
}

// Elements of x, followed along the channels by x2.
template <int kDtype, bool kLast, bool kVector, int V>
__device__ __forceinline__ void load_sources(Raw<V>& raw, const GroupNorm& a, const Place& at) {
  raw = {};
  const bool second = at.c >= a.channels;
  const int64_t of = second ? a.channels2 : a.channels, c = second ? at.c - a.channels : at.c;
  const void* source = second ? a.x2 : a.x;
  if constexpr (kLast) {
    const int64_t row = at.n * a.length + at.position;
    const int here = second ? at.count : static_cast<int>(lesser<int64_t>(of - c, at.count));
    load_some<kDtype, kVector>(raw, source, row * of + c, here);
#pragma unroll
    for (int i = 1; i < (kVector ? 1 : V); ++i) {  // the others belong to x2
      if (i < here || i >= at.count) continue;
      set_element<kDtype>(raw, i, a.x2, row * a.channels2 + (i - here));
    }
  } else {
    load_some<kDtype, kVector>(raw, source, (at.n * of + c) * a.length + at.position, at.count);
  }
}

// The operands of v, as they lie in memory.
template <int V>
struct Loaded {
  Raw<V> x, residual;
};

template <int kDtype, bool kLast, bool kVector, int V>
__device__ __forceinline__ void load_input(Loaded<V>& raw, const GroupNorm& a, const Place& at) {
  load_sources<kDtype, kLast, kVector>(raw.x, a, at);
  raw.residual = {};
  if (a.residual == nullptr) return;
  load_some<kDtype, kVector>(raw.residual, a.residual, index_of<kLast>(a, at), at.count);
}

// What the second pass reads: total, if the first one wrote it.
template <int kDtype, bool kLast, bool kVector, int V>
__device__ __forceinline__ void load_again(Raw<V>& raw, const GroupNorm& a, const Place& at) {
  if (a.residual == nullptr) return load_sources<kDtype, kLast, kVector>(raw, a, at);
  raw = {};
  load_some<kDtype, kVector>(raw, a.total, index_of<kLast>(a, at), at.count);
}

// v in float32; with a residual rounded to the dtype, as total has it. add: addend[n, c] or 0.
template <int kDtype, int V>
__device__ __forceinline__ void input_values(float (&v)[V], Raw<V>& total, const Loaded<V>& raw,
                                             const float (&add)[V], bool residual) {
  unpack(v, raw.x, kDtype);
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] += add[i];
  if (!residual) return;
  float r[V];
  unpack(r, raw.residual, kDtype);
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] += r[i];
  pack(total, v, kDtype);
  unpack(v, total, kDtype);
}

__device__ __forceinline__ float addend_at(const GroupNorm& a, int64_t n, int c) {
  return a.addend == nullptr ? 0.0f : a.addend[n * (a.channels + a.channels2) + c];
}

__device__ __forceinline__ float parameter(const void* data, int dtype, int c, float absent) {
  if (data == nullptr) return absent;
  Raw<1> raw;
  load(raw, data, dtype, c);
  return float_from(raw.word[0], dtype);
}

// get(0) .. get(count - 1) as one slot, by all lanes of a warp. If get(0) is empty, n = 0, all are.
template <class Get>
__device__ __forceinline__ float4 combine(int count, Get get) {
  const int lane = threadIdx.x % 32;
  const float shift = get(0).x;
  float weighted = 0, n = 0, squares = 0;
#pragma unroll 2
  for (int i = lane; i < count; i += 32) {
    const float4 slot = get(i);
    if (slot.w == 0) continue;
    weighted = __fmaf_rn(slot.w, (slot.x - shift) + slot.y, weighted);
    n += slot.w;
  }
  n = warp_sum(n), weighted = warp_sum(weighted);
  const float offset = n > 0 ? weighted / n : 0.0f;
#pragma unroll 2
  for (int i = lane; i < count; i += 32) {
    const float4 slot = get(i);
    if (slot.w == 0) continue;
    const float apart = ((slot.x - shift) + slot.y) - offset;
    squares += __fmaf_rn(slot.w, apart * apart, slot.z);
  }
  return make_float4(shift, offset, warp_sum(squares), n);
}

// (K, d, rstd) of `count` groups from `first` on, in shared memory: the mean is K + d.
__device__ __forceinline__ const float4* group_statistics(const NormLaunch& a, int64_t n, int first,
                                                          int count) {
  float4* statistics = reinterpret_cast<float4*>(shared_memory());
  for (int g = threadIdx.x / 32; g < count; g += kWarps) {
    const int64_t at = (n * a.norm.groups + first + g) * a.reduced_slots;
    const float4 slot = combine(a.reduced_slots, [&](int i) { return a.reduced[at + i]; });
    const float variance = slot.z < 0 ? 0.0f : slot.z / slot.w;  // NaN stays NaN
    const float rstd = 1.0f / sqrtf(variance + a.norm.eps);
    if (threadIdx.x % 32 == 0) statistics[g] = make_float4(slot.x, slot.y, rstd, 0);
  }
  __syncthreads();
  return statistics;
}

// What is done to the values of one channel. In 16 bit it is folded into x * scale + bias.
template <int kDtype>
struct Affine {
  float add, shift, offset, scale, bias;

  __device__ __forceinline__ float apply(float x, bool silu) const {
    if constexpr (kDtype == kFloat32) x = ((x + add) - shift) - offset;
    float y = __fmaf_rn(x, scale, bias);
    if (!silu) return y;
    // y / (1 + exp(-y)), from exp of what is not positive: nothing overflows, 1 <= below <= 2.
    const float size = fabsf(y), z = kDtype == kFloat32 ? expf(-size) : __expf(-size);
    const float above = y < 0 ? y * z : y, below = 1.0f + z;
    if constexpr (kDtype != kFloat32) return __fdividef(above, below);
    const float inverse = __fdividef(1.0f, below), quotient = above * inverse;
    return __fmaf_rn(__fmaf_rn(-below, quotient, above), inverse, quotient);  // to 1 ulp
  }
};

template <int kDtype>
__device__ __forceinline__ Affine<kDtype> affine_of(const GroupNorm& a, float4 statistics,
                                                    int64_t n, int c) {
  Affine<kDtype> f;
  f.add = a.residual != nullptr ? 0.0f : addend_at(a, n, c);  // total has it
  f.shift = statistics.x, f.offset = statistics.y;
  f.scale = statistics.z * parameter(a.weight, a.weight_dtype, c, 1.0f);
  f.bias = parameter(a.bias, a.bias_dtype, c, 0.0f);
  if constexpr (kDtype != kFloat32) {
    f.bias = __fmaf_rn((f.add - f.shift) - f.offset, f.scale, f.bias);
  }
  return f;
}

}  // namespace fastdiff::cuda
