"""One number for the weights of a diffusers folder."""

import hashlib
from pathlib import Path


def weights_hash(*folders: Path) -> str:
    """SHA-256 over the names and contents of all weight files of a folder, then of the next."""
    return _hash([(folder, path) for folder in folders for path in _weights(folder, "*/")])


def part_hash(part: Path) -> str:
    """That of a folder that has this part, such as its unet, and no other."""
    part = part.resolve()
    return _hash([(part.parent, path) for path in _weights(part)])


def _weights(folder: Path, within: str = "") -> list[Path]:
    return sorted(folder.glob(f"{within}*.safetensors")) + sorted(folder.glob(f"{within}*.bin"))


def _hash(files: list[tuple[Path, Path]]) -> str:
    """Of (folder, file in it), one after the other."""
    digest = hashlib.sha256()
    for folder, path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
