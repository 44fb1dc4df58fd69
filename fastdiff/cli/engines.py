"""fastdiff generate --engine: the U-Net from a bundle, if it is one of this model."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError

if TYPE_CHECKING:
    from fastdiff.cli.generate import Request


@contextmanager
def in_words() -> Iterator[None]:
    """What an engine cannot run, such as a --batch that no profile of it holds, as a UserError."""
    from fastdiff.engine.errors import EngineError

    try:
        yield
    except EngineError as error:
        raise UserError(f"--engine: {error}") from error


def take(pipe: Any, request: Request) -> dict[str, str]:
    """Put the bundle's engine where the pipeline's U-Net is; UserError where it is not of it.

    Returns what the record says of it: the SHA-256 of its manifest, and what runs it.
    """
    from fastdiff.engine import here
    from fastdiff.engine.configs import config_hash, weights_hash
    from fastdiff.engine.load import load_engine
    from fastdiff.engine.manifest import NAME as MANIFEST

    assert request.engine is not None
    with in_words():
        engine = load_engine(request.engine, request.device, trust_engine=request.trust_engine)
    said, own = engine.manifest.model, config_hash("UNet2DConditionModel", pipe.unet.config)
    where = "the built-in model" if request.model is None else f"--model {str(request.model)!r}"
    if said.config_sha256 != own:
        raise UserError(
            f"--engine must be of a U-Net with the config of {where}, {own[:12]}..; "
            f"{str(request.engine)!r} has {said.config_sha256[:12]}... Export that model, or name "
            "by --model the one that the bundle was made from"
        )
    if said.weights_sha256 != weights_hash(pipe.unet):
        print(
            f"warning: the engine's weights are not those of the U-Net of {where}; the pictures "
            "are the engine's",
            file=sys.stderr,
        )
    if "down_block_additional_residual_0" in [
        p.name for p in engine.manifest.graphs["unet"].inputs
    ]:
        raise UserError(
            "--engine must be exported without --controlnet, for generate has no ControlNet; got "
            f"{str(request.engine)!r}"
        )
    pipe.unet = engine
    target = engine.manifest.target.name
    return {
        "manifest": hashlib.sha256((engine.bundle.path / MANIFEST).read_bytes()).hexdigest(),
        "target": target,
        "version": here.look(target).version or "",
    }
