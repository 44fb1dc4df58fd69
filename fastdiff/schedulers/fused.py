"""The one step of every drop-in scheduler.

    place = where the step stands;  row = rows[place];  z = noise, if the row draws
    x', x_0, kept = affine_step(sample, model_output, row, history, z)

A class says only what differs: which numbers describe its schedule (`_schedule`), how a place
becomes a row (`_builder`), which places follow (`_ahead`), where history lives and which dtypes
diffusers returns. State is stock's own attributes; `_fused` holds what can be thrown away at any
time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from fastdiff import backends
from fastdiff.ops.affine_step import affine_step
from fastdiff.schedulers.guidance import Deferred
from fastdiff.schedulers.native import native
from fastdiff.schedulers.rows import Entry, Place, Rows, shared
from fastdiff.schedulers.seeded import Keyed, Seeded
from fastdiff.schedulers.spaced import spaced
from fastdiff.schedulers.threshold import thresholded
from fastdiff.schedulers.timestep import by_value, host_value, view_index

logger = logging.getLogger("fastdiff")
NUMERICS = ("faithful", "exact")


class State:
    """What an instance remembers between steps; rebuilt when what it was made from changed."""

    def __init__(self) -> None:
        self.source: Any = None  # the tensor (sigmas, alphas_cumprod) the rows were made from
        self.version: int | None = None
        self.config: tuple[Any, ...] = ()  # values of the config entries in `_reads`
        self.numerics = ""
        self.rows: Rows | None = None
        self.facts: Any = None  # what a class reads from its config on every step
        self.fused = 0
        self.timesteps: Tensor | None = None  # whose values are in `values`
        self.timesteps_version: int | None = None
        self.values: list[float] = []
        self.levels: NDArray[np.float64] | None = None  # the values of `levels_of`,
        self.levels_of: Tensor | None = None  # a tensor on a device
        # tensors of levels beside the source: (tensor, version, values)
        self.others: dict[str, tuple[Tensor, int | None, list[float]]] = {}
        self.counts: Counter[str] = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        copy = State()  # rows are found again by value; tensors of the copy are other tensors
        copy.counts, copy.fused = self.counts.copy(), self.fused
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return (State, ())


class FusedStep(Seeded):
    """Mixed into a diffusers scheduler class, before it in the bases."""

    numerics = "faithful"  # or "exact"; an attribute, never part of the saved config
    spacing: str | None = None  # of schedules/spacing.py's AYS, set by fastdiff.sampler

    # given by the diffusers class
    timesteps: Tensor
    _internal_dict: Any
    _step_index: int | None
    _begin_index: int | None
    num_inference_steps: int | None

    _source = "sigmas"  # the attribute that the rows are made from
    _reads: tuple[str, ...]  # entries of the config that the step depends on, two or more
    _getter: Callable[[Any], tuple[Any, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_reads" in cls.__dict__:
            # attributes, not items: pipelines set config.clip_sample, and diffusers reads that
            cls._getter = attrgetter(*cls._reads)
        if "set_timesteps" in cls.__dict__:
            cls.set_timesteps = spaced(cls.set_timesteps)  # type: ignore[attr-defined]

    def _builder(self) -> Callable[[Place], Entry]:
        """How a place becomes a row, closed over numbers only (it outlives the instance)."""
        raise NotImplementedError

    def _ahead(self, place: Any) -> Iterable[Place]:
        """This place and those that follow if nobody interferes: what a device gets at once."""
        raise NotImplementedError

    @property
    def _state(self) -> State:
        state = self.__dict__.get("_fused")
        if state is None:
            state = self.__dict__["_fused"] = State()
        return state

    def _facts(self, config: dict[str, Any]) -> Any:
        """What the class's step asks of the config, answered once a schedule."""
        raise NotImplementedError

    @property
    def _config(self) -> dict[str, Any]:
        """The config entries that rows are made from."""
        return dict(zip(self._reads, type(self)._getter(self._internal_dict), strict=True))

    def _levels(self) -> NDArray[np.float64]:
        """The values of the source, float64; read back if someone put it on a device."""
        state, source = self._state, self.__dict__[self._source]
        if source.device.type == "cpu":
            return values_of(source)
        if state.levels is None or state.levels_of is not source:
            state.counts[f"{self._source} read back from the device"] += 1
            state.levels = values_of(source.detach().cpu())
            state.levels_of = source
        return state.levels

    def _others(self, name: str) -> list[float]:
        """The values of a tensor of levels beside `sigmas`; read again if it was written to."""
        state, levels = self._state, self.__dict__[name]
        version = None if levels.is_inference() else levels._version
        known = state.others.get(name)
        if known is not None and known[0] is levels and known[1] == version:
            return known[2]
        if levels.device.type != "cpu":
            state.counts[f"{name} read back from the device"] += 1
        values: list[float] = values_of(levels.detach().cpu()).tolist()
        state.others[name] = levels, version, values
        return values

    def _ready(self) -> tuple[State, Rows]:
        """The state and the rows for the schedule as it is now.

        A write that PyTorch does not count (through .numpy() or .data, or to an inference tensor)
        is seen where a run starts, `set_timesteps` or the first step: both forget the rows.
        """
        own = self.__dict__
        state: State = own.get("_fused") or self._state
        source = own[self._source]
        version = None if source.is_inference() else source._version
        config = type(self)._getter(self._internal_dict)
        if (
            state.rows is None
            or state.source is not source
            or state.version != version
            or state.config != config
            or state.numerics != self.numerics
        ):
            return state, self._renew(state, source, version, config)
        return state, state.rows

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _renew(
        self, state: State, source: Tensor, version: int | None, config: tuple[Any, ...]
    ) -> Rows:
        """Find or make the rows of the schedule by its values."""
        if self.numerics not in NUMERICS:
            raise ValueError(
                f"numerics must be one of {', '.join(NUMERICS)}; got {self.numerics!r}"
            )
        if version != state.version:
            state.levels_of = None  # written in place: what was read from a device is old
        levels = self._levels()
        names = (type(self).__name__, self.numerics, *config)
        rows = state.rows = shared((*names, levels.tobytes()), self._builder)
        state.source, state.version = source, version
        state.config, state.numerics = config, self.numerics
        state.facts = self._facts(self._config)
        return rows

    # ---- where a step stands ------------------------------------------------------------------

    def _timestep_values(self) -> list[float]:
        """The values of `timesteps` on the host; read back once where nobody kept them."""
        state, timesteps = self._state, self.timesteps
        inference = timesteps.is_inference()
        known = state.timesteps is timesteps and not inference
        if known and state.timesteps_version == timesteps._version:
            return state.values
        on_host = timesteps.device.type == "cpu"
        # an inference tensor keeps no version; on the host, reading it again is cheap
        version = (-1 if on_host else None) if inference else timesteps._version
        if state.timesteps is not timesteps or state.timesteps_version != version or version == -1:
            if not on_host:
                state.counts["timesteps read back from the device"] += 1
            state.values = values_of(timesteps.detach().cpu()).tolist()
            state.timesteps, state.timesteps_version = timesteps, version
        return state.values

    def _place_timesteps(self, device: str | torch.device | None) -> None:
        """Keep the values of freshly set timesteps, then move them as diffusers would have."""
        state = self._state
        state.rows = None  # a run starts
        state.values = self.timesteps.to(torch.float64).tolist()
        self.timesteps = moved = self.timesteps.to(device)
        state.timesteps = moved
        state.timesteps_version = None if moved.is_inference() else moved._version

    def _index_of(self, timestep: Any) -> int | None:
        """Index of a timestep: by its address, else by its value (counted), else None."""
        index = view_index(self.timesteps, timestep)
        if index is None:
            self._state.counts["timesteps looked up by value"] += 1
            index = by_value(self._timestep_values(), host_value(timestep))
        return index

    def _init_step_index(self, timestep: Any) -> None:
        """Set the index of the first step; also reached through scale_model_input."""
        self._state.rows = None  # a run starts
        if self._begin_index is not None:
            self._step_index = self._begin_index
            return
        index = self._index_of(timestep)
        self._step_index = self._unknown_timestep(timestep) if index is None else index

    def _unknown_timestep(self, timestep: Any) -> int:
        raise ValueError(
            f"timestep must be one of scheduler.timesteps; got {host_value(timestep):g}. Pass an "
            "element of scheduler.timesteps, or call set_begin_index first"
        )

    # ---- the step -----------------------------------------------------------------------------

    def _fitted(self, name: str, tensor: Any, sample: Tensor) -> Tensor:
        """The tensor in the shape of sample; a dimension of 1 stands for all, as in diffusers."""
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} must hold a tensor for this step; got {type(tensor).__name__}. "
                "Set model_outputs and lower_order_nums together"
            )
        if tensor.device != sample.device:
            raise ValueError(
                f"{name} must be on the device of sample, {sample.device}; got {tensor.device}. "
                "Move one of them with .to()"
            )
        sizes = zip(tensor.shape, sample.shape, strict=False)
        if tensor.dim() != sample.dim() or any(n not in (1, size) for n, size in sizes):
            hint = (
                ". A network with learned variance needs variance_type='learned' or "
                "'learned_range' in the scheduler's config"
            )
            raise ValueError(
                f"{name} must have the shape of sample, {tuple(sample.shape)}; got "
                f"{tuple(tensor.shape)}{hint if name == 'model_output' else ''}"
            )
        return tensor.expand_as(sample)

    def _apply(
        self,
        rows: Rows,
        place: Place,
        entry: Entry,
        sample: Tensor,
        model_output: Tensor,
        history: Sequence[Tensor],
        noise: Any,
        prev_dtype: torch.dtype,
        x0_dtype: torch.dtype,
        keeps: int = 0,
        threshold: tuple[float, float] | None = None,
        uncond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Run one row: (x', x_0, kept).  threshold: (quantile, largest bound), see threshold.py.

        noise: a tensor, what the kernel makes noise of (Keyed), or None.  With uncond, model_output
        is the conditional output, and the row has the guidance.
        """
        dtypes = prev_dtype, x0_dtype
        if threshold is None:
            done = native(
                entry.pointer, sample, model_output, history, noise, *dtypes, keeps, uncond
            )
            if done is not None:
                self.__dict__["_fused"].fused += 1
                return done
        if isinstance(model_output, Deferred):
            given = model_output.operands("dynamic thresholding" if threshold else "")
            if given.uncond is not None:
                rows = rows.guided(given.g)
                entry = rows[place]
            operands = sample, given.cond, history, noise
            out = self._apply(
                rows, place, entry, *operands, *dtypes, keeps, threshold, given.uncond
            )
            if given.uncond is not None:
                self._state.counts["guidance in the step"] += 1
            return out
        model_output = self._fitted("model_output", model_output, sample)
        uncond = None if uncond is None else self._fitted("model_output", uncond, sample)
        history = [self._fitted("history", h, sample) for h in history]
        drawn: dict[str, Any] = {}
        if type(noise) is Keyed:
            drawn = {"seeds": noise.philox.fitted(sample), "noise_step": noise.step}
            noise = None
        elif noise is not None:
            noise = drawn["noise"] = self._fitted("variance_noise", noise, sample)
        outputs = [model_output] if uncond is None else [model_output, uncond]
        self._count(sample, noise, [*outputs, *history])
        wide = torch.float64 in (sample.dtype, model_output.dtype)
        dtype = torch.float64 if wide else torch.float32
        table = entry.on(sample.device, dtype)
        if table is None:
            rows.bring(self._ahead(place), sample.device, dtype)
            table = entry.on(sample.device, dtype)
            assert table is not None, "_ahead must contain the place itself"
        if threshold is not None:
            table = thresholded(table, sample, model_output, x0_dtype, *threshold)
        return affine_step(
            sample,
            model_output,
            table,
            uncond=uncond,
            history=history,
            keeps=keeps,
            out_dtype=prev_dtype,
            x0_dtype=x0_dtype,
            **drawn,
        )

    def _count(self, sample: Tensor, noise: Tensor | None, others: Sequence[Tensor]) -> None:
        """Count a step that a kernel runs, or why the differentiable reference does."""
        reason = backends.why_reference(sample, noise, *others)
        if reason is None:
            key = backends.Key(sample.device.type, sample.dtype)
            if backends.chosen("affine_step", key) != "reference":
                self._state.fused += 1
                return
            reason = f"no kernel for {sample.device.type} tensors here"
        self._reference(reason)

    def _reference(self, reason: str, draws: bool = False) -> None:
        """Count a step that no kernel runs; with `strict`, refuse it.

        draws: it is diffusers' own code, which may draw noise.
        """
        if draws and "_draw" in self.__dict__:
            raise ValueError(
                f"noise must be 'diffusers' for this step: {reason}, and diffusers' own "
                "code runs it; got 'philox'. Call set_noise('diffusers')"
            )
        if self.__dict__.get("strict"):
            raise RuntimeError(
                f"{type(self).__name__} cannot run this step on a kernel: {reason}. "
                "accelerate(.., strict=False) runs the PyTorch reference instead"
            )
        counts = self._state.counts
        if not counts[f"reference: {reason}"]:
            logger.info("%s runs the PyTorch reference: %s", type(self).__name__, reason)
        counts[f"reference: {reason}"] += 1


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    """A copy of a host tensor's values, whatever transform or mode is active around it."""
    if isinstance(tensor, FakeTensor):
        raise RuntimeError("the schedule is made of fake tensors, which have no values")
    with torch._C._DisableFuncTorch(), _disable_current_modes():
        return np.array(tensor.detach().double().numpy())


def within(i: int, sigmas: NDArray[np.float64]) -> None:
    """Raise unless step i, from sigmas[i] to sigmas[i + 1], is one of the run."""
    if i >= len(sigmas) - 1:
        raise over(i, len(sigmas) - 1)


def over(i: int, steps: int) -> IndexError:
    """The error of a step that a run does not have."""
    return IndexError(
        f"step_index must be below {steps}, the steps of this run; got {i}. "
        "The run is over: call set_timesteps before another one"
    )


__all__ = ["Entry", "FusedStep", "Place", "Rows", "State", "over", "within"]
