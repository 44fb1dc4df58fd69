"""The few-step student: its target against formulas, its folders, and what ships of it."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file

from fastdiff.shapes import card, checkpoint, distill, evaluate, student
from fastdiff.shapes.fingerprint import weights_hash
from fastdiff.shapes.networks import forward_process
from tests import tiny_model


class Knows:
    """A network that returns v of known x_0 and n at any time, plus an offset for a text."""

    def __init__(self, process, x0, n, offset=0.0):
        self.process, self.x0, self.n, self.offset = process, x0, n, offset

    def __call__(self, x, t, text):
        times = len(x) // len(self.x0)
        v = self.process.target(self.x0.repeat(times, 1, 1, 1), self.n.repeat(times, 1, 1, 1), t)
        return SimpleNamespace(sample=v + self.offset * text[:, :1, :1, None])


def test_target_is_where_the_guided_step_ends():
    """v = v_true + g (offset of the text), so x_s and x_0 of it can be written down."""
    process = forward_process()
    g = torch.Generator().manual_seed(0)
    x0, n = (torch.randn(4, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([19, 99, 499, 999])
    text, empty = torch.ones(4, 1, 1).double(), torch.zeros(1, 1, 1).double()
    teacher, average = Knows(process, x0, n, 0.01), Knows(process, x0, n)
    x = process.noisy(x0, n, t)
    found = distill.targets(teacher, average, process, x, t, text, empty, skip=100, guidance=3.0)
    for i, time in enumerate(t.tolist()):
        bar = process.schedule.alphas_cumprod
        a, s = bar[time] ** 0.5, (1 - bar[time]) ** 0.5
        v = a * n[i] - s * x0[i] + 3.0 * 0.01
        clean, noise = a * x[i] - s * v, s * x[i] + a * v
        if time < 100:  # the step ends at the picture
            torch.testing.assert_close(found[i], clean)
            continue
        then = bar[time - 100]
        a, s = then**0.5, (1 - then) ** 0.5
        x_s = a * clean + s * noise
        stock = LCMScheduler()
        stock.sigma_data = 0.5
        skip, out = stock.get_scalings_for_boundary_condition_discrete(time - 100)
        expected = skip * x_s + out * (a * x_s - s * (a * n[i] - s * x0[i]))
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)  # their float32


def test_a_perfect_network_is_its_own_target():
    """Without guidance's offset both ends of the step lead to x_0: the loss is 0."""
    process = forward_process()
    x0, n = torch.randn(3, 4, 2, 2).double(), torch.randn(3, 4, 2, 2).double()
    t, text = torch.tensor([19, 599, 999]), torch.zeros(3, 1, 1).double()
    net = Knows(process, x0, n)
    x = process.noisy(x0, n, t)
    wanted = distill.targets(net, net, process, x, t, text, text[:1], skip=20)
    # c_skip x is all that differs from x_0, and c_skip is largest at t = 19
    torch.testing.assert_close(wanted, x0, rtol=0, atol=1e-4)
    found = distill.consistency(process, x, net(x, t, text).sample, t)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-4)


