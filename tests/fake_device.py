"""A device that is not there: counts what a GPU would see of any code, on a machine without one.

    with FakeDevice() as device:
        x = torch.randn(1, 4, 64, 64, device=device.name)
        device.clear()
        ...                                   # what is to be counted
    device.kernels, device.syncs, device.uploads

Tensors on the device are a wrapper subclass whose values lie in host memory; a dispatch mode sees
every operator and sorts it by what a CUDA device would do for it:

    kernel           an operator on device tensors that is not a view and not an allocation
    sync             the host waits: item, a shape that depends on values, device to host
    blocking upload  host to device without non_blocking (CUDA waits for the copy)
    upload           host to device with non_blocking=True

Mixing a host tensor of one or more dimensions with device tensors raises, as on CUDA; a 0-d host
tensor is a number in the kernel's arguments, and free.  A custom operator counts as one kernel.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("ipu", 0)  # a type that torch knows and never initialises
VIEWS = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "alias", "as_strided", "expand"),
    *("unsqueeze", "squeeze", "select", "slice", "permute", "transpose", "t", "unbind", "split"),
    *("detach", "lift_fresh", "sym_size", "sym_stride", "is_same_size"),
}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("unique_consecutive", "_unique2", "_linalg_check_errors"),
}
INDEXING = {"index", "index_put", "index_put_"}


class Event(NamedTuple):
    kind: str  # kernel | sync | upload | blocking upload | host
    op: str
    numel: int  # of the largest tensor


class DeviceTensor(torch.Tensor):
    """Claims to lie on DEVICE; `.value` holds the numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def data_ptr(self) -> int:
        return self.value.data_ptr()

    def __getitem__(self, index: Any) -> DeviceTensor:
        """torch's own indexing asks for a guard of the device, which nobody has registered."""
        mode, many = FakeDevice.current(), False
        parts: list[Any] = []
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, DeviceTensor) and part.dim() == 0:
                mode.note("sync", "index by a 0-d tensor", 1)
                part = part.value.item()
            elif isinstance(part, DeviceTensor):
                many, part = True, part.value
            elif isinstance(part, (list, Tensor)):
                many = True
                mode.note("blocking upload", "index", len(part))
            parts.append(part)
        value = self.value[tuple(parts)]
        if many:
            mode.note("kernel", "index", value.numel())
        return DeviceTensor(value)

    def nonzero(self, *, as_tuple: bool = False) -> Any:
        mode = FakeDevice.current()
        mode.note("kernel", "nonzero", self.value.numel())
        mode.note("sync", "nonzero", self.value.numel())
        found = self.value.nonzero(as_tuple=as_tuple)
        return tuple(map(DeviceTensor, found)) if as_tuple else DeviceTensor(found)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.value})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a DeviceTensor outside `with FakeDevice()`")


class FakeDevice(TorchDispatchMode):
    name = str(DEVICE)
    _stack: list[FakeDevice] = []  # noqa: RUF012  shared on purpose: the innermost one counts

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    @classmethod
    def current(cls) -> FakeDevice:
        return cls._stack[-1]

    def __enter__(self) -> FakeDevice:
        self._stack.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.pop()

    def clear(self) -> None:
        self.events = []

    def note(self, kind: str, op: str, numel: int) -> None:
        self.events.append(Event(kind, op, numel))

    def _of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def kernels(self) -> list[Event]:
        return self._of("kernel")

    @property
    def syncs(self) -> list[Event]:
        return self._of("sync")

    @property
    def uploads(self) -> list[Event]:
        return self._of("upload")

    @property
    def blocking_uploads(self) -> list[Event]:
        return self._of("blocking upload")

    @property
    def host_ops(self) -> list[Event]:
        return self._of("host")

    def large_kernels(self, numel: int) -> list[Event]:
        """Kernels that touch at least this many elements."""
        return [event for event in self.kernels if event.numel >= numel]

    def __str__(self) -> str:
        counted = Counter(f"{event.kind} {event.op}" for event in self.events)
        return ", ".join(f"{count} x {text}" for text, count in counted.most_common())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        op = func._schema.name.split("::")[1]
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        ours = [a for a in tensors if isinstance(a, DeviceTensor)]
        numel = max((a.numel() for a in tensors), default=0)
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        to_device, to_host = target == DEVICE.type, target == "cpu" and bool(ours)
        if to_device:
            kwargs["device"] = torch.device("cpu")
        inner = tree_map(lambda a: a.value if isinstance(a, DeviceTensor) else a, (args, kwargs))
        result = func(*inner[0], **inner[1])
        if not to_device and not ours:
            if op not in VIEWS | ALLOCATIONS:
                self.note("host", op, numel)
            return result

        copies = op in ("copy_", "_to_copy")
        if op in WAITS or to_host or (copies and not isinstance(args[0], DeviceTensor) and ours):
            self.note("sync", op, numel)
            if op != "nonzero":
                return args[0] if op == "copy_" else result
        source = args[1] if op == "copy_" else args[0] if args else None
        if copies and not isinstance(source, DeviceTensor):
            position = 2 if op == "copy_" else 5
            waits = not (kwargs.get("non_blocking") or (args[position:] and args[position]))
            self.note("blocking upload" if waits else "upload", op, numel)
        elif op not in VIEWS | ALLOCATIONS:
            self._same_device(op, tensors)
            sizes = [a.numel() for a in tree_flatten(result)[0] if isinstance(a, Tensor)]
            self.note("kernel", op, max([numel, *sizes]))
        if op.endswith("_") and not op.endswith("__") and isinstance(args[0], DeviceTensor):
            return args[0]
        return tree_map(lambda a: DeviceTensor(a) if isinstance(a, Tensor) else a, result)

    def _same_device(self, op: str, tensors: list[Tensor]) -> None:
        here = [a for a in tensors if not isinstance(a, DeviceTensor) and a.dim() > 0]
        if here and op in INDEXING:
            self.note("blocking upload", op, here[0].numel())
        elif here:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {op} got {DEVICE} and cpu, "
                f"the latter of shape {tuple(here[0].shape)}"
            )
