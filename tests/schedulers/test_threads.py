"""Two threads, two schedulers, the same tables: the bits of one run after the other.

One scheduler is one run at a time, as in diffusers; what schedules share between instances (rows,
kernels) may be used, and made, by all threads at once.
"""

import threading

import pytest
import torch

from .classes import (
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EDM_DPM,
    EULER,
    EULER_A,
    FLOW_EULER,
    HEUN,
    KDPM2,
    KDPM2_A,
    LCM,
    LMS,
    PNDM,
    SA,
    SD,
    SINGLE,
    TCD,
    UNIPC,
    ours,
    unused,
)
from .loops import loop

CASES = [
    (DPM, {"solver_order": 3, "use_karras_sigmas": True}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    (SINGLE, {"solver_order": 3}),
    (EDM_DPM, {}),
    (DDIM, {}),
    (EULER, {}),
    (EULER_A, {}),
    (DDPM, {}),
    (UNIPC, {"solver_order": 3}),
    (DEIS, {"solver_order": 3}),
    (LCM, {}),
    (HEUN, {}),
    (KDPM2, {}),
    (LMS, {}),
    (SA, {"predictor_order": 3, "corrector_order": 3}),
    (PNDM, {"skip_prk_steps": True}),
    (KDPM2_A, {}),
    (TCD, {}),
    (FLOW_EULER, {}),
]


def run(name, config, steps):
    return loop(ours(name)(**config), steps=steps)


@pytest.mark.parametrize("other", ["same schedule", "another schedule"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_at_once_as_one_after_the_other(name, config, other):
    for _ in range(5):
        # a schedule that nobody has made yet, so that both threads come to make it
        first = unused(name) | config
        steps = (30, 30 if other == "same schedule" else 29)
        start, results = threading.Barrier(2), [None, None]

        def work(j, config=first, start=start, results=results, steps=steps):
            start.wait()
            results[j] = run(name, config, steps[j])

        threads = [threading.Thread(target=work, args=(j,)) for j in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for j in range(2):
            alone = run(name, first, steps[j])
            assert results[j] is not None
            assert all(torch.equal(a, b) for a, b in zip(results[j], alone, strict=True))


def test_many_threads_on_many_schedules():
    """More schedules than are kept: rows that are dropped and made again are the same numbers."""
    schedules = [SD | {"beta_start": 0.0008 + 1e-6 * j} for j in range(90)]
    expected = [run(DDIM, config, 4)[-1] for config in schedules]
    results = {}

    def work(offset):
        for j in range(offset, len(schedules), 4):
            results[j] = run(DDIM, schedules[j], 4)[-1]

    threads = [threading.Thread(target=work, args=(j,)) for j in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[j], expected[j]) for j in range(len(schedules)))
