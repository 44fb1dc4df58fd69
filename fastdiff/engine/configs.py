"""Fingerprints of a network: of its config, and of its weights."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from typing import Any

import torch
from torch import nn


def plain(config: Any) -> dict[str, Any]:
    """A diffusers config as JSON holds it, without what names files and versions.

    Infinite numbers, which JSON has no word for, are the strings "inf" and "-inf".
    """
    kept = {k: _finite(v) for k, v in dict(config).items() if not k.startswith("_")}
    return dict(json.loads(json.dumps(kept, default=_number)))


def config_hash(kind: str, config: Any) -> str:
    """SHA-256 of what differs from the defaults of the class `kind` of diffusers.

    So a config that spells out a default, as a newer diffusers saves it, is the same one.
    """
    import diffusers

    defaults = {}
    if hasattr(diffusers, kind):
        arguments = inspect.signature(getattr(diffusers, kind).__init__).parameters.values()
        given = {a.name: a.default for a in arguments if a.default is not a.empty}
        defaults = plain(given)
    said = {k: v for k, v in plain(config).items() if k not in defaults or v != defaults[k]}
    return hashlib.sha256(json.dumps([kind, said], sort_keys=True).encode()).hexdigest()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, as float32 whatever their dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        wide = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(wide.shape)}\0".encode())
        digest.update(memoryview(wide.numpy().reshape(-1)).cast("B"))
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: object) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


__all__ = ["config_hash", "plain", "weights_hash"]
