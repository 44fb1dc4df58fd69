"""What arguments of every op are asked to be; errors name them, what they got, what would do."""

import operator

import torch
from torch import Tensor

# "A floating dtype" of the contracts: kernels read all but float64, which runs the references.
FLOATING = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}. Try torch.as_tensor({name})")


def check_floating(name: str, tensor: object) -> None:
    """A tensor in FLOATING: 8 bits are a format of storage, and PyTorch adds none of them."""
    if not isinstance(tensor, Tensor):
        check_tensor(name, tensor)
    elif tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be of a floating dtype of 16 bits or more, got {tensor.dtype}. "
            f"Try {name}.float()"
        )


def check_dtype(name: str, dtype: object) -> None:
    """The dtype of a result."""
    if dtype not in FLOATING:
        raise TypeError(
            f"{name} must be a floating dtype of 16 bits or more, got {dtype!r}. "
            "Try torch.float32, and .to(..) on the result"
        )


def check_integer(name: str, value: object) -> None:
    if isinstance(value, (int, torch.SymInt)):
        return
    try:
        operator.index(value)  # type: ignore[arg-type]  # NumPy's, too
    except TypeError:
        raise TypeError(f"{name} must be an integer, such as 1; got {value!r}") from None


def check_number(name: str, value: object) -> None:
    if isinstance(value, (float, int, torch.SymFloat, torch.SymInt)):
        return
    if not hasattr(value, "__float__") or (isinstance(value, Tensor) and value.numel() != 1):
        raise TypeError(f"{name} must be a number, such as 1.0; got {value!r}")
