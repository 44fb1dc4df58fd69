"""A host of the step's graph: what a plan's JSON says, and nothing else of fastdiff but its noise.

And a network small enough to be written twice, in ONNX and in PyTorch:

    out = tanh(W * sample) (1 + timestep / 1000) + mean of the sample's text

with W a convolution of 3x3, 2 channels to 2.
"""

import json

import numpy as np
import onnxruntime
import torch
from onnx import numpy_helper, parser

from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal

SHAPE = 2, 6, 5  # of a sample
WEIGHTS = np.random.default_rng(0).normal(0, 0.3, (2, 2, 3, 3)).astype(np.float32)
NETWORK = """<ir_version: 10, opset_import: ["" : {opset}]>
network ({kind}[batch, 2, height, width] sample, {time}[batch] timestep,
         {kind}[batch, tokens, 4] encoder_hidden_states)
     => ({kind}[batch, 2, height, width] out_sample)
{{
    noise = Conv <pads = [1, 1, 1, 1]> (sample, weight)
    bent = Tanh (noise)
    thousand = Constant <value_float = 1000.0> ()
    one = Constant <value_float = 1.0> ()
    wide = Cast <to = 1> (timestep)
    part = Div (wide, thousand)
    more = Add (part, one)
    cast = Cast <to = {number}> (more)
    axes = Constant <value_ints = [1, 2, 3]> ()
    each = Unsqueeze (cast, axes)
    times = Mul (bent, each)
    beside = Constant <value_ints = [1, 2]> ()
    words = ReduceMean <keepdims = 0> (encoder_hidden_states, beside)
    place = Unsqueeze (words, axes)
    out_sample = Add (times, place)
}}"""


def network(dtype="float", opset=21, time="float"):
    """The network as ONNX; a value within is called "noise", as the step's input is."""
    number = {"float": 1, "float16": 10}[dtype]
    text = NETWORK.format(kind=dtype, opset=opset, time=time, number=number)
    model = parser.parse_model(text)
    narrow = WEIGHTS.astype({"float": np.float32, "float16": np.float16}[dtype])
    model.graph.initializer.append(numpy_helper.from_array(narrow, "weight"))
    return model


def denoiser(text, guided, dtype=torch.float64):
    """The same network in PyTorch, as fastdiff.sample calls it; text (2 B or B, tokens, 4)."""
    weight = torch.from_numpy(WEIGHTS).to(dtype)
    words = torch.from_numpy(text).to(dtype).mean((1, 2)).reshape(-1, 1, 1, 1)

    def run(x, t):
        t = t.to(torch.float32).reshape(-1)
        x, t = (torch.cat([x, x]), torch.cat([t, t])) if guided else (x, t)
        if len(t) == 2:  # one time for all samples
            t = t[:1]
        bent = torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1))
        out = bent * (t / 1000 + 1).to(dtype).reshape(-1, 1, 1, 1) + words
        return tuple(out.chunk(2)) if guided else out

    return run


def session(model):
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)


def table(plan):
    """float32 [steps, 1 or batch, K] from the JSON, where an infinite clamp is a string."""
    return np.array(plan["rows"], dtype=object).astype(np.float64).astype(np.float32)


def sample(step, plan_text, text, seeds, shape=SHAPE, dirty=False):
    """Run a plan's JSON; returns float32 (B, *shape).  dirty: what is not read holds NaN."""
    plan = json.loads(plan_text)
    seeds, batch = torch.tensor(seeds), len(seeds)
    fill = np.nan if dirty else 0.0

    def each(numbers, axes):
        return np.asarray(numbers, np.float32).reshape(-1, *[1] * axes)

    x = philox_normal(seeds, shape).numpy() * each(plan["noise_scale"], len(shape))
    history = np.full((sum(plan["depths"]), batch, *shape), fill, np.float32)
    steps = len(plan["timesteps"])
    fixed = {
        "table": table(plan),
        "timesteps": np.asarray(plan["timesteps"], np.float32).reshape(steps, -1),
        "c_in": np.asarray(plan["c_in"], np.float32).reshape(-1),
        "encoder_hidden_states": text,
    }
    for row in range(steps):
        if np.any(plan["draw"][row]):
            noise = philox_normal(seeds, shape, noise_step=row, stream=STEP_STREAM).numpy()
        else:
            noise = np.full(x.shape, fill, np.float32)
        feeds = {"x": x, "history": history, "noise": noise, "row": np.array(row), **fixed}
        x, _, history = step.run(["x_next", "x0", "history_next"], feeds)
    return x
