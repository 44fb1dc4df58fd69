"""`fastdiff doctor`: each trap in a folder that has it and nothing else, and none in folders that
are as their authors publish them; what cannot be read is named."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from fastdiff.cli import UserError
from fastdiff.cli.doctor import collect, print_doctor
from fastdiff.cli.model import built_in
from fastdiff.doctor import SEVERITIES, TRAPS
from fastdiff.doctor.defaults import defaults

DPM, DDIM, EULER = "DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"
UNIPC, FLOW = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
SD: dict[str, Any] = {  # Stable Diffusion 1.5, as published
    "scheduler": (
        "PNDMScheduler",
        {
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "clip_sample": False,
        },
    ),
    "unet": ("UNet2DConditionModel", {"in_channels": 4, "cross_attention_dim": 768}),
    "vae": ("AutoencoderKL", {"block_out_channels": [128, 256, 512, 512]}),
}
XL: dict[str, Any] = {  # XL with the mended VAE, and without what its scheduler's config inherits
    "scheduler": (EULER, {"timestep_spacing": "leading", "steps_offset": 1}),
    "unet": ("UNet2DConditionModel", {"addition_embed_type": "text_time"}),
    "vae": ("AutoencoderKL", {"scaling_factor": 0.13025, "force_upcast": False,
                              "_name_or_path": "madebyollin/sdxl-vae-fp16-fix"}),
}  # fmt: skip
FLUX: dict[str, Any] = {
    "scheduler": (FLOW, {"shift": 1.0}),
    "transformer": ("FluxTransformer2DModel", {"guidance_embeds": False}),
    "vae": ("AutoencoderKL", {"scaling_factor": 0.3611}),
}
DEV = FLUX | {"transformer": ("FluxTransformer2DModel", {"guidance_embeds": True})}
SD3 = FLUX | {"transformer": ("SD3Transformer2DModel", {})}
SANA: dict[str, Any] = {
    "scheduler": ("SCMScheduler", {"prediction_type": "trigflow", "sigma_data": 0.5}),
    "transformer": ("SanaTransformer2DModel", {"guidance_embeds": True}),
    "vae": ("AutoencoderDC", {}),
}
LCM = SD | {  # whose class has an offset, 0, and does not heed it
    "unet": (SD["unet"][0], SD["unet"][1] | {"time_cond_proj_dim": 256}),
    "scheduler": ("LCMScheduler", {"steps_offset": 0, "clip_sample": False}),
}
TURBO = {"unet": (XL["unet"][0], XL["unet"][1] | {"_name_or_path": "stabilityai/sdxl-turbo"})}
ANCESTRAL = ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"})


def folder(path: Path, parts: dict[str, Any]) -> Path:
    """A pipeline's configs; a part is (class, config) or (class, config, library)."""
    index: dict[str, Any] = {"_class_name": "AnyPipeline"}
    for name, (cls, config, *library) in parts.items():
        index[name] = [*(library or ["diffusers"]), cls]
        (path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (path / name / file).write_text(json.dumps(config))
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def scheduler(of: dict[str, Any], cls: str, *library: str, **config: Any) -> dict[str, Any]:
    return of | {"scheduler": (cls, {"steps_offset": 1, "clip_sample": False} | config, *library)}


def changed(of: dict[str, Any], part: str, **config: Any) -> dict[str, Any]:
    return of | {part: (of[part][0], of[part][1] | config)}


@pytest.mark.parametrize(
    "parts",
    [SD, XL, FLUX, SANA, XL | TURBO | {"scheduler": ANCESTRAL}, {"unet": ("UNet2DModel", {})}, LCM],
)
def test_nothing_is_found_where_nothing_is_wrong(tmp_path, parts, capsys):
    assert collect(folder(tmp_path, parts))["findings"] == []
    assert print_doctor(tmp_path) is False
    assert "no known traps" in capsys.readouterr().out


def test_nothing_is_wrong_with_the_built_in_model():
    assert collect(built_in())["findings"] == []


# trap, folder, --recipe, severity, field, value, a part of what would do
FOUND: list[tuple[str, dict[str, Any], str | None, str, str, Any, str]] = [
    ("few-step-spacing", XL | TURBO | {"scheduler": (ANCESTRAL[0], {"steps_offset": 1})}, None,
     "error", "timestep_spacing", "linspace", "'trailing', as fastdiff.few_step(pipe, 'sdxl-tu"),
    ("few-step-spacing", XL, "sdxl-lightning", "error", "timestep_spacing", "leading", "trailing"),
    ("few-step-scheduler", changed(SD, "unet", time_cond_proj_dim=256), None,
     "warning", "scheduler", "PNDMScheduler", "LCMScheduler: fastdiff.few_step(pipe, 'lcm'"),
    ("few-step-option", changed(FLUX, "scheduler", use_dynamic_shifting=True), None,
     "error", "use_dynamic_shifting", True, "False"),
    ("few-step-prediction", scheduler(SD, "LCMScheduler", prediction_type="v_prediction"),
     "lcm-lora", "error", "prediction_type", "v_prediction", "epsilon"),
    ("few-step-network", scheduler(SD, EULER, timestep_spacing="trailing"), "sdxl-lightning",
     "error", "addition_embed_type, time_cond_proj_dim",
     {"addition_embed_type": None, "time_cond_proj_dim": None}, "Stable Diffusion XL"),
    ("set-alpha-to-one", scheduler(XL, DDIM, set_alpha_to_one=False, timestep_spacing="leading"),
     None, "warning", "set_alpha_to_one", False, "true"),
    ("set-alpha-to-one", scheduler(XL, "PNDMScheduler"), None,
     "warning", "set_alpha_to_one", False, "true"),  # by the class's default
    ("set-alpha-to-one", changed(XL, "scheduler", set_alpha_to_one=False), None,
     "note", "set_alpha_to_one", False, "from_config inherits it"),
    ("clip-sample", SD | {"scheduler": (DDIM, {"steps_offset": 1})}, None,
     "error", "clip_sample", True, "false"),  # by the class's default
    ("clip-sample", changed(XL, "scheduler", clip_sample=True), None,
     "note", "clip_sample", True, "others inherit it"),
    ("thresholding", scheduler(SD, DDIM, thresholding=True), None,
     "error", "thresholding", True, "false"),
    ("steps-offset", scheduler(SD, EULER, timestep_spacing="leading", steps_offset=0), None,
     "warning", "steps_offset", 0, "1"),
    ("zero-snr-epsilon", scheduler(SD, EULER, rescale_betas_zero_snr=True), None,
     "error", "rescale_betas_zero_snr", True, "v_prediction"),
    ("zero-snr-spacing",
     scheduler(SD, DDIM, rescale_betas_zero_snr=True, prediction_type="v_prediction"), None,
     "warning", "timestep_spacing", "leading", "trailing"),
    ("two-spacings", scheduler(SD, DPM, use_karras_sigmas=True, use_beta_sigmas=True), None,
     "error", "use_karras_sigmas, use_beta_sigmas", True, "one of them"),
    ("unipc-bh1-nan", scheduler(SD, UNIPC, solver_type="bh1"), None,
     "error", "solver_type", "bh1", "bh2"),
    ("unipc-order-nan", scheduler(SD, UNIPC, lower_order_final=False), None,
     "error", "lower_order_final", False, "true"),
    ("third-order-nan",
     scheduler(SD, DPM, solver_order=3, use_karras_sigmas=True, final_sigmas_type="sigma_min"),
     None, "error", "final_sigmas_type", "sigma_min", "zero"),
    ("sde-third-order-crash",
     scheduler(SD, DPM, solver_order=3, algorithm_type="sde-dpmsolver"), None,
     "error", "solver_order", 3, "solver_order 2"),
    ("sde-third-order-sign",
     scheduler(SD, DPM, solver_order=3, algorithm_type="sde-dpmsolver++"), None,
     "warning", "solver_order", 3, "exact"),
    ("cosine-karras",
     scheduler(SD, DPM, beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), None,
     "error", "use_karras_sigmas", True, "false"),
    ("unipc-noise-nan", scheduler(SD, UNIPC, predict_x0=False), None,
     "error", "predict_x0", False, "true"),
    ("flow-spacing-nan",
     scheduler(FLUX, DPM, use_flow_sigmas=True, use_beta_sigmas=True, clip_sample=False)
     | {"transformer": ("FluxTransformer2DModel", {"guidance_embeds": True})}, None,
     "error", "use_beta_sigmas", True, "fastdiff's class"),
    ("flow-last-level", scheduler(FLUX, "DEISMultistepScheduler", use_flow_sigmas=True)
     | {"transformer": ("FluxTransformer2DModel", {"guidance_embeds": True})}, None,
     "warning", "use_flow_sigmas", True, "exact"),
    ("learned-variance", scheduler(SD, DPM, variance_type="learned_range"), None,
     "error", "variance_type", "learned_range", "null"),
    ("ddim-previous-timestep", scheduler(SD, DDIM, timestep_spacing="linspace"), None,
     "warning", "timestep_spacing", "linspace", "leading"),
    ("ddim-previous-timestep", scheduler(SD, DDIM, timestep_spacing="trailing"), None,
     "note", "timestep_spacing", "trailing", "leading"),
    ("scheduler-module", scheduler(SD, EULER, "fastdiff"), None,
     "note", "scheduler", ["fastdiff", EULER], "import fastdiff before"),
    ("scheduler-module", scheduler(SD, "Own", "own.module"), None,
     "warning", "scheduler", ["own.module", "Own"], "import own before"),
    ("scheduler-class", changed(SD, "scheduler", _class_name=EULER), None,
     "note", "_class_name", EULER, "PNDMScheduler"),
    ("vae-float16", changed(XL, "vae", _name_or_path="."), None,
     "warning", "force_upcast", False, "sdxl-vae-fp16-fix"),
    ("vae-float16", changed(XL, "vae", _name_or_path=".", force_upcast=True), None,
     "note", "force_upcast", True, "float32"),
    ("vae-scaling-factor", XL | {"vae": SD["vae"]}, None,
     "error", "scaling_factor", 0.18215, "0.13025"),  # by the class's default
    ("vae-scaling-factor", changed(SD, "vae", scaling_factor=0.13025), None,
     "error", "scaling_factor", 0.13025, "0.18215"),
    ("noise-family",
     changed(FLUX, "transformer", guidance_embeds=True) | {"scheduler": (EULER, {})},
     None, "error", "scheduler", EULER, FLOW),
    ("noise-family", SD | {"scheduler": (FLOW, {})}, None, "warning", "scheduler", FLOW, "betas"),
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND, ids=lambda case: f"{case[0]}-{case[3]}")
def test_a_trap_is_found_and_no_other(tmp_path, case):
    name, parts, recipe, severity, field, has, would = case
    findings = collect(folder(tmp_path, parts), recipe)["findings"]
    others = {"few-step-scheduler", "set-alpha-to-one"} if recipe else set()
    assert [f["name"] for f in findings if f["name"] not in others - {name}] == [name]
    finding = next(f for f in findings if f["name"] == name)
    assert (finding["severity"], finding["field"], finding["has"]) == (severity, field, has)
    assert would in finding["would_do"]
    assert (tmp_path / finding["file"]).is_file()
    assert finding["source"]


def test_a_scheduler_that_was_saved_as_nothing(tmp_path):
    folder(tmp_path, {k: v for k, v in SD.items() if k != "scheduler"})
    index = json.loads((tmp_path / "model_index.json").read_text()) | {"scheduler": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert [f["name"] for f in collect(tmp_path)["findings"]] == ["scheduler-missing"]


def test_every_trap_has_its_case():
    assert {case[0] for case in FOUND} | {"scheduler-missing"} == {trap.name for trap in TRAPS}
    assert len({trap.name for trap in TRAPS}) == len(TRAPS)
    assert {trap.severity for trap in TRAPS} <= set(SEVERITIES)


@pytest.mark.parametrize(
    ("name", "parts", "recipe"),
    [
        ("my-sdxl-lightning-4step", XL, "sdxl-lightning"),
        ("Hyper-SD_1step", XL, "hyper-sd-1step"),
        ("dmd2-1step", XL, "dmd2-1step"),
        ("sd-turbo", SD, "sd-turbo"),
        ("sdxl-lightning", SD, None),  # another network: no such checkpoint
        ("lcm-lora", SD, "lcm-lora"),
        ("anything", FLUX, "flux-schnell"),
        ("anything", SANA, "sana-sprint"),
        ("anything", DEV, None),
        ("Hyper-FLUX.1-dev-8steps", DEV, "hyper-flux"),
        ("Hyper-SD3-8steps-CFG", SD3, "hyper-sd3"),
        ("pcm_deterministic_4step_shift1", SD3, "pcm-sd3"),
        ("pcm_deterministic_4step_shift3", SD3, "pcm-sd3-shift3"),
        ("pcm_stochastic_shift3", SD3, "pcm-sd3-stochastic"),
    ],
)
def test_the_checkpoint_is_guessed(tmp_path, name, parts, recipe):
    (tmp_path / name).mkdir()
    assert collect(folder(tmp_path / name, parts))["recipe"] == recipe


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_index.json", None, r"PIPE must be the folder .*model_index.json; got"),
        ("model_index.json", "{", r"model_index.json' must hold JSON"),
        ("model_index.json", "[1]", r"model_index.json' must hold a JSON object; got a list"),
        ("model_index.json", '{"scheduler": "DDIM"}', r"scheduler in .*must be \[library, class\]"),
        ("scheduler/scheduler_config.json", None, r"scheduler_config.json' is absent"),
        ("unet/config.json", None, r"unet/config.json' is absent, though model_index.json names"),
        ("vae/config.json", "\0", r"vae/config.json' must hold JSON"),
        ("vae/config.json", "[" * 100_000, r"vae/config.json' must hold JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, file, text, message):
    folder(tmp_path, SD)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        collect(tmp_path)


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"recipe must be one of lcm, .*got 'turbo'"):
        collect(folder(tmp_path, SD), "turbo")


def run(*arguments: str) -> Any:
    program = [sys.executable, "-c", "from fastdiff.cli import main; main()", "doctor", *arguments]
    return subprocess.run(program, capture_output=True, text=True)


def test_the_command(tmp_path, capsys):
    path = folder(tmp_path, changed(XL, "scheduler", set_alpha_to_one=False))
    found = run(str(path), "--json")
    assert found.returncode == 1, found.stderr
    assert json.loads(found.stdout) == collect(path)
    assert json.loads(found.stdout)["schema"] == 1
    absent = run(str(path / "nowhere"))
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr.startswith("error: PIPE must be")
    assert print_doctor(path) is True
    text = capsys.readouterr().out
    assert "note: set-alpha-to-one\n  scheduler/scheduler_config.json: set_alpha_to_one" in text
    assert "1 known trap\n" in text


@pytest.mark.parametrize("name", [DPM, DDIM, EULER, UNIPC, FLOW, "UNet2DConditionModel"])
def test_defaults_are_those_of_the_class(name):
    """Read from the source; what is no literal there counts as None."""
    parameters = inspect.signature(getattr(diffusers, name)).parameters.values()
    has = {a.name: a.default for a in parameters if a.default is not a.empty}
    found = defaults(name)
    assert found.keys() == has.keys()
    assert {k for k, v in has.items() if found[k] != v} <= {"lambda_min_clipped"}  # -float("inf")
    assert defaults("NoSuchScheduler") == defaults("../x") == {}


@pytest.mark.parametrize(
    "config",
    [{"solver_type": "bh1"}, {"lower_order_final": False}, {"predict_x0": False}],
)
def test_what_our_class_mends_is_no_trap_in_it(tmp_path, config):
    parts = scheduler(SD, UNIPC, "fastdiff", **config)
    names = [f["name"] for f in collect(folder(tmp_path, parts))["findings"]]
    assert names == ["scheduler-module"]
