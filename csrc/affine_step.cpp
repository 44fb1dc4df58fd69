// CPU kernel of affine_step (formula and shapes: affine_step.h).
//
// Memory bound: every operand is read once and every result written once, in blocks of 1024
// elements (4 KB in float32), so that what a block needs stays in the first-level cache. The number
// of operands and their dtypes are run-time values: a block is brought to float32 operand by
// operand, then each result is one loop over a list of (weight, pointer). Elements do not depend on
// each other, so the bits are the same for every vector width and number of threads.
#include "affine_step.h"

#include <cstring>

#include "philox_normal.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kBlock = 1024;             // a multiple of 4, as counters of drawn noise are
constexpr int64_t kSerialBelow = 65536;  // elements: a thread costs more than it brings

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The conversions have no branches and produce no subnormal floats on the way, so that they
// vectorise and do not depend on the flush-to-zero mode.
inline float from_half(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const float small = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
  const uint32_t large = magnitude + (magnitude < (31u << 23) ? 112u << 23 : 224u << 23);
  const uint32_t bits = magnitude < (1u << 23) ? bits_of(small) : large;
  return float_of(bits | static_cast<uint32_t>(half & 0x8000) << 16);
}

inline uint16_t to_half(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // units of 2^-24
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t special = magnitude > (255u << 23) ? 0x7e00u : 0x7c00u;  // NaN, infinity
  uint32_t half = magnitude < (113u << 23) ? small : normal;
  half = magnitude < (143u << 23) ? half : special;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

inline float from_bfloat(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

inline uint16_t to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > (255u << 23) ? nan : rounded);
}

// n elements of an operand as float32: where they lie, or converted into scratch.
const float* read(const Operand& operand, int64_t begin, int n, float* scratch) {
  if (operand.dtype == kFloat32) return static_cast<const float*>(operand.data) + begin;
  const uint16_t* source = static_cast<const uint16_t*>(operand.data) + begin;
  if (operand.dtype == kFloat16) {
#pragma omp simd
    for (int i = 0; i < n; ++i) scratch[i] = from_half(source[i]);
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) scratch[i] = from_bfloat(source[i]);
  }
  return scratch;
}

void write(const Operand& operand, int64_t begin, int n, const float* source) {
  if (operand.data == nullptr) return;
  if (operand.dtype == kFloat32) {
    float* target = static_cast<float*>(operand.data) + begin;
    if (target != source) std::memcpy(target, source, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* target = static_cast<uint16_t*>(operand.data) + begin;
  if (operand.dtype == kFloat16) {
#pragma omp simd
    for (int i = 0; i < n; ++i) target[i] = to_half(source[i]);
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) target[i] = to_bfloat(source[i]);
  }
}

struct Term {
  float weight;
  int column;
};

// out = (first ? 0 : out) + sum of N terms; out may be one of the terms' data.
template <int N, bool kFirst>
void add_terms(float* out, const Term* terms, const float* const* data, int n) {
  float weights[N];
  const float* from[N];
  for (int k = 0; k < N; ++k) weights[k] = terms[k].weight, from[k] = data[terms[k].column];
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    float sum = kFirst ? 0.0f : out[i];
    for (int k = 0; k < N; ++k) sum += weights[k] * from[k][i];
    out[i] = sum;
  }
}

template <bool kFirst>
void add_some(float* out, const Term* terms, int count, const float* const* data, int n) {
  if (count == 1) add_terms<1, kFirst>(out, terms, data, n);
  if (count == 2) add_terms<2, kFirst>(out, terms, data, n);
  if (count == 3) add_terms<3, kFirst>(out, terms, data, n);
  if (count >= 4) add_terms<4, kFirst>(out, terms, data, n);
}

void guide(float* e, const float* u, const float* c, float g, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) e[i] = u[i] + g * (c[i] - u[i]);
}

void clamp_and_gain(float* m, float lo, float hi, float gain, int n) {
  if (lo == -__builtin_inff() && hi == __builtin_inff()) {  // the gain alone
#pragma omp simd
    for (int i = 0; i < n; ++i) m[i] = gain * m[i];
    return;
  }
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    float value = m[i] < lo ? lo : m[i];  // a NaN stays a NaN
    value = value > hi ? hi : value;
    m[i] = gain * value;
  }
}

enum { kX, kM, kE, kZ, kH };  // columns of C

// A weighted sum with its zeros left out, and where it is computed.
struct Result {
  const Operand* out;  // null: nowhere
  bool in_place;       // in `out` itself: it is float32, and nothing is read from there
  int count;
  Term terms[kH + kMaxHistory];
};

void plan_result(const AffineStep& a, const Operand& out, const float* weights, int width,
                 Result* result) {
  bool is_operand = out.data == a.x.data || out.data == a.uncond.data || out.data == a.cond.data;
  is_operand = is_operand || out.data == a.noise.data;
  for (int r = 0; r < a.depth; ++r) is_operand = is_operand || out.data == a.history[r].data;
  result->out = &out;
  result->in_place = out.data != nullptr && out.dtype == kFloat32 && !is_operand;
  result->count = 0;
  for (int column = 0; column < width; ++column) {
    if (weights[column] != 0) result->terms[result->count++] = {weights[column], column};
  }
}

float* compute(const Result& result, const float* const* data, int64_t begin, int n,
               float* scratch) {
  float* out = result.in_place ? static_cast<float*>(result.out->data) + begin : scratch;
  if (result.count == 0) std::memset(out, 0, static_cast<size_t>(n) * sizeof(float));
  if (result.count > 0) add_some<true>(out, result.terms, result.count, data, n);
  for (int done = 4; done < result.count; done += 4) {
    add_some<false>(out, result.terms + done, result.count - done, data, n);
  }
  return out;
}

