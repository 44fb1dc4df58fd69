"""LoRA at the level of the ONNX graph: what it computes, what it refuses, and the way back."""

import copy
import hashlib

import numpy as np
import pytest
import torch

from fastdiff.engine import lora, refit, weight_map
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from fastdiff.engine.lora import Factor, Lora

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
TIME = "time_embedding.linear_1"


def unet():
    """The smallest with attention: 0.02 M parameters."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def inputs():
    random = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=random),
        "timestep": torch.tensor([5.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=random),
    }


@pytest.fixture(scope="module")
def traced():
    """(module, its graph, its map); the graph is copied by who changes it."""

    class Positional(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *args):
            return self.network(*args, return_dict=False)[0]

    network = unet()
    with torch.no_grad():
        program = torch.onnx.export(
            Positional(network).eval(),
            tuple(inputs().values()),
            dynamo=True,
            opset_version=21,
            input_names=list(inputs()),
            output_names=["out_sample"],
            verbose=False,
        )
    graph = program.model_proto
    places = weight_map.weight_map(network, graph)
    weight_map.write(graph, places)
    return network, graph, places


def adapted(*seeds):
    """The network with a LoRA of rank 2 for each seed, as peft puts it in, scales 0.5 and 1.5."""
    from peft import LoraConfig

    network = unet()
    names = [f"adapter{seed}" for seed in seeds]
    for name, seed in zip(names, seeds, strict=True):
        torch.manual_seed(seed)
        modules = ["to_q", "to_out.0", "conv1", "linear_1"]
        network.add_adapter(
            LoraConfig(r=2, lora_alpha=3, target_modules=modules, init_lora_weights=False), name
        )
    network.set_adapters(names, [0.5, 1.5][: len(names)])
    return network.eval()


def fused(network):
    """A copy with the LoRAs in its weights, by peft's own arithmetic."""
    copied = copy.deepcopy(network)
    copied.fuse_lora()
    copied.unload_lora()
    return copied


def by_onnxruntime(model):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: x.numpy() for name, x in inputs().items()})[0]


def by_torch(network, dtype=torch.float32):
    with torch.no_grad():
        args = [x.to(dtype) for x in inputs().values()]
        return network.to(dtype)(*args, return_dict=False)[0].numpy()


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, dtype=np.float64)))))


def digests(model):
    return {c.name: hashlib.sha256(weight_map.raw(c)).hexdigest() for c in model.graph.initializer}


def copied(graph):
    model = type(graph)()
    model.CopyFrom(graph)
    return model


def test_the_map_has_every_weight_and_its_bytes(traced):
    network, graph, places = traced
    assert weight_map.read(graph) == places
    constants = {c.name: c for c in graph.graph.initializer}
    weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
    assert weights.keys() <= places.keys()
    transposed = 0
    for name, parameter in weights.items():
        assert places[name].shared == ()
        for place in places[name].initializers:
            tensor = parameter.detach().t() if place.transposed else parameter.detach()
            assert weight_map.raw(constants[place.name]) == tensor.numpy().tobytes()
            transposed += place.transposed
    assert transposed >= 8  # attention's: what goes by names alone would miss


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_as_pytorch_with_the_lora_fused(seeds, traced):
    _, graph, places = traced
    network, model = adapted(*seeds), copied(graph)
    weights = refit.Weights(model, places)
    weights.apply([(Lora.of_module(network), 1.0)])
    got, reference = by_onnxruntime(model), fused(network)
    ours, exact = by_torch(reference), by_torch(reference, torch.float64)
    base = by_torch(unet())
    # Twice what torch's float32 itself is off, in RMS: other orders of the same sums.
    bound = 2 * rms(ours - exact) + np.finfo(np.float32).eps / 4 * rms(exact)
    assert rms(got - exact) <= bound
    assert rms(base - exact) > 1000 * bound  # and the LoRA is no small thing


def test_applying_again_begins_from_the_base_and_restore_is_bit_for_bit(traced):
    _, graph, places = traced
    before, model = digests(graph), copied(graph)
    weights = refit.Weights(model, places)
    first, second = Lora.of_module(adapted(1)), Lora.of_module(adapted(2))
    weights.apply([(second, 1.0)])
    once = digests(model)
    weights.apply([(first, 1.0), (second, 0.3)])
    weights.apply([(second, 1.0)])
    assert digests(model) == once != before
    only = Lora({f"{TO_Q}.weight": second.factors[f"{TO_Q}.weight"]})
    weights.apply([(only, 1.0)])  # the other layers are the base's again
    assert {n for n in before if digests(model)[n] != before[n]} == set(weights.changed())
    assert len(weights.changed()) == 1
    weights.restore()
    assert digests(model) == before
    assert model.SerializeToString(deterministic=True) == graph.SerializeToString(
        deterministic=True
    )
    assert weights.changed() == {}


