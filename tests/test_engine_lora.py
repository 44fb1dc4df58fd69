"""LoRAs and weight maps from elsewhere: one error that names the key, and no other."""

import hashlib
import json

import numpy as np
import pytest
import torch

from fastdiff.engine import face, refit, weight_map
from fastdiff.engine.errors import Corrupt, Incompatible
from fastdiff.engine.lora import ADVICE, Factor, Lora

DOWN, UP, ALPHA = "unet.x.lora_A.weight", "unet.x.lora_B.weight", "unet.x.alpha"
GOOD = {DOWN: torch.ones(2, 4), UP: torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({DOWN: torch.tensor(1.0)}, r"'x\.lora_A\.weight' .* 2 axes .*; got torch\.float32 of sh"),
        ({DOWN: torch.ones(2)}, r"'x\.lora_A\.weight' .* 2 axes .* of shape \(2,\)"),
        ({UP: torch.ones(4)}, r"'x\.lora_B\.weight' .* 2 axes .* of shape \(4,\)"),
        (
            {DOWN: torch.ones(0, 4), UP: torch.ones(4, 0), ALPHA: torch.tensor(1.0)},
            r"'x\.lora_A\.weight' .* none of length 0; got .* of shape \(0, 4\)",
        ),
        ({UP: torch.ones(4, 0)}, r"'x\.lora_B\.weight' .* none of length 0; .* \(4, 0\)"),
        ({DOWN: 1}, r"'x\.lora_A\.weight' .* must be a tensor .*; got int\."),
        (
            {DOWN: torch.ones(2, 4, dtype=torch.complex64)},
            r"'x\.lora_A\.weight' .* of floats .*; got torch\.complex64",
        ),
        ({ALPHA: torch.ones(3)}, r"'x\.alpha' of the LoRA must be one finite number; got tensor"),
        ({ALPHA: torch.tensor(float("nan"))}, r"'x\.alpha' .* one finite number; got tensor\(nan"),
        ({ALPHA: None}, r"'x\.alpha' .* one finite number; got None"),
        ({1: torch.ones(1, 1)}, r"the keys of the LoRA must be names; got 1\."),
    ],
)
def test_a_state_dict_that_is_no_lora_is_named(change, message):
    assert Lora.of_state_dict(GOOD).factors.keys() == {"x.weight"}
    with pytest.raises(Incompatible, match=message):
        Lora.of_state_dict({**GOOD, **change})


