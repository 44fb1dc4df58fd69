// From token ids to a PNG with a bundle of `fastdiff export` on ONNX Runtime, without Python.
//
//   node generate.mjs BUNDLE --ids 299,300,.. --negative-ids 298,299,.. --seed 0
//       --sampler dpmpp_2m-20 --out picture.png
//
// The bundle is of fp32, with graphs text_encoder, step and vae_decoder.  All noise is that of
// `fastdiff generate --noise philox`, so the pictures are the same.  What the graph of a step reads
// is described in fastdiff/engine/step.py, a sampler's plan in fastdiff/plan_file.py.

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";

import { open } from "./bundle.mjs";
import { STEP_STREAM, normal } from "./philox.mjs";
import { png } from "./png.mjs";

const { positionals, values: options } = parseArgs({
  allowPositionals: true,
  options: {
    ids: { type: "string" }, // of the prompt, with what the tokenizer puts around them
    "negative-ids": { type: "string" }, // of the negative prompt, or of none; with guidance
    seed: { type: "string", default: "0" },
    sampler: { type: "string", default: "dpmpp_2m-20" },
    height: { type: "string" }, // of the picture; as the model was trained if left out
    width: { type: "string" },
    out: { type: "string", default: "out.png" },
  },
});
if (positionals.length !== 1 || !options.ids) {
  throw new Error("usage: node generate.mjs BUNDLE --ids 299,300,.. [--negative-ids 298,299,..]");
}
const seed = whole("--seed", options.seed);
const bundle = open(positionals[0]);
const { model, graphs } = bundle.manifest;
const plan = await bundle.plan(options.sampler);
const steps = plan.timesteps.length;
if (bundle.manifest.dtype !== "fp32") {
  throw new Error(`the bundle must be of fp32 for this example; got ${bundle.manifest.dtype}`);
}

const text = await session("text_encoder");
const rows = plan.guided ? [options["negative-ids"], options.ids] : [options.ids];
const ids = rows.map((list, i) => tokens(i < rows.length - 1 ? "--negative-ids" : "--ids", list));
if (ids.some((row) => row.length !== ids[0].length)) {
  throw new Error(`--negative-ids must be as many as --ids, ${ids.at(-1).length}; got ${ids[0].length}`);
}
const input_ids = new ort.Tensor("int64", BigInt64Array.from(ids.flat()), [ids.length, ids[0].length]);
const { last_hidden_state } = await text.run({ input_ids });
await text.release();

const channels = graphs.step.inputs.find((port) => port.name === "x").shape[1];
const [height, width] = [side("height"), side("width")]; // of the latent
const shape = [1, channels, height, width];
const size = channels * height * width;
const slots = plan.depths.reduce((sum, depth) => sum + depth, 0);

// The sampler: what never changes, what a step returns, and the number of the row.
const fixed = {
  table: tensor(plan.rows, [steps, -1, plan.rows[0][0].length]),
  timesteps: tensor(plan.timesteps, [steps, -1]),
  c_in: tensor(plan.c_in, [-1]),
  encoder_hidden_states: last_hidden_state,
};
let x = tensor(normal(seed, size).map((z) => z * [plan.noise_scale].flat()[0]), shape);
let history = tensor(new Float32Array(slots * size), [slots, ...shape]);
const none = tensor(new Float32Array(size), shape);
const step = await session("step");
for (let i = 0; i < steps; i++) {
  const row = new ort.Tensor("int64", BigInt64Array.of(BigInt(i)), []);
  const draws = [plan.draw[i]].flat()[0];
  const noise = draws ? tensor(normal(seed, size, i, STEP_STREAM), shape) : none;
  const out = await step.run({ ...fixed, x, history, noise, row });
  [x, history] = [out.x_next, out.history_next];
  process.stderr.write(`\rstep ${i + 1} of ${steps}${i + 1 < steps ? "" : "\n"}`);
}
await step.release();

const decoder = await session("vae_decoder");
const latent = x.data.map((value) => value / model.scaling_factor + model.shift_factor);
const { sample } = await decoder.run({ latent_sample: tensor(latent, shape) });
writeFileSync(options.out, png(sample.data, sample.dims[2], sample.dims[3]));

async function session(graph) {
  return ort.InferenceSession.create(await bundle.graph(graph));
}

// float32 of (nested) numbers; -1 is the axis whose size is left over.  JSON has no infinity.
function tensor(numbers, shape) {
  const infinite = { inf: Infinity, "-inf": -Infinity };
  const flat = ArrayBuffer.isView(numbers)
    ? numbers
    : Float32Array.from([numbers].flat(Infinity), (value) => infinite[value] ?? value);
  const known = shape.reduce((product, axis) => (axis < 0 ? product : product * axis), 1);
  return new ort.Tensor("float32", flat, shape.map((axis) => (axis < 0 ? flat.length / known : axis)));
}

function side(name) {
  if (!options[name]) return model.config.sample_size;
  const unit = bundle.manifest.profiles[0][name].multiple * model.vae_scale;
  const pixels = whole(`--${name}`, options[name]);
  if (!pixels || pixels % unit) {
    throw new Error(`--${name} must be a multiple of ${unit}; got ${pixels}`);
  }
  return pixels / model.vae_scale;
}

function tokens(option, list) {
  if (!list) throw new Error(`${option} must be given, for the sampler has guidance`);
  return list.split(",").map((word) => BigInt(whole(option, word)));
}

function whole(option, word) {
  const number = Number(word);
  if (!/^\d+$/.test(word.trim()) || !Number.isSafeInteger(number)) {
    throw new Error(`${option} must be a whole number; got ${word}`);
  }
  return number;
}
