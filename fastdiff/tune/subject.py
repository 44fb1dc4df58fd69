"""The network that a table is fitted to: a Stable Diffusion pipeline at one guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.plan import Plan, plan
from fastdiff.sampling import sample
from fastdiff.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Network = Callable[[Tensor, Tensor], Tensor]
BATCH = 64  # samples that the network sees at once
FINE = ("dpmpp_2m", "trailing")  # of the reference trajectory


@dataclass(frozen=True)
class Start:
    """Where runs begin: prompt i from the noise of seed i."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or len(self.prompts) != len(self.seeds):
            raise ValueError(
                f"seeds must be one for each of the {len(self.prompts)} prompts, at least one; "
                f"got {len(self.seeds)}"
            )

    def parts(self, size: int = BATCH) -> list[Start]:
        """Batches of at most `size`."""
        return [
            Start(self.prompts[i : i + size], self.seeds[i : i + size])
            for i in range(0, len(self.seeds), size)
        ]

    def first(self, count: int) -> Start:
        """The first `count` of them."""
        return Start(self.prompts[:count], self.seeds[:count])


@dataclass(frozen=True)
class Subject:
    """A pipeline in float32 on the CPU, its noise schedule, prediction and guidance.

    What a plan sees is one output e = u + g (c - u) a call: guidance is part of the network here,
    as in a pipeline, so a guided evaluation counts as one.
    """

    pipe: StableDiffusionPipeline
    family: NoiseSchedule
    prediction: str
    guidance: float
    unet: torch.nn.Module | None = None  # another one than the pipeline's

    @torch.no_grad()
    def network(self, prompts: Sequence[str], unet: torch.nn.Module | None = None) -> Network:
        """denoise(x, t) for one batch, x (B, C, H, W) in the dtype of the U-Net.

        unet  another one than the pipeline's, such as its copy in float64
        """
        guided = self.guidance != 1
        cond, uncond = self.pipe.encode_prompt(
            list(prompts), self.pipe.device, 1, guided, negative_prompt=[""] * len(prompts)
        )
        unet, g = unet or self.unet or self.pipe.unet, self.guidance
        text = (torch.cat([uncond, cond]) if guided else cond).to(next(unet.parameters()).dtype)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad():
                if not guided:
                    alone: Tensor = unet(x, t, text).sample.contiguous()
                    return alone
                low, high = unet(torch.cat([x, x]), t, text).sample.chunk(2)
                return torch.add(low, high - low, alpha=g)

        return denoise

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """(B, C, H, W) float32 unit normal; a sample's depends on its seed alone."""
        side, channels = self.pipe.unet.config.sample_size, self.pipe.unet.config.in_channels
        return torch.stack(
            [
                torch.randn(channels, side, side, generator=torch.Generator().manual_seed(s))
                for s in seeds
            ]
        )

    def plan(self, solver: str, steps: int, spacing: Any, **options: Any) -> Plan:
        """A plan of the registry for this network, without guidance of its own."""
        return plan(
            solver,
            steps=steps,
            noise=self.family,
            spacing=spacing,
            prediction=self.prediction,
            **options,
        )

    def run(self, made: Plan, start: Start) -> Tensor:
        """End points of a plan, (B, C, H, W) float32."""
        ends = [
            sample(self.network(part.prompts), self.noise(part.seeds), made)
            for part in start.parts()
        ]
        return torch.cat(ends)

    def reference(self, calls: int) -> Plan:
        """The plan of the fine trajectory."""
        return self.plan(FINE[0], calls, FINE[1])

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) in 0 .. 1."""
        vae = self.pipe.vae
        out = [
            vae.decode(x / vae.config.scaling_factor).sample for x in torch.split(latents, BATCH)
        ]
        return (torch.cat(out).clamp(-1, 1) + 1) / 2


def distance(got: Tensor, want: Tensor) -> float:
    """RMS over all elements of all samples, in float64."""
    return float((got.double() - want.double()).square().mean().sqrt())
