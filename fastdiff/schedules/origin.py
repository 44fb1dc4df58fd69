"""How something was made, a record that does not change afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np


class Origin(dict[str, Any]):
    """A dict of plain Python values (mappings are Origins, lists are tuples), closed to changes.

    JSON, pickle, copies and comparison are those of a dict.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__({key: _plain(value) for key, value in dict(values).items()})

    def _closed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this record is read-only; dict(..) makes a copy that is not")

    __setitem__ = __delitem__ = __ior__ = _closed
    clear = pop = popitem = setdefault = update = _closed

    def __reduce__(self) -> tuple[type[Origin], tuple[dict[str, Any]]]:
        return Origin, (dict(self),)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return Origin(value)
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value
