"""A LoRA as numbers: for each parameter of a network, what is added to it.

    weight + scale * up @ down      up (out, rank), down (rank, in); of a convolution 4-d

From a file or a state dict as peft and diffusers write them, or from a network that a pipeline has
loaded LoRAs into.
"""

from __future__ import annotations

import json
import logging
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

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether that is a parameter of this shape."""
        down, up = self.down.shape, self.up.shape
        small = all(n == 1 for n in up[2:])
        return small and down[0] == up[1] and (up[0], *down[1:]) == tuple(shape)


@dataclass(frozen=True)
class Lora:
    """Factors by the name of the parameter; several add up."""

    factors: Mapping[str, tuple[Factor, ...]]

    @classmethod
    def read(cls, path: str | Path, *, part: str = "unet") -> Lora:
        """A .safetensors file; its metadata may say the alpha."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
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
        """
        mine = {k.removeprefix(part + "."): v for k, v in state.items() if k.startswith(part + ".")}
        if mine and len(mine) < len(state):
            other = next(key for key in state if not key.startswith(part + "."))
            LOG.warning("the LoRA also has weights of other networks (%s), left out here", other)
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in (mine or state).items():
            match = _PART.fullmatch(key.removeprefix("base_model.model."))
            if match is None:
                raise Incompatible(f"{key!r} of the LoRA is no lora_A or lora_B. {ADVICE}")
            kind = "alpha" if match["alpha"] else "down" if match["ab"] == "A" else match["du"]
            layers.setdefault(match["layer"], {})[kind or "up"] = tensor
        factors = {}
        for layer, parts in layers.items():
            if missing := sorted({"down", "up"} - parts.keys()):
                raise Incompatible(f"layer {layer!r} of the LoRA has no {missing[0]}. {ADVICE}")
            rank = parts["down"].shape[0]
            own = float(parts["alpha"]) if "alpha" in parts else alpha
            scale = 1.0 if own is None else float(own) / rank
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


def _factor(name: str, layer: Any, adapter: str) -> Factor:
    if adapter not in layer.lora_A or layer.use_dora.get(adapter) or layer.lora_bias.get(adapter):
        raise Incompatible(
            f"adapter {adapter!r} of layer {name!r} must be a plain LoRA of a linear layer or a "
            "convolution. Fuse it (pipe.fuse_lora()) and export again"
        )
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Factor(down.detach().clone(), up.detach().clone(), float(layer.scaling[adapter]))


__all__ = ["Factor", "Lora"]
