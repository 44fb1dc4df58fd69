"""`fastdiff generate`: prompts to pictures, and a record from which the run can be repeated.

Picture j of a prompt starts from noise of its own generator, seeded seed + j, which also feeds the
solver where it draws noise; so it does not depend on count or batch (but for the last bits of the
network's arithmetic).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError, model, pictures
from fastdiff.plan import Plan, plan
from fastdiff.shapes.fingerprint import weights_hash

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

RECORD = "generate.json"
SCHEMA = 1


@dataclass(frozen=True)
class Request:
    """The options of a run; `made` and `weights` are the plan and the hash of a run to repeat."""

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
    made: Plan | None = None
    weights: str | None = None

    @staticmethod
    def of_record(path: Path, out: Path) -> Request:
        """The run that a generate.json records, into another folder."""
        try:
            record = json.loads(path.read_text())
            options = dict(record["request"])
            options["model"] = Path(options["model"]) if options["model"] else None
            weights = str(record["model"]["sha256"])
            made = Plan.from_json(json.dumps(record["plan"]))
            return Request(**{**options, "out": out, "made": made, "weights": weights})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--repeat must be a {RECORD} of this program; {error}") from error

    def check(self) -> None:
        """Everything that can be said before the networks are loaded."""
        if not self.prompts or not all(p.strip() for p in self.prompts):
            raise UserError("the prompt must not be empty; try 'a red circle above a blue square'")
        for name, least in (("steps", 1), ("count", 1), ("scale", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}; got {getattr(self, name)}")


def run(request: Request) -> None:
    """Do it all; every message for the user is a UserError."""
    request.check()
    folder = request.model or model.built_in()
    steps = _plan(request, folder)
    _make(request.out)
    if request.model is None:
        for prompt in (*request.prompts, request.negative_prompt):
            if words := model.unknown_words(prompt):
                known = ", ".join(_known_words())
                print(
                    f"warning: the built-in model was never taught {', '.join(map(repr, words))}; "
                    f"it knows {known}",
                    file=sys.stderr,
                )
    found = weights_hash(folder)
    if request.weights not in (None, found):
        print("warning: these weights are not those of the run to repeat", file=sys.stderr)
    pipe = model.load(folder, request.device)
    jobs = [(prompt, request.seed + j) for prompt in request.prompts for j in range(request.count)]
    made = []
    progress = pictures.progress(-(-len(jobs) // request.batch) * steps.steps)
    for start in range(0, len(jobs), request.batch):
        made += _batch(pipe, request, steps, jobs[start : start + request.batch], progress)
    progress.close()
    names = [f"{i}-{seed}.png" for i, (_, seed) in enumerate(jobs)]
    pictures.save(made, names, request.out, scale=request.scale, sheet=request.sheet)
    record = {
        "schema": SCHEMA,
        "request": _plain(request),
        "pictures": [
            {"file": name, "prompt": prompt, "seed": seed}
            for name, (prompt, seed) in zip(names, jobs, strict=True)
        ],
        "model": {"folder": str(folder), "sha256": found},
        "versions": pictures.versions(),
        "plan": json.loads(steps.to_json()),
    }
    (request.out / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _known_words() -> tuple[str, ...]:
    from fastdiff.shapes.text import WORDS

    return tuple(dict.fromkeys(WORDS))


def _plan(request: Request, folder: Path) -> Plan:
    """The table of the run, with what the model's folder says where the user did not."""
    if request.made is not None:
        return request.made
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"--model must be a diffusers folder with a scheduler; got {str(folder)!r}")
    config = json.loads(path.read_text())
    guidance = request.guidance
    if guidance is None:
        guidance = model.default_guidance(folder)
    try:
        return plan(
            request.sampler,
            steps=request.steps,
            noise=model.noise_schedule(config),
            spacing=request.spacing or model.default_spacing(config),
            prediction=config.get("prediction_type", "epsilon"),
            guidance=None if guidance == 1 else guidance,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--out must be a folder that can be written; {str(out)!r}: {error.strerror}"
        ) from error


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
        text = torch.cat([uncond, cond]) if steps.guided else cond
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in jobs]
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        noise = torch.cat(
            [torch.randn(1, channels, side, side, generator=g) for g in generators]
        ).to(pipe.device)

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

        x = sample(denoise, noise, steps, generator=generators, callback=after)
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return pictures.of_tensor(decoded)


def _plain(request: Request) -> dict[str, Any]:
    """The request as JSON, without the folder it went to."""
    values = asdict(request)
    for name in ("made", "out", "weights"):
        del values[name]
    values["model"] = None if request.model is None else str(request.model)
    return values
