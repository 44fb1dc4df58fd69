"""`fastdiff generate`: prompts to pictures, and a record from which the run can be repeated.

Picture j of a prompt starts from noise of its own generator, seeded seed + j, which also feeds the
solver where it draws noise; so it does not depend on count or batch (but for the last bits of the
network's arithmetic).  With --noise philox it starts from philox_normal of that seed, and so does
what the solver draws: numbers that a program without PyTorch makes, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError, engines, model, pictures
from fastdiff.cli import record as records
from fastdiff.plan import Plan, plan
from fastdiff.registry import find
from fastdiff.schedules.config import default_spacing
from fastdiff.shapes.fingerprint import weights_hash

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

SEEDS = 2**63  # a generator's seed is a signed 64-bit number
NOISES = ("diffusers", "philox")


@dataclass(frozen=True)
class Request:
    """The options of a run; `made`, `weights` and `made_with` are plan, hash and engine of a
    run to repeat."""

    prompts: list[str]
    sampler: str = "dpmpp_2m"
    steps: int = 20
    seed: int = 0
    count: int = 1
    out: Path = Path("out")
    guidance: float | None = None
    spacing: str | None = None
    negative_prompt: str = ""
    scale: int = 1
    sheet: bool = True
    model: Path | None = None
    batch: int = 8
    device: str = "cpu"
    few_step: int | None = None
    engine: Path | None = None
    trust_engine: bool = False
    noise: str = NOISES[0]
    made: Plan | None = None
    weights: str | None = None
    made_with: dict[str, str] | None = None

    @staticmethod
    def of_record(path: Path, out: Path, trust_engine: bool = False) -> Request:
        """The run that a generate.json records, into another folder.

        trust_engine is never taken from a record: it is for whoever runs this to say.
        """
        return Request(**records.read(path), out=out, trust_engine=trust_engine)

    def check(self) -> None:
        """Everything that can be said before the networks are loaded."""
        if not self.prompts or not all(p.strip() for p in self.prompts):
            raise UserError("the prompt must not be empty; try 'a red circle above a blue square'")
        if self.few_step is not None:
            self._check_few_step()
        if self.engine is not None:
            out, bundle = self.out.resolve(), self.engine.resolve()
            if bundle in (out, *out.parents):
                raise UserError(
                    f"--out must not be in the bundle of --engine, which takes no files of others; "
                    f"got {str(self.out)!r} in {str(self.engine)!r}. Name another folder"
                )
        if self.noise not in NOISES:
            raise UserError(f"--noise must be {' or '.join(NOISES)}; got {self.noise!r}")
        for name, least in (("steps", 1), ("count", 1), ("scale", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}; got {getattr(self, name)}")
        if self.seed + self.count > SEEDS:
            raise UserError(
                f"--seed + --count must be at most 2**63 = {SEEDS}; got {self.seed} + {self.count}"
            )

    def _check_few_step(self) -> None:
        """What goes with --few-step: the student is one network, taught for one sampler."""
        if not 1 <= (self.few_step or 0) <= model.MOST_FEW_STEPS:
            raise UserError(
                f"--few-step must be 1 to {model.MOST_FEW_STEPS}; got {self.few_step}. "
                "Leave it out for runs of more steps, by --steps"
            )
        if self.steps != self.few_step:
            raise UserError(
                f"--few-step says the number of steps, {self.few_step}, and --steps says "
                f"{self.steps}; leave --steps out"
            )
        try:
            chosen = find(self.sampler, argument="--sampler").name
        except ValueError as error:
            raise UserError(str(error)) from error
        if chosen != "lcm":
            raise UserError(
                f"--few-step goes with --sampler lcm, for which it was distilled; got "
                f"{self.sampler!r}. Leave --sampler out, or --few-step"
            )
        for name, reason in (
            ("guidance", "guidance is folded into the student's weights"),
            ("spacing", "the student was taught the times of LCM"),
            ("negative_prompt", "the student is called without guidance"),
            ("model", "the student is the built-in model's"),
            ("engine", "the student is a network of its own"),
        ):
            if getattr(self, name) not in (None, ""):
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option} does not go with --few-step, for {reason}; got "
                    f"{str(getattr(self, name))!r}. Leave --{option} out, or --few-step"
                )


def run(request: Request) -> None:
    """Do it all; every message for the user is a UserError."""
    request.check()
    folder = request.model or model.built_in()
    steps = _plan(request, folder)
    pipe = model.load(folder, request.device)
    parts = [folder]
    if request.few_step is not None:
        parts.append(model.student())
        model.take_student(pipe, request.device)
    engine = None if request.engine is None else engines.take(pipe, request)
    found = weights_hash(*parts)
    jobs = [(prompt, request.seed + j) for prompt in request.prompts for j in range(request.count)]
    names = [f"{i}-{seed}.png" for i, (_, seed) in enumerate(jobs)]
    files = pictures.targets(
        names, request.out, scale=request.scale, sheet=request.sheet, record=records.NAME
    )
    pictures.prepare(files)
    if request.made_with is not None and request.made_with != engine:
        print("warning: this engine is not the one of the run to repeat", file=sys.stderr)
    for warning in _warnings(request, steps, pipe, found):
        print(f"warning: {warning}", file=sys.stderr)
    made = []
    with pictures.progress(-(-len(jobs) // request.batch) * steps.steps) as progress:
        for start in range(0, len(jobs), request.batch):
            with engines.in_words():
                made += _batch(pipe, request, steps, jobs[start : start + request.batch], progress)
    record = {
        "schema": records.SCHEMA,
        "request": _plain(request),
        "pictures": [
            {"file": name, "prompt": prompt, "seed": seed}
            for name, (prompt, seed) in zip(names, jobs, strict=True)
        ],
        "model": {"folder": str(folder), "sha256": found},
        "engine": engine,
        "versions": pictures.versions(),
        "plan": json.loads(steps.to_json()),
    }
    pictures.save(made, record, files, request.scale)


def _warnings(
    request: Request, steps: Plan, pipe: StableDiffusionPipeline, found: str
) -> Iterator[str]:
    """What will not act as the user may think, one sentence each."""
    if request.weights not in (None, found):
        yield "these weights are not those of the run to repeat"
    prompts = list(dict.fromkeys(request.prompts))
    if steps.guided:
        prompts.append(request.negative_prompt)
    elif request.negative_prompt:
        yield "--negative-prompt is not used, for there is no guidance; try a --guidance above 1"
    for prompt in prompts:
        if request.model is None and (words := model.unknown_words(prompt)):
            yield (
                f"the built-in model was never taught {', '.join(map(repr, words))}; "
                f"it knows {', '.join(_known_words())}"
            )
        if rest := model.unread(pipe, prompt):
            yield (
                f"the text encoder reads {pipe.tokenizer.model_max_length} tokens; "
                f"of {prompt!r} it does not see {rest!r}"
            )


def _known_words() -> tuple[str, ...]:
    from fastdiff.shapes.text import WORDS

    return tuple(dict.fromkeys(WORDS))


def _plan(request: Request, folder: Path) -> Plan:
    """The table of the run, with what the model's folder says where the user did not."""
    if request.made is not None:
        return request.made
    config = model.scheduler_config(folder)
    guidance = request.guidance
    spacing: str | list[int] = request.spacing or default_spacing(config)
    if request.few_step is not None:
        guidance, spacing = 1.0, model.student_times(request.few_step)
    if guidance is None:
        guidance = model.default_guidance(folder)
    try:
        return plan(
            request.sampler,
            steps=request.steps,
            noise=model.family(folder, config),
            spacing=spacing,
            prediction=config["prediction_type"],
            guidance=None if guidance == 1 else guidance,
        )
    except (ValueError, ImportError) as error:  # a spacing may need SciPy
        raise UserError(str(error)) from error


