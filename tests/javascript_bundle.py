"""A bundle for the example in JavaScript, of networks so small that they are written by hand.

    text      rows of a table by token
    network   tests/step_host.py's
    picture   tanh(W * latent), W a convolution of 1x1

The latent is neither scaled by 1 nor centred at 0, so that a host must read the manifest.
"""

import numpy as np
import torch
from onnx import numpy_helper, parser

import fastdiff
from fastdiff.engine import bundle
from fastdiff.engine.export import _port
from fastdiff.engine.step import step_model
from tests import step_host

SIDE, SCALE, SHIFT = 8, 0.5, 0.1
PLANS = {
    "euler_a-5": {"guidance": 3.0, "prediction": "v_prediction"},
    "unipc_2-4": {"prediction": "v_prediction"},
    "ddim-3": {"guidance": 2.0},
}
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
TEXT = """text (int64[batch, tokens] input_ids) => (float[batch, tokens, 4] last_hidden_state) {
    last_hidden_state = Gather (words, input_ids)
}"""
DECODER = """decoder (float[batch, 2, height, width] latent_sample)
    => (float[batch, 3, height, width] sample) {
    mixed = Conv (latent_sample, mix)
    sample = Tanh (mixed)
}"""
RANDOM = np.random.default_rng(5)
WORDS = RANDOM.normal(0, 1, (9, 4)).astype(np.float32)
MIX = RANDOM.normal(0, 0.3, (3, 2, 1, 1)).astype(np.float32)


def graph(text, **weights):
    model = parser.parse_model(HEAD + text)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return model


def write(out):
    """The bundle, with a plan of each of PLANS."""
    models = {
        "unet": step_host.network(),
        "step": step_model(step_host.network()),
        "text_encoder": graph(TEXT, words=WORDS),
        "vae_decoder": graph(DECODER, mix=MIX),
    }
    with bundle.writing(out) as folder:
        graphs, samplers = {}, {}
        for name, model in models.items():
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
            ports = [[*map(_port, ports)] for ports in (model.graph.input, model.graph.output)]
            graphs[name] = dict(zip(("inputs", "outputs"), ports, strict=True))
            graphs[name] |= {"file": f"{name}.onnx", "opset": 21}
        for name in PLANS:
            samplers[name] = f"sampler-{name}.json"
            plan(name).save(folder / samplers[name])
        model = {"kind": "UNet2DConditionModel", "config": {"sample_size": SIDE}}
        model |= {"config_sha256": "0" * 64, "weights_sha256": "1" * 64, "vae_scale": 1}
        model |= {"scaling_factor": SCALE, "shift_factor": SHIFT}
        axis = {"min": 2, "opt": 2, "max": 64, "multiple": 2}
        bundle.finish(
            folder,
            fastdiff="0.0",
            target={"name": "onnxruntime", "version": "1.22.0", "os": "linux", "machine": "x86_64"},
            dtype="fp32",
            model=model,
            profiles=[dict.fromkeys(("batch", "height", "width", "tokens"), axis)],
            graphs=graphs,
            samplers=samplers,
        )
    return out


def plan(name):
    solver, _, steps = name.partition("-")
    return fastdiff.plan(solver, steps=int(steps), **PLANS[name])


def picture(name, ids, negative, seed):
    """(side, side, 3) bytes: what the bundle's networks make in PyTorch."""
    made = plan(name)
    rows = [negative, ids] if made.guided else [ids]
    denoise = step_host.denoiser(WORDS[np.array(rows)], made.guided, torch.float32)
    shape = (2, SIDE, SIDE)
    with torch.no_grad():
        x = fastdiff.sample(denoise, "philox", made, seeds=[seed], shape=shape)
        mixed = torch.nn.functional.conv2d(x / SCALE + SHIFT, torch.from_numpy(MIX))
    levels = (torch.tanh(mixed) / 2 + 0.5).clamp(0, 1).mul(255).round()
    return levels[0].permute(1, 2, 0).numpy().astype(int)
