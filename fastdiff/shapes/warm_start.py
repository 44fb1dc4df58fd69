"""Training checkpoints from a finished model, so that its training can go on.

Optimiser state is not shipped: AdamW starts anew, with the warm-up of the learning rate.
"""

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from fastdiff.shapes import checkpoint
from fastdiff.shapes.fingerprint import weights_hash


def take_over(model: Path, folder: Path) -> None:
    """Write vae.pt, text.pt and unet.pt of a training folder from a diffusers folder, in float32.

    What a training folder already holds is kept, so that a run that was stopped can be continued
    with the same command.  Raises FileNotFoundError where `model` is no diffusers folder.
    """
    if not (model / "model_index.json").exists():
        raise FileNotFoundError(
            f"--start-from must be a diffusers folder with a model_index.json; {model} is not. "
            "The built-in model is fastdiff/shapes/weights/base"
        )
    if (folder / "unet.pt").exists():
        return
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").float().state_dict()
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").float()
    text = CLIPTextModel.from_pretrained(model, subfolder="text_encoder").float()
    checkpoint.save(folder / "vae.pt", vae.state_dict())
    checkpoint.save(folder / "text.pt", text.state_dict())
    state = {"model": unet, "ema": unet, "step": 0, "minutes": 0.0}
    checkpoint.save(folder / "unet.pt", state)
    checkpoint.log(folder, "start", weights=weights_hash(model), made=how_it_was_made(model))


def how_it_was_made(model: Path) -> list[str]:
    """The lines of that section of a model's card; empty without a card."""
    card = model / "README.md"
    if not card.exists():
        return []
    section = card.read_text().partition("## How it was made")[2].partition("\n## ")[0]
    return section.strip().splitlines()
