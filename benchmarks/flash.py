"""FA3 and FA4 in the place of PyTorch's own flash attention, for as long as they are timed.

torch.nn.attention.activate_flash_attention_impl, since torch 2.11, changes what scaled_dot_product_
attention's flash backend is, for the whole process; it needs packages that PyTorch does not bring
(flash_attn_interface, flash_attn.cute) and a GPU they were written for.  Here it is changed while
a call is checked and its graph captured, and changed back, so that nobody else's times are of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.attention as torch_attention

from fastdiff.ops.attention import IMPLEMENTATIONS, active_flash

BUILT_IN = "FA2"
NAMES = dict(IMPLEMENTATIONS)  # {"fa3": "FA3", "fa4": "FA4"}: ours, and PyTorch's


class NotPutBack(Exception):
    """The next times would be of something else than they say."""


@contextlib.contextmanager
def activated(implementation: str) -> Iterator[None]:
    """PyTorch's flash attention is this one inside, and outside what it was before."""
    before = active_flash()
    if before == implementation:
        yield
        return
    try:
        torch_attention.activate_flash_attention_impl(implementation)
        now = active_flash()
        if now != implementation:
            raise RuntimeError(f"PyTorch was told to activate {implementation} and has {now}")
        yield
    finally:
        put_back(before)


def put_back(before: str) -> None:
    if active_flash() != BUILT_IN:
        torch_attention.restore_flash_attention_impl()
    if before != BUILT_IN:
        torch_attention.activate_flash_attention_impl(before)
    if (now := active_flash()) != before:
        raise NotPutBack(
            f"PyTorch's flash attention was {before} and cannot be put back from {now}"
        )


def why_not(implementation: str) -> str | None:
    """Why PyTorch cannot activate it here, in words; None if it can."""
    for name in ("activate", "restore", "current"):
        if not hasattr(torch_attention, f"{name}_flash_attention_impl"):
            return f"this PyTorch has no torch.nn.attention.{name}_flash_attention_impl"
    try:
        with activated(implementation):
            return None
    except Exception as error:
        # whatever a package raises when it is imported: the reason is recorded, the row goes on
        if isinstance(error, NotPutBack):
            raise
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"PyTorch cannot activate {implementation}: {words}"
