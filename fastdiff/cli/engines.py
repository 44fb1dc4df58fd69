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


KIND = "UNet2DConditionModel"


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
    from fastdiff.engine.unet import EngineUNet

    assert request.engine is not None
    with in_words():
        engine = load_engine(request.engine, request.device, trust_engine=request.trust_engine)
    said, own = engine.manifest.model, config_hash(KIND, pipe.unet.config)
    where = "the built-in model" if request.model is None else f"--model {str(request.model)!r}"
    if said.kind != KIND or not isinstance(engine, EngineUNet):
        raise UserError(
            f"--engine must hold a {KIND} as its graph unet; {str(request.engine)!r} holds a "
            f"{said.kind} as {engine.graph}"
        )
    got = {said.config_sha256, config_hash(KIND, said.config)} - {own}  # what it says, what it has
    if got:
        raise UserError(
            f"--engine must be of a U-Net with the config of {where}, {own[:12]}..; "
            f"{str(request.engine)!r} has {min(got)[:12]}... Export that model, or name by --model "
            "the one that the bundle was made from"
        )
    if said.weights_sha256 != weights_hash(pipe.unet):
        print(
            f"warning: the engine's weights are not those of the U-Net of {where}; the pictures "
            "are the engine's",
            file=sys.stderr,
        )
    names = [port.name for port in engine.manifest.graphs[engine.graph].inputs]
    if "down_block_additional_residual_0" in names:
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
