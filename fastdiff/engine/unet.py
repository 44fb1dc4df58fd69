"""What takes the place of a UNet2DConditionModel in a pipeline: its face before an engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.manifest import Graph, Manifest
from fastdiff.engine.networks import TORCH

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    from fastdiff.engine.bundle import Bundle

ALSO = ("class_labels", "timestep_cond", "mid_block_additional_residual")


class Runner(Protocol):
    """What runs a graph: ONNX Runtime's session, or a TensorRT plan's context."""

    graph: Graph
    device: torch.device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""

    def close(self) -> None:
        """Give its memory back."""


class EngineUNet:
    """A U-Net in an engine: config, dtype, device and forward of diffusers' class.

    Put it into a pipeline, `pipe.unet = engine`, or call it in `fastdiff.sample`.  Calls from
    several threads run side by side.  `with` or `close` gives its memory back.

    config     that of the exported U-Net, read as an attribute or a key
    dtype      of sample, encoder_hidden_states and the answer
    bundle     where it came from, with its manifest

    It has no parameters: no LoRA, no FreeU, no attention processors act on it, and arguments of
    forward that would need them are refused.
    """

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        from diffusers.configuration_utils import FrozenDict

        self._runner, self.bundle = runner, bundle
        manifest = bundle.manifest
        self.config = FrozenDict(manifest.model.config)
        self._ports = {port.name: port for port in runner.graph.inputs}
        self.dtype = TORCH[self._ports["sample"].dtype]
        self._down = [name for name in self._ports if name.startswith("down_block_")]
        self._multiple = manifest.profiles[0]["height"].multiple
        # what pipelines of SDXL ask of the module to make time_ids
        width = self.config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        return self._runner.device

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    def __call__(self, *args: Any, **kwargs: Any) -> UNet2DConditionOutput | tuple[Tensor]:
        return self.forward(*args, **kwargs)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """UNet2DConditionModel.forward, (B, C, H, W) to the same; timestep a number, () or (B,).

        Raises Incompatible for an argument that the exported graph does not have.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        for name, value in (
            ("attention_mask", attention_mask),
            ("cross_attention_kwargs", cross_attention_kwargs),
            ("down_intrablock_additional_residuals", down_intrablock_additional_residuals),
            ("encoder_attention_mask", encoder_attention_mask),
        ):
            if value is not None and value != {}:
                raise Incompatible(
                    f"{name} must be None, for an engine has no input for it; got "
                    f"{type(value).__name__}. Run this pipeline with the U-Net in PyTorch"
                )
        given: dict[str, Any] = {
            "sample": self._sample(sample),
            "timestep": self._times(timestep, sample),
            "encoder_hidden_states": encoder_hidden_states,
        }
        optional = (class_labels, timestep_cond, mid_block_additional_residual)
        given |= {n: v for n, v in zip(ALSO, optional, strict=True) if v is not None}
        for name, value in (added_cond_kwargs or {}).items():
            if name in self._ports:
                given[name] = value.to(TORCH[self._ports[name].dtype])
        given |= self._residuals(down_block_additional_residuals)
        answer = self._runner.run(given)["out_sample"]
        return UNet2DConditionOutput(sample=answer) if return_dict else (answer,)

    def close(self) -> None:
        """Give its memory back; a call after it is an EngineError."""
        self._runner.close()

    def __enter__(self) -> EngineUNet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def to(self, *args: Any, **kwargs: Any) -> EngineUNet:
        """Itself; Incompatible for another device or dtype than it was loaded for."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != self.device.type:
            raise Incompatible(
                f"device must be {self.device}, for which the engine was loaded; got {device}. "
                f"Load it again: fastdiff.load_engine(.., device='{device}')"
            )
        if dtype is not None and dtype != self.dtype:
            raise Incompatible(
                f"dtype must be {self.dtype}, in which the engine was exported; got {dtype}"
            )
        return self

    def _sample(self, sample: Tensor) -> Tensor:
        for axis, got in zip(("height", "width"), sample.shape[-2:], strict=True):
            if got % self._multiple:
                raise Incompatible(
                    f"sample must have a {axis} that is a multiple of {self._multiple}, as many "
                    f"as the U-Net halves it to; got {got}"
                )
        return sample

    def _times(self, timestep: Tensor | float | int, sample: Tensor) -> Tensor:
        times = torch.as_tensor(timestep, dtype=torch.float32, device=self.device)
        return times.reshape(-1).expand(len(sample))

    def _residuals(self, down: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        if down is None:
            return {}
        if len(down) != len(self._down):
            raise Incompatible(
                "down_block_additional_residuals must be as many as the engine was exported with, "
                f"{len(self._down)}; got {len(down)}. Export it with controlnet=True for them"
            )
        return dict(zip(self._down, down, strict=True))


__all__ = ["EngineUNet"]
