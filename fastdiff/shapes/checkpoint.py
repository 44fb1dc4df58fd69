"""Checkpoints that a killed run cannot spoil, and the log of a run: one JSON object a line."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write beside the file, then rename: the old checkpoint or the new one is there, never
    half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def log(folder: Path, stage: str, **values: Any) -> None:
    """Append one line to log.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"stage": stage, "unix_time": round(time.time(), 1), **values}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
