"""The engine of the built-in model where its U-Net is: in pipelines, in sample, in generate."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import fastdiff
from fastdiff.cli import UserError, model
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.shapes.oracle import judge
from tests.test_generate import PROMPT, generate, pixels

ONE_LEVEL = 1 / 255


@pytest.fixture(scope="module")
def pipe():
    return model.load(model.built_in(), "cpu")


@pytest.fixture(scope="module")
def engine(exported):
    with fastdiff.load_engine(exported / "bundle") as engine:
        yield engine


def difference(one, two):
    return np.abs(np.asarray(one, np.float64) - np.asarray(two, np.float64)).max()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 48), (32, 128)])
def test_a_pipeline_runs_unchanged(pipe, engine, height, width, no_gradients):
    """txt2img, then img2img from its picture: as with the U-Net in PyTorch."""
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}

    def pictures(unet):
        own = type(pipe)(**pipe.components | {"unet": unet})
        own.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed
        first = own(PROMPT, height=height, width=width, generator=seed(1), **options).images
        other = StableDiffusionImg2ImgPipeline(**own.components)
        other.set_progress_bar_config(disable=True)
        second = other(PROMPT, image=first, strength=0.5, generator=seed(2), **options).images
        return np.concatenate([first, second])

    stock, ours = pictures(pipe.unet), pictures(engine)
    assert stock.shape == (2, height, width, 3)
    assert difference(stock, ours) < ONE_LEVEL / 8


def test_an_accelerated_pipeline_takes_it(pipe, engine, no_gradients):
    own = type(pipe)(**pipe.components | {"unet": engine})
    own.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    stock = own(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
    fastdiff.accelerate(own)
    ours = own(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
    assert "fused" in str(fastdiff.report(own))
    assert own.unet is engine
    assert difference(stock, ours) < ONE_LEVEL / 8


def test_sample_takes_it_with_times_of_each_sample(engine, no_gradients):
    plans = [fastdiff.plan("ddim", steps=n, prediction="v_prediction") for n in (3, 2)]
    noise, text = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 128)
    both = fastdiff.sample(lambda x, t: engine(x, t, text).sample, noise, fastdiff.batch(plans))
    for i, plan in enumerate(plans):
        alone = fastdiff.sample(
            lambda x, t, i=i: engine(x, t, text[i : i + 1]).sample, noise[i : i + 1], plan
        )
        assert difference(both[i], alone[0]) < 1e-4  # of values to 4: 1e-5 of a network in float32


def test_generate_takes_it(exported, tmp_path):
    options = ["--steps", 8, "--seed", 5, "--sampler", "dpmpp_2m"]
    generate(PROMPT, *options, "--out", tmp_path / "stock")
    result = generate(PROMPT, *options, "--engine", exported / "bundle", "--out", tmp_path / "ours")
    assert "warning" not in result.stderr
    stock, ours = (pixels(tmp_path / name / "0-5.png") for name in ("stock", "ours"))
    assert difference(stock, ours) <= 1
    assert judge(torch.from_numpy(ours / 255).float().permute(2, 0, 1), PROMPT).right
    record = tmp_path / "ours/generate.json"
    assert json.loads(record.read_text())["request"]["engine"] == str(exported / "bundle")
    generate("--repeat", record, "--out", tmp_path / "again")
    assert difference(ours, pixels(tmp_path / "again/0-5.png")) == 0


def test_generate_refuses_a_bundle_of_another_model(exported, tiny, tmp_path):
    with pytest.raises(UserError, match="--engine must be of a U-Net with the config of --model"):
        generate(PROMPT, "--model", tiny, "--engine", exported / "bundle", "--out", tmp_path / "o")
    with pytest.raises(UserError, match=r"--engine: .* must be the folder of a bundle"):
        generate(PROMPT, "--engine", tmp_path / "none", "--out", tmp_path / "o")
    with pytest.raises(UserError, match="--engine does not go with --few-step"):
        generate(PROMPT, "--few-step", 2, "--engine", exported / "bundle", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("inside", [".", "pictures", "a/../b/c"])
def test_generate_writes_no_pictures_into_the_bundle(tmp_path, inside, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    monkeypatch.setattr(model, "load", pytest.fail)  # it is said before any work
    options = ["--engine", tmp_path / "link", "--out", tmp_path / "bundle" / inside]
    with pytest.raises(UserError, match="--out must not be in the bundle of --engine"):
        generate(PROMPT, *options)
    assert not list((tmp_path / "bundle").iterdir())


def test_what_an_engine_cannot_run_is_said_without_a_traceback(exported, tmp_path, monkeypatch):
    """Such as a batch that no profile of a TensorRT plan holds."""

    def refused(*arguments):
        raise Incompatible("sizes must be in one of the engine's profiles")

    monkeypatch.setattr("fastdiff.engine.session.Session.run", refused)
    options = ["--engine", exported / "bundle", "--out", tmp_path / "o"]
    with pytest.raises(UserError, match="--engine: sizes must be in one"):
        generate(PROMPT, *options)


def test_generate_warns_of_other_weights(exported, tmp_path):
    folder = tmp_path / "model"
    pipe = model.load(model.built_in(), "cpu")
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.01
    pipe.save_pretrained(folder)
    options = ["--engine", exported / "bundle", "--steps", 1, "--out", tmp_path / "o"]
    result = generate(PROMPT, "--model", folder, *options)
    assert "warning: the engine's weights are not those of the U-Net" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": torch.zeros(1, 4, 18, 16)}, "height that is a multiple of 4, .* got 18"),
        ({"sample": torch.zeros(1, 5, 16, 16)}, "sample must have the shape .*'batch', 4"),
        ({"sample": torch.zeros(1, 4, 16, 16).half()}, "sample must be float32 .* got float16"),
        ({"encoder_hidden_states": torch.zeros(2, 16, 128)}, "batch 1 as in the inputs before"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states must be a tensor float32"),
        ({"attention_mask": torch.ones(1, 16)}, "attention_mask must be None"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs must be None"),
        ({"timestep_cond": torch.zeros(1, 8)}, "got timestep_cond, too"),
        ({"down_block_additional_residuals": (torch.zeros(1),)}, "controlnet=True"),
    ],
)
def test_what_it_does_not_take_is_named(engine, arguments, message):
    given = {
        "sample": torch.zeros(1, 4, 16, 16),
        "timestep": 5,
        "encoder_hidden_states": torch.zeros(1, 16, 128),
    }
    with pytest.raises(Incompatible, match=message):
        engine(**given | arguments)


def test_it_stays_where_it_was_loaded(engine):
    assert engine.to("cpu", torch.float32) is engine
    with pytest.raises(Incompatible, match=r"dtype must be torch.float32"):
        engine.to(torch.float16)
    with pytest.raises(Incompatible, match=r"device='cuda'"):
        engine.to("cuda")


def test_threads_run_side_by_side(engine):
    """Each gets its own answer: the buffers of a call are that call's."""
    text = torch.randn(1, 16, 128)
    xs = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    want = [engine(x, 100 * i, text).sample for i, x in enumerate(xs)]
    got = [None] * len(xs)

    def call(i):
        for _ in range(3):
            got[i] = engine(xs[i], 100 * i, text).sample

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)


