"""fastdiff export: a model's networks to a bundle, and what took how long and is how big."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError, model

if TYPE_CHECKING:
    from fastdiff.engine.export import Step

BUILT_IN = "shapes"
WORK = {"traced": 3, "written": 1, "checked": 3, "built": 10}  # of the bar, roughly as they take


def run(name: str, out: Path, **options: Any) -> None:
    """Export what `name` is to the folder `out`; every message for the user is a UserError."""
    from tqdm import tqdm

    import fastdiff
    from fastdiff.engine.errors import EngineError
    from fastdiff.engine.export import BUILD

    for option in BUILD:  # 0 is no memory limit that could be left out
        if options[option] is None or options[option] is False or options[option] == ():
            del options[option]
    source = load(name)
    if options["guidance"] is None and name == BUILT_IN:
        options["guidance"] = model.default_guidance(model.built_in())
    networks = 1 + 2 * options["vae"] + options["text_encoder"]
    total = networks * (WORK["traced"] + WORK["written"] + WORK["checked"])
    total += WORK["checked"] * options["step"]
    total += WORK["built"] * (options["target"] != "onnxruntime" and options["plans"])
    with tqdm(
        total=total, desc="export", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    ) as bar:
        try:
            made = fastdiff.export(source, out, tell=_teller(bar), **options)
        except (ValueError, TypeError, EngineError) as error:
            bar.leave = False
            raise UserError(_option(str(error))) from error
        except OSError as error:
            bar.leave = False
            raise UserError(f"--out must be a folder that can be written; {error}") from error
        bar.update(bar.total - bar.n)
    manifest = made.manifest
    size = sum(file.bytes for file in manifest.files.values())
    print(
        f"{out}: {len(manifest.files) + 1} files, {size / 1e6:.1f} MB, {manifest.dtype} for "
        f"{manifest.target.name} {manifest.target.version}"
    )


def _teller(bar: Any) -> Callable[[Step], None]:
    def tell(step: Step) -> None:
        words = f"{step.network}: {step.what} in {step.seconds:.1f} s"
        if step.bytes:
            words += f", {step.bytes / 1e6:.1f} MB"
        if step.error is not None:
            words += (
                f", relative RMS error {step.error.graph:.1e} (PyTorch {step.error.torch:.1e}) "
                f"over {step.error.runs} runs"
            )
        bar.write(words)
        bar.set_description_str(step.network)
        bar.update(WORK[step.what])

    return tell


def load(name: str) -> Any:
    """The pipeline or U-Net that MODEL names: shapes, a diffusers folder, a U-Net's folder."""
    if name == BUILT_IN:
        return model.load(model.built_in(), "cpu")
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return _loaded("DiffusionPipeline", folder)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"MODEL must be {BUILT_IN!r}, a diffusers folder with a model_index.json or a U-Net's "
            f"with a config.json; got {name!r}"
        )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"MODEL must hold a JSON object in {str(config)!r}; {error}") from error
    if kind != "UNet2DConditionModel":
        raise UserError(f"MODEL must be a UNet2DConditionModel; {str(config)!r} says {kind}")
    return _loaded(kind, folder)


def _loaded(kind: str, folder: Path) -> Any:
    """From its files alone, in the dtype they are in, without words of the libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    import diffusers

    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        return getattr(diffusers, kind).from_pretrained(folder, **options)
    except Exception as error:  # each library has its own for a file that is missing or broken
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"MODEL {str(folder)!r} cannot be loaded: {lines[0]}") from error


def _option(message: str) -> str:
    """A message of fastdiff.export with the names that the command line has."""
    for python, words in _WORDS.items():
        message = message.replace(python, words)
    names, must, rest = message.partition(" must ")
    if must and all(name in _OPTIONS for name in names.split(" and ")):
        names = " and ".join(f"--{_OPTIONS[name]}" for name in names.split(" and "))
        return f"{names}{must}{rest}"
    name, space, rest = message.partition(" ")
    return f"--{_OPTIONS[name]}{space}{rest}" if name in _OPTIONS else message


_OPTIONS = {
    **{n: n for n in ("target", "dtype", "batch", "height", "width", "tokens", "guidance")},
    **{n: n.replace("_", "-") for n in ("memory_limit", "refittable", "strip", "weight_streaming")},
    "samplers": "sampler",
    "capabilities": "capability",
    "vae": "with-vae",
    "text_encoder": "with-text-encoder",
    "step": "with-step",
    "controlnet": "controlnet",
    "verify": "verify",
}
_WORDS = {
    "replace=True": "--replace",
    " must be False ": " must not be given ",
    " must be empty ": " must not be given ",
    "a tuple like ('12.0',); got": "compute capabilities like 12.0; got",
}
