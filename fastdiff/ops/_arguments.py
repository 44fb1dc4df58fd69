"""What arguments of every op are asked to be; errors name them, what they got, what would do.

check_..  raises, and changes nothing
number, integer, flag, tensors     the argument as kernels and launchers take it: NumPy's numbers,
                                   which Triton cannot specialise, become Python's
foreign                            whether custom ops may not know a tensor
"""

import operator
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# "A floating dtype" of the contracts: kernels read all but float64, which runs the references.
FLOATING = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


def check_tensor(name: str, value: object) -> None:
    """A tensor with strides: kernels read its memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}. Try torch.as_tensor({name})")
    if value.is_nested:
        raise TypeError(
            f"{name} must be a dense (strided) tensor, got a nested one. "
            f"Try torch.nested.to_padded_tensor({name}, 0.0)"
        )
    if value.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense (strided) tensor, got layout {value.layout}. "
            f"Try {name}.to_dense()"
        )


def check_floating(name: str, tensor: object) -> None:
    """A tensor in FLOATING: 8 bits are a format of storage, and PyTorch adds none of them."""
    check_tensor(name, tensor)
    dtype = cast(Tensor, tensor).dtype
    if dtype not in FLOATING:
        raise TypeError(
            f"{name} must be of a floating dtype of 16 bits or more, got {dtype}. "
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
    integer(name, value)


def check_number(name: str, value: object) -> None:
    number(name, value)


def integer(name: str, value: object) -> int:
    if type(value) is int or isinstance(value, torch.SymInt):
        return cast(int, value)
    _check_no_tensor(name, value, "an integer, such as 1")
    try:
        return int(operator.index(value))  # type: ignore[arg-type]  # NumPy's, too
    except TypeError:
        raise TypeError(f"{name} must be an integer, such as 1; got {value!r}") from None


def number(name: str, value: object) -> float:
    if type(value) is float or isinstance(value, (torch.SymFloat, torch.SymInt)):
        return cast(float, value)
    _check_no_tensor(name, value, "a number, such as 1.0")
    try:
        if not hasattr(value, "__float__"):  # float() takes text, too
            raise TypeError
        return float(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, such as 1.0; got {value!r}") from None


def flag(name: str, value: object) -> bool:
    if type(value) is bool or isinstance(value, torch.SymBool):
        return cast(bool, value)
    if isinstance(value, int) or type(value).__name__ in ("bool", "bool_"):  # NumPy's
        return bool(value)
    raise TypeError(f"{name} must be True or False; got {value!r}")


def tensors(name: str, value: object) -> list[Tensor]:
    """What holds tensors, as a list; callers check each of them."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a list of tensors, got a tensor. Try [{name}]")
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of tensors, got {value!r}. Try []")
    return list(value)


def _check_no_tensor(name: str, value: object, wanted: str) -> None:
    """Not even of one element: to read it here would wait for the device, unseen."""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be {wanted}; got a tensor {tuple(value.shape)} on {value.device}. "
            f"Try {name}.item(), which waits for the device"
        )


def foreign(tensor: Tensor | None) -> bool:
    """Whether it is of a subclass of Tensor that may not know a custom op."""
    known = (Tensor, torch.nn.Parameter, FakeTensor)
    return tensor is not None and type(tensor) not in known
