// CUDA kernels of group_norm and their launcher; what they share, and the formula: group_norm.cuh.
#include "group_norm.cuh"

namespace fastdiff::cuda {
namespace {

// Of the values v of a thread: their number, and sums of v - K; K is the first of them.
template <int V, int kShifts>
struct Sums {
  int n;
  float add[V], shift[kShifts], sum[V], square[V];
};

template <int kDtype, bool kVector, int V>
__device__ __forceinline__ void sum_rows(Sums<V, V>& s, const NormLaunch& a, const LastTile& tile,
                                         int ty, int c, int count) {
  constexpr int kRows = kVector ? kAhead : 1;
  const bool residual = a.norm.residual != nullptr;
  const int down = a.tiles.down;
  for (int64_t r = tile.r0 + ty; r < tile.r1 && count > 0; r += kRows * down) {
    Loaded<V> raw[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t row = r + k * down;
      const Place at = {tile.n, row, c, row < tile.r1 ? count : 0};
      load_input<kDtype, true, kVector>(raw[k], a.norm, at);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t row = r + k * down;
      if (row >= tile.r1) continue;
      float v[V];
      Raw<V> total;
      input_values<kDtype>(v, total, raw[k], s.add, residual);
      const int64_t at = index_of<true>(a.norm, {tile.n, row, c, count});
      if (residual) store_some<kDtype, kVector>(a.norm.total, at, count, total);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (k == 0 && s.n == 0) s.shift[i] = v[i];
        const float apart = v[i] - s.shift[i];
        s.sum[i] += apart;
        s.square[i] = __fmaf_rn(apart, apart, s.square[i]);
      }
      ++s.n;
    }
  }
}

template <int kDtype>
__global__ void __launch_bounds__(kNormThreads, kStatsBlocks)
    stats_last(const __grid_constant__ NormLaunch a) {
  constexpr int V = vector_of(kDtype);
  const Tiles& t = a.tiles;
  const LastTile tile = last_tile(a);
  const int tx = threadIdx.x % t.across, ty = threadIdx.x / t.across, c = tile.c0 + tx * V;
  const int left = tile.c1 - c, count = ty < t.down && left > 0 ? lesser(left, V) : 0;
  Sums<V, V> s = {};
#pragma unroll
  for (int i = 0; i < V; ++i) s.add[i] = i < count ? addend_at(a.norm, tile.n, c + i) : 0.0f;
  if (a.vector) {
    sum_rows<kDtype, true>(s, a, tile, ty, c, count);
  } else {
    sum_rows<kDtype, false>(s, a, tile, ty, c, count);
  }

  // A slot of each channel and row of threads; those of a group become its slot.
  const int width = t.across * V, rows = static_cast<int>(tile.r1 - tile.r0);
  float* shifts = reinterpret_cast<float*>(shared_memory());  // (down, width), and the next two
  float* offsets = shifts + t.down * width;
  float* squares = offsets + t.down * width;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i >= count || s.n == 0) continue;
    const int at = ty * width + tx * V + i;
    const float offset = s.sum[i] / static_cast<float>(s.n);
    shifts[at] = s.shift[i];
    offsets[at] = offset;
    squares[at] = __fmaf_rn(-s.sum[i], offset, s.square[i]);
  }
  __syncthreads();
  const int per_group = t.parts > 1 ? tile.c1 - tile.c0 : t.per_group;
  for (int g = threadIdx.x / 32; g < tile.groups; g += kWarps) {
    const float4 slot = combine(lesser(t.down, rows) * per_group, [&](int i) {
      const int y = i / per_group, at = y * width + g * per_group + i % per_group;
      const int n = (rows - y + t.down - 1) / t.down;
      return make_float4(shifts[at], offsets[at], squares[at], static_cast<float>(n));
    });
    const int64_t at = (tile.n * a.norm.groups + tile.group + g) * t.slots + tile.slot;
    if (threadIdx.x % 32 == 0) a.slots[at] = slot;
  }
}

