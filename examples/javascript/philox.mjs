// Normal noise of a seed: the formula of fastdiff/ops/philox_normal.py, in doubles.
//
// Numbers in JavaScript are doubles, so 32-bit products are put together from 16-bit halves.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
export const STEP_STREAM = 1; // the noise that a row draws; 0 is what sampling starts from

// The high 32 bits of a product of two 32-bit numbers.
function high(a, b) {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  return a1 * b1 + Math.floor(middle / 65536) + ((a0 * b1 + (middle & 0xffff)) >>> 16);
}

// Philox4x32-10 (Salmon et al. 2011): four random words of a key and a counter.
export function words([k0, k1], [c0, c1, c2, c3]) {
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [high(MULTIPLIERS[0], c0), Math.imul(MULTIPLIERS[0], c0)];
    const [high1, low1] = [high(MULTIPLIERS[1], c2), Math.imul(MULTIPLIERS[1], c2)];
    [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0].map((word) => word >>> 0);
    [k0, k1] = [(k0 + KEY_STEPS[0]) >>> 0, (k1 + KEY_STEPS[1]) >>> 0];
  }
  return [c0, c1, c2, c3];
}

// `count` numbers, as Float32Array; seed a whole number that a double holds, step of the table.
export function normal(seed, count, step = 0, stream = 0) {
  const whole = 2 ** 32;
  const key = [seed - Math.floor(seed / whole) * whole, Math.floor(seed / whole) >>> 0];
  const noise = new Float32Array(count);
  for (let i = 0; i < count; i += 4) {
    const w = words(key, [i / 4, step, stream, 0]);
    for (const pair of [0, 2]) {
      const radius = Math.sqrt(-2 * Math.log((w[pair] + 0.5) / whole));
      const angle = (2 * Math.PI * w[pair + 1]) / whole;
      noise[i + pair] = radius * Math.cos(angle); // beyond the end of an array nothing is written
      noise[i + pair + 1] = radius * Math.sin(angle);
    }
  }
  return noise;
}
