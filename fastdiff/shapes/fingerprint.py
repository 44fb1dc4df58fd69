"""One number for the weights of a diffusers folder."""

import hashlib
from pathlib import Path


def weights_hash(*folders: Path) -> str:
    """SHA-256 over the names and contents of all weight files of a folder, then of the next."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*/*.bin")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
