"""A LoRA as numbers: for each parameter of a network, what is added to it.

    weight + scale * up @ down      up (out, rank), down (rank, in); of a convolution 4-d

From a file or a state dict as peft and diffusers write them, or from a network that a pipeline has
loaded LoRAs into.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.engine.errors import Incompatible

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PART = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<ab>[AB])(?:\.[^.]+)?\.weight|lora[._](?P<du>down|up)\.weight"
    r"|(?P<alpha>alpha))"
)
_NETWORK = re.compile(r"(?:unet|transformer|prior|text_encoder)(?:_\d+)?\.")  # of a pipeline
LOG = logging.getLogger("fastdiff.engine.lora")
ADVICE = "Load it into a pipeline with pipe.load_lora_weights and take it from pipe.unet"


@dataclass(frozen=True)
class Factor:
    """What one LoRA adds to one parameter."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """scale * up @ down, float32, in the shape of the parameter."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        return (self.scale * (up @ down)).reshape(shape)

    def finite(self) -> bool:
        """Whether each of its numbers is."""
        import torch

        both = all(bool(torch.isfinite(part.float()).all()) for part in (self.down, self.up))
        return both and math.isfinite(self.scale)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether that is a parameter of this shape."""
        down, up = self.down.shape, self.up.shape
        small = min(len(down), len(up)) >= 2 and all(n == 1 for n in up[2:])
        return small and down[0] == up[1] and (up[0], *down[1:]) == tuple(shape)


@dataclass(frozen=True)
class Lora:
    """Factors by the name of the parameter; several add up."""

    factors: Mapping[str, tuple[Factor, ...]]

    @classmethod
    def read(cls, path: str | Path, *, part: str = "unet") -> Lora:
        """A .safetensors file; its metadata may say the alpha.  Incompatible as of_state_dict."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise Incompatible(
                f"lora_adapter_metadata of {path} must be a JSON object; got {text!r:.80}. {ADVICE}"
            )
        said = {key.removeprefix(part + "."): value for key, value in metadata.items()}
        for field in ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora", "lora_bias"):
            if said.get(field):
                raise Incompatible(f"{path} has {field}, which is not read here. {ADVICE}")
        return cls.of_state_dict(state, part=part, alpha=said.get("lora_alpha"))

    @classmethod
    def of_state_dict(
        cls, state: Mapping[str, Tensor], *, part: str = "unet", alpha: float | None = None
    ) -> Lora:
        """Keys LAYER.lora_A.weight and .lora_B.weight (or lora.down, lora.up), and LAYER.alpha.

        part    of the pipeline: keys with that prefix are taken, those of the others are left;
                without any prefix all are
        alpha   of the layers that have none; None: the rank, so that the scale is 1

        lora_A is (rank, in), lora_B (out, rank), floats, of convolutions with more axes; an alpha
        is one finite number.  Incompatible, with the key, for what is not, for another format,
        and where all keys are of other networks.
        """
        if odd := [key for key in state if not isinstance(key, str)]:
            raise Incompatible(f"the keys of the LoRA must be names; got {odd[0]!r:.80}. {ADVICE}")
        mine = {k.removeprefix(part + "."): v for k, v in state.items() if k.startswith(part + ".")}
        if mine and len(mine) < len(state):
            other = next(key for key in state if not key.startswith(part + "."))
            LOG.warning("the LoRA also has weights of other networks (%s), left out here", other)
        elif state and not mine and all(map(_NETWORK.match, state)):
            raise Incompatible(
                f"the LoRA has nothing for the {part}: {next(iter(state))!r} and its other keys "
                f"are of other networks. Give a LoRA of the {part}"
            )
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in (mine or state).items():
            match = _PART.fullmatch(key.removeprefix("base_model.model."))
            if match is None:
                raise Incompatible(f"{key!r} of the LoRA is no lora_A or lora_B. {ADVICE}")
            if match["layer"].startswith("lora_"):  # its dots are underscores: no way back
                raise Incompatible(f"{key!r} of the LoRA has kohya's name of a layer. {ADVICE}")
            kind = "alpha" if match["alpha"] else "down" if match["ab"] == "A" else match["du"]
            if kind != "alpha":
                _check_factor(key, tensor)
            layers.setdefault(match["layer"], {})[kind or "up"] = tensor
        factors = {}
        for layer, parts in layers.items():
            if missing := sorted({"down", "up"} - parts.keys()):
                raise Incompatible(f"layer {layer!r} of the LoRA has no {missing[0]}. {ADVICE}")
            rank = parts["down"].shape[0]
            if "alpha" in parts:
                scale = _number(f"{layer}.alpha", parts["alpha"]) / rank
            else:
                scale = 1.0 if alpha is None else _number("lora_alpha", alpha) / rank
            factors[f"{layer}.weight"] = (Factor(parts["down"], parts["up"], scale),)
        return cls(factors)

    @classmethod
    def of_module(cls, module: torch.nn.Module) -> Lora:
        """The active adapters of a network that peft has put LoRAs into, with their scales now."""
        from peft.tuners.lora import LoraLayer

        factors: dict[str, tuple[Factor, ...]] = {}
        for name, layer in module.named_modules():
            if not isinstance(layer, LoraLayer) or layer.disable_adapters:
                continue
            active = [a for a in layer.active_adapters if a in layer.scaling]
            if found := tuple(_factor(name, layer, adapter) for adapter in active):
                factors[f"{name}.weight"] = found
        return cls(factors)


def _check_factor(key: str, tensor: object) -> None:
    import torch

    got = type(tensor).__name__
    if isinstance(tensor, torch.Tensor):
        if tensor.ndim >= 2 and min(tensor.shape) >= 1 and tensor.is_floating_point():
            return
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    raise Incompatible(
        f"{key!r} of the LoRA must be a tensor of floats with 2 axes or more, none of length 0; "
        f"got {got}. {ADVICE}"
    )


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise Incompatible(f"{key!r} of the LoRA must be one finite number; got {value!r:.80}")
    return number


def _factor(name: str, layer: Any, adapter: str) -> Factor:
    if adapter not in layer.lora_A or layer.use_dora.get(adapter) or layer.lora_bias.get(adapter):
        raise Incompatible(
            f"adapter {adapter!r} of layer {name!r} must be a plain LoRA of a linear layer or a "
            "convolution. Fuse it (pipe.fuse_lora()) and export again"
        )
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Factor(down.detach().clone(), up.detach().clone(), float(layer.scaling[adapter]))


__all__ = ["Factor", "Lora"]
