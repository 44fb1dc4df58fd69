"""What takes the place of a UNet2DConditionModel in a pipeline: its face before an engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.face import Engine, Runner, refuse, tensor
from fastdiff.engine.networks import TORCH

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    from fastdiff.engine.bundle import Bundle

ALSO = ("class_labels", "timestep_cond", "mid_block_additional_residual")


class EngineUNet(Engine):
    """A U-Net in an engine, with config, dtype, device and forward of diffusers' class.

    Put it into a pipeline, `pipe.unet = engine`, or call it in `fastdiff.sample`.  Calls from
    several threads run side by side.
    """

    graph = "unet"
    needs = ("sample", "timestep", "encoder_hidden_states")

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        super().__init__(runner, bundle)
        self._down = [name for name in self._ports if name.startswith("down_block_")]
        self._multiple = bundle.manifest.profiles[0]["height"].multiple
        # what pipelines of SDXL ask of the module to make time_ids
        width = self.config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

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
        refuse(
            {
                "attention_mask": attention_mask,
                "cross_attention_kwargs": cross_attention_kwargs,
                "down_intrablock_additional_residuals": down_intrablock_additional_residuals,
                "encoder_attention_mask": encoder_attention_mask,
            }
        )
        given: dict[str, Any] = {
            "sample": self._sample(tensor("sample", sample, 4)),
            "timestep": self._times(timestep, len(sample)),
            "encoder_hidden_states": encoder_hidden_states,
        }
        optional = (class_labels, timestep_cond, mid_block_additional_residual)
        given |= {n: v for n, v in zip(ALSO, optional, strict=True) if v is not None}
        added = {} if added_cond_kwargs is None else added_cond_kwargs
        if not isinstance(added, Mapping) or not all(isinstance(v, Tensor) for v in added.values()):
            raise Incompatible(
                f"added_cond_kwargs must be a dict of tensors; got {added_cond_kwargs!r:.80}"
            )
        for name, value in added.items():
            if name not in self._ports:
                raise Incompatible(
                    f"added_cond_kwargs must have what the engine was exported with; got {name!r}. "
                    "Export a U-Net that takes it, or leave it out"
                )
            given[name] = value.to(TORCH[self._ports[name].dtype])
        given |= self._residuals(down_block_additional_residuals)
        answer = self._runner.run(given)["out_sample"]
        if not return_dict:
            return (answer,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=answer)

    def _sample(self, sample: Tensor) -> Tensor:
        for axis, got in zip(("height", "width"), sample.shape[-2:], strict=True):
            if got % self._multiple:
                raise Incompatible(
                    f"sample must have a {axis} that is a multiple of {self._multiple}, as many "
                    f"as the U-Net halves it to; got {got}"
                )
        return sample

    def _residuals(self, down: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        if down is None:
            return {}
        if not isinstance(down, (tuple, list)):
            raise Incompatible(
                "down_block_additional_residuals must be a tuple of tensors; got "
                f"{type(down).__name__}"
            )
        if len(down) != len(self._down):
            raise Incompatible(
                "down_block_additional_residuals must be as many as the engine was exported with, "
                f"{len(self._down)}; got {len(down)}. Export it with controlnet=True for them"
            )
        return dict(zip(self._down, down, strict=True))


__all__ = ["EngineUNet"]
