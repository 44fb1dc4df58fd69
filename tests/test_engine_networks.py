"""Other networks than the built-in one's, tiny: SDXL with a ControlNet in fp16, SD3 and Flux."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import fastdiff
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.networks import shape_of
from tests import tiny_pipelines


class TestSDXL:
    """Added conditions, residuals of a ControlNet and fp16, in one tiny network."""

    @pytest.fixture(scope="class")
    def unet(self):
        return tiny_pipelines.sdxl()

    @pytest.fixture(scope="class")
    def bundle(self, unet, tmp_path_factory):
        return fastdiff.export(
            unet,
            tmp_path_factory.mktemp("sdxl") / "bundle",
            dtype="fp16",
            controlnet=True,
            batch="1:2:3",
            tokens="1:7:14",
        )

    def test_ports(self, bundle):
        names = [port.name for port in bundle.manifest.graphs["unet"].inputs]
        assert names[3:5] == ["text_embeds", "time_ids"]
        assert names[-1] == "mid_block_additional_residual"
        assert bundle.manifest.graphs["unet"].inputs[0].dtype == "float16"

    def test_it_is_the_unet_with_a_controlnet(self, unet, bundle, no_gradients):
        generator = torch.Generator().manual_seed(3)

        def drawn(*shape):
            return torch.randn(*shape, generator=generator).half()

        given = {
            "sample": drawn(2, 4, 8, 12),
            "timestep": torch.tensor(321.5),
            "encoder_hidden_states": drawn(2, 5, tiny_pipelines.WIDTH),
            "added_cond_kwargs": {
                "text_embeds": drawn(2, tiny_pipelines.POOLED),
                "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
            },
        }
        sizes = {"batch": 2, "height": 8, "width": 12, "tokens": 5}
        ports = bundle.manifest.graphs["unet"].inputs[5:]
        *down, mid = [drawn(*shape_of(port, sizes)) for port in ports]
        residuals = {
            "down_block_additional_residuals": tuple(down),
            "mid_block_additional_residual": mid,
        }
        want = unet.float()(**_wide(given), **{k: _wide(v) for k, v in residuals.items()}).sample
        with fastdiff.load_engine(bundle.path) as engine:
            got = engine(**given, **residuals).sample
            with pytest.raises(Incompatible, match="down_block_additional_residual_0 must be a"):
                engine(**given)
        # float16 keeps 11 bits: 5e-4 a rounding, and some ten of them one after the other
        assert got.dtype == torch.float16
        assert (got.float() - want).square().mean().sqrt() < 5e-3 * want.square().mean().sqrt()

    def test_pipelines_of_sdxl_find_what_they_ask_of_a_unet(self, bundle):
        with fastdiff.load_engine(bundle.path) as engine:
            assert engine.add_embedding.linear_1.in_features == 6 * 4 + tiny_pipelines.POOLED
            assert engine.config.addition_time_embed_dim == 4


def _wide(value):
    if isinstance(value, dict):
        return {name: _wide(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_wide, value))
    return value.float()


def sd3():
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
    )


def flux():
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def inputs(kind, batch=2, tokens=5):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 4, 12, 6) if kind == "sd3" else (batch, 18, 8)
    given = {
        "hidden_states": torch.randn(shape, generator=generator),
        "encoder_hidden_states": torch.randn(batch, tokens, 12, generator=generator),
        "pooled_projections": torch.randn(batch, 10, generator=generator),
        "timestep": torch.tensor([321.0, 8.0]),
    }
    if kind == "flux":
        given["timestep"] = given["timestep"] / 1000
        places = torch.stack(torch.meshgrid(*map(torch.arange, (1, 6, 3)), indexing="ij"), -1)
        given |= {"img_ids": places.reshape(-1, 3).float(), "txt_ids": torch.zeros(tokens, 3)}
        given["guidance"] = torch.full((batch,), 3.5)
    return given


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers(make, tmp_path, no_gradients):
    """The numbers are checked by export itself; here that the engine takes what pipelines give."""
    network = tiny_pipelines.drawn(make())
    bundle = fastdiff.export(
        network, tmp_path / "bundle", height="64:64:128", width="32:64:64", tokens="1:5:9"
    )
    (profile,) = bundle.manifest.profiles
    if make is flux:
        assert (profile["patches"].min, profile["patches"].max) == (8 * 4 // 4, 16 * 8 // 4)
    given = inputs(make.__name__)
    want = network(**given).sample
    with fastdiff.load_engine(bundle.path) as engine:
        with engine.cache_context("cond"):
            got = engine(**given, joint_attention_kwargs=None, return_dict=False)[0]
        assert engine.config.joint_attention_dim == 12
        with pytest.raises(Incompatible, match="skip_layers must be None"):
            engine(**given, skip_layers=[1])
        with pytest.raises(Incompatible, match="timestep must be a tensor float32"):
            engine(**given | {"timestep": None})
    # export found both within 2e-7 of float64 (relative RMS): ten times that is no chance
    assert (got - want).square().mean().sqrt() < 2e-6 * want.square().mean().sqrt()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": True}, "step must be False for a SD3Transformer2DModel"),
        ({"controlnet": True}, "controlnet must be False for a SD3Transformer2DModel"),
        ({"height": "60"}, "height.* multiples of 16"),
    ],
)
def test_what_a_transformer_has_not(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        fastdiff.export(sd3(), tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())