def test_restore_notices_a_weight_that_is_not_the_base(traced):
    _, graph, places = traced
    model = copied(graph)
    weights = refit.Weights(model, places)
    constant = next(c for c in model.graph.initializer if c.name.endswith("conv_in.weight"))
    constant.raw_data = bytes([constant.raw_data[0] ^ 1]) + constant.raw_data[1:]
    with pytest.raises(Corrupt, match=r"weight '.*conv_in.weight' must have the SHA-256"):
        weights.restore()
    factor = Factor(torch.ones(1, 4, 3, 3), torch.ones(8, 1, 1, 1), 1.0)
    with pytest.raises(Corrupt, match=r"conv_in.weight' must have the SHA-256"):
        weights.apply([(Lora({"conv_in.weight": (factor,)}), 1.0)])


def test_onnxruntime_takes_the_changed_weights_of_a_file_with_data_beside_it(traced, tmp_path):
    import onnx
    import onnxruntime

    _, graph, places = traced
    path = tmp_path / "unet.onnx"
    onnx.save(
        copied(graph),
        path,
        save_as_external_data=True,
        location="unet.onnx.data",
        size_threshold=128,
    )
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    weights = refit.Weights(onnx.load(path), places)
    weights.apply([(Lora.of_module(adapted(1)), 1.0)])
    results = []
    for _ in range(2):
        options = onnxruntime.SessionOptions()
        source, keep = refit.for_onnxruntime(weights, options, path)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {name: x.numpy() for name, x in inputs().items()})[0])
        assert len(keep) == len(weights.changed())
        expected = by_onnxruntime(weights.model)
        np.testing.assert_array_equal(results[-1], expected)
        weights.restore()
    assert not np.array_equal(*results)
    assert files == {p: p.read_bytes() for p in tmp_path.iterdir()}  # the bundle stays as it was


def linear(rank=1, rows=8, columns=8, value=1.0):
    return Factor(torch.full((rank, columns), value), torch.ones(rows, rank), 1.0)


@pytest.mark.parametrize(
    ("name", "factor", "error", "message"),
    [
        ("mid_block.to_q.weight", linear(), Incompatible, r"changes 'mid_block.to_q.weight', wh"),
        (f"{TO_Q}.weight", linear(columns=9), Incompatible, r"shape \(8, 8\); got \(8, 1\) x "),
        (f"{TO_Q}.weight", linear(value=3e38), EngineError, "too large for torch.float32"),
    ],
)
def test_what_cannot_be_applied_changes_nothing(name, factor, error, message, traced):
    _, graph, places = traced
    model = copied(graph)
    weights = refit.Weights(model, places)
    both = {f"{CONV}.weight": Lora.of_module(adapted(1)).factors[f"{CONV}.weight"]}
    with pytest.raises(error, match=message):
        weights.apply([(Lora({**both, name: (factor,)}), 2.0)])
    assert digests(model) == digests(graph)


class Two(torch.nn.Module):
    def __init__(self, same):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        if same:
            self.b.weight.data.copy_(self.a.weight.data)


def constants(*named):
    import onnx

    graph = onnx.GraphProto()
    for name, tensor in named:
        graph.initializer.append(onnx.numpy_helper.from_array(tensor.detach().numpy(), name))
    return onnx.ModelProto(graph=graph)


def test_equal_weights_are_shared_unless_each_has_its_name():
    net = Two(same=True)
    merged = constants(("val_1", net.a.weight.t()), ("a.bias", net.a.bias))
    places = weight_map.weight_map(net, merged)
    assert places.keys() == {"a.weight", "b.weight", "a.bias"}
    assert places["a.weight"].shared == ("b.weight",)
    half_named = constants(("net.a.weight", net.a.weight))  # the exporter merged b into it
    assert weight_map.weight_map(net, half_named)["a.weight"].shared == ("b.weight",)
    named = constants(("net.a.weight", net.a.weight), ("net.b.weight", net.b.weight))
    own = weight_map.weight_map(net, named)
    assert [(p.initializers[0].name, p.shared) for p in own.values()] == [
        ("net.a.weight", ()),
        ("net.b.weight", ()),
    ]
    lora_of_a = Lora({"a.weight": (linear(rows=2, columns=3),)})
    with pytest.raises(Incompatible, match=r"'a.weight'.* same numbers as 'b.weight'"):
        refit.Weights(merged, places).apply([(lora_of_a, 1.0)])
    refit.Weights(named, own).apply([(lora_of_a, 1.0)])


