"""Pictures on disk: files, larger copies, a contact sheet; and the versions that made them."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastdiff import __version__

if TYPE_CHECKING:
    from torch import Tensor

SHEET_COLUMNS, SHEET_GAP = 8, 4


def progress(total: int) -> Any:
    """A progress bar on stderr, over calls of the network."""
    from tqdm import tqdm

    return tqdm(total=total, desc="generate", unit="step")


def of_tensor(decoded: "Tensor") -> list[Image.Image]:
    """Decoded pictures (B, 3, H, W) in -1..1 as 8-bit images."""
    levels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte().cpu()
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


def save(
    images: list[Image.Image], names: list[str], out: Path, *, scale: int, sheet: bool
) -> None:
    """Write the pictures, and in subfolders larger copies (scale > 1) and a contact sheet."""
    for image, name in zip(images, names, strict=True):
        image.save(out / name)
        if scale > 1:
            large = out / f"x{scale}"
            large.mkdir(exist_ok=True)
            size = (image.width * scale, image.height * scale)
            image.resize(size, Image.Resampling.NEAREST).save(large / name)
    if sheet and len(images) > 1:
        (out / "sheet").mkdir(exist_ok=True)
        contact_sheet(images).save(out / "sheet" / "sheet.png")


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """All pictures in rows of up to eight, on grey."""
    width, height = images[0].width + SHEET_GAP, images[0].height + SHEET_GAP
    columns = min(SHEET_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    size = (columns * width + SHEET_GAP, rows * height + SHEET_GAP)
    page = Image.new("RGB", size, (128, 128, 128))
    for i, image in enumerate(images):
        corner = (SHEET_GAP + i % columns * width, SHEET_GAP + i // columns * height)
        page.paste(image, corner)
    return page


def versions() -> dict[str, str]:
    """Versions that decide what a picture looks like."""
    found = {"fastdiff": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
