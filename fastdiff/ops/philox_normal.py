"""philox_normal: normal noise that belongs to a sample, whatever the batch and the device.

    z[b, i] = normal(seeds[b], i, n, stream),   n = step + noise_step   (mod 2^32)

seeds  (B,) int64, contiguous: one seed per sample
i      the place of an element in its sample, counted in C order
step   () int32 on the device of seeds: a counter in device memory; None: 0
z      (B, *shape), contiguous, of the dtype asked for, on the device of seeds

Elements 4 j .. 4 j + 3 of a sample come from one call of Philox4x32-10 (Salmon et al. 2011):

    key      (seed mod 2^32, floor(seed / 2^32) mod 2^32)
    counter  (j, n, stream, 0)
    words    w_0 .. w_3, 32 bits each

and two of them each from two of its words, by the transform of Box and Muller:

    radius(w) = sqrt(-2 ln((w + 1/2) / 2^32)),   angle(w) = 2 pi w / 2^32
    z[4j]     = radius(w_0) cos(angle(w_1)),     z[4j + 1] = radius(w_0) sin(angle(w_1))
    z[4j + 2] = radius(w_2) cos(angle(w_3)),     z[4j + 3] = radius(w_2) sin(angle(w_3))

So whoever has doubles, a logarithm and a cosine makes the same noise in ten lines.  The kernels
compute it in float32 from +, -, * and the square root alone, each rounded to nearest, in one order
(philox_normal_reference.py), and so all of them give the same bits: within 6 * 2^-24 * radius of
the formula, 2.5e-6 at most.  |z| <= sqrt(66 ln 2) = 6.764.  Results in float16 and bfloat16 are
those in float32, rounded.

Streams are independent of each other: 0 for the noise that sampling starts from (the default),
STEP_STREAM = 1 for what affine_step adds at step n.  Others are free.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastdiff import backends
from fastdiff.ops._arguments import check_integer, check_tensor, integer
from fastdiff.ops.philox_normal_reference import STEP_STREAM, philox_normal_ref

__all__ = ["STEP_STREAM", "check_counter", "check_seeds", "philox_normal", "philox_normal_ref"]

MAX_SAMPLE = 2**34  # elements: the first word of the counter has 32 bits
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

torch.library.define(
    "fastdiff::philox_normal",
    "(Tensor seeds, SymInt[] shape, Tensor? step, int noise_step, int stream, ScalarType dtype) "
    "-> Tensor",
)


def philox_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    step: Tensor | None = None,
    noise_step: int = 0,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return z, (B, *shape), as a new tensor."""
    if not hasattr(shape, "__iter__"):
        raise TypeError(f"shape must hold the sizes of one sample, got {shape!r}. Try ({shape!r},)")
    shape = [integer(f"shape[{i}]", size) for i, size in enumerate(shape)]
    noise_step, stream = integer("noise_step", noise_step), integer("stream", stream)
    args = (seeds, shape, step, noise_step, stream, dtype)
    _check(*args)
    if torch.compiler.is_compiling():
        return _through_dispatcher(*args)
    if backends.why_recorded() or type(seeds) not in (Tensor, FakeTensor):
        return philox_normal_ref(*args)  # plain operators, which everything can record or wrap
    if type(seeds) is Tensor and not torch._C._len_torch_dispatch_stack():
        return _run(*args)
    return _through_dispatcher(*args)


def check_seeds(seeds: Tensor, step: Tensor | None, noise_step: int) -> None:
    """Errors of the arguments that philox_normal and affine_step have in common."""
    check_tensor("seeds", seeds)
    if seeds.dim() != 1 or seeds.dtype != torch.int64 or not seeds.is_contiguous():
        raise ValueError(
            "seeds must be a contiguous int64 tensor (B,), one seed per sample; got "
            f"{tuple(seeds.shape)} {seeds.dtype}. Try torch.tensor([7, 8], device=..)"
        )
    if step is not None and not isinstance(step, Tensor):
        raise TypeError(
            f"step must be a 0-d int32 tensor, got {step!r}. Try noise_step=i for a number"
        )
    if step is not None and (
        step.dim() != 0 or step.dtype != torch.int32 or step.device != seeds.device
    ):
        raise ValueError(
            f"step must be a 0-d int32 tensor on the device of seeds, {seeds.device}; got "
            f"{tuple(step.shape)} {step.dtype} on {step.device}. Try noise_step=i for a number"
        )
    check_counter("noise_step", noise_step)