def test_a_weight_that_is_there_twice_is_changed_twice():
    net = Two(same=False)
    model = constants(("a.weight", net.a.weight), ("val_1", net.a.weight.t()))
    weights = refit.Weights(model, weight_map.weight_map(net, model))
    weights.apply([(Lora({"a.weight": (linear(rows=2, columns=3),)}), 0.5)])
    changed = weights.changed()
    expected = net.a.weight.detach() + 0.5
    assert torch.equal(changed["a.weight"], expected)
    assert torch.equal(changed["val_1"], expected.t())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Base and LoRAs are summed in float32."""
    import onnx

    base = torch.tensor([[1.0, 2.0]]).to(dtype)
    step = torch.finfo(dtype).eps
    constant = onnx.TensorProto(
        name="w", dims=[1, 2], data_type=10 if dtype == torch.float16 else 16,
        raw_data=weight_map.data(base),
    )  # fmt: skip
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[constant]))
    net = torch.nn.Module()
    net.w = torch.nn.Parameter(base)
    weights = refit.Weights(model, weight_map.weight_map(net, model))
    # A quarter of a unit in the last place each: rounded one by one they would be lost.
    small = Factor(torch.full((1, 2), step / 4), torch.ones(1, 1), 1.0)
    weights.apply([(Lora({"w": (small,)}), 1.0)] * 3)
    assert weights.changed()["w"].float().tolist() == [[1.0 + step, 2.0]]


@pytest.mark.parametrize(
    ("a", "b", "alpha", "scale"),
    [
        ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", None, 1.0),
        ("unet.{}.lora_A.default.weight", "unet.{}.lora_B.default.weight", None, 1.0),
        ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", "unet.{}.alpha", 1.5),
        ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None, 1.0),
    ],
)
def test_a_state_dict(a, b, alpha, scale):
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    state = {a.format(TO_Q): down, b.format(TO_Q): up}
    if alpha:
        state[alpha.format(TO_Q)] = torch.tensor(3.0)
    if a.startswith("unet."):
        state["text_encoder.x.lora_A.weight"] = down  # of another part: left
    (name, (factor,)), = Lora.of_state_dict(state).factors.items()  # fmt: skip
    assert (name, factor.scale) == (f"{TO_Q}.weight", scale)
    torch.testing.assert_close(factor.delta((8, 8)), scale * (up @ down))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.x.lora_magnitude_vector", "'x.lora_magnitude_vector' of the LoRA is no lora_A"),
        ("unet.x.lora_A.weight", "layer 'x' of the LoRA has no up"),
        ("lora_unet_x.lora_mid.weight", r"is no lora_A or lora_B.*pipe\.load_lora_weights"),
    ],
)
def test_a_state_dict_that_is_not_read_is_named(key, message):
    with pytest.raises(Incompatible, match=message):
        Lora.of_state_dict({key: torch.zeros(1, 1)})


def test_a_file_that_diffusers_writes(tmp_path, traced):
    """With its alpha in the metadata; the same as from the network that it was loaded into."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    network = adapted(1)
    network.set_adapters(["adapter1"], [1.0])
    state = get_peft_model_state_dict(network, adapter_name="adapter1")
    config = network.peft_config["adapter1"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config
    )
    (path,) = tmp_path.glob("*.safetensors")
    read, live = Lora.read(path), Lora.of_module(network)
    assert read.factors.keys() == live.factors.keys()
    assert f"{TIME}.weight" in read.factors
    for name, (factor,) in read.factors.items():
        (other,) = live.factors[name]
        assert factor.scale == other.scale == 1.5
        assert torch.equal(factor.up, other.up)
        assert torch.equal(factor.down, other.down)


def test_a_map_that_is_not_whole_is_corrupt(traced):
    model = copied(traced[1])
    for text in ("{", "[]", '{"a": {"initializers": [{}], "shared": []}}', '{"a": 1}'):
        for entry in model.metadata_props:
            entry.value = text
        with pytest.raises(Corrupt, match=r"fastdiff\.weights must be a map"):
            weight_map.read(model)
    del model.metadata_props[:]
    assert weight_map.read(model) == {}
    assert lora.ADVICE