template <int kDtype, bool kVector, int V>
__device__ __forceinline__ void sum_plane(Sums<V, 1>& s, const NormLaunch& a, const FirstTile& tile,
                                          int tx, int ty) {
  const bool residual = a.norm.residual != nullptr;
  for (int c = tile.c0 + ty; c < tile.c1; c += a.tiles.down) {
    set_all(s.add, addend_at(a.norm, tile.n, c));
#pragma unroll kVector ? kAhead : 1
    for (int64_t p = tile.p0 + tx * V; p < tile.p1; p += a.tiles.across * V) {
      const Place at = {tile.n, p, c, static_cast<int>(lesser<int64_t>(tile.p1 - p, V))};
      Loaded<V> raw;
      Raw<V> total;
      float v[V];
      load_input<kDtype, false, kVector>(raw, a.norm, at);
      input_values<kDtype>(v, total, raw, s.add, residual);
      const int64_t index = index_of<false>(a.norm, at);
      if (residual) store_some<kDtype, kVector>(a.norm.total, index, at.count, total);
      if (s.n == 0) s.shift[0] = v[0];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float apart = kVector || i < at.count ? v[i] - s.shift[0] : 0.0f;
        s.sum[i] += apart;
        s.square[i] = __fmaf_rn(apart, apart, s.square[i]);
      }
      s.n += at.count;
    }
  }
}

template <int kDtype>
__global__ void __launch_bounds__(kNormThreads, kStatsBlocks)
    stats_first(const __grid_constant__ NormLaunch a) {
  constexpr int V = vector_of(kDtype);
  const Tiles& t = a.tiles;
  const FirstTile tile = first_tile(a);
  const int tx = threadIdx.x % t.across, ty = threadIdx.x / t.across;
  Sums<V, 1> s = {};
  if (a.vector) {
    sum_plane<kDtype, true>(s, a, tile, tx, ty);
  } else {
    sum_plane<kDtype, false>(s, a, tile, tx, ty);
  }

  // A slot of each thread; those of a warp become one, and those of the warps become the tile's.
#pragma unroll
  for (int i = 1; i < V; ++i) s.sum[0] += s.sum[i], s.square[0] += s.square[i];
  float4* slots = reinterpret_cast<float4*>(shared_memory());  // (kNormThreads), (kWarps)
  if (s.n > 0) {
    const float n = static_cast<float>(s.n), offset = s.sum[0] / n;
    const float squares = __fmaf_rn(-s.sum[0], offset, s.square[0]);
    slots[threadIdx.x] = make_float4(s.shift[0], offset, squares, n);
  } else {
    slots[threadIdx.x] = make_float4(0, 0, 0, 0);
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const float4 of_warp = combine(32, [&](int i) { return slots[warp * 32 + i]; });
  if (threadIdx.x % 32 == 0) slots[kNormThreads + warp] = of_warp;
  __syncthreads();
  if (warp != 0) return;
  const float4 slot = combine(kWarps, [&](int w) { return slots[kNormThreads + w]; });
  const int64_t at = (tile.n * a.norm.groups + tile.group) * t.slots + tile.slot;
  if (threadIdx.x == 0) a.slots[at] = slot;
}

// One block for each (sample, group).
__global__ void __launch_bounds__(kNormThreads, kStatsBlocks)
    combine_slots(const float4* slots, float4* reduced, int count) {
  float4* of_warps = reinterpret_cast<float4*>(shared_memory());
  const float4* of_group = slots + static_cast<int64_t>(blockIdx.x) * count;
  const int warp = threadIdx.x / 32, each = static_cast<int>(ceil_div(count, kWarps));
  const int first = warp * each, mine = lesser(each, count - first);  // > 0: count > kDirectSlots
  const float4 slot = combine(mine, [&](int i) { return of_group[first + i]; });
  if (threadIdx.x % 32 == 0) of_warps[warp] = slot;
  __syncthreads();
  if (warp != 0) return;
  const float4 all = combine(kWarps, [&](int w) { return of_warps[w]; });
  if (threadIdx.x == 0) reduced[blockIdx.x] = all;
}

template <int kDtype, bool kVector>
__device__ __forceinline__ void apply_rows(const NormLaunch& a, const LastTile& tile) {
  constexpr int V = vector_of(kDtype), kRows = kVector ? kAhead : 1;
  const Tiles& t = a.tiles;
  const int tx = threadIdx.x % t.across, ty = threadIdx.x / t.across, c = tile.c0 + tx * V;
  const int left = tile.c1 - c, count = ty < t.down && left > 0 ? lesser(left, V) : 0;
  Raw<V> raw[kRows];
  const auto load_rows = [&](int64_t first) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t row = first + k * t.down;
      const Place at = {tile.n, row, c, row < tile.r1 ? count : 0};
      load_again<kDtype, true, kVector>(raw[k], a.norm, at);
    }
  };
  int64_t r = tile.r0 + ty;
  load_rows(r);  // they arrive while the slots are read
  const float4* statistics = group_statistics(a, tile.n, tile.group, tile.groups);
  if (count == 0) return;
  Affine<kDtype> f[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int of = i < count ? c + i : c;  // for an element that is not there: any
    f[i] = affine_of<kDtype>(a.norm, statistics[of / t.per_group - tile.group], tile.n, of);
  }
  while (r < tile.r1) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t row = r + k * t.down;
      if (row >= tile.r1) continue;
      float x[V];
      unpack(x, raw[k], kDtype);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = f[i].apply(x[i], a.norm.silu);
      Raw<V> y;
      pack(y, x, kDtype);
      const int64_t at = index_of<true>(a.norm, {tile.n, row, c, count});
      store_some<kDtype, kVector>(a.norm.out, at, count, y);
    }
    r += kRows * t.down;
    load_rows(r);
  }
}