def test_its_threads_leave_the_cores_to_pytorch_after_a_call(exported):
    """Spinning on, as is ONNX Runtime's default, one took 57 ms of CPU time after each call."""
    given = torch.zeros(1, 4, 8, 8), 5.0, torch.zeros(1, 16, 128)
    used = 0.0
    with fastdiff.load_engine(exported / "bundle", threads=2) as engine:
        for _ in range(5):
            engine(*given)
            before = time.process_time()
            time.sleep(0.1)
            used += time.process_time() - before
    assert used < 0.05


def test_reused_outputs_and_a_closed_engine(exported):
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 128)
    with fastdiff.load_engine(exported / "bundle", reuse_outputs=True, threads=1) as own:
        first = own(x, 1, text, return_dict=False)[0]
        kept = first.clone()
        second = own(x, 999, text).sample
        assert second.data_ptr() == first.data_ptr()
        assert not torch.equal(kept, second)
    with pytest.raises(EngineError, match="closed; load it again"):
        own(x, 1, text)


def test_devices_and_providers_that_are_not_here(exported):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(Incompatible, match=r"CUDAExecutionProvider; installed are .*CPU"):
        fastdiff.load_engine(exported / "bundle", "cuda")
    with pytest.raises(Incompatible, match="device must be cpu or cuda"):
        fastdiff.load_engine(exported / "bundle", "mps")


class TestLora:
    """Weights of a LoRA in the engine, and out of it again."""

    @pytest.fixture(scope="class")
    def adapted(self):
        """The built-in U-Net with two adapters of peft."""
        from peft import LoraConfig

        unet = model.load(model.built_in(), "cpu").unet
        generator = torch.Generator().manual_seed(0)
        for name in ("one", "two"):
            config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "conv1"])
            unet.add_adapter(config, adapter_name=name)
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        return unet.eval()

    @staticmethod
    def call(network):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 4, 16, 16, generator=generator)
        return network(x, 321, torch.randn(2, 16, 128, generator=generator)).sample

    @pytest.mark.parametrize("names", [["one"], ["one", "two"]])
    def test_in_and_out(self, exported, adapted, names, no_gradients):
        adapted.set_adapter(names)
        want = self.call(adapted)
        with fastdiff.load_engine(exported / "bundle") as own:
            base = self.call(own)
            assert difference(base, want) > 0.01  # or there would be nothing to see
            own.set_loras([(adapted, 1.0)])
            got = self.call(own)
            # float32 keeps 1.2e-7, fused and unfused are 50 layers of other roundings
            assert (got - want).square().mean().sqrt() < 5e-6 * want.square().mean().sqrt()
            own.set_loras([])
            assert torch.equal(self.call(own), base)

    def test_files_and_strengths(self, exported, adapted, tmp_path, no_gradients):
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        adapted.set_adapter(["one"])
        state = get_peft_model_state_dict(adapted, adapter_name="one")
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
        with fastdiff.load_engine(exported / "bundle") as own:
            # without its config a file's alpha is its rank: half of the adapter's scale
            own.set_loras([(tmp_path / "pytorch_lora_weights.safetensors", 2.0)])
            from_file = self.call(own)
            own.set_loras([(adapted, 1.0)])
            assert (self.call(own) - from_file).abs().max() < 1e-5  # of values to 4, as above

    def test_a_lora_of_another_model_changes_nothing(self, exported, no_gradients):
        other = {
            "unet.mid_block.to_x.lora_A.weight": torch.zeros(2, 8),
            "unet.mid_block.to_x.lora_B.weight": torch.zeros(8, 2),
        }
        with fastdiff.load_engine(exported / "bundle") as own:
            base = self.call(own)
            with pytest.raises(Incompatible, match=r"mid_block\.to_x\.weight.*does not hold"):
                own.set_loras([(other, 1.0)])
            with pytest.raises(TypeError, match=r"loras must be .* got int"):
                own.set_loras([(3, 1.0)])
            assert torch.equal(self.call(own), base)