@pytest.mark.parametrize(
    "alpha", ["x", float("inf"), 10**400, [1.0]], ids=["text", "inf", "huge", "list"]
)
def test_an_alpha_for_all_layers_is_one_finite_number(alpha):
    with pytest.raises(Incompatible, match=r"'lora_alpha' of the LoRA must be one finite number"):
        Lora.of_state_dict(GOOD, alpha=alpha)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"lora_adapter_metadata of .*x\.safetensors must be a JSON object; got '\{'"),
        ("[" * 100_000, r"lora_adapter_metadata of .* must be a JSON object; got '\[\["),
        ("[]", r"lora_adapter_metadata of .* must be a JSON object; got '\[\]'"),
        ('{"unet.lora_alpha": "x"}', r"'lora_alpha' .* one finite number; got 'x'"),
        ('{"unet.lora_alpha": NaN}', r"'lora_alpha' .* one finite number; got nan"),
    ],
)
def test_metadata_that_is_not_read_is_named(text, message, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file(GOOD, path, {"lora_adapter_metadata": '{"unet.lora_alpha": 1}'})
    assert Lora.read(path).factors["x.weight"][0].scale == 0.5
    save_file(GOOD, path, {"lora_adapter_metadata": text})
    with pytest.raises(Incompatible, match=message):
        Lora.read(path)


@pytest.mark.parametrize("last", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_kohyas_format_is_named_with_what_would_do(last):
    key = f"lora_unet_down_blocks_0_to_q.{last}"
    with pytest.raises(Incompatible, match=rf"'{key}' of the LoRA has kohya's name") as caught:
        Lora.of_state_dict({key: torch.ones(1, 1)})
    assert ADVICE in str(caught.value)


@pytest.mark.parametrize("other", ["text_encoder", "text_encoder_2", "transformer"])
def test_a_lora_of_other_networks_only_has_nothing_for_this_one(other):
    state = {key.replace("unet", other): value for key, value in GOOD.items()}
    with pytest.raises(Incompatible, match=rf"nothing for the unet: '{other}\.x\.lora_A\.weight'"):
        Lora.of_state_dict(state)
    assert Lora.of_state_dict(state, part=other).factors.keys() == {"x.weight"}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_strength_beyond_every_float_is_no_strength(sign):
    (only,) = face._checked([(GOOD, sign * 2)], "unet")
    assert only[1] == sign * 2.0
    for strength in (sign * 10**400, sign * float("inf"), float("nan")):
        with pytest.raises(TypeError, match="the strength a finite number"):
            face._checked([(GOOD, strength)], "unet")


def weights(array, *, transposed=False):
    """Of a graph with that constant and a map that says it is x.weight."""
    import onnx

    constant = onnx.numpy_helper.from_array(array, "val_1")
    graph = onnx.ModelProto(graph=onnx.GraphProto(initializer=[constant]))
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    place = weight_map.Initializer("val_1", transposed, digest)
    return refit.Weights(graph, {"x.weight": weight_map.WeightPlace((place,))})


@pytest.mark.parametrize(
    ("array", "transposed", "message"),
    [
        (np.ones((4, 4), np.int64), False, r"'val_1' must be floats, .* type 7 and shape \(4, 4\)"),
        (np.ones((4, 4, 1, 1), np.float32), True, r"floats with 2 axes, .* \(4, 4, 1, 1\)"),
        (np.ones(4, np.float32), True, r"floats with 2 axes, .* type 1 and shape \(4,\)"),
        (np.ones((0, 4), np.float32), False, r"must be floats, .* type 1 and shape \(0, 4\)"),
    ],
)
def test_a_map_that_does_not_fit_its_graph_is_corrupt(array, transposed, message):
    lora = Lora.of_state_dict(GOOD)
    weights(np.ones((4, 4), np.float32), transposed=True).apply([(lora, 1.0)])
    foreign = weights(array, transposed=transposed)
    with pytest.raises(Corrupt, match=message):
        foreign.apply([(lora, 1.0)])
    with pytest.raises(Corrupt, match=message):
        foreign.verify()


def test_a_weight_that_is_written_as_numbers_is_held_once():
    """A protobuf has two places for floats; a foreign graph may use the other one."""
    import onnx

    made = weights(np.ones((4, 4), np.float32))
    (constant,) = made.model.graph.initializer
    constant.ClearField("raw_data")
    constant.float_data.extend([1.0] * 16)
    made.apply([(Lora.of_state_dict(GOOD), 1.0)])
    assert (onnx.numpy_helper.to_array(constant) == 3).all()
    onnx.checker.check_tensor(constant)
    made.restore()
    onnx.checker.check_tensor(constant)


def test_a_map_without_a_place_is_corrupt():
    import onnx

    model = onnx.ModelProto()
    text = json.dumps({"x.weight": {"initializers": [], "shared": []}})
    model.metadata_props.add(key=weight_map.METADATA, value=text)
    with pytest.raises(Corrupt, match=r"must be a map of weights \(ValueError: 'x\.weight' is now"):
        weight_map.read(model)


@pytest.mark.parametrize(
    "factor",
    [
        Factor(torch.full((2, 4), float("nan")), torch.ones(4, 2), 1.0),
        Factor(torch.ones(2, 4), torch.full((4, 2), float("-inf")), 1.0),
        Factor(torch.ones(2, 4), torch.ones(4, 2), float("inf")),
    ],
)
def test_a_lora_that_is_not_finite_is_not_called_too_strong(factor):
    with pytest.raises(Incompatible, match=r"of 'x\.weight' must have finite numbers; got NaN or"):
        weights(np.ones((4, 4), np.float32)).apply([(Lora({"x.weight": (factor,)}), 1.0)])


def test_a_factor_of_one_axis_fits_nothing():
    factor = Factor(torch.ones(2, 4), torch.ones(4), 1.0)
    with pytest.raises(Incompatible, match=r"shape \(4, 4\); got \(4,\) x \(2, 4\)"):
        weights(np.ones((4, 4), np.float32)).apply([(Lora({"x.weight": (factor,)}), 1.0)])