def launch_cpu(
    seeds: Tensor, step: Tensor | None, noise_step: int, stream: int, out: Tensor
) -> None:
    """csrc/philox_normal.cpp, which writes float32; other dtypes are rounded from that."""
    from fastdiff import _C

    wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    number = noise_step + (0 if step is None else int(step))
    samples, threads = seeds.numel(), torch.get_num_threads()
    addresses = (seeds.data_ptr(), wide.data_ptr())
    _C.philox_normal(*addresses, samples, out.numel(), number & 0xFFFFFFFF, stream, threads)
    if wide is not out:
        out.copy_(wide)


def launch_cuda(
    seeds: Tensor, step: Tensor | None, noise_step: int, stream: int, out: Tensor
) -> None:
    """csrc/philox_normal.cu, on the current stream of the device of seeds."""
    from fastdiff import _C

    with torch.cuda.device(seeds.device):
        _C.philox_normal_cuda(
            seeds.data_ptr(),
            0 if step is None else step.data_ptr(),
            noise_step,
            stream,
            out.data_ptr(),
            DTYPE_CODES[out.dtype],
            seeds.numel(),
            out.numel(),
            torch.cuda.current_stream().cuda_stream,
        )


def check_counter(name: str, value: int) -> None:
    check_integer(name, value)
    if not 0 <= value < 2**31:
        raise ValueError(f"{name} must be an integer from 0 to 2^31 - 1, got {value}")


def _check(
    seeds: Tensor,
    shape: Sequence[int],
    step: Tensor | None,
    noise_step: int,
    stream: int,
    dtype: torch.dtype,
) -> None:
    check_seeds(seeds, step, noise_step)
    check_counter("stream", stream)
    numel = 1
    for i, size in enumerate(shape):
        check_integer(f"shape[{i}]", size)
        numel *= size
        if size < 0:
            raise ValueError(f"shape must hold sizes of one sample, got {tuple(shape)}")
    if numel > MAX_SAMPLE:
        raise ValueError(f"shape must have at most 2^34 elements, got {tuple(shape)}")
    if dtype not in DTYPE_CODES:
        known = ", ".join(map(str, DTYPE_CODES))
        raise TypeError(
            f"dtype must be one of {known}; got {dtype}. Try .to({dtype}) on the result"
        )


def _empty(
    seeds: Tensor,
    shape: Sequence[int],
    step: Tensor | None,
    noise_step: int,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty((seeds.shape[0], *shape), dtype=dtype, device=seeds.device)


def _run(
    seeds: Tensor,
    shape: Sequence[int],
    step: Tensor | None,
    noise_step: int,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    z = _empty(seeds, shape, step, noise_step, stream, dtype)
    launch = backends.resolve("philox_normal", backends.Key(seeds.device.type, dtype))
    launch(seeds, step, noise_step, stream, z)
    return z


def _through_dispatcher(*args: object) -> Tensor:
    return torch.ops.fastdiff.philox_normal.default(*args)  # type: ignore[no-any-return]


def _op(
    seeds: Tensor,
    shape: Sequence[int],
    step: Tensor | None,
    noise_step: int,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    _check(seeds, shape, step, noise_step, stream, dtype)
    return _run(seeds, shape, step, noise_step, stream, dtype)


torch.library.impl("fastdiff::philox_normal", "CompositeExplicitAutograd")(_op)
torch.library.register_fake("fastdiff::philox_normal")(_empty)
backends.register(
    "philox_normal",
    reference="fastdiff.ops.philox_normal_reference:launch",
    cpu="fastdiff.ops.philox_normal:launch_cpu",
    cuda="fastdiff.ops.philox_normal:launch_cuda",
    triton="fastdiff.kernels.philox_normal:launch",
)
