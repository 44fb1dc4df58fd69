"""What the flow matching drop-ins share: the grid, its shift, and the step with or without noise.

x = (1 - s) x_0 + s n,     v = n - x_0 is what the network returns

x' = x + (s' - s) v                      deterministic
x' = (1 - s') (x - s v) + s' z           stochastic
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import vector, whole_steps
from fastdiff.schedulers.flow_levels import noisy, shiftable
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.timestep import INTEGERS, an_index
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode


class FlowMatch(FusedStep):
    """Mixed into a diffusers scheduler class whose sigmas are levels of a rectified flow."""

    # diffusers has neither; pipelines that take any scheduler ask for both
    init_noise_sigma = 1.0

    sigmas: Tensor
    config: Any

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
        timesteps: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, lists, arrays and tensors accepted.

        sigmas     (N,) noise levels, which the config's shift, or mu, then shifts
        mu         the shift, with use_dynamic_shifting; else it has no effect, as in diffusers
        timesteps  (N,) what the network gets
        """
        whole_steps(num_inference_steps)
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("pass one of num_inference_steps, timesteps or sigmas; got none")
        if mu is not None:
            mu = shiftable(mu, self.config.time_shift_type)
        given = {"sigmas": sigmas, "timesteps": timesteps}
        values = {n: None if v is None else vector(n, v) for n, v in given.items()}
        base: Any = super()
        base.set_timesteps(num_inference_steps, None, mu=mu, **values)
        self._place_timesteps(device)
        self._place_sigmas(device)

    def _place_sigmas(self, device: str | torch.device | None) -> None:
        """Move freshly set sigmas to where diffusers has them, and keep their values here."""
        state, levels = self._state, self._levels()
        self.sigmas = moved = self.sigmas.to(device)
        state.levels, state.levels_of = levels, moved
        state.version = None if moved.is_inference() else moved._version

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """(1 - s) x_0 + s n, (B, *shape); as diffusers, with errors that name the argument."""
        noisy(self, sample, timestep, noise)
        base: Any = super()
        made: Tensor = base.scale_noise(sample, timestep, noise)
        return made

    def _stochastic(self, config: dict[str, Any]) -> bool:
        """Whether a step replaces all of the noise."""
        raise NotImplementedError

    def _facts(self, config: dict[str, Any]) -> Any:
        return None

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas, noisy = self._levels(), self._stochastic(self._config)

        def build(place: Any) -> Entry:
            i = place
            within(i, sigmas)
            now, then = float(sigmas[i]), float(sigmas[i + 1])
            numbers = Conversion(kx=1.0, ke=-now, qx=0.0, qe=1.0)  # "n" is the velocity
            move = Weights(d=1 - then, z=then) if noisy else Weights(x=1.0, n=then - now)
            return Entry(encode(Row(move), numbers), draw=noisy, reads=0)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        return range(place, len(self.sigmas) - 1)

    def _flow_step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None,
        drawn: torch.dtype = torch.float32,
    ) -> Tensor:
        """x'.  drawn: dtype of the noise; diffusers brings the sample to float32 and draws like it,
        or like the prediction of x_0."""
        if isinstance(timestep, INTEGERS):
            raise an_index()
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        entry = rows[i]
        promote(sample, model_output)  # both are tensors
        noise = self._draw(sample, generator, drawn, i) if entry.draw else None
        out = model_output.dtype
        prev, _, _ = self._apply(rows, i, entry, sample, model_output, (), noise, out, out)
        self._step_index = i + 1
        return prev


__all__ = ["FlowMatch"]
