"""The networks themselves: what surrounds their modules.

Before each run a network looks whether conv_norm_out and conv_act are a pair (norms.pair); moved to
another device, it lays its weights out again (layout).  diffusers' set_attention_backend does
nothing to these networks, and does not say so: here it reaches their attention, or says where not.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from fastdiff.accelerate import layout
from fastdiff.accelerate.guidance import Guided
from fastdiff.accelerate.norms import pair

logger = logging.getLogger("fastdiff")


def _pairing(stock: Any) -> Any:
    """A network's forward, after a look at its last norm and SiLU."""

    @functools.wraps(stock)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        pair(self)
        return stock(self, *args, **kwargs)

    return forward


class FastEncoder(Encoder):  # type: ignore[misc]
    forward = _pairing(Encoder.forward)


class FastDecoder(Decoder):  # type: ignore[misc]
    forward = _pairing(Decoder.forward)


class Network(nn.Module):
    """Mixed into a network's class, before it in the bases."""

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        layout.lay_out(self)
        return result

    def set_attention_backend(self, backend: str) -> None:
        super().set_attention_backend(backend)  # type: ignore[misc]
        attention = [m for m in self.modules() if isinstance(m, Attention)]
        deaf = {type(m.processor).__name__ for m in attention if not hears(m.processor)}
        if deaf:
            logger.warning(
                "set_attention_backend(%r) does not reach the attention modules whose processor is "
                "%s: these choose for themselves",
                backend,
                ", ".join(sorted(deaf)),
            )


def hears(processor: Any) -> bool:
    """Whether set_attention_backend reaches a processor."""
    return hasattr(processor, "_attention_backend")


class FastUNet2DConditionModel(Guided, Network, UNet2DConditionModel):  # type: ignore[misc]
    forward = _pairing(UNet2DConditionModel.forward)


class FastUNet2DModel(Network, UNet2DModel):  # type: ignore[misc]
    forward = _pairing(UNet2DModel.forward)


class FastAutoencoderKL(Network, AutoencoderKL):  # type: ignore[misc]
    pass


class FastControlNetModel(Network, ControlNetModel):  # type: ignore[misc]
    pass
