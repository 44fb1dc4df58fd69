"""Pictures on disk: files, larger copies, a contact sheet; and the versions that made them."""

import errno
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastdiff import __version__
from fastdiff.cli import UserError

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


def targets(names: list[str], out: Path, *, scale: int, sheet: bool, record: str) -> list[Path]:
    """Every file of a run: pictures, larger copies (scale > 1), a contact sheet, the record."""
    files = [out / name for name in names]
    if scale > 1:
        files += [out / f"x{scale}" / name for name in names]
    if sheet and len(names) > 1:
        files.append(out / "sheet" / "sheet.png")
    return [*files, out / record]


def prepare(files: list[Path]) -> None:
    """Make the folders, and see that each file can be written, before time is spent on them."""
    with _in_words():
        for folder in _folders(files):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=folder, prefix=".").cleanup()
        for path in files:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def save(images: list[Image.Image], record: dict[str, Any], files: list[Path], scale: int) -> None:
    """Write a run's files, those that `targets` named: all of them or, on an error, none.

    They get their names when all have been written; the record comes last.
    """
    with _in_words(), ExitStack() as stack:
        hidden = {
            folder: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".")))
            for folder in _folders(files)
        }
        drafts = [hidden[path.parent] / path.name for path in files]
        for page, draft in zip(_pages(images, scale, len(files) - 1), drafts[:-1], strict=True):
            page.save(draft)
        drafts[-1].write_text(json.dumps(record, indent=1) + "\n")
        for draft, path in zip(drafts, files, strict=True):
            draft.replace(path)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        raise UserError(
            f"--out must be a folder that can be written; {where}{error.strerror or error}"
        ) from error


def _folders(files: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(path.parent for path in files))


def _pages(images: list[Image.Image], scale: int, count: int) -> Iterator[Image.Image]:
    """What the `count` files before the record show, made one at a time: large copies are large."""
    yield from images
    if scale > 1:
        for image in images:
            size = (image.width * scale, image.height * scale)
            yield image.resize(size, Image.Resampling.NEAREST)
    if count % len(images):  # a sheet comes after whole rounds of the pictures
        yield contact_sheet(images)


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