template <int kDtype>
__global__ void __launch_bounds__(kNormThreads, kApplyBlocks)
    apply_last(const __grid_constant__ NormLaunch a) {
  if (a.vector) {
    apply_rows<kDtype, true>(a, last_tile(a));
  } else {
    apply_rows<kDtype, false>(a, last_tile(a));
  }
}

template <int kDtype, bool kVector>
__device__ __forceinline__ void apply_plane(const NormLaunch& a, const FirstTile& tile,
                                            const Affine<kDtype>& f, int c, int tx) {
  constexpr int V = vector_of(kDtype);
#pragma unroll kVector ? kAhead : 1
  for (int64_t p = tile.p0 + tx * V; p < tile.p1; p += a.tiles.across * V) {
    const Place at = {tile.n, p, c, static_cast<int>(lesser<int64_t>(tile.p1 - p, V))};
    Raw<V> raw;
    load_again<kDtype, false, kVector>(raw, a.norm, at);
    float x[V];
    unpack(x, raw, kDtype);
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = f.apply(x[i], a.norm.silu);
    pack(raw, x, kDtype);
    store_some<kDtype, kVector>(a.norm.out, index_of<false>(a.norm, at), at.count, raw);
  }
}

template <int kDtype>
__global__ void __launch_bounds__(kNormThreads, kApplyBlocks)
    apply_first(const __grid_constant__ NormLaunch a) {
  const FirstTile tile = first_tile(a);
  const int tx = threadIdx.x % a.tiles.across, ty = threadIdx.x / a.tiles.across;
  const float4 statistics = *group_statistics(a, tile.n, tile.group, 1);
  for (int c = tile.c0 + ty; c < tile.c1; c += a.tiles.down) {
    const auto f = affine_of<kDtype>(a.norm, statistics, tile.n, c);
    if (a.vector) {
      apply_plane<kDtype, true>(a, tile, f, c, tx);
    } else {
      apply_plane<kDtype, false>(a, tile, f, c, tx);
    }
  }
}

// Contiguous input, tokens out: squares of 32 channels are turned in shared memory, so that both
// sides are accessed along their rows. Each thread takes one vector in and one out.
template <int kDtype>
__global__ void __launch_bounds__(kNormThreads, kApplyBlocks)
    apply_tokens(const __grid_constant__ NormLaunch a, int columns, int64_t slices) {
  constexpr int V = vector_of(kDtype), kPositions = kNormThreads / kTokenChannels * V;
  constexpr int kPitch = kPositions + 1, kAcross = kTokenChannels / V;
  const int64_t channels = a.norm.channels + a.norm.channels2, length = a.norm.length;
  const int64_t slice = blockIdx.x % slices, rest = blockIdx.x / slices, n = rest / columns;
  const int c0 = static_cast<int>(rest % columns) * kTokenChannels, per_group = a.tiles.per_group;
  const int c1 = static_cast<int>(lesser<int64_t>(c0 + kTokenChannels, channels));
  const int first = c0 / per_group, groups = (c1 - 1) / per_group - first + 1;
  const float4* statistics = group_statistics(a, n, first, groups);
  float* square = reinterpret_cast<float*>(shared_memory()) + 4 * groups;

  const int row = threadIdx.x / (kPositions / V), at_in = threadIdx.x % (kPositions / V) * V;
  const int column = threadIdx.x % kAcross * V, at_out = threadIdx.x / kAcross;
  const int c = c0 + row < c1 ? c0 + row : c0;
  const auto f = affine_of<kDtype>(a.norm, statistics[c / per_group - first], n, c);
  for (int64_t p0 = slice * kTokenSquares * kPositions, k = 0; k < kTokenSquares; ++k) {
    const int64_t start = p0 + k * kPositions;
    if (start >= length) return;
    const int64_t p = start + at_in, left = c0 + row < c1 ? length - p : 0;
    const Place in = {n, p, c, static_cast<int>(lesser<int64_t>(left, V))};
    Raw<V> raw;
    if (a.vector) {
      load_again<kDtype, false, true>(raw, a.norm, in);
    } else {
      load_again<kDtype, false, false>(raw, a.norm, in);
    }
    float x[V];
    unpack(x, raw, kDtype);
#pragma unroll
    for (int i = 0; i < V; ++i) square[row * kPitch + at_in + i] = f.apply(x[i], a.norm.silu);
    __syncthreads();
    const int64_t token = start + at_out;
    const int there = token < length ? lesser(c1 - (c0 + column), V) : 0;
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = square[(column + i) * kPitch + at_out];
    pack(raw, x, kDtype);
    const int64_t at = (n * length + token) * channels + c0 + column;
    if (a.vector_tokens) {
      store_some<kDtype, true>(a.norm.out, at, there, raw);
    } else {
      store_some<kDtype, false>(a.norm.out, at, there, raw);
    }
    __syncthreads();
  }
}

