"""Training of the built-in model: targets, rates, whitening, checkpoints, not its success."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fastdiff.cli.model import built_in
from fastdiff.shapes import card, checkpoint, evaluate, train
from fastdiff.shapes.export import assemble
from fastdiff.shapes.networks import (
    NOISE_SCHEDULE,
    build_unet,
    build_vae,
    forward_process,
)
from fastdiff.shapes.scenes import held_out, parse
from fastdiff.shapes.train_unet import _batch, learning_rate, load_bank
from fastdiff.shapes.train_vae import draw_scenes, pooled, training_scenes, whiten


def test_network_input_and_target_give_back_the_latent():
    latents = torch.randn(40, 4, 16, 16).half()
    scenes, tokens = torch.arange(40) % 7, torch.arange(8.0)[:, None, None].expand(8, 16, 3)
    alphas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
    process = forward_process()
    generator = torch.Generator().manual_seed(0)
    x, t, text, v = _batch(latents, scenes, tokens, process, 400, generator)
    alpha = alphas[t].sqrt()[:, None, None, None]
    x0 = alpha * x - (1 - alphas[t]).sqrt()[:, None, None, None] * v
    # every x0 is a picture of the bank, with that picture's tokens or those of the empty prompt
    away = (x0[:, None] - latents.float()).flatten(2).abs().amax(2)
    assert float(away.min(1).values.max()) < 1e-4
    scene = scenes[away.argmin(1)]
    told = text[:, 0, 0]
    assert ((told == scene) | (told == 7)).all()
    assert 0.05 < float((told == 7).float().mean()) < 0.16
    assert int(t.min()) >= 0
    assert int(t.max()) <= 999
    assert 0.6 < float((t >= 550).float().mean()) < 0.85  # the noisy end is drawn more often


def test_rate_warms_up_stays_and_falls():
    assert learning_rate(1e-3, 0, None) == pytest.approx(5e-6)
    assert learning_rate(1e-3, 5000, None) == 1e-3
    assert learning_rate(1e-3, 5000, 0.25) == pytest.approx(2.5e-4)
    assert learning_rate(1e-3, 5000, 0.0) == pytest.approx(1e-5)


def test_whitening_changes_latents_not_pictures():
    torch.manual_seed(0)
    vae = build_vae().eval()
    _, x = draw_scenes(16, np.random.default_rng(0))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mode()).sample
        whiten(vae, x)
        z = vae.encode(x).latent_dist.mode()
        after = vae.decode(z).sample
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_training_scenes_leave_out_what_is_held_back():
    assert not any(held_out(s) for s in training_scenes())
    assert all(held_out(parse(p)) for p in evaluate.prompts_for(300, one=False, seed=0))
    index, x = draw_scenes(500, np.random.default_rng(1), jitter=4.0)
    assert x.shape == (500, 3, 64, 64)
    assert float(x.min()) >= -1
    assert 0.08 < float((index < 24).mean()) < 0.22  # scenes of one object come first


def test_colours_of_blocks_are_about_standard():
    _, x = draw_scenes(200, np.random.default_rng(2))
    z = pooled(x)
    assert z.shape == (200, 3, 16, 16)
    assert float(z.mean().abs()) < 0.15
    assert 0.7 < float(z.std()) < 1.2


def test_checkpoint_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "unet.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"step": 3, "model": {"w": torch.ones(2)}})
    state = checkpoint.load(path)
    assert state is not None
    assert state["step"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["unet.pt"]
    checkpoint.log(tmp_path, "unet", step=3, loss=0.5)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["stage"], line["step"], line["loss"]) == ("unet", 3, 0.5)


def test_networks_are_within_their_size():
    unet, vae = build_unet(), build_vae()
    weights = sum(p.numel() for m in (unet, vae) for p in m.parameters())
    assert 2 * weights < 19e6  # bytes in half precision; the text encoder is 1 MB
    with torch.no_grad():
        z = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
        v = unet(z, 500, torch.zeros(1, 16, 128)).sample
    assert v.shape == z.shape == (1, 4, 16, 16)


def test_wilson_interval():
    low, high = evaluate.wilson(450, 500)  # by hand from the formula
    assert (round(low, 4), round(high, 4)) == (0.8706, 0.9233)
    assert evaluate.wilson(10, 10)[1] == pytest.approx(1.0)


def test_stages_are_the_documented_ones():
    options = train.arguments().parse_args(["unet", "--minutes", "5", "--decay", "2"])
    assert (options.stage, options.minutes, options.decay) == ("unet", 5.0, 2.0)
    with pytest.raises(SystemExit):
        train.arguments().parse_args(["everything"])


def test_training_goes_on_from_a_finished_model(tmp_path):
    folder = tmp_path / "more"
    command = ["more", "--start-from", str(built_in()), "--folder", str(folder), "--bank", "70"]
    train.main([*command, "--minutes", "0", "--workers", "1", "--no-compile"])
    shipped = evaluate.load(built_in())
    again = assemble(folder)
    for part in ("unet", "vae", "text_encoder"):
        old, new = getattr(shipped, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(old[name], new[name]) for name in new), part
    latents, scenes = load_bank(folder)
    assert (latents.shape, scenes.shape) == ((70, 4, 16, 16), (70,))
    assert 0.8 < float(latents.float().std()) < 1.2
    log = card.read_log(folder)
    assert any("Autoencoder" in line for line in card.earlier(log))
    assert "was trained on from" in card.origin(log)[0]


def test_starting_needs_a_model_and_says_so(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"--start-from must be a diffusers folder"):
        train.main(["more", "--start-from", str(tmp_path), "--folder", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    for wrong in (["more"], ["unet", "--start-from", str(tmp_path)]):
        with pytest.raises(SystemExit):
            train.main(wrong)
        assert "--start-from FOLDER goes with the stage 'more'" in capsys.readouterr().err


def test_settings_are_chosen_on_prompts_of_the_training():
    seen = evaluate.prompts_for(300, one=False, seed=0, seen=True)
    assert len(set(seen)) == 300
    assert not any(held_out(parse(p)) for p in seen)
