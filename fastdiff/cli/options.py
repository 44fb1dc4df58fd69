"""What options of several commands must hold; a refusal is a UserError that names the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdiff.cli import UserError

MOST = 1000  # calls of the network: as many as there are trained levels


def within(name: str, value: float, least: int, most: int, which: str = "") -> None:
    """Refuse a number outside least .. most; which: what the limits are, if not numbers alone."""
    if not least <= value <= most:
        shown = f"{value:g}" if isinstance(value, float) else value
        said = f"{least} .. {most}{which and f', {which}'}"
        raise UserError(f"{name} must be in {said}; got {shown}")


def numbers_in(name: str, text: str, what: str, least: int) -> tuple[int, ...]:
    """The numbers of an option like "5,10,20", ascending; what: they count."""
    parts = [part.strip() for part in text.split(",")]
    if not all(p.isascii() and p.isdigit() and least <= int(p) <= MOST for p in parts):
        raise UserError(
            f"{name} must be numbers of {what} in {least} .. {MOST}, such as 5,10,20; got {text!r}"
        )
    return tuple(sorted({int(part) for part in parts}))


def no_file(name: str, folder: Path) -> None:
    """Refuse a file where a folder is to be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{name} must be a folder; {folder} is a file")


@contextmanager
def written_to(name: str, folder: Path) -> Iterator[None]:
    """What keeps a run from its folder, a file of another run among it, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{name} must be a folder that can be written; got {str(folder)!r}: {error}"
        ) from error
    except ValueError as error:  # a file of other conditions, or no record
        raise UserError(str(error)) from error
