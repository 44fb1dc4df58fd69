// CPU kernel of philox_normal (arithmetic: philox_normal.inl).
//
// Bound by arithmetic, some 30 integer and 20 float operations an element. So each stage is a loop
// over 64 counters in arrays of their own, which vectorises; what a lot of 256 elements needs stays
// in the first-level cache. Elements do not depend on each other: the bits are the same for every
// vector width and number of threads.
#include "philox_normal.h"

#include "philox_normal.inl"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kCounters = 64;
constexpr int kLot = 4 * kCounters;      // elements drawn together
constexpr int64_t kPiece = 16 * kLot;    // elements that a thread takes at a time
constexpr int64_t kSerialBelow = 65536;  // elements: a thread costs more than it brings

void draw_lot(float* out, uint32_t block, uint64_t seed, uint32_t step, uint32_t stream) {
  alignas(64) uint32_t w[4][kCounters];
  alignas(64) float z[4][kCounters];
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
#pragma omp simd
  for (int j = 0; j < kCounters; ++j) {
    uint32_t c0 = block + static_cast<uint32_t>(j), c1 = step, c2 = stream, c3 = 0;
    philox::words(low, high, c0, c1, c2, c3);
    w[0][j] = c0, w[1][j] = c1, w[2][j] = c2, w[3][j] = c3;
  }
  for (int pair = 0; pair < 4; pair += 2) {
#pragma omp simd
    for (int j = 0; j < kCounters; ++j) {
      philox::normals(w[pair][j], w[pair + 1][j], z[pair][j], z[pair + 1][j]);
    }
  }
  for (int j = 0; j < kCounters; ++j) {
    for (int k = 0; k < 4; ++k) out[4 * j + k] = z[k][j];
  }
}

}  // namespace

void draw_normals(float* out, int64_t first, int64_t count, int64_t seed, uint32_t step,
                  uint32_t stream) {
  alignas(64) float rest[kLot];
  for (int64_t done = 0; done < count; done += kLot) {
    const int64_t left = count - done;
    float* to = left < kLot ? rest : out + done;
    draw_lot(to, static_cast<uint32_t>((first + done) / 4), static_cast<uint64_t>(seed), step,
             stream);
    if (left < kLot) std::memcpy(out + done, rest, static_cast<size_t>(left) * sizeof(float));
  }
}

void philox_normal(const PhiloxNormal& a, int threads) {
  const int64_t per_sample = (a.numel + kPiece - 1) / kPiece, pieces = a.samples * per_sample;
  const bool serial = a.samples * a.numel < kSerialBelow || threads < 2;
  const int64_t parts = serial ? 1 : threads < pieces ? threads : pieces;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t p = pieces * part / parts; p < pieces * (part + 1) / parts; ++p) {
      const int64_t sample = p / per_sample, first = p % per_sample * kPiece;
      const int64_t left = a.numel - first;
      draw_normals(a.out + sample * a.numel + first, first, left < kPiece ? left : kPiece,
                   a.seeds[sample], a.step, a.stream);
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