def _batch(
    pipe: StableDiffusionPipeline,
    request: Request,
    steps: Plan,
    jobs: list[tuple[str, int]],
    progress: Any,
) -> list[Any]:
    """Pictures of some jobs as PIL images."""
    import torch

    from fastdiff.sampling import sample

    with torch.no_grad():
        cond, uncond = pipe.encode_prompt(
            [prompt for prompt, _ in jobs],
            pipe.device,
            1,
            steps.guided,
            negative_prompt=[request.negative_prompt] * len(jobs) if steps.guided else None,
        )
        dtype = pipe.unet.dtype  # an engine's may be float16
        text = (torch.cat([uncond, cond]) if steps.guided else cond).to(dtype)
        seeds = [seed for _, seed in jobs]
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        start, own = _noise(request.noise, seeds, (channels, side, side), pipe.device)

        def denoise(x: torch.Tensor, t: torch.Tensor) -> Any:
            if not steps.guided:
                return pipe.unet(x, t, text).sample
            low, high = pipe.unet(torch.cat([x, x]), t, text).sample.chunk(2)
            return low.contiguous(), high.contiguous()

        def after(i: int, t: torch.Tensor, x: torch.Tensor) -> None:
            if not torch.isfinite(x).all():
                raise UserError(
                    f"the latent is not finite after step {i + 1} of {steps.steps} "
                    f"(model time {float(t):.1f}); try another --sampler or a lower --guidance"
                )
            progress.update()

        x = sample(denoise, start, steps, **own, dtype=dtype, callback=after)
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return pictures.of_tensor(decoded)


def _noise(
    kind: str, seeds: list[int], shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The noise that pictures start from, and what `sample` draws the rest from."""
    import torch

    from fastdiff.sample_seeds import PHILOX, seeds_of, starting_noise

    if kind == PHILOX:
        own = seeds_of(seeds, device)
        return starting_noise(kind, own, shape, None), {"seeds": own}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    start = torch.cat([torch.randn(1, *shape, generator=g) for g in generators])
    return start.to(device), {"generator": generators}


def _plain(request: Request) -> dict[str, Any]:
    """The request as JSON, without the folder it went to."""
    values = asdict(request)
    for name in ("made", "out", "weights", "made_with", "trust_engine"):
        del values[name]
    for name in ("model", "engine"):
        values[name] = None if values[name] is None else str(values[name])
    return values