// What one row asks for; made once per row, not per block.
struct Row {
  const float* at;
  float g, lo, hi, gain, c_in;
  bool clamps, input_in_place;
  bool used[kH + kMaxHistory];  // columns of C that some result reads
  Result m, next, kept[kMaxKept];
  const Operand* slots[kMaxKept];  // history that a kept vector replaces; null: none
};

void use_columns(Row* row, const Result& result) {
  for (int k = 0; k < result.count; ++k) row->used[result.terms[k].column] = true;
}

void decode(const AffineStep& a, const float* at, Row* row) {
  const int width = kH + a.depth;
  const float* c = at + 7;
  const float* tail = c + (1 + a.keeps) * width;
  const float estimate[kH] = {at[1], 0, at[2], at[3]};
  row->at = at;
  row->g = at[0], row->lo = at[4], row->hi = at[5], row->gain = at[6], row->c_in = tail[0];
  row->clamps = row->lo > -__builtin_inff() || row->hi < __builtin_inff() || row->gain != 1;
  for (int column = 0; column < width; ++column) row->used[column] = false;
  plan_result(a, a.x_next, c, width, &row->next);
  use_columns(row, row->next);
  for (int p = 0; p < a.keeps; ++p) {
    const int slot = a.ring ? static_cast<int>(tail[1 + p]) : -1;
    row->slots[p] = slot < 0 ? nullptr : &a.history[slot];
    plan_result(a, a.kept[p], c + (1 + p) * width, width, &row->kept[p]);
    if (slot < 0 && a.kept[p].data == nullptr) row->kept[p].out = nullptr;
    if (row->kept[p].out != nullptr) use_columns(row, row->kept[p]);
  }
  plan_result(a, a.x0, estimate, kH, &row->m);
  row->used[kM] |= a.x0.data != nullptr;
  if (row->used[kM]) use_columns(row, row->m);
  Result input;
  plan_result(a, a.model_input, estimate, 0, &input);
  row->input_in_place = input.in_place;
}

// n elements of a sample from `offset` on.
void run_block(const AffineStep& a, const Row& row, int64_t sample, int64_t offset, int n,
               float (*scratch)[kBlock]) {
  const int64_t begin = sample * a.numel + offset;
  const float* data[kH + kMaxHistory];
  float* kept[kMaxKept];
  if (row.used[kX]) data[kX] = read(a.x, begin, n, *scratch++);
  if (row.used[kE]) {
    data[kE] = read(a.cond, begin, n, *scratch++);
    if (a.uncond.data != nullptr) {
      const float* u = read(a.uncond, begin, n, *scratch++);
      guide(*scratch, u, data[kE], row.g, n);
      data[kE] = *scratch++;
    }
  }
  if (row.used[kZ] && a.seeds != nullptr) {
    draw_normals(*scratch, offset, n, a.seeds[sample], a.noise_step, kStepStream);
    data[kZ] = *scratch++;
  } else if (row.used[kZ]) {
    data[kZ] = read(a.noise, begin, n, *scratch++);
  }
  for (int r = 0; r < a.depth; ++r) {
    if (row.used[kH + r]) data[kH + r] = read(a.history[r], begin, n, *scratch++);
  }
  if (row.used[kM]) {
    float* m = compute(row.m, data, begin, n, *scratch++);
    if (row.clamps) clamp_and_gain(m, row.lo, row.hi, row.gain, n);
    data[kM] = m;
  }
  for (int p = 0; p < a.keeps; ++p) {
    if (row.kept[p].out != nullptr) kept[p] = compute(row.kept[p], data, begin, n, *scratch++);
  }
  // From here on everything is computed, and what is also an operand may be written.
  const float* next = compute(row.next, data, begin, n, *scratch++);
  if (a.model_input.data != nullptr) {
    float* input = *scratch++;
    if (row.input_in_place) input = static_cast<float*>(a.model_input.data) + begin;
#pragma omp simd
    for (int i = 0; i < n; ++i) input[i] = row.c_in * next[i];
    write(a.model_input, begin, n, input);
  }
  if (row.used[kM]) write(a.x0, begin, n, data[kM]);
  write(a.x_next, begin, n, next);
  for (int p = 0; p < a.keeps; ++p) {
    if (row.kept[p].out == nullptr) continue;
    write(a.kept[p], begin, n, kept[p]);
    if (row.slots[p] != nullptr) write(*row.slots[p], begin, n, kept[p]);
  }
}

// Blocks [first, last) of the batch; blocks do not reach over the end of a sample.
void run_blocks(const AffineStep& a, int64_t first, int64_t last, int64_t per_sample) {
  // x, cond, uncond, e, noise, m, x', model input; R operands and P results.
  alignas(64) float scratch[8 + kMaxHistory + kMaxKept][kBlock];
  Row row;
  row.at = nullptr;
  for (int64_t block = first; block < last; ++block) {
    const int64_t sample = block / per_sample, offset = block % per_sample * kBlock;
    const float* at = a.rows + sample * a.row_stride;
    if (at != row.at) decode(a, at, &row);
    const int64_t left = a.numel - offset;
    run_block(a, row, sample, offset, static_cast<int>(left < kBlock ? left : kBlock), scratch);
  }
}

}  // namespace

void affine_step(const AffineStep& a, int threads) {
  const int64_t per_sample = (a.numel + kBlock - 1) / kBlock, blocks = a.samples * per_sample;
  if (a.samples * a.numel < kSerialBelow || threads < 2) {
    run_blocks(a, 0, blocks, per_sample);
    return;
  }
  const int64_t parts = threads < blocks ? threads : blocks;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    run_blocks(a, blocks * part / parts, blocks * (part + 1) / parts, per_sample);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