def test_rate_warms_up_and_falls():
    assert distill.rate(3e-4, 0, 400, 0) == pytest.approx(1e-5)
    assert distill.rate(3e-4, 399, 400, 0) == 3e-4
    assert distill.rate(3e-4, 320, 400, 80) == 3e-4
    assert distill.rate(3e-4, 360, 400, 80) == pytest.approx(1.5e-4)
    assert distill.rate(3e-4, 399, 400, 80) == pytest.approx(6e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of a tiny pipeline without steps_offset
def test_a_run_goes_on_and_is_exported(tmp_path):
    """Two steps in two calls; the folder that is exported holds the averaged weights."""
    teacher = tiny_model.save(tmp_path / "teacher")
    bank = {"latents": torch.randn(8, 4, 16, 16).half(), "scenes": torch.arange(8) + 24}
    checkpoint.save(tmp_path / "bank-0.pt", bank)
    folder, out = tmp_path / "run", tmp_path / "out"
    command = ["--teacher", str(teacher), "--folder", str(folder), "--bank", str(tmp_path)]
    distill.main([*command, "--batch", "2", "--steps", "1"])
    first = checkpoint.load(folder / "student.pt")
    distill.main([*command, "--batch", "2", "--steps", "2", "--skip", "100"])
    state = checkpoint.load(folder / "student.pt")
    assert (first["step"], state["step"], state["average"]["step"]) == (1, 2, 2)
    weights = load_file(teacher / "unet" / "diffusion_pytorch_model.safetensors")
    name = "conv_in.weight"
    assert not torch.equal(state["model"][name], first["model"][name])
    # two steps of AdamW at warm-up's rates, each at most about the rate
    assert 0 < float((state["model"][name] - weights[name]).abs().max()) < 1e-4
    student.main(["--folder", str(folder), "--out", str(out)])
    made = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert made.keys() == weights.keys()
    assert {w.dtype for w in made.values()} == {torch.float16}
    held, again = (student.unet_of(f).state_dict() for f in (folder, out))
    assert all(torch.equal(held[k].half().float(), again[k]) for k in made)
    assert student.is_student(folder)
    assert student.is_student(out)
    assert not student.is_student(teacher)
    start, end = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    assert (start["stage"], start["weights"]) == ("start", weights_hash(teacher))
    assert (end["stage"], end["step"], end["weights"]) == ("export", 2, weights_hash(out))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold student.pt"):
        student.export(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"steps must be 1 .. 50.*got 51"):
        student.times(51)
    pipe = SimpleNamespace(scheduler=student.scheduler())
    with pytest.raises(ValueError, match="spacing must be left out with LCM; got 'karras'"):
        evaluate.sample(pipe, ["a red circle"], steps=1, guidance=1, seed=0, spacing="karras")


def test_times_are_those_that_were_trained():
    taught = set(range(19, 1000, 1000 // distill.TIMES))
    assert student.times(4) == [999, 759, 499, 259]
    assert student.times(2) == [999, 499]
    assert student.times(1) == [999]
    for steps in (1, 2, 3, 4, 8, 50):
        assert set(student.times(steps)) <= taught


def test_the_card_takes_its_numbers_from_the_logs(tmp_path):
    weights, run, teacher = tmp_path / "weights", tmp_path / "run", tmp_path / "teacher"
    (weights / "unet").mkdir(parents=True)
    (weights / "unet" / "config.json").write_text("{}")
    (weights / "unet" / "some.safetensors").write_bytes(b"student")
    checkpoint.log(run, "start", weights="t" * 64)
    checkpoint.log(run, "student", step=140, batch=16, loss=0.0321, minutes=9.9)
    checkpoint.log(run, "export", step=120, minutes=9.4, weights=weights_hash(weights))
    share = dict.fromkeys(("colour", "shape", "relation", "layout"), 0.5)
    measured = {"objects": 2, "spacing": None, "count": 200, "interval": [0.1, 0.9], **share}
    for steps, right, of in ((4, 0.987, weights_hash(weights)), (2, 0.111, "another")):
        checkpoint.log(
            run, "evaluate", steps=steps, guidance=1.0, right=right, weights=of, **measured
        )
    checkpoint.log(
        teacher, "evaluate", steps=20, guidance=3.0, right=0.976, weights="t" * 64, **measured
    )
    command = ["--folder", str(run), "--weights", str(weights), "--command", "one", "two"]
    card.main([*command, "--commit", "abc", "--device", "a core", "--teacher-log", str(teacher)])
    text = (weights / "README.md").read_text()
    for words in ("**98.7**", "**97.6**", "120 steps of 16 latents, 9 minutes", "`two`, at commit"):
        assert words in text
    assert "11.1" not in text
    with pytest.raises(SystemExit):
        card.main([*command, "--commit", "abc"])