template <int kDtype>
void run(const NormLaunch& a, void* stream) {
  const GroupNorm& norm = a.norm;
  const Tiles& t = a.tiles;
  constexpr int V = vector_of(kDtype);
  const int64_t blocks = norm.samples * t.blocks, of_groups = norm.samples * norm.groups;
  const int64_t sums = norm.channels_last ? 3 * t.down * t.across * V : 4 * (kNormThreads + kWarps);
  const auto stats = norm.channels_last ? stats_last<kDtype> : stats_first<kDtype>;
  launch(stats, blocks, kNormThreads, 4 * sums, stream, a);
  if (a.reduced != a.slots) {
    float4* reduced = a.slots + of_groups * t.slots;
    launch(combine_slots, of_groups, kNormThreads, 16 * kWarps, stream, a.slots, reduced, t.slots);
  }
  if (norm.tokens && !norm.channels_last) {
    constexpr int kPositions = kNormThreads / kTokenChannels * V;
    const int64_t columns = ceil_div(norm.channels + norm.channels2, kTokenChannels);
    const int64_t slices = ceil_div(norm.length, kTokenSquares * kPositions);
    const int64_t groups = lesser<int64_t>(kTokenChannels, 31 / t.per_group + 2);
    const int64_t bytes = 16 * groups + 4 * kTokenChannels * (kPositions + 1);
    launch(apply_tokens<kDtype>, norm.samples * columns * slices, kNormThreads, bytes, stream, a,
           static_cast<int>(columns), slices);
    return;
  }
  const int64_t groups = norm.channels_last ? ceil_div(t.width, t.per_group) : 1;
  const auto apply = norm.channels_last ? apply_last<kDtype> : apply_first<kDtype>;
  launch(apply, blocks, kNormThreads, 16 * groups, stream, a);
}

}  // namespace

int64_t group_norm_workspace(int64_t samples, int64_t channels, int64_t length, int groups,
                             int dtype, bool channels_last) {
  const int slots = plan_tiles(channels, length, groups, dtype, channels_last).slots;
  return samples * groups * (slots > kDirectSlots ? slots + 1 : slots) * sizeof(float4);
}

void group_norm(const GroupNorm& norm, void* stream) {
  const int64_t channels = norm.channels + norm.channels2, v = vector_of(norm.dtype);
  if (norm.samples * channels * norm.length == 0) return;  // CUDA refuses an empty grid
  NormLaunch a = {};
  a.norm = norm;
  a.tiles = plan_tiles(channels, norm.length, norm.groups, norm.dtype, norm.channels_last);
  const Tiles& t = a.tiles;
  a.slots = static_cast<float4*>(norm.workspace);
  const bool direct = t.slots <= kDirectSlots;
  a.reduced = direct ? a.slots : a.slots + norm.samples * norm.groups * t.slots;
  a.reduced_slots = direct ? t.slots : 1;

  const bool turned = norm.tokens && !norm.channels_last;
  a.vector = is_aligned(norm.x) && is_aligned(norm.x2) && is_aligned(norm.residual) &&
             is_aligned(norm.total) && (turned || is_aligned(norm.out));
  if (norm.channels_last) {
    a.vector = a.vector && norm.channels % v == 0 && norm.channels2 % v == 0;
    a.vector = a.vector && (t.columns == 1 || t.width % v == 0);
    a.vector = a.vector && (t.parts == 1 || t.per_group % v == 0);
  } else {
    a.vector = a.vector && norm.length % v == 0;
  }
  a.vector_tokens = turned && is_aligned(norm.out) && channels % v == 0;
  if (norm.dtype == kFloat32) run<kFloat32>(a, stream);
  if (norm.dtype == kFloat16) run<kFloat16>(a, stream);
  if (norm.dtype == kBFloat16) run<kBFloat16>(a, stream);
}

}  // namespace fastdiff::cuda
